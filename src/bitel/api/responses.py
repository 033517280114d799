"""Responses: the envelope `{"result": …, "error": null}`, the models of results, and their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from bitel.api.placement import StoredAnswer
from bitel.domain.attempts import Outcome
from bitel.domain.call_json import DateOf, call_answer
from bitel.domain.calls import CallStatus
from bitel.domain.campaign_json import CampaignPhase
from bitel.errors import BitelError, TooManyRequestsError, UnauthorizedError
from bitel.exact_json import dumps as as_json
from bitel.recipient_lists.reading import Summary
from bitel.store.call_lists import ListedCall
from bitel.store.calls import Cdr
from bitel.store.recipient_lists import RecipientList
from bitel.store.recordings import Recording

JSON: Final = "application/json"
REPLAYED: Final = "Idempotent-Replayed"
"""Header of an answer that repeats the one to an earlier request with the same Idempotency-Key."""
UNEXPECTED: Final = "the service failed in a way it did not expect; its log says how"
T = TypeVar("T")

_CALL: Final[dict[str, Any]] = {
    "id": "0197b2a4c1d07e63a5f81c0d9be24f17",
    "phoneNumber": "09121234567",
    "status": "WAITING",
    "statusCode": 0,
    "billSec": 0,
    "requestDate": 1764640750,
    "executionDate": 0,
    "price": 0.0,
}
_RECORDING: Final[dict[str, Any]] = {
    "id": "0197b2a4b5317c4e9d20e6f1a8c37b95",
    "name": "hello.mp3",
    "duration": 6.02,
    "size": 96344,
}
_LIST: Final[dict[str, Any]] = {
    "id": "0197b2a4b9023c5f8e71d4a6b0c2f358",
    "name": "customers.xlsx",
    "createdDate": 1764640750,
    "recipients": 3,
    "columns": ["name"],
}
_INVALID_ROW: Final[dict[str, Any]] = {
    "line": 4,
    "value": "0912",
    "message": "phoneNumber '0912' is not the number of a subscriber; write all its digits, as "
    "dialed within IR, or with its country code (+98…)",
}
_CAMPAIGN_ID: Final = "0197b2a4c1d07e63a5f81c0d9be24f16"
_SKIPPED: Final[dict[str, Any]] = {
    "index": 1,
    "phoneNumber": "0912",
    "message": "phoneNumbers[1] '0912' is not the number of a subscriber",
}
_CURSOR: Final = "AZeypMHQfmOl-BwNm-JPFw=="
_CAMPAIGN: Final[dict[str, Any]] = {
    "id": _CAMPAIGN_ID,
    "total": 3,
    "byStatus": {s.name: {"WAITING": 1, "NORMAL": 2}.get(s.name, 0) for s in CallStatus},
    "requestDate": 1764640750,
    "finishedDate": 0,
    "price": -68.4,
    "name": "reminders",
    "reference": "2026-11",
    "state": "RUNNING",
    "answered": 2,
    "keys": {"yes": 2},
    "machines": {"human": 0, "machine": 0},
    "startAt": None,
    "endAt": 1764694800,
    "window": None,
    "callsPerSecond": 5.0,
    "maxChannels": None,
}
_LISTED_CALL: Final[dict[str, Any]] = {
    **_CALL,
    "campaignId": _CAMPAIGN_ID,
    "reference": "order-4711",
}


_ATTEMPT: Final[dict[str, Any]] = {
    "number": 1,
    "startDate": 1764640751,
    "ringDate": 1764640753,
    "answerDate": 1764640760,
    "endDate": 1764640772,
    "outcome": "ANSWERED",
    "sipCode": 200,
    "cause": 16,
    "reason": "answered",
    "endedBy": "callee",
    "callerId": "02191000000",
    "keys": "1",
    "reports": ["yes"],
    "lossPercent": 0.4,
    "jitterMs": 2.5,
}
_CALL_DETAILS: Final[dict[str, Any]] = {
    **_CALL,
    "status": "NORMAL",
    "statusCode": 1,
    "billSec": 12,
    "executionDate": 1764640751,
    "price": -34.2,
    "campaignId": _CAMPAIGN_ID,
    "reference": "order-4711",
    "reason": "answered",
    "machine": None,
    "keys": "1",
    "reports": ["yes"],
    "attempts": [_ATTEMPT],
}


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


def example_of(shape: type[BaseModel]) -> dict[str, Any]:
    """The example of an answer."""
    extra = shape.model_config["json_schema_extra"]
    assert isinstance(extra, dict)
    examples = extra["examples"]
    assert isinstance(examples, list)
    found = examples[0]
    assert isinstance(found, dict)
    return found


class CallAnswer(BaseModel):
    """A call, as clients see it."""

    model_config = _example(**_CALL)

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

    model_config = _example(**_RECORDING)

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    name: str
    duration: Annotated[float, Field(description="Seconds.")]
    size: Annotated[int, Field(description="Bytes, as uploaded.")]


class UploadAnswer(RecordingAnswer):
    """A recording that was uploaded."""

    warning: Annotated[
        str | None,
        Field(description="What is wrong with the file, as that it is cut short; else absent."),
    ] = None


class ServerAnswer(BaseModel):
    """A dialer that a client may name as `serverId`."""

    model_config = _example(
        id="main", up=True, paused=None, workers=2, channels=37, callsPerSecond=4.8, lateMs=0.4,
        since=1794134400,
    )  # fmt: skip

    id: str
    up: Annotated[
        bool,
        Field(
            description="Whether it has been at work in the last 15 seconds and reached a carrier."
        ),
    ]
    paused: Annotated[
        str | None,
        Field(description="Why its calls wait although its trunk answers; null while it calls."),
    ]
    workers: Annotated[
        int, Field(description="Processes that dial for it, seen in the last 15 seconds.")
    ]
    channels: Annotated[int, Field(description="Channels in use, of all of its workers.")]
    callsPerSecond: Annotated[float, Field(description="Calls begun a second, on average.")]
    lateMs: Annotated[
        float, Field(description="How late packets of audio leave the latest of its workers.")
    ]
    since: Annotated[
        int | None, Field(description="Since when the oldest of its workers runs; null: none does.")
    ]


class CampaignAnswer(BaseModel):
    """How the calls of one request stand, all together."""

    model_config = _example(**_CAMPAIGN)

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    total: Annotated[int, Field(description="Calls in all.")]
    byStatus: Annotated[
        dict[str, int], Field(description="How many calls are in each status, by its name.")
    ]
    requestDate: Annotated[int, Field(description="Unix seconds.")]
    finishedDate: Annotated[
        int, Field(description="Unix seconds at which the last call was over; 0 until then.")
    ]
    price: Annotated[
        float, Field(description="What the calls changed the balance by, together: 0 or less.")
    ]
    name: Annotated[str | None, Field(description="As the client gave it.")]
    reference: Annotated[str | None, Field(description="As the client gave it.")]
    state: Annotated[str, Field(json_schema_extra={"enum": list(CampaignPhase)})]
    answered: Annotated[int, Field(description="Calls that were answered, and are over.")]
    keys: Annotated[
        dict[str, int],
        Field(description="How many calls pressed each key, or reported each word; without zeros."),
    ]
    machines: Annotated[
        dict[str, int], Field(description="How many answers were of a human or a machine.")
    ]
    startAt: Annotated[
        int | None, Field(description="Unix seconds before which no attempt starts; null: none.")
    ]
    endAt: Annotated[
        int | None, Field(description="Unix seconds from which no attempt starts; null: none.")
    ]
    window: Annotated[
        str | None,
        Field(description="Its calling window, besides that of the project; null: always open."),
    ]
    callsPerSecond: Annotated[
        float | None, Field(description="Attempts that it starts a second at most; null: any.")
    ]
    maxChannels: Annotated[
        int | None, Field(description="Attempts that it makes at once at most; null: any.")
    ]


class AttemptAnswer(BaseModel):
    """One attempt of a call."""

    model_config = _example(**_ATTEMPT)

    number: Annotated[int, Field(description="1 is the first.")]
    startDate: Annotated[int, Field(description="Unix seconds.")]
    ringDate: Annotated[int, Field(description="Unix seconds; 0 if it is not known to have rung.")]
    answerDate: Annotated[int, Field(description="Unix seconds; 0 if it was not answered.")]
    endDate: Annotated[int, Field(description="Unix seconds; 0 while it is under way.")]
    outcome: Annotated[
        str | None,
        Field(
            description="null while it is under way.",
            json_schema_extra={"enum": [*(each.name for each in Outcome), None]},
        ),
    ]
    sipCode: Annotated[int | None, Field(description="The final response; null: none came.")]
    cause: Annotated[int | None, Field(description="The cause of ITU-T Q.850, if one was given.")]
    reason: Annotated[str | None, Field(description="Why it ended, in words.")]
    endedBy: Annotated[
        str | None, Field(description="`callee` or `service`: the side that ended an answered one.")
    ]
    callerId: Annotated[str | None, Field(description="The number that it showed.")]
    keys: Annotated[str, Field(description="The keys that were pressed.")]
    reports: Annotated[list[str], Field(description="The words of the keys of its menu.")]
    lossPercent: Annotated[
        float | None,
        Field(description="Packets that the callee lost; null without a report of theirs."),
    ]
    jitterMs: Annotated[float | None, Field(description="Their jitter, by the same report.")]


class CallDetailsAnswer(CallAnswer):
    """A call with its attempts."""

    model_config = _example(**_CALL_DETAILS)

    campaignId: Annotated[str | None, Field(description="null for a single call.")]
    reference: Annotated[str | None, Field(description="As the client gave it.")]
    reason: Annotated[
        str | None, Field(description="Why it has its status; null while nothing has happened.")
    ]
    machine: Annotated[
        str | None, Field(description="`human` or `machine`; null where it was not detected.")
    ]
    keys: Annotated[str, Field(description="The keys that were pressed, in all attempts.")]
    reports: Annotated[list[str], Field(description="The words that they reported.")]
    attempts: Annotated[list[AttemptAnswer], Field(description="The first one first.")]


class CallPage(BaseModel):
    """Calls, in the order in which they were asked for."""

    model_config = _example(calls=[_CALL], nextCursor=_CURSOR)

    calls: list[CallAnswer]
    nextCursor: Annotated[
        str | None, Field(description="Ask with it for the next page; null on the last one.")
    ]


class ListedCallAnswer(CallAnswer):
    """A call in a list of the project's calls."""

    model_config = _example(**_LISTED_CALL)

    campaignId: Annotated[str | None, Field(description="Of its batch; null for a single call.")]
    reference: Annotated[str | None, Field(description="As the client gave it.")]


