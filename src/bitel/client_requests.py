"""The requests of the HTTP API as plain values, and how their answers are read.

`bitel.client` sends them, blocking or asynchronously.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, Unpack
from urllib.parse import quote

import httpx

from bitel.client_types import (
    Account,
    Batch,
    BatchOptions,
    Call,
    CallDetails,
    CallFilters,
    CallOptions,
    CallPage,
    Campaign,
    CampaignChanges,
    CampaignPage,
    CampaignPhase,
    DoNotCallAdded,
    DoNotCallNumber,
    DoNotCallPage,
    ListedCallPage,
    Options,
    Recipient,
    RecipientList,
    RecipientListPage,
    Recording,
    RecordingPage,
    Server,
    Time,
)
from bitel.errors import BY_CODE, BitelError, TooManyRequestsError, UnavailableError

T = TypeVar("T")

FILES: Final = "/api/v2/files/voice"
"""The path at which recordings are uploaded and listed."""
LISTS: Final = "/api/v2/files/list"
"""The path at which lists of recipients are uploaded and listed."""
DO_NOT_CALL: Final = "/api/v2/account/do-not-call"


@dataclass(frozen=True, slots=True)
class ApiRequest(Generic[T]):
    """A request to the API: `path` is relative to the service's URL, `read` parses the response."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[httpx.Response], T] = lambda response: result_of(response)


def single(phone_number: str, voice_id: str, **options: Unpack[CallOptions]) -> ApiRequest[Call]:
    """Play a recording to one number."""
    return _place("single", options, CallOptions, phoneNumber=phone_number, voiceId=voice_id)


def batch(
    phone_numbers: Sequence[str] | None = None,
    voice_id: str | None = None,
    *,
    recipients: Sequence[Recipient] | None = None,
    list_id: str | None = None,
    **options: Unpack[BatchOptions],
) -> ApiRequest[Batch]:
    """Play the recording `voice_id` to many numbers.

    They are `phone_numbers`, or `recipients`, or those of the uploaded list `list_id`. Raises
    TypeError unless one of the three is given.
    """
    to = _recipients(phone_numbers, recipients, list_id)
    return _place("batch", options, BatchOptions, **to, voiceId=_required("voice_id", voice_id))


def otp(
    phone_number: str,
    text: str,
    *,
    voice_id: str | None = None,
    repeat_count: int | None = None,
    language: str | None = None,
    **options: Unpack[Options],
) -> ApiRequest[Call]:
    """Read a code of up to 10 digits to one number, after the recording `voice_id` if given."""
    return _place("otp", options, Options, phoneNumber=phone_number, text=text, voiceId=voice_id,
                  repeatCount=repeat_count, language=language)  # fmt: skip


def single_tts(
    phone_number: str, text: str, *, language: str | None = None, **options: Unpack[CallOptions]
) -> ApiRequest[Call]:
    """Speak a text to one number."""
    return _place("single/tts", options, CallOptions, phoneNumber=phone_number, text=text,
                  language=language)  # fmt: skip


def batch_tts(
    phone_numbers: Sequence[str] | None = None,
    text: str | None = None,
    *,
    language: str | None = None,
    recipients: Sequence[Recipient] | None = None,
    list_id: str | None = None,
    **options: Unpack[BatchOptions],
) -> ApiRequest[Batch]:
    """Speak a text to many numbers; with `recipients` or a list it may hold `{names}` of variables.

    The numbers are given as to `batch`.
    """
    to = _recipients(phone_numbers, recipients, list_id)
    return _place("batch/tts", options, BatchOptions, **to, text=_required("text", text),
                  language=language)  # fmt: skip


def status(call_id: str) -> ApiRequest[Call]:
    """The state of a call."""
    return ApiRequest("GET", f"/api/v2/voice/status/{_segment(call_id)}")


def call_details(call_id: str) -> ApiRequest[CallDetails]:
    """A call with its attempts: what became of each, and why."""
    return ApiRequest("GET", f"/api/v2/voice/calls/{_segment(call_id)}")


def calls(
    cursor: str | None = None, limit: int | None = None, **filters: Unpack[CallFilters]
) -> ApiRequest[ListedCallPage]:
    """A page of the project's calls, the newest first."""
    _check_names(filters, CallFilters)
    params = _given(
        status=_names(filters.get("status")),
        phoneNumber=filters.get("phone_number"),
        reference=filters.get("reference"),
        campaignId=filters.get("campaign_id"),
        to=_whole_seconds("until", filters.get("until")),
        cursor=cursor,
        limit=limit,
    )
    if (since := _whole_seconds("since", filters.get("since"))) is not None:
        params["from"] = since
    return ApiRequest("GET", "/api/v2/voice/calls", params=params)


