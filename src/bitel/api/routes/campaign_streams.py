"""`/api/v2/voice/campaign/{id}/events` and `/results.csv`: a campaign's progress and results."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.campaign_events import CampaignKey
from bitel.api.dependencies import ACCESS_PARAMETER, DirectRoute, Holder, Owner, services_of
from bitel.api.openapi import described_stream
from bitel.api.results_csv import COLUMNS, ResultsResponse
from bitel.domain.ids import is_id
from bitel.errors import InvalidRequestError, NotFoundError
from bitel.store import campaigns

router = APIRouter(prefix="/api/v2/voice", route_class=DirectRoute)

CampaignId = Annotated[str, Path(description="The `campaignId` of a batch.")]

_EVENTS_EXAMPLE: Final = """\
retry: 3000

id: 5f0c1b2a9d8e7f60
event: progress
data: {"id":"0197b2a4c1d07e63a5f81c0d9be24f16","total":3,"byStatus":{"WAITING":1, …}, …}

id: finished
event: finished
data: {"id":"0197b2a4c1d07e63a5f81c0d9be24f16","total":3,"byStatus":{"WAITING":0, …}, …}

"""
_RESULTS_EXAMPLE: Final = (
    ",".join(COLUMNS)
    + "\r\n0197b2a4c1d07e63a5f81c0d9be24f17,09121234567,order-4711,NORMAL,answered,12,"
    "2025-12-02T02:32:30Z,2025-12-02T02:33:31Z,-34.2,2,1,,ANSWERED,200,"
    '"1: BUSY 486, dialled 2025-12-02T02:32:30Z, ended 2025-12-02T02:32:31Z; '
    "2: ANSWERED 200, dialled 2025-12-02T02:33:31Z, rang 2025-12-02T02:33:32Z, "
    'answered 2025-12-02T02:33:35Z, ended 2025-12-02T02:33:47Z, keys 1"\r\n'
)
_EVENTS_PARAMETERS: Final[list[dict[str, Any]]] = [
    {
        "name": ACCESS_PARAMETER,
        "in": "query",
        "required": False,
        "description": "The token, in place of the header Authorization, which a browser's "
        "`EventSource` can't send.",
        "schema": {"type": "string"},
    },
    {
        "name": "Last-Event-ID",
        "in": "header",
        "required": False,
        "description": "The `id` of the last event that was received; a browser sends it when it "
        "connects again. What it says is not sent again.",
        "schema": {"type": "string"},
    },
]


_EVENTS: Final = described_stream(
    "Follow the progress of a campaign",
    "campaigns",
    "text/event-stream",
    _EVENTS_EXAMPLE,
    [NotFoundError, InvalidRequestError],
    _EVENTS_PARAMETERS,
)
_EVENTS["responses"][204] = {"description": "The client has the last event already."}


@router.get("/campaign/{campaign_id}/events", **_EVENTS)
async def campaign_events(request: Request, holder: Holder, campaign_id: CampaignId) -> Response:
    """Server-sent events: `progress` at once and whenever the campaign has changed, at most once a
    second, and `finished` when all of its calls are over; then the stream ends. The data of each
    is the campaign, as `GET /api/v2/voice/campaign/{campaign_id}` answers it. A comment is sent
    every 15 s. A client that connects again after `finished` is answered 204."""
    key = CampaignKey(holder.project.id, campaign_id)
    events = services_of(request).campaign_events
    present = await events.find(key) if is_id(campaign_id) else None
    if present is None:
        raise _no_campaign()
    return events.stream(key, holder.token, present, request.headers.get("last-event-id", ""))


@router.get(
    "/campaign/{campaign_id}/results.csv",
    **described_stream(
        "The results of a campaign",
        "campaigns",
        "text/csv",
        _RESULTS_EXAMPLE,
        [NotFoundError],
    ),
)
async def campaign_results(request: Request, project: Owner, campaign_id: CampaignId) -> Response:
    """A table for spreadsheets, with one line for each call in the order in which they were asked
    for, as it is when its line is sent. UTF-8 with a byte order mark; dates are UTC. `attempts` is
    their number, `lastOutcome` and `lastSipCode` are those of the last, and `attemptDetails` has
    all of them in one text. Text that would be a formula begins with an apostrophe."""
    services = services_of(request)
    found = None
    if is_id(campaign_id):
        found = await services.context.database.read(
            lambda conn: campaigns.find(conn, project.id, campaign_id)
        )
    if found is None:
        raise _no_campaign()
    return ResultsResponse(services.context, services.downloads, project.id, campaign_id)


def _no_campaign() -> NotFoundError:
    return NotFoundError("this project has no campaign of that id")