class ListedCallPage(BaseModel):
    """Calls of the project, the newest first."""

    model_config = _example(calls=[_LISTED_CALL], nextCursor=_CURSOR)

    calls: list[ListedCallAnswer]
    nextCursor: Annotated[
        str | None, Field(description="Ask with it for the next page; null on the last one.")
    ]


class CampaignPage(BaseModel):
    """Campaigns of the project, the newest first."""

    # FastAPI leaves out what is null in an example.
    model_config = _example(
        campaigns=[
            {**_CAMPAIGN, "startAt": 1764666000, "window": "09:00-21:00", "maxChannels": 20}
        ],
        nextCursor=_CURSOR,
    )

    campaigns: list[CampaignAnswer]
    nextCursor: Annotated[
        str | None, Field(description="Ask with it for the next page; null on the last one.")
    ]


class RecordingPage(BaseModel):
    """Recordings, the oldest first."""

    model_config = _example(recordings=[_RECORDING], nextCursor=None)

    recordings: list[RecordingAnswer]
    nextCursor: Annotated[
        str | None, Field(description="Ask with it for the next page; null on the last one.")
    ]


class InvalidRow(BaseModel):
    """A row of an uploaded list that can't be called."""

    line: Annotated[int, Field(description="The row in the file as a spreadsheet shows it.")]
    value: Annotated[str, Field(description="The cell at fault.")]
    message: Annotated[str, Field(description="What is wrong with it, in a sentence.")]


