"""Clients of the HTTP API, as Python programs and the commands of `bitel` use it.

    with Client(token, "http://127.0.0.1:8080") as client:
        voice = client.upload(Path("hello.mp3"))
        call = client.wait(client.call("09121234567", voice["id"])["id"], timeout=60)

`AsyncClient` has the same methods to be awaited. `bitel.api_requests` makes their requests, and any
`Ask` can be handed to `do`. Every method raises a BitelError: the service's own, or
UnavailableError where it can't be reached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar, Unpack, cast

import httpx

from bitel import api_requests as asking
from bitel.api_requests import (
    Account,
    Ask,
    Batch,
    Call,
    CallPage,
    Campaign,
    Recording,
    RecordingPage,
    Server,
    Terms,
)
from bitel.errors import UnavailableError
from bitel.webhooks.signing import WebhookSignatureError
from bitel.webhooks.signing import verify as verify_webhook

__all__ = [
    "Account",
    "Ask",
    "AsyncClient",
    "Batch",
    "Call",
    "CallPage",
    "Campaign",
    "Client",
    "Recording",
    "RecordingPage",
    "Server",
    "Terms",
    "WebhookSignatureError",
    "verify_webhook",
]

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT: Final = httpx.Timeout(30.0, read=120.0)
"""Seconds; an upload is answered only when its recording is decoded."""

LOOK_AGAIN: Final = 0.25
"""Seconds between two looks at what is waited for: the API has no way to tell of an end."""

T = TypeVar("T")


class Client:
    """A blocking connection to the service at `url`, on behalf of a project's `token`.

    Close it, or use it as a context manager.
    """

    def __init__(
        self, token: str, url: str = DEFAULT_URL, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = httpx.Client(
            base_url=url, headers=_headers(token), timeout=TIMEOUT, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up."""
        self._http.close()

    def do(self, asked: Ask[T]) -> T:
        """What the service answers to `asked`."""
        with _reached(self._http):
            answer = self._http.request(**_request(asked))
        return asked.read(answer)

    def upload(self, file: Path, progress: Callable[[int], None] | None = None) -> Recording:
        """Upload a recording; `progress` is told the bytes that each read took from the file."""
        with file.open("rb") as opened, _reached(self._http):
            answer = self._http.post(asking.FILES, files=_file(opened, file.name, progress))
        return cast(Recording, asking.result_of(answer))

    def call(self, phone_number: str, voice_id: str, **terms: Unpack[Terms]) -> Call:
        """Have the recording `voice_id` played to one number; the call as it was queued."""
        return self.do(asking.single(phone_number, voice_id, **terms))

    def batch(self, phone_numbers: Sequence[str], voice_id: str, **terms: Unpack[Terms]) -> Batch:
        """Have a recording played to many numbers; the calls in their order."""
        return self.do(asking.batch(phone_numbers, voice_id, **terms))

    def otp(
        self,
        phone_number: str,
        text: str,
        *,
        voice_id: str | None = None,
        repeat_count: int | None = None,
        language: str | None = None,
        **terms: Unpack[Terms],
    ) -> Call:
        """Have a code of up to 5 digits read to one number."""
        asked = asking.otp(phone_number, text, voice_id=voice_id, repeat_count=repeat_count,
                           language=language, **terms)  # fmt: skip
        return self.do(asked)

    def call_tts(
        self, phone_number: str, text: str, *, language: str | None = None, **terms: Unpack[Terms]
    ) -> Call:
        """Have a text spoken to one number."""
        return self.do(asking.single_tts(phone_number, text, language=language, **terms))

    def batch_tts(
        self,
        phone_numbers: Sequence[str],
        text: str,
        *,
        language: str | None = None,
        **terms: Unpack[Terms],
    ) -> Batch:
        """Have a text spoken to many numbers."""
        return self.do(asking.batch_tts(phone_numbers, text, language=language, **terms))

    def status(self, call_id: str) -> Call:
        """The call as it now stands."""
        return self.do(asking.status(call_id))

    def cancel(self, call_id: str) -> Call:
        """Call a call off; as it then stands."""
        return self.do(asking.cancel(call_id))

    def campaign(self, campaign_id: str) -> Campaign:
        """The campaign as it now stands."""
        return self.do(asking.campaign(campaign_id))

    def campaign_calls(self, campaign_id: str, page: int | None = None) -> Iterator[Call]:
        """All calls of a campaign, asked for `page` at a time."""
        cursor: str | None = None
        while True:
            answer = self.do(asking.campaign_calls(campaign_id, cursor, page))
            yield from answer["calls"]
            cursor = answer["nextCursor"]
            if cursor is None:
                return

    def cancel_campaign(self, campaign_id: str) -> Campaign:
        """Call a campaign off; as it then stands."""
        return self.do(asking.cancel_campaign(campaign_id))

    def speak(self, text: str, *, language: str | None = None) -> Recording:
        """Have a text spoken once; the recording that it is."""
        return self.do(asking.speak(text, language=language))

    def recordings(self, page: int | None = None) -> Iterator[Recording]:
        """All recordings of the project, asked for `page` at a time."""
        cursor: str | None = None
        while True:
            answer = self.do(asking.recordings(cursor, page))
            yield from answer["recordings"]
            cursor = answer["nextCursor"]
            if cursor is None:
                return

    def recording(self, voice_id: str) -> bytes:
        """The recording as it will be heard: a WAV, 8 kHz mono."""
        return self.do(asking.recording(voice_id))

    def remove_recording(self, voice_id: str) -> Recording:
        """Remove a recording that no call needs any more; what it was."""
        return self.do(asking.remove_recording(voice_id))

    def servers(self) -> list[Server]:
        """The dialers that `server_id` may name."""
        return self.do(asking.servers())

    def account(self) -> Account:
        """The project that the token speaks for."""
        return self.do(asking.account())

    def wait(self, call_id: str, timeout: float) -> Call:
        """The call once it is over; UnavailableError if it is not within `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            call = self.status(call_id)
            if call["statusCode"]:
                return call
            _check_time(end, f"the call {call_id}", timeout)
            time.sleep(LOOK_AGAIN)  # this client blocks its caller, and nothing would wake it

    def wait_campaign(
        self,
        campaign_id: str,
        timeout: float,
        progress: Callable[[Campaign], None] | None = None,
    ) -> Campaign:
        """The campaign once all its calls are over; `progress` is told of every look at it.

        Raises UnavailableError if they are not within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            campaign = self.campaign(campaign_id)
            if progress is not None:
                progress(campaign)
            if campaign["finishedDate"]:
                return campaign
            _check_time(end, f"the campaign {campaign_id}", timeout)
            time.sleep(LOOK_AGAIN)  # this client blocks its caller, and nothing would wake it


