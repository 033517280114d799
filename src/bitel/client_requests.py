"""The requests of the HTTP API as plain values, and how their answers are read.

`bitel.client` sends them, blocking or asynchronously.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NotRequired, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx

from bitel.errors import BY_CODE, BitelError, TooManyRequestsError, UnavailableError

T = TypeVar("T")

FILES: Final = "/api/v2/files/voice"
"""The path at which recordings are uploaded and listed."""


class Call(TypedDict):
    """A call, with the eight keys of the API; `statusCode` is 0 until it is final."""

    id: str
    phoneNumber: str
    status: str
    statusCode: int
    billSec: int
    requestDate: int
    executionDate: int
    price: float


class Batch(TypedDict):
    """The calls of a batch, in the order of its numbers, and the id of their campaign."""

    calls: list[Call]
    campaignId: str


class Campaign(TypedDict):
    """A campaign, with its calls counted by status; `finishedDate` is 0 until all are final."""

    id: str
    total: int
    byStatus: dict[str, int]
    requestDate: int
    finishedDate: int
    price: float


class CallPage(TypedDict):
    """A page of a campaign's calls; `nextCursor` is None on the last one."""

    calls: list[Call]
    nextCursor: str | None


class Recording(TypedDict):
    """A recording; `duration` in seconds, `size` in bytes."""

    id: str
    name: str
    duration: float
    size: int
    warning: NotRequired[str]
    """What is wrong with the uploaded file, as one sentence."""


class RecordingPage(TypedDict):
    """A page of the recordings; `nextCursor` is None on the last one."""

    recordings: list[Recording]
    nextCursor: str | None


class Server(TypedDict):
    """A dialer, and whether it is up."""

    id: str
    up: bool
    paused: str | None
    """Why it places no calls although its trunk answers; None if it does."""


class Account(TypedDict):
    """The token's project; `balance` is None if its spending has no limit."""

    id: str
    name: str
    balance: float | None
    currency: str


class Terms(TypedDict, total=False):
    """Options of calls; the service has a default for those that are missing or None.

    A request that is repeated with the same `idempotency_key` places no further calls.
    """

    retry_count: int | None
    retry_interval: int | None
    time_to_live: int | None
    server_id: str | None
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class ApiRequest(Generic[T]):
    """A request to the API: `path` is relative to the service's URL, `read` parses the response."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[httpx.Response], T] = lambda response: result_of(response)


def single(phone_number: str, voice_id: str, **terms: Unpack[Terms]) -> ApiRequest[Call]:
    """Play a recording to one number."""
    return _place("single", terms, phoneNumber=phone_number, voiceId=voice_id)


def batch(phone_numbers: Sequence[str], voice_id: str, **terms: Unpack[Terms]) -> ApiRequest[Batch]:
    """Play a recording to many numbers."""
    return _place("batch", terms, phoneNumbers=list(phone_numbers), voiceId=voice_id)


def otp(
    phone_number: str,
    text: str,
    *,
    voice_id: str | None = None,
    repeat_count: int | None = None,
    language: str | None = None,
    **terms: Unpack[Terms],
) -> ApiRequest[Call]:
    """Read a code of up to 5 digits to one number, after the recording `voice_id` if given."""
    return _place("otp", terms, phoneNumber=phone_number, text=text, voiceId=voice_id,
                  repeatCount=repeat_count, language=language)  # fmt: skip


def single_tts(
    phone_number: str, text: str, *, language: str | None = None, **terms: Unpack[Terms]
) -> ApiRequest[Call]:
    """Speak a text to one number."""
    return _place("single/tts", terms, phoneNumber=phone_number, text=text, language=language)


def batch_tts(
    phone_numbers: Sequence[str],
    text: str,
    *,
    language: str | None = None,
    **terms: Unpack[Terms],
) -> ApiRequest[Batch]:
    """Speak a text to many numbers."""
    return _place("batch/tts", terms, phoneNumbers=list(phone_numbers), text=text,
                  language=language)  # fmt: skip


def status(call_id: str) -> ApiRequest[Call]:
    """The state of a call."""
    return ApiRequest("GET", f"/api/v2/voice/status/{_segment(call_id)}")


def cancel(call_id: str) -> ApiRequest[Call]:
    """Cancel a call."""
    return ApiRequest("DELETE", f"/api/v2/voice/{_segment(call_id)}")


def campaign(campaign_id: str) -> ApiRequest[Campaign]:
    """The state of a campaign."""
    return ApiRequest("GET", f"/api/v2/voice/campaign/{_segment(campaign_id)}")


def campaign_calls(
    campaign_id: str, cursor: str | None = None, limit: int | None = None
) -> ApiRequest[CallPage]:
    """A page of a campaign's calls."""
    path = f"/api/v2/voice/campaign/{_segment(campaign_id)}/calls"
    return ApiRequest("GET", path, params=_given(cursor=cursor, limit=limit))


