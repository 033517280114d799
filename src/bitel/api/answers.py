"""What results look like on the wire, as plain dicts and as models for the OpenAPI document."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from bitel.calls.call import Call, CallStatus, NewCall
from bitel.store.recordings import Recording

T = TypeVar("T")


class CallAnswer(BaseModel):
    """A call, as clients see it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0197b2a4c1d07e63a5f81c0d9be24f17",
                    "phoneNumber": "09121234567",
                    "status": "WAITING",
                    "statusCode": 0,
                    "billSec": 0,
                    "requestDate": 1764640750,
                    "executionDate": 0,
                    "price": 0.0,
                }
            ]
        }
    )

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    phoneNumber: Annotated[str, Field(description="As the client sent it.")]
    status: Annotated[str, Field(json_schema_extra={"enum": [s.name for s in CallStatus]})]
    statusCode: Annotated[int, Field(json_schema_extra={"enum": [s.value for s in CallStatus]})]
    billSec: Annotated[int, Field(description="Whole seconds from answer to hang-up, rounded up.")]
    requestDate: Annotated[int, Field(description="Unix seconds.")]
    executionDate: Annotated[
        int, Field(description="Unix seconds at which the deciding attempt was dialled; 0 if none.")
    ]
    price: Annotated[float, Field(description="What the call changed the balance by: 0 or less.")]


class RecordingAnswer(BaseModel):
    """A stored recording; its `id` is the `voiceId` of calls."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    name: str
    duration: Annotated[float, Field(description="Seconds.")]
    size: Annotated[int, Field(description="Bytes, as uploaded.")]


class ServerAnswer(BaseModel):
    """A dialer that a client may name as `serverId`."""

    id: str
    up: Annotated[bool, Field(description="Whether it has been at work in the last 15 seconds.")]


class Success(BaseModel, Generic[T]):
    """The envelope of a result."""

    result: T
    error: None


class Failure(BaseModel):
    """The envelope of an error."""

    result: None
    error: Annotated[str, Field(description="A bare code, fit for a program.")]
    message: Annotated[str, Field(description="A sentence, fit for a person.")]


def waiting(call: NewCall) -> Call:
    """A call as it stands the moment it is placed."""
    return Call(
        id=call.id,
        project_id=call.project_id,
        campaign_id=call.campaign_id,
        phone_number=call.phone_number,
        status=CallStatus.WAITING,
        bill_seconds=0,
        requested_at=call.requested_at,
        executed_at=0.0,
        price=Decimal(0),
    )


def call_answer(call: Call) -> dict[str, Any]:
    """The eight keys of a call, in the order that clients know."""
    return {
        "id": call.id,
        "phoneNumber": call.phone_number,
        "status": call.status.name,
        "statusCode": int(call.status),
        "billSec": call.bill_seconds,
        "requestDate": int(call.requested_at),
        "executionDate": int(call.executed_at),
        "price": balance_change(call.price),
    }


def balance_change(cost: Decimal) -> float:
    """What a cost of zero or more does to a balance: its negative, and 0.0 rather than -0.0."""
    return float(-cost) if cost else 0.0


def recording_answer(recording: Recording) -> dict[str, Any]:
    """A recording's keys, in the order of `RecordingAnswer`."""
    return {
        "id": recording.id,
        "name": recording.name,
        "duration": round(recording.duration, 3),
        "size": recording.size,
    }
