"""Requests of the HTTP API, as values, and how their responses are read.

`client` sends them, over a blocking or an asynchronous connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NotRequired, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx

from bitel.errors import BY_CODE, BitelError, TooManyRequestsError, UnavailableError

T = TypeVar("T")


class Call(TypedDict):
    """A call, with the eight keys of the API. `statusCode` 0 means that it is not over."""

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
    """The progress of a campaign. `finishedDate` 0 means that its calls are not all over."""

    id: str
    total: int
    byStatus: dict[str, int]
    requestDate: int
    finishedDate: int
    price: float


class CallPage(TypedDict):
    """A page of a campaign's calls, and the cursor of the next one; None at the end."""

    calls: list[Call]
    nextCursor: str | None


class Recording(TypedDict):
    """A recording; `duration` in seconds, `size` in bytes."""

    id: str
    name: str
    duration: float
    size: int
    warning: NotRequired[str]
    """What is wrong with the uploaded file, in a sentence."""


class RecordingPage(TypedDict):
    """A page of the recordings, and the cursor of the next one; None at the end."""

    recordings: list[Recording]
    nextCursor: str | None


class Server(TypedDict):
    """A dialer, and whether it is up."""

    id: str
    up: bool
    paused: str | None
    """Why its calls wait although its trunk answers; None while it calls."""


class Account(TypedDict):
    """The token's project; `balance` None means that nothing limits what it spends."""

    id: str
    name: str
    balance: float | None
    currency: str


class Terms(TypedDict, total=False):
    """Options of a call; for what is left out or None the service has defaults.

    `idempotency_key` lets a request be sent again without placing its calls again.
    """

    retry_count: int | None
    retry_interval: int | None
    time_to_live: int | None
    server_id: str | None
    idempotency_key: str | None


class SpeechTerms(Terms, total=False):
    """Options of a call that speaks a text."""

    language: str | None


class OtpTerms(SpeechTerms, total=False):
    """Options of a call that reads a code."""

    voice_id: str | None
    """A recording that is played first."""
    repeat_count: int | None


_FIELDS: Final = {
    "retry_count": "retryCount",
    "retry_interval": "retryInterval",
    "time_to_live": "timeToLive",
    "server_id": "serverId",
    "language": "language",
    "voice_id": "voiceId",
    "repeat_count": "repeatCount",
}
"""The API's names of the options that go into a request's body."""

FILES: Final = "/api/v2/files/voice"
"""Where recordings are uploaded to, and listed."""


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """A request; `path` is below the service's URL, and `read` takes the response."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[httpx.Response], T] = lambda response: result_of(response)


def single(phone_number: str, voice_id: str, **terms: Unpack[Terms]) -> Ask[Call]:
    """Have a recording played to one number."""
    return _placing("single", terms, phoneNumber=phone_number, voiceId=voice_id)


def batch(phone_numbers: Sequence[str], voice_id: str, **terms: Unpack[Terms]) -> Ask[Batch]:
    """Have a recording played to many numbers."""
    numbers = list(phone_numbers)
    return _placing("batch", terms, _batch_of, phoneNumbers=numbers, voiceId=voice_id)


def otp(phone_number: str, text: str, **terms: Unpack[OtpTerms]) -> Ask[Call]:
    """Have a code of up to 5 digits read to one number, after a recording if there is one."""
    return _placing("otp", terms, phoneNumber=phone_number, text=text)


def single_tts(phone_number: str, text: str, **terms: Unpack[SpeechTerms]) -> Ask[Call]:
    """Have a text spoken to one number."""
    return _placing("single/tts", terms, phoneNumber=phone_number, text=text)


def batch_tts(phone_numbers: Sequence[str], text: str, **terms: Unpack[SpeechTerms]) -> Ask[Batch]:
    """Have a text spoken to many numbers."""
    return _placing("batch/tts", terms, _batch_of, phoneNumbers=list(phone_numbers), text=text)


def status(call_id: str) -> Ask[Call]:
    """The status of a call."""
    return Ask("GET", f"/api/v2/voice/status/{_segment(call_id)}")


def cancel(call_id: str) -> Ask[Call]:
    """Cancel a call."""
    return Ask("DELETE", f"/api/v2/voice/{_segment(call_id)}")


def campaign(campaign_id: str) -> Ask[Campaign]:
    """The progress of a campaign."""
    return Ask("GET", f"/api/v2/voice/campaign/{_segment(campaign_id)}")


def campaign_calls(
    campaign_id: str, cursor: str | None = None, limit: int | None = None
) -> Ask[CallPage]:
    """A page of a campaign's calls."""
    path = f"/api/v2/voice/campaign/{_segment(campaign_id)}/calls"
    return Ask("GET", path, params=_given(cursor=cursor, limit=limit))


def cancel_campaign(campaign_id: str) -> Ask[Campaign]:
    """Cancel the calls of a campaign that have not been answered yet."""
    return Ask("DELETE", f"/api/v2/voice/campaign/{_segment(campaign_id)}")


def speak(text: str, *, language: str | None = None) -> Ask[Recording]:
    """Have a text spoken once and stored as a recording."""
    return Ask("POST", "/api/v2/files/tts", _given(text=text, language=language))


def recordings(cursor: str | None = None, limit: int | None = None) -> Ask[RecordingPage]:
    """A page of the project's recordings."""
    return Ask("GET", FILES, params=_given(cursor=cursor, limit=limit))


def recording(voice_id: str) -> Ask[bytes]:
    """A recording as it will be heard: a WAV, 8 kHz mono."""
    return Ask("GET", f"{FILES}/{_segment(voice_id)}", read=_content)


def remove_recording(voice_id: str) -> Ask[Recording]:
    """Remove a recording that no call needs any more."""
    return Ask("DELETE", f"{FILES}/{_segment(voice_id)}")


def servers() -> Ask[list[Server]]:
    """The dialers."""
    return Ask("GET", "/api/v2/servers")


def account() -> Ask[Account]:
    """The token's project."""
    return Ask("GET", "/api/v2/account")


def result_of(response: httpx.Response) -> Any:
    """The `result` of a response.

    Raises the error of `bitel.errors` that the response's code names, with its message.
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


def _placing(
    path: str,
    terms: Mapping[str, Any],
    read: Callable[[httpx.Response], Any] | None = None,
    **body: Any,
) -> Ask[Any]:
    body |= {name: terms.get(option) for option, name in _FIELDS.items() if name not in body}
    key = terms.get("idempotency_key")
    headers = {} if key is None else {"Idempotency-Key": key}
    url_path = f"/api/v2/voice/{path}"
    return Ask("POST", url_path, _given(**body), headers=headers, read=read or result_of)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="")