def cancel_campaign(campaign_id: str) -> ApiRequest[Campaign]:
    """Cancel those calls of a campaign that are not answered yet."""
    return ApiRequest("DELETE", f"/api/v2/voice/campaign/{_segment(campaign_id)}")


def speak(text: str, *, language: str | None = None) -> ApiRequest[Recording]:
    """Turn a text into a recording."""
    return ApiRequest("POST", "/api/v2/files/tts", _given(text=text, language=language))


def recordings(cursor: str | None = None, limit: int | None = None) -> ApiRequest[RecordingPage]:
    """A page of the project's recordings."""
    return ApiRequest("GET", FILES, params=_given(cursor=cursor, limit=limit))


def recording(voice_id: str) -> ApiRequest[bytes]:
    """A recording as it is played: WAV, 8 kHz, mono."""
    return ApiRequest("GET", f"{FILES}/{_segment(voice_id)}", read=_content)


def remove_recording(voice_id: str) -> ApiRequest[Recording]:
    """Delete a recording; ConflictError if a call still needs it."""
    return ApiRequest("DELETE", f"{FILES}/{_segment(voice_id)}")


def servers() -> ApiRequest[list[Server]]:
    """The dialers."""
    return ApiRequest("GET", "/api/v2/servers")


def account() -> ApiRequest[Account]:
    """The token's project."""
    return ApiRequest("GET", "/api/v2/account")


def result_of(response: httpx.Response) -> Any:
    """The `result` of a response.

    Raises the error of `bitel.errors` that has the response's code, with its message.
    """
    return _envelope(response)["result"]


def _envelope(response: httpx.Response) -> dict[str, Any]:
    try:
        envelope = response.json()
        code = envelope["error"]
        envelope["result"]
    except (ValueError, KeyError, TypeError):
        raise UnavailableError(
            f"{response.url} answered {response.status_code} and nothing that bitel would say; "
            "is it the right address?"
        ) from None
    if code is not None:
        message = str(envelope.get("message") or f"the service answered {code}")
        raise _error(str(code), message, response.headers)
    return dict(envelope)


def _batch_of(response: httpx.Response) -> Batch:
    envelope = _envelope(response)
    return {"calls": envelope["result"], "campaignId": str(envelope.get("campaignId"))}


def _content(response: httpx.Response) -> bytes:
    if response.is_success:
        return response.content
    result_of(response)
    raise UnavailableError(f"{response.url} answered {response.status_code} without a recording")


def _error(code: str, message: str, headers: httpx.Headers) -> BitelError:
    if code == TooManyRequestsError.code:
        seconds = headers.get("Retry-After", "")
        wait = int(seconds) if seconds.isascii() and seconds.isdigit() else 1
        return TooManyRequestsError(message, wait)
    return BY_CODE.get(code, BitelError)(message)


def _place(path: str, terms: Terms, **what: Any) -> ApiRequest[Any]:
    body = _given(
        **what,
        retryCount=terms.get("retry_count"),
        retryInterval=terms.get("retry_interval"),
        timeToLive=terms.get("time_to_live"),
        serverId=terms.get("server_id"),
    )
    key = terms.get("idempotency_key")
    headers = {} if key is None else {"Idempotency-Key": key}
    read = _batch_of if path.startswith("batch") else result_of
    return ApiRequest("POST", f"/api/v2/voice/{path}", body, headers=headers, read=read)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _segment(text: str) -> str:
    """`text`, quoted as one segment of a path."""
    return quote(text, safe="")
