"""A client of the HTTP API, as Python programs and the commands of `bitel` use it.

What is asked and how an answer is read stands in plain functions and values; `Client` only adds
the blocking connection between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypedDict, cast

import httpx

from bitel.errors import BitelError, UnavailableError

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT: Final = httpx.Timeout(30.0, read=120.0)
"""Seconds; an upload is answered only when its recording is decoded."""

LOOK_AGAIN: Final = 0.25
"""Seconds between two looks at a call that is waited for."""


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


class Recording(TypedDict):
    """A recording; `duration` in seconds, `size` in bytes."""

    id: str
    name: str
    duration: float
    size: int


class Server(TypedDict):
    """A dialer, and whether it is up."""

    id: str
    up: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to the API: `path` below the service's URL, and a JSON body if it has one."""

    method: str
    path: str
    body: dict[str, Any] | None = None


def single(
    phone_number: str,
    voice_id: str,
    *,
    retry_count: int | None = None,
    retry_interval: int | None = None,
    time_to_live: int | None = None,
    server_id: str | None = None,
) -> Ask:
    """Ask to have a recording played to one number; what is None is left to the service."""
    terms = {
        "retryCount": retry_count,
        "retryInterval": retry_interval,
        "timeToLive": time_to_live,
        "serverId": server_id,
    }
    given = {name: value for name, value in terms.items() if value is not None}
    body = {"phoneNumber": phone_number, "voiceId": voice_id, **given}
    return Ask("POST", "/api/v2/voice/single", body)


def status(call_id: str) -> Ask:
    """Ask how a call stands."""
    return Ask("GET", f"/api/v2/voice/status/{_segment(call_id)}")


def servers() -> Ask:
    """Ask for the dialers."""
    return Ask("GET", "/api/v2/servers")


UPLOAD: Final = Ask("POST", "/api/v2/files/voice")


def result_of(response: httpx.Response) -> Any:
    """The `result` of an answer.

    Raises the error of `bitel.errors` that the answer's code names, with the answer's sentence.
    """
    try:
        envelope = response.json()
        code = envelope["error"]
        result = envelope["result"]
    except (ValueError, KeyError, TypeError):
        raise UnavailableError(
            f"{response.url} answered {response.status_code} and nothing that bitel would say; "
            "is it the right address?"
        ) from None
    if code is None:
        return result
    raise _error(str(code), str(envelope.get("message") or f"the service answered {code}"))


def _error(code: str, message: str) -> BitelError:
    for kind in BitelError.__subclasses__():
        if kind.code == code:
            # Not through __init__: a TooManyRequestsError wants what only a header says.
            error = kind.__new__(kind)
            error.args = (message,)
            return error
    return BitelError(message)


def _segment(text: str) -> str:
    """`text` as one segment of a path, whatever is in it."""
    return httpx.QueryParams({"": text}).__str__()[1:].replace("+", "%20")


class Client:
    """A blocking connection to the service at `url`, on behalf of a project's `token`.

    Every method raises a BitelError: the service's own, or UnavailableError where it can't be
    reached. Close it, or use it as a context manager.
    """

    def __init__(
        self, token: str, url: str = DEFAULT_URL, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT,
            transport=transport,
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

    def upload(self, file: Path, progress: Callable[[int], None] | None = None) -> Recording:
        """Upload a recording; `progress` is told the bytes that each read took from the file."""
        with file.open("rb") as opened:
            source = _Watched(opened, progress) if progress else opened
            with _reached(self._http):
                answer = self._http.request(
                    UPLOAD.method, UPLOAD.path, files={"file": (file.name, cast(BinaryIO, source))}
                )
        return cast(Recording, result_of(answer))

    def recording(self, voice_id: str) -> bytes:
        """The recording as it will be heard: a WAV, 8 kHz mono."""
        with _reached(self._http):
            answer = self._http.get(f"/api/v2/files/voice/{_segment(voice_id)}")
        if answer.is_success:
            return answer.content
        result_of(answer)
        raise UnavailableError(f"{answer.url} answered {answer.status_code} without a recording")

    def wait(self, call_id: str, timeout: float) -> Call:
        """The call once it is over; UnavailableError if it is not within `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            call = self.status(call_id)
            if call["statusCode"]:
                return call
            if time.monotonic() > end:
                raise UnavailableError(f"the call {call_id} was not over within {timeout:g} s")
            time.sleep(LOOK_AGAIN)

    def call(
        self,
        phone_number: str,
        voice_id: str,
        *,
        retry_count: int | None = None,
        retry_interval: int | None = None,
        time_to_live: int | None = None,
        server_id: str | None = None,
    ) -> Call:
        """Have the recording `voice_id` played to one number; the call as it was queued."""
        asked = single(
            phone_number,
            voice_id,
            retry_count=retry_count,
            retry_interval=retry_interval,
            time_to_live=time_to_live,
            server_id=server_id,
        )
        return cast(Call, self._result(asked))

    def status(self, call_id: str) -> Call:
        """The call as it now stands."""
        return cast(Call, self._result(status(call_id)))

    def servers(self) -> list[Server]:
        """The dialers that `server_id` may name."""
        return cast(list[Server], self._result(servers()))

    def _result(self, asked: Ask) -> Any:
        with _reached(self._http):
            answer = self._http.request(asked.method, asked.path, json=asked.body)
        return result_of(answer)


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


@contextmanager
def _reached(http: httpx.Client) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as fault:
        what = str(fault) or type(fault).__name__
        raise UnavailableError(f"the service at {http.base_url} can't be reached: {what}") from None
