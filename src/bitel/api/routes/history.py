"""`/api/v2/voice/calls` and `/campaigns`: lists with filters, the newest entry first."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.dependencies import (
    USUAL_PAGE,
    Cursor,
    DirectRoute,
    Limit,
    Owner,
    read_cursor,
    services_of,
    write_cursor,
)
from bitel.api.filters import (
    DateRange,
    Since,
    Until,
    read_id,
    read_names,
    read_number,
    read_reference,
)
from bitel.api.openapi import described
from bitel.api.responses import (
    CampaignPage,
    ListedCallPage,
    listed_call_answer,
    success,
)
from bitel.domain.calls import CallStatus
from bitel.domain.campaign_json import CampaignPhase, campaign_answer
from bitel.errors import InvalidPhoneNumberError, InvalidRequestError
from bitel.store import call_lists
from bitel.store.call_lists import AFTER_LAST_ID, CallFilter, Page, Span

router = APIRouter(prefix="/api/v2/voice", route_class=DirectRoute)


@router.get(
    "/calls",
    **described(
        "The calls of the project",
        "calls",
        ListedCallPage,
        [InvalidRequestError, InvalidPhoneNumberError],
    ),
)
async def calls(
    request: Request,
    project: Owner,
    status: Annotated[
        str | None, Query(description="Names of statuses, separated by commas; any if left out.")
    ] = None,
    phoneNumber: Annotated[str | None, Query(description="In any spelling.")] = None,
    reference: Annotated[str | None, Query(description="As the client gave it.")] = None,
    campaignId: Annotated[str | None, Query(description="The `campaignId` of a batch.")] = None,
    since: Since = None,
    until: Until = None,
    cursor: Cursor = None,
    limit: Limit = USUAL_PAGE,
) -> Response:
    """A page of calls that fit all filters, the newest first. A page may be short, or empty,
    though older calls follow: there are no more only where `nextCursor` is null."""
    context = services_of(request).context
    wanted = CallFilter(
        statuses=read_names(status, "status", CallStatus),
        e164=read_number(phoneNumber, context.settings),
        reference=read_reference(reference),
        campaign_id=read_id(campaignId, "campaignId"),
    )
    dates = DateRange(since, until)
    span = dates.span(read_cursor(cursor), context.date, context.clock())
    page = await context.database.read(
        lambda conn: call_lists.find_calls(conn, project.id, wanted, span, limit)
    )
    listed = (listed_call_answer(each, context.date) for each in page.entries)
    return _page("calls", [each for each in listed if each["requestDate"] in dates], page)


@router.get(
    "/campaigns",
    **described("The campaigns of the project", "campaigns", CampaignPage, [InvalidRequestError]),
)
async def campaigns(
    request: Request,
    project: Owner,
    state: Annotated[
        str | None, Query(description="Names of states, separated by commas; any if left out.")
    ] = None,
    cursor: Cursor = None,
    limit: Limit = USUAL_PAGE,
) -> Response:
    """A page of campaigns in these states, the newest first. A page may be short, or empty,
    though older campaigns follow: there are no more only where `nextCursor` is null."""
    context = services_of(request).context
    phases = read_names(state, "state", CampaignPhase)
    span = Span(before=read_cursor(cursor) or AFTER_LAST_ID)
    date = context.system_clock()
    page = await context.database.read(
        lambda conn: call_lists.find_campaigns(conn, project.id, phases, date, span, limit)
    )
    listed = [campaign_answer(each, context.date, date) for each in page.entries]
    return _page("campaigns", listed, page)


def _page(name: str, entries: list[dict[str, Any]], page: Page[Any]) -> Response:
    before = page.next_before
    return success({name: entries, "nextCursor": None if before is None else write_cursor(before)})
