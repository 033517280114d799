"""`/api/v2/voice/campaign/{id}/events` and `/results.csv`: a campaign's progress and results."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.campaign_events import CampaignKey
from bitel.api.dependencies import ACCESS_PARAMETER, DirectRoute, Holder, services_of
from bitel.api.openapi import described_stream
from bitel.domain.ids import is_id
from bitel.errors import InvalidRequestError, NotFoundError

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


@router.get(
    "/campaign/{campaign_id}/events",
    **described_stream(
        "Follow the progress of a campaign",
        "campaigns",
        "text/event-stream",
        _EVENTS_EXAMPLE,
        [NotFoundError, InvalidRequestError],
        _EVENTS_PARAMETERS,
    ),
)
async def campaign_events(request: Request, holder: Holder, campaign_id: CampaignId) -> Response:
    """Server-sent events: `progress` at once and whenever the campaign has changed, at most once a
    second, and `finished` when all of its calls are over; then the stream ends. The data of each
    is the campaign, as `GET /api/v2/voice/campaign/{campaign_id}` answers it. A comment is sent
    every 15 s. A client that connects again after `finished` is answered 204."""
    key = CampaignKey(holder.project.id, campaign_id)
    events = services_of(request).campaign_events
    present = await events.find(key) if is_id(campaign_id) else None
    if present is None:
        raise NotFoundError("this project has no campaign of that id")
    return events.stream(key, holder.token, present, request.headers.get("last-event-id", ""))