class ListAnswer(BaseModel):
    """A stored list of recipients; its `id` is the `listId` of batches."""

    model_config = _example(**_LIST)

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    name: Annotated[str, Field(description="Of the uploaded file.")]
    createdDate: Annotated[int, Field(description="Unix seconds.")]
    recipients: Annotated[int, Field(description="How many it holds.")]
    columns: Annotated[list[str], Field(description="The names of its variables.")]


class ListPage(BaseModel):
    """Lists, the oldest first."""

    model_config = _example(lists=[_LIST], nextCursor=None)

    lists: list[ListAnswer]
    nextCursor: Annotated[
        str | None, Field(description="Ask with it for the next page; null on the last one.")
    ]


class ListUploadAnswer(BaseModel):
    """What an uploaded list holds."""

    model_config = _example(
        id=_LIST["id"],
        rows=3,
        valid=2,
        invalid=[_INVALID_ROW],
        columns=["name"],
        duplicates=0,
        invalidCount=1,
        numberColumn="phone",
        recipients=3,
    )

    id: Annotated[str | None, Field(description="The `listId` for batches; null after a dry run.")]
    rows: Annotated[int, Field(description="Rows below the headings that are not blank.")]
    valid: Annotated[int, Field(description="Rows that can be called.")]
    invalid: Annotated[list[InvalidRow], Field(description="The others, the first 1,000 of them.")]
    columns: Annotated[list[str], Field(description="The names of the variables.")]
    duplicates: Annotated[int, Field(description="Valid rows whose number stands in a row before.")]
    invalidCount: Annotated[int, Field(description="How many rows are not valid.")]
    numberColumn: Annotated[
        str, Field(description="The heading of the column of the numbers, or its letter.")
    ]
    recipients: Annotated[
        int, Field(description="How many the list holds; after a dry run, would hold.")
    ]


