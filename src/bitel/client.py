"""Clients of the HTTP API, as Python programs and the commands of `bitel` use it.

    with Client(token, "http://127.0.0.1:8080") as client:
        voice = client.upload(Path("hello.mp3"))
        call = client.wait(client.call("09121234567", voice["id"])["id"], timeout=60)

`AsyncClient` has the same methods to be awaited. Most methods take the arguments of the function of
`bitel.api_requests` that builds their request, and any `Ask` can be handed to `do`. Every method
raises a BitelError: the service's own, or UnavailableError where it can't be reached.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, cast

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
"""Seconds between two polls of a call or campaign: the API can't push their end."""

T = TypeVar("T")
P = ParamSpec("P")


def _blocking(ask: Callable[P, Ask[T]]) -> Callable[Concatenate[Client, P], T]:
    """A method of `Client` that makes the request which `ask` builds, and returns its result."""

    def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.do(ask(*args, **kwargs))

    method.__doc__ = ask.__doc__
    return method


def _awaited(
    ask: Callable[P, Ask[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """`_blocking`, for `AsyncClient`."""

    async def method(client: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client.do(ask(*args, **kwargs))

    method.__doc__ = ask.__doc__
    return method


class Client:
    """A blocking connection to the service at `url`, on behalf of a project's `token`.

    Close it, or use it as a context manager.
    """

    call = _blocking(asking.single)
    batch = _blocking(asking.batch)
    otp = _blocking(asking.otp)
    call_tts = _blocking(asking.single_tts)
    batch_tts = _blocking(asking.batch_tts)
    status = _blocking(asking.status)
    cancel = _blocking(asking.cancel)
    campaign = _blocking(asking.campaign)
    cancel_campaign = _blocking(asking.cancel_campaign)
    speak = _blocking(asking.speak)
    recording = _blocking(asking.recording)
    remove_recording = _blocking(asking.remove_recording)
    servers = _blocking(asking.servers)
    account = _blocking(asking.account)

    def __init__(
        self, token: str, url: str = DEFAULT_URL, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = httpx.Client(
            base_url=url, headers=_headers(token), timeout=TIMEOUT, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
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
        """Upload a recording; `progress` is called with the bytes of each read of the file."""
        with _Upload(file, progress) as opened, _reached(self._http):
            answer = self._http.post(asking.FILES, files={"file": (file.name, opened)})
        return cast(Recording, asking.result_of(answer))

    def campaign_calls(self, campaign_id: str, page: int | None = None) -> Iterator[Call]:
        """All calls of a campaign, asked for `page` at a time."""
        return self._items("calls", partial(asking.campaign_calls, campaign_id, limit=page))

    def recordings(self, page: int | None = None) -> Iterator[Recording]:
        """All recordings of the project, asked for `page` at a time."""
        return self._items("recordings", partial(asking.recordings, limit=page))

    def _items(self, key: str, ask: Callable[..., Ask[Any]]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self.do(ask(cursor=cursor))
            yield from page[key]
            cursor = page["nextCursor"]
            if cursor is None:
                return

    def wait(self, call_id: str, timeout: float) -> Call:
        """The call once it is over; UnavailableError if it is not within `timeout` seconds."""
        return self._poll(asking.status(call_id), _Wait(f"the call {call_id}", timeout))

    def wait_campaign(
        self, campaign_id: str, timeout: float, progress: Callable[[Campaign], None] | None = None
    ) -> Campaign:
        """The campaign once all its calls are over; `progress` is called with each state polled.

        Raises UnavailableError if they are not within `timeout` seconds.
        """
        wait = _Wait(f"the campaign {campaign_id}", timeout, progress)
        return self._poll(asking.campaign(campaign_id), wait)

    def _poll(self, asked: Ask[T], wait: _Wait) -> T:
        while True:
            state = self.do(asked)
            if wait.is_over(state):
                return state
            time.sleep(LOOK_AGAIN)  # this client blocks its caller, and nothing would wake it


class AsyncClient:
    """`Client`, to be awaited."""

    call = _awaited(asking.single)
    batch = _awaited(asking.batch)
    otp = _awaited(asking.otp)
    call_tts = _awaited(asking.single_tts)
    batch_tts = _awaited(asking.batch_tts)
    status = _awaited(asking.status)
    cancel = _awaited(asking.cancel)
    campaign = _awaited(asking.campaign)
    cancel_campaign = _awaited(asking.cancel_campaign)
    speak = _awaited(asking.speak)
    recording = _awaited(asking.recording)
    remove_recording = _awaited(asking.remove_recording)
    servers = _awaited(asking.servers)
    account = _awaited(asking.account)

    def __init__(
        self, token: str, url: str = DEFAULT_URL, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers=_headers(token), timeout=TIMEOUT, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
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
        """Upload a recording; `progress` is called with the bytes of each read of the file."""
        with await asyncio.to_thread(_Upload, file, progress) as opened, _reached(self._http):
            answer = await self._http.post(asking.FILES, files={"file": (file.name, opened)})
        return cast(Recording, asking.result_of(answer))

    def campaign_calls(self, campaign_id: str, page: int | None = None) -> AsyncIterator[Call]:
        """All calls of a campaign, asked for `page` at a time."""
        return self._items("calls", partial(asking.campaign_calls, campaign_id, limit=page))

    def recordings(self, page: int | None = None) -> AsyncIterator[Recording]:
        """All recordings of the project, asked for `page` at a time."""
        return self._items("recordings", partial(asking.recordings, limit=page))

    async def _items(self, key: str, ask: Callable[..., Ask[Any]]) -> AsyncIterator[Any]:
        cursor: str | None = None
        while True:
            page = await self.do(ask(cursor=cursor))
            for item in page[key]:
                yield item
            cursor = page["nextCursor"]
            if cursor is None:
                return

    async def wait(self, call_id: str, timeout: float) -> Call:
        """As `Client.wait`."""
        return await self._poll(asking.status(call_id), _Wait(f"the call {call_id}", timeout))

    async def wait_campaign(
        self, campaign_id: str, timeout: float, progress: Callable[[Campaign], None] | None = None
    ) -> Campaign:
        """As `Client.wait_campaign`."""
        wait = _Wait(f"the campaign {campaign_id}", timeout, progress)
        return await self._poll(asking.campaign(campaign_id), wait)

    async def _poll(self, asked: Ask[T], wait: _Wait) -> T:
        while True:
            state = await self.do(asked)
            if wait.is_over(state):
                return state
            await asyncio.sleep(LOOK_AGAIN)


class _Wait:
    """The end of a call or campaign that is polled for, `timeout` seconds at the most."""

    def __init__(
        self, what: str, timeout: float, progress: Callable[[Campaign], None] | None = None
    ) -> None:
        self._what = what
        self._timeout = timeout
        self._progress = progress
        self._until = time.monotonic() + timeout

    def is_over(self, state: Any) -> bool:
        """Whether a call or a campaign is over. Raises UnavailableError after `timeout`."""
        if self._progress is not None:
            self._progress(state)
        if state.get("statusCode") or state.get("finishedDate"):
            return True
        if time.monotonic() > self._until:
            raise UnavailableError(f"{self._what} was not over within {self._timeout:g} s")
        return False


class _Upload(io.BufferedReader):
    """A file that reports the bytes that each read takes from it."""

    def __init__(self, file: Path, progress: Callable[[int], None] | None) -> None:
        super().__init__(io.FileIO(file))
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        if self._progress is not None:
            self._progress(len(piece))
        return piece


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


@contextmanager
def _reached(http: httpx.Client | httpx.AsyncClient) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as fault:
        what = str(fault) or type(fault).__name__
        raise UnavailableError(f"the service at {http.base_url} can't be reached: {what}") from None
