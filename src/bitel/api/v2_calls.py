"""`/api/v2/voice`: how calls and campaigns stand, and calling them off."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.auth import Owner, Token
from bitel.api.context import parts_of
from bitel.api.direct import DirectRoute
from bitel.api.envelope import success
from bitel.api.openapi import described
from bitel.api.paging import USUAL_PAGE, Cursor, Limit, next_cursor, read_cursor
from bitel.api.paths import CALL_ID
from bitel.api.responses import CallAnswer, CallPage, CampaignAnswer, call_answer, campaign_answer
from bitel.api.statuses import statuses_of
from bitel.domain.ids import is_id
from bitel.errors import InvalidRequestError, NotFoundError
from bitel.store import calls as call_rows
from bitel.store import campaigns

router = APIRouter(prefix="/api/v2/voice", route_class=DirectRoute)

CallId = Annotated[str, Path(description="The `id` of a call.")]
CampaignId = Annotated[str, Path(description="The `campaignId` of a batch.")]


@router.get(
    "/status/{call_id}", **described("How a call stands", "calls", CallAnswer, [NotFoundError])
)
async def status(request: Request, token: Token, call_id: CallId) -> Response:
    """A call is `WAITING` until its last attempt is over, and final from then on."""
    call = await statuses_of(request).of(token, call_id)
    return success(call_answer(call, parts_of(request).date))


@router.delete(f"/{CALL_ID}", **described("Call off a call", "calls", CallAnswer, [NotFoundError]))
async def cancel(request: Request, project: Owner, call_id: CallId) -> Response:
    """A call that waits is `CANCELED` at once. One that is being dialled is hung up in a moment,
    unless somebody answers first; what is over stays as it is. Answers how the call stands."""
    parts = parts_of(request)
    now = parts.clock()
    call = await parts.database.write(lambda conn: call_rows.cancel(conn, project.id, call_id, now))
    return success(call_answer(call, parts.date))


@router.get(
    "/campaign/{campaign_id}",
    **described("How a campaign stands", "campaigns", CampaignAnswer, [NotFoundError]),
)
async def campaign(request: Request, project: Owner, campaign_id: CampaignId) -> Response:
    """Counts the campaign's calls by status. `finishedDate` is 0 until all of them are over."""
    state = await _state(request, project.id, campaign_id)
    return success(campaign_answer(state, parts_of(request).date))


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
    calls = await parts_of(request).database.read(
        lambda conn: campaigns.page(conn, project.id, campaign_id, after, limit)
    )
    last, date = calls[-1].id if calls else "", parts_of(request).date
    return success(
        {
            "calls": [call_answer(call, date) for call in calls],
            "nextCursor": next_cursor(last, len(calls), limit),
        }
    )


@router.delete(
    "/campaign/{campaign_id}",
    **described("Call off a campaign", "campaigns", CampaignAnswer, [NotFoundError]),
)
async def cancel_campaign(request: Request, project: Owner, campaign_id: CampaignId) -> Response:
    """Calls off every call of it that nobody has answered yet. Answers how the campaign stands."""
    parts = parts_of(request)
    if not is_id(campaign_id):
        raise _no_campaign()
    now = parts.clock()
    done = False
    while not done:
        done = await parts.database.write(
            lambda conn: campaigns.cancel(conn, project.id, campaign_id, now)
        )
    state = await _state(request, project.id, campaign_id)
    return success(campaign_answer(state, parts_of(request).date))


async def _state(request: Request, project_id: str, campaign_id: str) -> campaigns.CampaignState:
    state = None
    if is_id(campaign_id):
        state = await parts_of(request).database.read(
            lambda conn: campaigns.find(conn, project_id, campaign_id)
        )
    if state is None:
        raise _no_campaign()
    return state


def _no_campaign() -> NotFoundError:
    return NotFoundError("this project has no campaign of that id")