class AsyncClient:
    """`Client`, to be awaited."""

    def __init__(
        self, token: str, url: str = DEFAULT_URL, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers=_headers(token), timeout=TIMEOUT, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection up."""
        await self._http.aclose()

    async def do(self, asked: Ask[T]) -> T:
        """What the service answers to `asked`."""
        with _reached(self._http):
            answer = await self._http.request(**_request(asked))
        return asked.read(answer)

    async def upload(self, file: Path, progress: Callable[[int], None] | None = None) -> Recording:
        """Upload a recording; `progress` is told the bytes that each read took from the file."""
        with await asyncio.to_thread(file.open, "rb") as opened, _reached(self._http):
            answer = await self._http.post(asking.FILES, files=_file(opened, file.name, progress))
        return cast(Recording, asking.result_of(answer))

    async def call(self, phone_number: str, voice_id: str, **terms: Unpack[Terms]) -> Call:
        """Have the recording `voice_id` played to one number; the call as it was queued."""
        return await self.do(asking.single(phone_number, voice_id, **terms))

    async def batch(
        self, phone_numbers: Sequence[str], voice_id: str, **terms: Unpack[Terms]
    ) -> Batch:
        """Have a recording played to many numbers; the calls in their order."""
        return await self.do(asking.batch(phone_numbers, voice_id, **terms))

    async def otp(
        self,
        phone_number: str,
        text: str,
        *,
        voice_id: str | None = None,
        repeat_count: int | None = None,
        language: str | None = None,
        **terms: Unpack[Terms],
    ) -> Call:
        """Have a code of up to 5 digits read to one number."""
        asked = asking.otp(phone_number, text, voice_id=voice_id, repeat_count=repeat_count,
                           language=language, **terms)  # fmt: skip
        return await self.do(asked)

    async def call_tts(
        self, phone_number: str, text: str, *, language: str | None = None, **terms: Unpack[Terms]
    ) -> Call:
        """Have a text spoken to one number."""
        return await self.do(asking.single_tts(phone_number, text, language=language, **terms))

    async def batch_tts(
        self,
        phone_numbers: Sequence[str],
        text: str,
        *,
        language: str | None = None,
        **terms: Unpack[Terms],
    ) -> Batch:
        """Have a text spoken to many numbers."""
        return await self.do(asking.batch_tts(phone_numbers, text, language=language, **terms))

    async def status(self, call_id: str) -> Call:
        """The call as it now stands."""
        return await self.do(asking.status(call_id))

    async def cancel(self, call_id: str) -> Call:
        """Call a call off; as it then stands."""
        return await self.do(asking.cancel(call_id))

    async def campaign(self, campaign_id: str) -> Campaign:
        """The campaign as it now stands."""
        return await self.do(asking.campaign(campaign_id))

    async def campaign_calls(
        self, campaign_id: str, page: int | None = None
    ) -> AsyncIterator[Call]:
        """All calls of a campaign, asked for `page` at a time."""
        cursor: str | None = None
        while True:
            answer = await self.do(asking.campaign_calls(campaign_id, cursor, page))
            for call in answer["calls"]:
                yield call
            cursor = answer["nextCursor"]
            if cursor is None:
                return

    async def cancel_campaign(self, campaign_id: str) -> Campaign:
        """Call a campaign off; as it then stands."""
        return await self.do(asking.cancel_campaign(campaign_id))

    async def speak(self, text: str, *, language: str | None = None) -> Recording:
        """Have a text spoken once; the recording that it is."""
        return await self.do(asking.speak(text, language=language))

    async def recordings(self, page: int | None = None) -> AsyncIterator[Recording]:
        """All recordings of the project, asked for `page` at a time."""
        cursor: str | None = None
        while True:
            answer = await self.do(asking.recordings(cursor, page))
            for recording in answer["recordings"]:
                yield recording
            cursor = answer["nextCursor"]
            if cursor is None:
                return

    async def recording(self, voice_id: str) -> bytes:
        """The recording as it will be heard: a WAV, 8 kHz mono."""
        return await self.do(asking.recording(voice_id))

    async def remove_recording(self, voice_id: str) -> Recording:
        """Remove a recording that no call needs any more; what it was."""
        return await self.do(asking.remove_recording(voice_id))

    async def servers(self) -> list[Server]:
        """The dialers that `server_id` may name."""
        return await self.do(asking.servers())

    async def account(self) -> Account:
        """The project that the token speaks for."""
        return await self.do(asking.account())

    async def wait(self, call_id: str, timeout: float) -> Call:
        """The call once it is over; UnavailableError if it is not within `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            call = await self.status(call_id)
            if call["statusCode"]:
                return call
            _check_time(end, f"the call {call_id}", timeout)
            await asyncio.sleep(LOOK_AGAIN)

    async def wait_campaign(
        self,
        campaign_id: str,
        timeout: float,
        progress: Callable[[Campaign], None] | None = None,
    ) -> Campaign:
        """The campaign once all its calls are over; `progress` is told of every look at it.

        Raises UnavailableError if they are not within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            campaign = await self.campaign(campaign_id)
            if progress is not None:
                progress(campaign)
            if campaign["finishedDate"]:
                return campaign
            _check_time(end, f"the campaign {campaign_id}", timeout)
            await asyncio.sleep(LOOK_AGAIN)


class _Watched:
    """A file that tells how much of it has been read."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._progress(len(piece))
        return piece

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _request(asked: Ask[Any]) -> dict[str, Any]:
    return {
        "method": asked.method,
        "url": asked.path,
        "json": asked.body,
        "params": dict(asked.params),
        "headers": dict(asked.headers),
    }


def _file(
    opened: BinaryIO, name: str, progress: Callable[[int], None] | None
) -> dict[str, tuple[str, BinaryIO]]:
    source = _Watched(opened, progress) if progress else opened
    return {"file": (name, cast(BinaryIO, source))}


def _check_time(end: float, what: str, timeout: float) -> None:
    if time.monotonic() > end:
        raise UnavailableError(f"{what} was not over within {timeout:g} s")


@contextmanager
def _reached(http: httpx.Client | httpx.AsyncClient) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as fault:
        what = str(fault) or type(fault).__name__
        raise UnavailableError(f"the service at {http.base_url} can't be reached: {what}") from None