class DoNotCallPage(BaseModel):
    """Numbers that are not called, in E.164."""

    model_config = _example(phoneNumbers=["+989121234567"], nextCursor=None)

    phoneNumbers: list[str]
    nextCursor: Annotated[
        str | None, Field(description="Ask with it for the next page; null on the last one.")
    ]


class DoNotCallAnswer(BaseModel):
    """What was put on the do-not-call list."""

    model_config = _example(added=1, alreadyListed=1)

    added: int
    alreadyListed: Annotated[int, Field(description="Numbers that were on the list before.")]


class DoNotCallImportAnswer(DoNotCallAnswer):
    """What a file has put on the do-not-call list."""

    model_config = _example(added=1, alreadyListed=1, invalid=[_INVALID_ROW], invalidCount=1)

    invalid: Annotated[
        list[InvalidRow],
        Field(description="Rows without a valid number, the first 1,000 of them."),
    ]
    invalidCount: Annotated[int, Field(description="How many rows have no valid number.")]


class DoNotCallNumber(BaseModel):
    """A number that was taken off the do-not-call list."""

    model_config = _example(phoneNumber="+989121234567")

    phoneNumber: Annotated[str, Field(description="In E.164.")]


class CdrAnswer(BaseModel):
    """A call's detail record, as v1 has it."""

    model_config = _example(
        requestId=_CALL["id"],
        targetNumber="09121234567",
        status="NORMAL",
        billSec=12,
        requestDate=1764640750,
        executionDate=1764640751,
        transactionId="0197b2a4f9e27d1c8a0b4c5d6e7f8091",
        balanceSubtracted=34.2,
    )

    requestId: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    targetNumber: Annotated[str, Field(description="As the client sent it.")]
    status: Annotated[str, Field(json_schema_extra={"enum": [s.name for s in CallStatus]})]
    billSec: int
    requestDate: Annotated[int, Field(description="Unix seconds.")]
    executionDate: Annotated[int, Field(description="Unix seconds; 0 if it was not dialled.")]
    transactionId: Annotated[
        str | None, Field(description="Of the ledger entry that billed it; null if none did.")
    ]
    balanceSubtracted: Annotated[float, Field(description="What the call cost: 0 or more.")]


class AccountAnswer(BaseModel):
    """The project that the token speaks for."""

    model_config = _example(
        id="0197b2a49c5e7f0a8b1c2d3e4f506172", name="acme", balance=15000.5, currency="IRR"
    )

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    name: str
    balance: Annotated[
        float | None, Field(description="What it may still spend; null where nothing limits it.")
    ]
    currency: Annotated[str, Field(description="ISO 4217.")]


class Success(BaseModel, Generic[T]):
    """The envelope of a result."""

    result: T
    error: None


class SkippedAnswer(BaseModel):
    """A recipient that a batch has left out."""

    model_config = _example(**_SKIPPED)

    index: Annotated[int, Field(description="Its position in the request, from 0.")]
    phoneNumber: Annotated[str, Field(description="As the client sent it.")]
    message: Annotated[str, Field(description="What is wrong with it, in a sentence.")]


class BatchSuccess(Success[list[CallAnswer]]):
    """The envelope of a batch's calls."""

    model_config = _example(result=[_CALL], error=None, campaignId=_CAMPAIGN_ID, skipped=[_SKIPPED])

    campaignId: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    skipped: Annotated[
        list[SkippedAnswer] | None,
        Field(description="Who was left out; present where the request says `skipInvalid`."),
    ] = None


