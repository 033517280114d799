"""The webhooks in the OpenAPI document: what the service posts to the URLs of its clients.

`bitel.webhooks` sends them; the functions here only describe them, and are never called.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, Field

from bitel.api.responses import CallDetailsAnswer, CampaignAnswer, example_of
from bitel.domain.calls import CallStatus

_DATE: Final = 1764640772
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "2XX": {"description": "The event was received; the body is ignored."},
    410: {"description": "The URL is not there any more: nothing further is sent to it."},
    "default": {
        "description": "Not received. Redirects are not followed. The event is sent again after "
        "about 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h, or as `Retry-After` says."
    },
}

EventId = Annotated[
    str,
    Header(
        alias="webhook-id",
        description="The event's id, the same each time it is sent.",
        examples=["msg_0197b2a4f9e27d1c8a0b4c5d6e7f8091"],
    ),
]
Timestamp = Annotated[
    int,
    Header(
        alias="webhook-timestamp", description="Unix seconds of this try.", examples=[1764640773]
    ),
]
Signature = Annotated[
    str,
    Header(
        alias="webhook-signature",
        description="`v1,` and the base64 of the HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}."
        "{body}` with the project's secret, as https://www.standardwebhooks.com specifies; several "
        "are separated by spaces.",
        examples=["v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="],
    ),
]


class CallEndEvent(BaseModel):
    """The end of a call."""

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "requestId": "0197b2a4c1d07e63a5f81c0d9be24f17",
                    "campaignId": None,
                    "cause": "NORMAL",
                    "billSec": 12,
                    "number": "09121234567",
                    "requestDate": 1764640750,
                    "balanceSubtracted": 34.2,
                }
            ]
        }
    }

    requestId: Annotated[str, Field(description="The call's id.", pattern="^[0-9a-f]{32}$")]
    campaignId: Annotated[str | None, Field(description="null for a single call.")]
    cause: Annotated[
        str,
        Field(
            description="The call's status.",
            json_schema_extra={"enum": [each.name for each in CallStatus if each.final]},
        ),
    ]
    billSec: Annotated[int, Field(description="Whole seconds from answer to hang-up, rounded up.")]
    number: Annotated[str, Field(description="As the client sent it.")]
    requestDate: Annotated[int, Field(description="Unix seconds.")]
    balanceSubtracted: Annotated[float, Field(description="What the call cost: 0 or more.")]


class CallEvent(BaseModel):
    """Something that has happened to a call."""

    model_config = {
        "json_schema_extra": {
            "examples": [
                {"type": "call.completed", "date": _DATE, "data": example_of(CallDetailsAnswer)}
            ]
        }
    }

    type: Literal["call.initiated", "call.ringing", "call.answered", "call.completed"]
    date: Annotated[int, Field(description="When it happened, in Unix seconds.")]
    data: CallDetailsAnswer


class CampaignEvent(BaseModel):
    """Something that has happened to a campaign."""

    model_config = {
        "json_schema_extra": {
            "examples": [
                {"type": "campaign.finished", "date": _DATE, "data": example_of(CampaignAnswer)}
            ]
        }
    }

    type: Literal["campaign.finished"]
    date: Annotated[int, Field(description="When it happened, in Unix seconds.")]
    data: CampaignAnswer


router = APIRouter()


def _described(name: str, operation_id: str, summary: str) -> dict[str, Any]:
    return {
        "path": name,
        "operation_id": operation_id,
        "summary": summary,
        "tags": ["webhooks"],
        "response_class": Response,
        "response_model": None,
        "responses": _RESPONSES,
    }


@router.post(**_described("call.ended", "onCallEnded", "A call is over"))
def call_ended(
    event: CallEndEvent, event_id: EventId, timestamp: Timestamp, signature: Signature
) -> None:
    """Sent once for every call of a project that has a URL, and of a request that names one, when
    it has reached its final status. Its body has no `type`."""


@router.post(**_described("call.initiated", "onCallInitiated", "An attempt begins"))
def call_initiated(
    event: CallEvent, event_id: EventId, timestamp: Timestamp, signature: Signature
) -> None:
    """Sent where its type is asked for: an attempt of the call is being dialled."""


@router.post(**_described("call.ringing", "onCallRinging", "A phone rings"))
def call_ringing(
    event: CallEvent, event_id: EventId, timestamp: Timestamp, signature: Signature
) -> None:
    """Sent where its type is asked for: the called phone rings."""


@router.post(**_described("call.answered", "onCallAnswered", "A call is answered"))
def call_answered(
    event: CallEvent, event_id: EventId, timestamp: Timestamp, signature: Signature
) -> None:
    """Sent where its type is asked for: an attempt of the call was answered, and is played to."""


@router.post(**_described("call.completed", "onCallCompleted", "An attempt is over"))
def call_completed(
    event: CallEvent, event_id: EventId, timestamp: Timestamp, signature: Signature
) -> None:
    """Sent where its type is asked for: an attempt of the call is over, and there may be another
    one; `data.status` is `WAITING` then."""


@router.post(**_described("campaign.finished", "onCampaignFinished", "A campaign is over"))
def campaign_finished(
    event: CampaignEvent, event_id: EventId, timestamp: Timestamp, signature: Signature
) -> None:
    """Sent where its type is asked for: the last call of the campaign is over."""