def cancel(call_id: str) -> ApiRequest[Call]:
    """Cancel a call."""
    return ApiRequest("DELETE", f"/api/v2/voice/{_segment(call_id)}")


def campaign(campaign_id: str) -> ApiRequest[Campaign]:
    """The state of a campaign."""
    return ApiRequest("GET", campaign_path(campaign_id))


def campaigns(
    cursor: str | None = None,
    limit: int | None = None,
    *,
    state: CampaignPhase | Sequence[CampaignPhase] | None = None,
) -> ApiRequest[CampaignPage]:
    """A page of the project's campaigns in these states, the newest first."""
    params = _given(state=_names(state), cursor=cursor, limit=limit)
    return ApiRequest("GET", "/api/v2/voice/campaigns", params=params)


def campaign_calls(
    campaign_id: str, cursor: str | None = None, limit: int | None = None
) -> ApiRequest[CallPage]:
    """A page of a campaign's calls."""
    path = campaign_path(campaign_id, "/calls")
    return ApiRequest("GET", path, params=_given(cursor=cursor, limit=limit))


def pause_campaign(campaign_id: str) -> ApiRequest[Campaign]:
    """Pause a campaign: no attempt starts until it is resumed, and its time to live stops."""
    return ApiRequest("POST", campaign_path(campaign_id, "/pause"))


def resume_campaign(campaign_id: str) -> ApiRequest[Campaign]:
    """Resume a campaign that was paused."""
    return ApiRequest("POST", campaign_path(campaign_id, "/resume"))


def change_campaign(campaign_id: str, **changes: Unpack[CampaignChanges]) -> ApiRequest[Campaign]:
    """Change a campaign: None removes a limit, the end or the name; what is left out stays."""
    _check_names(changes, CampaignChanges)
    body = {_camel(name): _plain(name, value) for name, value in changes.items()}
    return ApiRequest("PATCH", campaign_path(campaign_id), body)


def cancel_campaign(campaign_id: str) -> ApiRequest[Campaign]:
    """Cancel those calls of a campaign that are not answered yet."""
    return ApiRequest("DELETE", campaign_path(campaign_id))


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


def recipient_lists(
    cursor: str | None = None, limit: int | None = None
) -> ApiRequest[RecipientListPage]:
    """A page of the uploaded lists, the oldest first."""
    return ApiRequest("GET", LISTS, params=_given(cursor=cursor, limit=limit))


def recipient_list(list_id: str) -> ApiRequest[RecipientList]:
    """An uploaded list, without its recipients."""
    return ApiRequest("GET", f"{LISTS}/{_segment(list_id)}")


def remove_list(list_id: str) -> ApiRequest[RecipientList]:
    """Delete an uploaded list; calls that were placed with it stay."""
    return ApiRequest("DELETE", f"{LISTS}/{_segment(list_id)}")


def do_not_call(cursor: str | None = None, limit: int | None = None) -> ApiRequest[DoNotCallPage]:
    """A page of the numbers that the project never calls, in E.164."""
    return ApiRequest("GET", DO_NOT_CALL, params=_given(cursor=cursor, limit=limit))


def add_do_not_call(phone_numbers: Sequence[str]) -> ApiRequest[DoNotCallAdded]:
    """Never call these numbers again; one that is invalid refuses all."""
    return ApiRequest("POST", DO_NOT_CALL, {"phoneNumbers": list(phone_numbers)})


def remove_do_not_call(phone_number: str) -> ApiRequest[DoNotCallNumber]:
    """Let a number be called again; NotFoundError if it is not on the list."""
    return ApiRequest("DELETE", f"{DO_NOT_CALL}/{_segment(phone_number)}")


def servers() -> ApiRequest[list[Server]]:
    """The dialers."""
    return ApiRequest("GET", "/api/v2/servers")


def account() -> ApiRequest[Account]:
    """The token's project."""
    return ApiRequest("GET", "/api/v2/account")


def campaign_path(campaign_id: str, below: str = "") -> str:
    """The path of a campaign, and of what is `below` it, as in `/pause`."""
    return f"/api/v2/voice/campaign/{_segment(campaign_id)}{below}"


