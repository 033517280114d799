"""One try: post an event to its receiver, within limits, and say what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Final, Self

import httpcore

from bitel.errors import InvalidRequestError
from bitel.webhooks import schedule, targets
from bitel.webhooks.connecting import GuardedBackend, Resolve
from bitel.webhooks.targets import Target

MOST_READ: Final = 64 * 1024
"""Bytes of an answer's body that are read, so that its connection can be used again."""
USER_AGENT: Final = "bitel-webhooks/1"
LONGEST_ERROR: Final = 200
"""Characters."""

_FAULTS: Final = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a receiver has."""

    connect: float = 5.0
    """To be found and connected to."""
    answer: float = 15.0
    """Until its status has come, `connect` included."""
    body: float = 2.0
    """For the body after that. The status counts, whether a body follows or not."""

    @property
    def whole(self) -> float:
        """The longest that a try takes."""
        return self.answer + self.body


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a try: a status, or an error where none came."""

    status: int | None
    error: str
    """Empty on success; else what went wrong, in one line without secrets."""
    seconds: float
    """From the start of the try to its end."""
    retry_after: float | None = None
    """Seconds for which the receiver asked to be left alone."""


class Poster:
    """Posts to any number of receivers, on connections that are kept for a while.

    No redirect is followed, and no proxy of the environment is used. Close it when done.
    """

    def __init__(
        self,
        resolve: Resolve,
        tls: ssl.SSLContext,
        *,
        allow_private: bool = False,
        limits: TimeLimits = TimeLimits(),
        kept_connections: int = 64,
    ) -> None:
        self._limits = limits
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,  # whoever calls `post` bounds how many run at once
            max_keepalive_connections=kept_connections,
            keepalive_expiry=15.0,
            network_backend=GuardedBackend(resolve, allow_private=allow_private),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
        """Post `body` to `url`; whatever the receiver does, there is an Answer.

        `now` is the Unix time, against which a date in `Retry-After` is held.
        """
        begun = time.monotonic()
        try:
            status, asked_for = await self._exchange(targets.parse(url), headers, body, now)
            return Answer(status, _said(status), time.monotonic() - begun, asked_for)
        except InvalidRequestError as fault:
            error = str(fault)
        except httpcore.ConnectTimeout:
            error = f"no connection within {self._limits.connect:g} s"
        except TimeoutError:
            error = f"no answer within {self._limits.answer:g} s"
        except (*_FAULTS, OSError) as fault:
            error = _in_one_line(fault)
        return Answer(None, error, time.monotonic() - begun)

    async def _exchange(
        self, target: Target, headers: Mapping[str, str], body: bytes, now: float
    ) -> tuple[int, float | None]:
        sent = {
            "Host": target.host_header,
            "User-Agent": USER_AGENT,
            "Accept": "*/*",
            "Content-Length": str(len(body)),
            **headers,
        }
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        )
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(self._limits.answer):
                response = await stack.enter_async_context(
                    self._pool.stream(
                        "POST",
                        url,
                        headers=list(sent.items()),
                        content=body,
                        extensions={"timeout": {"connect": self._limits.connect}},
                    )
                )
            await self._read_some(response)
            got = {
                name.lower().decode("latin-1"): value.decode("latin-1")
                for name, value in response.headers
            }
            return response.status, schedule.retry_after(got, now)

    async def _read_some(self, response: httpcore.Response) -> None:
        size = 0
        try:
            async with (
                asyncio.timeout(self._limits.body),
                contextlib.aclosing(_pieces(response)) as pieces,
            ):
                async for piece in pieces:
                    size += len(piece)
                    if size > MOST_READ:
                        return
        except (*_FAULTS, OSError):
            # The status has come; a body that doesn't only costs the connection.
            return


def _origin(fault: BaseException) -> BaseException | None:
    if fault.__cause__ is not None:
        return fault.__cause__
    # httpcore cuts the chain of causes short, but keeps the first as an argument.
    first = fault.args[0] if fault.args else None
    return first if isinstance(first, Exception) else None


async def _pieces(response: httpcore.Response) -> AsyncGenerator[bytes, None]:
    async for piece in response.aiter_stream():
        yield piece


def _said(status: int) -> str:
    if schedule.is_success(status):
        return ""
    if status // 100 == 3:
        return f"answered {status}, and redirects are not followed"
    return f"answered {status}"


def _in_one_line(fault: BaseException) -> str:
    """The words of the error that came first, of those that led to this one, where it has some."""
    words = ""
    at: BaseException | None = fault
    while at is not None:
        if isinstance(at, OSError) and at.errno and not isinstance(at, ssl.SSLError):
            words = os.strerror(at.errno)
        else:
            words = str(at) or words or type(at).__name__
        at = _origin(at)
    printable = "".join(c if c.isprintable() else " " for c in words)
    return " ".join(printable.split())[:LONGEST_ERROR]
