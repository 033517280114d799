"""Clients of the HTTP API, for Python programs and the commands of `bitel`.

    with Client(token, "http://127.0.0.1:8080") as client:
        voice = client.upload(Path("hello.mp3"))
        call = client.wait(client.call("09121234567", voice["id"])["id"], timeout=60)

`AsyncClient` has the same methods as coroutines. Most methods take the arguments of the function of
`bitel.client_requests` that builds their request; `bitel.client_types` has the options. Every
method raises a BitelError: the error that the service reported, or UnavailableError if it can't be
reached. An option that does not exist is a TypeError, and a time without a time zone a ValueError.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, Unpack, cast

import httpx

from bitel import client_requests
from bitel.client_events import LONGEST_SILENCE, EventReader
from bitel.client_requests import ApiRequest
from bitel.client_types import (
    Account,
    Attempt,
    Batch,
    BatchOptions,
    Call,
    CallDetails,
    CallFilters,
    CallOptions,
    CallPage,
    Campaign,
    CampaignChanges,
    CampaignEvent,
    CampaignPhase,
    DoNotCallAdded,
    DoNotCallImported,
    InvalidRow,
    ListedCall,
    Options,
    Recipient,
    RecipientList,
    Recording,
    RecordingPage,
    Server,
    Skipped,
    UploadedList,
)
from bitel.errors import BitelError, UnavailableError
from bitel.webhooks.signing import WebhookSignatureError
from bitel.webhooks.signing import verify as verify_webhook

__all__ = [
    "Account",
    "ApiRequest",
    "AsyncClient",
    "Attempt",
    "Batch",
    "BatchOptions",
    "Call",
    "CallDetails",
    "CallFilters",
    "CallOptions",
    "CallPage",
    "Campaign",
    "CampaignChanges",
    "CampaignEvent",
    "CampaignPhase",
    "Client",
    "DoNotCallAdded",
    "DoNotCallImported",
    "InvalidRow",
    "ListedCall",
    "Options",
    "Recipient",
    "RecipientList",
    "Recording",
    "RecordingPage",
    "Server",
    "Skipped",
    "UploadedList",
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
    call_details = _blocking(client_requests.call_details)
    cancel = _blocking(client_requests.cancel)
    campaign = _blocking(client_requests.campaign)
    pause_campaign = _blocking(client_requests.pause_campaign)
    resume_campaign = _blocking(client_requests.resume_campaign)
    change_campaign = _blocking(client_requests.change_campaign)
    cancel_campaign = _blocking(client_requests.cancel_campaign)
    speak = _blocking(client_requests.speak)
    recording = _blocking(client_requests.recording)
    remove_recording = _blocking(client_requests.remove_recording)
    recipient_list = _blocking(client_requests.recipient_list)
    remove_list = _blocking(client_requests.remove_list)
    add_do_not_call = _blocking(client_requests.add_do_not_call)
    remove_do_not_call = _blocking(client_requests.remove_do_not_call)
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
        return cast(Recording, self._send_file(client_requests.FILES, file, {}, progress))

    def upload_list(
        self,
        file: Path,
        *,
        column: str | None = None,
        dry_run: bool = False,
        skip_invalid: bool = False,
        skip_duplicates: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> UploadedList:
        """Upload a list of recipients, a CSV or XLSX file; its `id` is the `list_id` of batches.

        Args:
            file: columns `reference` and `timeZone` are those of a Recipient, and every other
                column with a heading is a variable.
            column: the column of the numbers: its heading, its number from 1 on, or its letter;
                None: found by its heading or its cells.
            dry_run: only check the file, and store nothing.
            skip_invalid: leave rows that can't be called out of the list.
            skip_duplicates: leave out rows whose number is in a row before.
            progress: called with the bytes of each read of the file.
        """
        fields = client_requests.list_fields(
            column=column,
            dry_run=dry_run,
            skip_invalid=skip_invalid,
            skip_duplicates=skip_duplicates,
        )
        return cast(UploadedList, self._send_file(client_requests.LISTS, file, fields, progress))

    def import_do_not_call(
        self,
        file: Path,
        *,
        column: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> DoNotCallImported:
        """Never call the numbers of a CSV or XLSX file; rows without a valid number are left out.

        `column` and `progress` are as for `upload_list`.
        """
        path = f"{client_requests.DO_NOT_CALL}/import"
        fields = client_requests.list_fields(column=column)
        return cast(DoNotCallImported, self._send_file(path, file, fields, progress))

    def _send_file(
        self,
        path: str,
        file: Path,
        fields: Mapping[str, str],
        progress: Callable[[int], None] | None,
    ) -> Any:
        with _Upload(file, progress) as opened, _reached(self._http):
            files = {"file": (file.name, opened)}
            response = self._http.post(path, data=fields, files=files)
        return client_requests.result_of(response)

    def results(
        self, campaign_id: str, file: Path, progress: Callable[[int], None] | None = None
    ) -> None:
        """Write every call of a campaign, with its attempts, to a CSV file.

        The file is there only once it is complete. `progress` is called with the bytes of each
        piece that arrives.
        """
        path = client_requests.campaign_path(campaign_id, "/results.csv")
        with _Download(file, progress) as download, _reached(self._http):
            with self._http.stream("GET", path) as response:
                if not response.is_success:
                    response.read()
                client_requests.check_stream(response)
                for piece in response.iter_bytes():
                    download.write(piece)
            download.complete()

    def campaign_events(self, campaign_id: str) -> Iterator[CampaignEvent]:
        """The state of a campaign, at once and whenever it changes, until all its calls are over.

        A lost connection is opened again. Raises UnavailableError if the service can't be reached
        for 5 minutes.
        """
        path = client_requests.campaign_path(campaign_id, "/events")
        reader = EventReader()
        while not reader.is_finished:
            error: BitelError | None = None
            try:
                with self._events(path, reader) as pieces:
                    for piece in pieces:
                        yield from reader.receive(piece)
                        if reader.is_finished:
                            return
            except BitelError as fault:
                error = fault
            if not reader.is_finished:
                time.sleep(reader.wait_after(error))

    @contextmanager
    def _events(self, path: str, reader: EventReader) -> Iterator[Iterator[bytes]]:
        """The pieces of one connection for events."""
        timeout = httpx.Timeout(30.0, read=LONGEST_SILENCE)
        with (
            _reached(self._http),
            self._http.stream("GET", path, headers=reader.headers, timeout=timeout) as response,
        ):
            if not response.is_success:
                response.read()
            reader.connected(response)
            yield response.iter_bytes()

    def campaign_calls(self, campaign_id: str, page: int | None = None) -> Iterator[Call]:
        """All calls of a campaign, fetched `page` at a time."""
        return self._items(
            "calls", partial(client_requests.campaign_calls, campaign_id, limit=page)
        )

    def recordings(self, page: int | None = None) -> Iterator[Recording]:
        """All recordings of the project, fetched `page` at a time."""
        return self._items("recordings", partial(client_requests.recordings, limit=page))

    def calls(
        self, page: int | None = None, **filters: Unpack[CallFilters]
    ) -> Iterator[ListedCall]:
        """The project's calls that fit all filters, the newest first, fetched `page` at a time."""
        build = partial(client_requests.calls, limit=page, **filters)
        build()  # so that a wrong filter is an error here, not at the first item
        return self._items("calls", build)

    def campaigns(
        self,
        page: int | None = None,
        *,
        state: CampaignPhase | Sequence[CampaignPhase] | None = None,
    ) -> Iterator[Campaign]:
        """The project's campaigns in these states, the newest first, fetched `page` at a time."""
        build = partial(client_requests.campaigns, limit=page, state=state)
        return self._items("campaigns", build)

    def recipient_lists(self, page: int | None = None) -> Iterator[RecipientList]:
        """All uploaded lists of the project, the oldest first, fetched `page` at a time."""
        return self._items("lists", partial(client_requests.recipient_lists, limit=page))

    def do_not_call(self, page: int | None = None) -> Iterator[str]:
        """All numbers that the project never calls, in E.164, fetched `page` at a time."""
        return self._items("phoneNumbers", partial(client_requests.do_not_call, limit=page))

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
    call_details = _awaited(client_requests.call_details)
    cancel = _awaited(client_requests.cancel)
    campaign = _awaited(client_requests.campaign)
    pause_campaign = _awaited(client_requests.pause_campaign)
    resume_campaign = _awaited(client_requests.resume_campaign)
    change_campaign = _awaited(client_requests.change_campaign)
    cancel_campaign = _awaited(client_requests.cancel_campaign)
    speak = _awaited(client_requests.speak)
    recording = _awaited(client_requests.recording)
    remove_recording = _awaited(client_requests.remove_recording)
    recipient_list = _awaited(client_requests.recipient_list)
    remove_list = _awaited(client_requests.remove_list)
    add_do_not_call = _awaited(client_requests.add_do_not_call)
    remove_do_not_call = _awaited(client_requests.remove_do_not_call)
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
        """As `Client.upload`."""
        return cast(Recording, await self._send_file(client_requests.FILES, file, {}, progress))

    async def upload_list(
        self,
        file: Path,
        *,
        column: str | None = None,
        dry_run: bool = False,
        skip_invalid: bool = False,
        skip_duplicates: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> UploadedList:
        """As `Client.upload_list`."""
        fields = client_requests.list_fields(
            column=column,
            dry_run=dry_run,
            skip_invalid=skip_invalid,
            skip_duplicates=skip_duplicates,
        )
        return cast(
            UploadedList, await self._send_file(client_requests.LISTS, file, fields, progress)
        )

    async def import_do_not_call(
        self,
        file: Path,
        *,
        column: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> DoNotCallImported:
        """As `Client.import_do_not_call`."""
        path = f"{client_requests.DO_NOT_CALL}/import"
        fields = client_requests.list_fields(column=column)
        return cast(DoNotCallImported, await self._send_file(path, file, fields, progress))

    async def _send_file(
        self,
        path: str,
        file: Path,
        fields: Mapping[str, str],
        progress: Callable[[int], None] | None,
    ) -> Any:
        with await asyncio.to_thread(_Upload, file, progress) as opened, _reached(self._http):
            files = {"file": (file.name, opened)}
            response = await self._http.post(path, data=fields, files=files)
        return client_requests.result_of(response)

    async def results(
        self, campaign_id: str, file: Path, progress: Callable[[int], None] | None = None
    ) -> None:
        """As `Client.results`."""
        path = client_requests.campaign_path(campaign_id, "/results.csv")
        with _Download(file, progress) as download, _reached(self._http):
            async with self._http.stream("GET", path) as response:
                if not response.is_success:
                    await response.aread()
                client_requests.check_stream(response)
                async for piece in response.aiter_bytes():
                    await asyncio.to_thread(download.write, piece)
            download.complete()

    async def campaign_events(self, campaign_id: str) -> AsyncIterator[CampaignEvent]:
        """As `Client.campaign_events`."""
        path = client_requests.campaign_path(campaign_id, "/events")
        reader = EventReader()
        while not reader.is_finished:
            error: BitelError | None = None
            try:
                async with self._events(path, reader) as pieces:
                    async for piece in pieces:
                        for event in reader.receive(piece):
                            yield event
                        if reader.is_finished:
                            return
            except BitelError as fault:
                error = fault
            if not reader.is_finished:
                await asyncio.sleep(reader.wait_after(error))

    @asynccontextmanager
    async def _events(self, path: str, reader: EventReader) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of one connection for events."""
        timeout = httpx.Timeout(30.0, read=LONGEST_SILENCE)
        with _reached(self._http):
            async with self._http.stream(
                "GET", path, headers=reader.headers, timeout=timeout
            ) as response:
                if not response.is_success:
                    await response.aread()
                reader.connected(response)
                yield response.aiter_bytes()

    def campaign_calls(self, campaign_id: str, page: int | None = None) -> AsyncIterator[Call]:
        """All calls of a campaign, fetched `page` at a time."""
        return self._items(
            "calls", partial(client_requests.campaign_calls, campaign_id, limit=page)
        )

    def recordings(self, page: int | None = None) -> AsyncIterator[Recording]:
        """All recordings of the project, fetched `page` at a time."""
        return self._items("recordings", partial(client_requests.recordings, limit=page))

    def calls(
        self, page: int | None = None, **filters: Unpack[CallFilters]
    ) -> AsyncIterator[ListedCall]:
        """The project's calls that fit all filters, the newest first, fetched `page` at a time."""
        build = partial(client_requests.calls, limit=page, **filters)
        build()  # so that a wrong filter is an error here, not at the first item
        return self._items("calls", build)

    def campaigns(
        self,
        page: int | None = None,
        *,
        state: CampaignPhase | Sequence[CampaignPhase] | None = None,
    ) -> AsyncIterator[Campaign]:
        """The project's campaigns in these states, the newest first, fetched `page` at a time."""
        build = partial(client_requests.campaigns, limit=page, state=state)
        return self._items("campaigns", build)

    def recipient_lists(self, page: int | None = None) -> AsyncIterator[RecipientList]:
        """All uploaded lists of the project, the oldest first, fetched `page` at a time."""
        return self._items("lists", partial(client_requests.recipient_lists, limit=page))

    def do_not_call(self, page: int | None = None) -> AsyncIterator[str]:
        """All numbers that the project never calls, in E.164, fetched `page` at a time."""
        return self._items("phoneNumbers", partial(client_requests.do_not_call, limit=page))

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


class _Download:
    """A file that takes the place of `file` once it is complete; until then it has another name."""

    def __init__(self, file: Path, progress: Callable[[int], None] | None) -> None:
        self._file = file
        self._progress = progress
        self._partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")

    def __enter__(self) -> Self:
        self._opened = self._partial.open("xb")
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()
        self._partial.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Append a piece."""
        self._opened.write(piece)
        if self._progress is not None:
            self._progress(len(piece))

    def complete(self) -> None:
        """Give the file its name."""
        self._opened.close()
        self._partial.replace(self._file)


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