def list_fields(
    *,
    column: str | None = None,
    dry_run: bool = False,
    skip_invalid: bool = False,
    skip_duplicates: bool = False,
) -> dict[str, str]:
    """The fields that go with the file of a list; options that are off are left out."""
    flags = {
        "dryRun": dry_run,
        "skipInvalid": skip_invalid,
        "skipDuplicates": skip_duplicates,
    }
    return {**_given(column=column), **{name: "true" for name, is_on in flags.items() if is_on}}


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
    return {
        "calls": envelope["result"],
        "campaignId": str(envelope.get("campaignId")),
        "skipped": envelope.get("skipped") or [],
    }


def _content(response: httpx.Response) -> bytes:
    check_stream(response)
    return response.content


def check_stream(response: httpx.Response) -> None:
    """Raise the error of a response whose body is no envelope if it is a success.

    The body must have been read if it is not.
    """
    if response.is_success:
        return
    result_of(response)
    raise UnavailableError(f"{response.url} answered {response.status_code} without a reason")


def _error(code: str, message: str, headers: httpx.Headers) -> BitelError:
    if code == TooManyRequestsError.code:
        seconds = headers.get("Retry-After", "")
        wait = int(seconds) if seconds.isascii() and seconds.isdigit() else 1
        return TooManyRequestsError(message, wait)
    return BY_CODE.get(code, BitelError)(message)


def _place(
    path: str, options: Mapping[str, Any], allowed: type[Options], **what: Any
) -> ApiRequest[Any]:
    _check_names(options, allowed)
    rest = dict(options)
    key = rest.pop("idempotency_key", None)
    waits = _given(busy=rest.pop("busy_waits", None), noAnswer=rest.pop("no_answer_waits", None))
    if waits:
        what["retry"] = {outcome: list(seconds) for outcome, seconds in waits.items()}
    url, events = rest.pop("webhook_url", None), rest.pop("webhook_events", None)
    if url is not None:
        what["webhook"] = _given(url=url, events=None if events is None else list(events))
    elif events is not None:
        raise TypeError("webhook_events needs webhook_url")
    more = {_camel(name): _plain(name, value) for name, value in rest.items()}
    headers = {} if key is None else {"Idempotency-Key": key}
    read = _batch_of if path.startswith("batch") else result_of
    body = _given(**what, **more)
    return ApiRequest("POST", f"/api/v2/voice/{path}", body, headers=headers, read=read)


def _recipients(
    phone_numbers: Sequence[str] | None,
    recipients: Sequence[Recipient] | None,
    list_id: str | None,
) -> dict[str, Any]:
    """The field of a batch's body that says whom to call."""
    given = _given(phoneNumbers=phone_numbers, recipients=recipients, listId=list_id)
    if len(given) != 1:
        raise TypeError("give one of phone_numbers, recipients and list_id")
    if list_id is not None:
        return given
    if recipients is not None:
        return {"recipients": [_recipient(each) for each in recipients]}
    assert phone_numbers is not None
    # The service also reads one string of numbers.
    is_text = isinstance(phone_numbers, str)
    return {"phoneNumbers": phone_numbers if is_text else list(phone_numbers)}


def _recipient(person: Recipient) -> dict[str, Any]:
    return _given(
        phoneNumber=person.phone_number,
        reference=person.reference,
        variables=dict(person.variables) or None,
        timeZone=person.time_zone,
    )


def _required(name: str, value: str | None) -> str:
    if value is None:
        raise TypeError(f"{name} is missing")
    return value


def _check_names(given: Mapping[str, Any], allowed: type[Any]) -> None:
    """Raise TypeError for a keyword argument that a method does not have."""
    known: frozenset[str] = allowed.__optional_keys__
    for name in given:
        if name not in known:
            raise TypeError(
                f"{name!r} is not an option; the options are {', '.join(sorted(known))}"
            )


def _plain(name: str, value: Any) -> Any:
    """The JSON of an option."""
    return _seconds(name, value) if name in ("start_at", "end_at") else value


def _seconds(name: str, at: Time | None) -> float | None:
    """A time in Unix seconds. Raises ValueError for one without a time zone."""
    if not isinstance(at, datetime):
        return at
    if at.utcoffset() is None:
        raise ValueError(
            f"{name} must have a time zone, as in datetime.now(tz) or "
            f"{at.isoformat(sep=' ', timespec='minutes')}+03:30"
        )
    return at.timestamp()


def _whole_seconds(name: str, at: Time | None) -> int | None:
    """A time in whole Unix seconds, rounded down."""
    seconds = _seconds(name, at)
    return None if seconds is None else int(seconds)


def _names(names: str | Sequence[str] | None) -> str | None:
    if names is None or isinstance(names, str):
        return names
    return ",".join(names) or None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _segment(text: str) -> str:
    """`text`, quoted as one segment of a path."""
    return quote(text, safe="")
