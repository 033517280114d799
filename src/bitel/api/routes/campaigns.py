"""`/api/v2/voice/campaign`: campaigns and their calls; pausing, changing and canceling them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.dependencies import (
    USUAL_PAGE,
    Cursor,
    DirectRoute,
    Limit,
    Owner,
    next_cursor,
    read_cursor,
    services_of,
)
from bitel.api.openapi import described
from bitel.api.placement import check_date
from bitel.api.reading import read
from bitel.api.responses import CallPage, CampaignAnswer, success
from bitel.api.schemas import CampaignPatch
from bitel.domain.call_json import call_answer
from bitel.domain.campaign_json import CampaignState, campaign_answer
from bitel.domain.ids import is_id
from bitel.errors import ConflictError, InvalidRequestError, NotFoundError
from bitel.store import campaigns
from bitel.store.campaigns import CampaignChanges

router = APIRouter(prefix="/api/v2/voice", route_class=DirectRoute)

CampaignId = Annotated[str, Path(description="The `campaignId` of a batch.")]


@router.get(
    "/campaign/{campaign_id}",
    **described("How a campaign stands", "campaigns", CampaignAnswer, [NotFoundError]),
)
async def campaign(request: Request, project: Owner, campaign_id: CampaignId) -> Response:
    """Counts the campaign's calls by status. `finishedDate` is 0 until all of them are over."""
    return await _answer(request, project.id, campaign_id)


@router.get(
    "/campaign/{campaign_id}/calls",
    **described(
        "The calls of a campaign", "campaigns", CallPage, [NotFoundError, InvalidRequestError]
    ),
)
async def campaign_calls(
    request: Request,
    project: Owner,
    campaign_id: CampaignId,
    cursor: Cursor = None,
    limit: Limit = USUAL_PAGE,
) -> Response:
    """A page of calls, in the order in which they were asked for."""
    after = read_cursor(cursor)
    await _state(request, project.id, campaign_id)
    calls = await services_of(request).context.database.read(
        lambda conn: campaigns.page(conn, project.id, campaign_id, after, limit)
    )
    last, date = calls[-1].id if calls else "", services_of(request).context.date
    return success(
        {
            "calls": [call_answer(call, date) for call in calls],
            "nextCursor": next_cursor(last, len(calls), limit),
        }
    )


@router.post(
    "/campaign/{campaign_id}/pause",
    **described("Pause a campaign", "campaigns", CampaignAnswer, [NotFoundError, ConflictError]),
)
async def pause_campaign(request: Request, project: Owner, campaign_id: CampaignId) -> Response:
    """No further attempt of it starts until it is resumed, and its time to live stops; calls that
    ring or play go on. A campaign that is paused or over stays as it is. Answers how it stands."""
    context = services_of(request).context
    return await _change(
        request,
        campaign_id,
        lambda conn: campaigns.pause(conn, project.id, campaign_id, context.clock()),
    )


@router.post(
    "/campaign/{campaign_id}/resume",
    **described("Resume a campaign", "campaigns", CampaignAnswer, [NotFoundError]),
)
async def resume_campaign(request: Request, project: Owner, campaign_id: CampaignId) -> Response:
    """Its calls are dialled again, and its time to live goes on. A campaign that is not paused
    stays as it is. Answers how it stands."""
    context = services_of(request).context
    return await _change(
        request,
        campaign_id,
        lambda conn: campaigns.resume(conn, project.id, campaign_id, context.clock()),
    )


@router.patch(
    "/campaign/{campaign_id}",
    **described(
        "Change a campaign",
        "campaigns",
        CampaignAnswer,
        [NotFoundError, InvalidRequestError],
        body=CampaignPatch,
    ),
)
async def change_campaign(request: Request, project: Owner, campaign_id: CampaignId) -> Response:
    """Changes its name, its pace and its end while it runs; null removes a limit. Fields that are
    left out stay as they are. Answers how it stands."""
    context = services_of(request).context
    body = await read(request, CampaignPatch, context.settings.http.max_body)
    changes: CampaignChanges = {}
    if "name" in body.model_fields_set:
        changes["name"] = body.name
    if "calls_per_second" in body.model_fields_set:
        changes["calls_per_second"] = body.calls_per_second
    if "max_channels" in body.model_fields_set:
        changes["max_channels"] = body.max_channels
    if "end_at" in body.model_fields_set:
        check_date("endAt", body.end_at, context.system_clock())
        changes["end_at"] = body.end_at
    return await _change(
        request,
        campaign_id,
        lambda conn: campaigns.change(conn, project.id, campaign_id, **changes),
    )


@router.delete(
    "/campaign/{campaign_id}",
    **described("Call off a campaign", "campaigns", CampaignAnswer, [NotFoundError]),
)
async def cancel_campaign(request: Request, project: Owner, campaign_id: CampaignId) -> Response:
    """Calls off every call of it that nobody has answered yet. Answers how the campaign stands."""
    context = services_of(request).context
    if not is_id(campaign_id):
        raise _no_campaign()
    now = context.clock()
    await context.database.write(
        lambda conn: campaigns.mark_canceled(conn, project.id, campaign_id, now)
    )
    done = False
    while not done:
        done = await context.database.write(
            lambda conn: campaigns.cancel_calls(conn, campaign_id, now)
        )
    return await _answer(request, project.id, campaign_id)


async def _change(
    request: Request, campaign_id: str, work: Callable[[Connection], tuple[str, CampaignState]]
) -> Response:
    """Change a campaign, and have its dialer look at it at once."""
    if not is_id(campaign_id):
        raise _no_campaign()
    context = services_of(request).context
    dialer_id, state = await context.database.write(work)
    context.on_placed(dialer_id)
    return success(campaign_answer(state, context.date, context.system_clock()))


async def _answer(request: Request, project_id: str, campaign_id: str) -> Response:
    context = services_of(request).context
    state = await _state(request, project_id, campaign_id)
    return success(campaign_answer(state, context.date, context.system_clock()))


async def _state(request: Request, project_id: str, campaign_id: str) -> CampaignState:
    state = None
    if is_id(campaign_id):
        state = await services_of(request).context.database.read(
            lambda conn: campaigns.find(conn, project_id, campaign_id)
        )
    if state is None:
        raise _no_campaign()
    return state


def _no_campaign() -> NotFoundError:
    return NotFoundError("this project has no campaign of that id")
