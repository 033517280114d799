"""Clients of the HTTP API, for Python programs and the commands of `bitel`.

    with Client(token, "http://127.0.0.1:8080") as client:
        voice = client.upload(Path("hello.mp3"))
        call = client.wait(client.call("09121234567", voice["id"])["id"], timeout=60)

`AsyncClient` has the same methods as coroutines. Most methods take the arguments of the function of
`bitel.client_requests` that builds their request. Every method raises a BitelError: the error that
the service reported, or UnavailableError if it can't be reached.
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

from bitel import client_requests
from bitel.client_requests import (
    Account,
    ApiRequest,
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
    "ApiRequest",
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
"""Seconds; the answer to an upload comes after the recording is decoded."""

POLL_INTERVAL: Final = 0.25
"""Seconds between two polls of a call or campaign."""

T = TypeVar("T")
P = ParamSpec("P")


def _blocking(build: Callable[P, ApiRequest[T]]) -> Callable[Concatenate[Client, P], T]:
    """A method of `Client` that sends the request made by `build`, and returns its result."""

    def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.do(build(*args, **kwargs))

    method.__doc__ = build.__doc__
    return method


def _awaited(
    build: Callable[P, ApiRequest[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """`_blocking`, for `AsyncClient`."""

    async def method(client: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client.do(build(*args, **kwargs))

    method.__doc__ = build.__doc__
    return method


class Client:
    """A blocking client of the service at `url`, with the `token` of a project.

    Close it, or use it as a context manager.
    """

    call = _blocking(client_requests.single)
    batch = _blocking(client_requests.batch)
    otp = _blocking(client_requests.otp)
    call_tts = _blocking(client_requests.single_tts)
    batch_tts = _blocking(client_requests.batch_tts)
    status = _blocking(client_requests.status)
    cancel = _blocking(client_requests.cancel)
    campaign = _blocking(client_requests.campaign)
    cancel_campaign = _blocking(client_requests.cancel_campaign)
    speak = _blocking(client_requests.speak)
    recording = _blocking(client_requests.recording)
    remove_recording = _blocking(client_requests.remove_recording)
    servers = _blocking(client_requests.servers)
    account = _blocking(client_requests.account)

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
        """Close the connections."""
        self._http.close()

    def do(self, request: ApiRequest[T]) -> T:
        """Send a request, and return its parsed result."""
        with _reached(self._http):
            response = self._http.request(**_arguments(request))
        return request.read(response)

    def upload(self, file: Path, progress: Callable[[int], None] | None = None) -> Recording:
        """Upload a recording; `progress` is called with the bytes of each read of the file."""
        with _Upload(file, progress) as opened, _reached(self._http):
            response = self._http.post(client_requests.FILES, files={"file": (file.name, opened)})
        return cast(Recording, client_requests.result_of(response))

    def campaign_calls(self, campaign_id: str, page: int | None = None) -> Iterator[Call]:
        """All calls of a campaign, fetched `page` at a time."""
        return self._items(
            "calls", partial(client_requests.campaign_calls, campaign_id, limit=page)
        )

    def recordings(self, page: int | None = None) -> Iterator[Recording]:
        """All recordings of the project, fetched `page` at a time."""
        return self._items("recordings", partial(client_requests.recordings, limit=page))

    def _items(self, key: str, build: Callable[..., ApiRequest[Any]]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self.do(build(cursor=cursor))
            yield from page[key]
            cursor = page["nextCursor"]
            if cursor is None:
                return

    def wait(self, call_id: str, timeout: float) -> Call:
        """The call once it is over; UnavailableError if it is not within `timeout` seconds."""
        return self._poll(client_requests.status(call_id), _Wait(f"the call {call_id}", timeout))

    def wait_campaign(
        self, campaign_id: str, timeout: float, progress: Callable[[Campaign], None] | None = None
    ) -> Campaign:
        """The campaign once all its calls are over; `progress` is called with each state polled.

        Raises UnavailableError if they are not within `timeout` seconds.
        """
        wait = _Wait(f"the campaign {campaign_id}", timeout, progress)
        return self._poll(client_requests.campaign(campaign_id), wait)

    def _poll(self, request: ApiRequest[T], wait: _Wait) -> T:
        while True:
            state = self.do(request)
            if wait.is_over(state):
                return state
            time.sleep(POLL_INTERVAL)  # the API can only be polled


class AsyncClient:
    """`Client` with coroutines."""

    call = _awaited(client_requests.single)
    batch = _awaited(client_requests.batch)
    otp = _awaited(client_requests.otp)
    call_tts = _awaited(client_requests.single_tts)
    batch_tts = _awaited(client_requests.batch_tts)
    status = _awaited(client_requests.status)
    cancel = _awaited(client_requests.cancel)
    campaign = _awaited(client_requests.campaign)
    cancel_campaign = _awaited(client_requests.cancel_campaign)
    speak = _awaited(client_requests.speak)
    recording = _awaited(client_requests.recording)
    remove_recording = _awaited(client_requests.remove_recording)
    servers = _awaited(client_requests.servers)
    account = _awaited(client_requests.account)

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
        """Close the connections."""
        await self._http.aclose()

    async def do(self, request: ApiRequest[T]) -> T:
        """Send a request, and return its parsed result."""
        with _reached(self._http):
            response = await self._http.request(**_arguments(request))
        return request.read(response)

    async def upload(self, file: Path, progress: Callable[[int], None] | None = None) -> Recording:
        """Upload a recording; `progress` is called with the bytes of each read of the file."""
        with await asyncio.to_thread(_Upload, file, progress) as opened, _reached(self._http):
            response = await self._http.post(
                client_requests.FILES, files={"file": (file.name, opened)}
            )
        return cast(Recording, client_requests.result_of(response))

    def campaign_calls(self, campaign_id: str, page: int | None = None) -> AsyncIterator[Call]:
        """All calls of a campaign, fetched `page` at a time."""
        return self._items(
            "calls", partial(client_requests.campaign_calls, campaign_id, limit=page)
        )

    def recordings(self, page: int | None = None) -> AsyncIterator[Recording]:
        """All recordings of the project, fetched `page` at a time."""
        return self._items("recordings", partial(client_requests.recordings, limit=page))

    async def _items(self, key: str, build: Callable[..., ApiRequest[Any]]) -> AsyncIterator[Any]:
        cursor: str | None = None
        while True:
            page = await self.do(build(cursor=cursor))
            for item in page[key]:
                yield item
            cursor = page["nextCursor"]
            if cursor is None:
                return

    async def wait(self, call_id: str, timeout: float) -> Call:
        """As `Client.wait`."""
        return await self._poll(
            client_requests.status(call_id), _Wait(f"the call {call_id}", timeout)
        )

    async def wait_campaign(
        self, campaign_id: str, timeout: float, progress: Callable[[Campaign], None] | None = None
    ) -> Campaign:
        """As `Client.wait_campaign`."""
        wait = _Wait(f"the campaign {campaign_id}", timeout, progress)
        return await self._poll(client_requests.campaign(campaign_id), wait)

    async def _poll(self, request: ApiRequest[T], wait: _Wait) -> T:
        while True:
            state = await self.do(request)
            if wait.is_over(state):
                return state
            await asyncio.sleep(POLL_INTERVAL)


class _Wait:
    """The deadline and progress of polling for the end of a call or campaign."""

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


def _arguments(request: ApiRequest[Any]) -> dict[str, Any]:
    return {
        "method": request.method,
        "url": request.path,
        "json": request.body,
        "params": dict(request.params),
        "headers": dict(request.headers),
    }


@contextmanager
def _reached(http: httpx.Client | httpx.AsyncClient) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as fault:
        what = str(fault) or type(fault).__name__
        raise UnavailableError(f"the service at {http.base_url} can't be reached: {what}") from None