class Failure(BaseModel):
    """The envelope of an error."""

    model_config = _example(
        result=None, error="InvalidRequest", message="retryCount must be at most 10"
    )

    result: None
    error: Annotated[str, Field(description="A bare code, fit for a program.")]
    message: Annotated[str, Field(description="A sentence, fit for a person.")]


def success(result: Any, beside: Mapping[str, Any] | None = None) -> Response:
    """The response with `result`; `beside` are further keys of the envelope."""
    return json_response(success_body(result, beside))


def success_body(result: Any, beside: Mapping[str, Any] | None = None) -> bytes:
    """The body of `success`."""
    return _bytes(as_json({"result": result, "error": None, **(beside or {})}))


def list_body(items: Iterable[Any], beside: Mapping[str, Any] | None = None) -> bytes:
    """The body of `success` for a long list.

    Encoded item by item, since the encoder holds the GIL for each call.
    """
    return json_list_body(map(as_json, items), beside)


def json_list_body(items: Iterable[str], beside: Mapping[str, Any] | None = None) -> bytes:
    """As `list_body`, with items that are JSON text."""
    result = ",".join(items)
    rest = as_json({"error": None, **(beside or {})})
    return _bytes(f'{{"result":[{result}],{rest[1:]}')


def json_response(body: bytes) -> Response:
    """The response with this JSON body."""
    return Response(body, media_type=JSON)


def sent(answer: StoredAnswer) -> Response:
    """The response to a request that placed calls, or to its repetition."""
    headers = {REPLAYED: "true"} if answer.replayed else None
    return Response(answer.body, media_type=JSON, headers=headers)


def failure(error: BitelError, headers: Mapping[str, str] | None = None) -> Response:
    """The response for an error."""
    # The text of an error without a code of its own may name internal paths or settings.
    message = UNEXPECTED if error.code == BitelError.code else str(error)
    return Response(
        _bytes(as_json({"result": None, "error": error.code, "message": message})),
        status_code=error.http_status,
        headers={**_headers_of(error), **(headers or {})},
        media_type=JSON,
    )


def _headers_of(error: BitelError) -> dict[str, str]:
    if isinstance(error, UnauthorizedError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, TooManyRequestsError):
        return {"Retry-After": str(error.retry_after)}
    return {}


def _bytes(text: str) -> bytes:
    # A lone surrogate has no UTF-8 form; "backslashreplace" writes it as JSON does.
    return text.encode("utf-8", "backslashreplace")


def placed_answer(
    call_id: str, phone_number: str, requested_at: float, *, barred: bool = False
) -> dict[str, Any]:
    """A call that was just placed; `barred` if its number must not be called."""
    status = CallStatus.ERROR if barred else CallStatus.WAITING
    return {
        "id": call_id,
        "phoneNumber": phone_number,
        "status": status.name,
        "statusCode": int(status),
        "billSec": 0,
        "requestDate": int(requested_at),
        "executionDate": 0,
        "price": 0.0,
    }


def listed_call_answer(listed: ListedCall, date: DateOf) -> dict[str, Any]:
    """The JSON of a call in a list, in the order of `ListedCallAnswer`."""
    return {
        **call_answer(listed.call, date),
        "campaignId": listed.call.campaign_id,
        "reference": listed.reference,
    }


def recording_answer(recording: Recording) -> dict[str, Any]:
    """The JSON of a recording, in the order of `RecordingAnswer`."""
    return {
        "id": recording.id,
        "name": recording.name,
        "duration": round(recording.duration, 3),
        "size": recording.size,
    }


def list_answer(found: RecipientList, date: DateOf) -> dict[str, Any]:
    """The JSON of a list of recipients, in the order of `ListAnswer`."""
    return {
        "id": found.id,
        "name": found.name,
        "createdDate": int(date(found.created_at)),
        "recipients": found.recipients,
        "columns": found.columns,
    }


def invalid_rows(summary: Summary) -> list[dict[str, Any]]:
    """The JSON of the invalid rows of a file, in the order of `InvalidRow`."""
    return [each._asdict() for each in summary.invalid]


def cdr_answer(record: Cdr, date: DateOf) -> dict[str, Any]:
    """The JSON of a call detail record of v1, in the order of `CdrAnswer`."""
    call = record.call
    return {
        "requestId": call.id,
        "targetNumber": call.phone_number,
        "status": call.status.name,
        "billSec": call.bill_seconds,
        "requestDate": int(date(call.requested_at)),
        "executionDate": int(date(call.executed_at)),
        "transactionId": record.transaction_id,
        "balanceSubtracted": call.price,
    }
