"""One try: post an event to its receiver, within limits, and say what came of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a receiver has: to be connected to, to answer, and to finish its answer."""

    connect: float = 5.0
    whole: float = 15.0
    body: float = 2.0
    """Part of `whole`. An answer whose status has come counts, whether its body follows or not."""


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
        status: int | None = None
        asked_for: float | None = None
        try:
            target = targets.parse(url)
            async with asyncio.timeout(self._limits.whole):
                status, asked_for = await self._exchange(target, headers, body, now)
            error = _said(status)
        except InvalidRequestError as fault:
            error = str(fault)
        except TimeoutError:
            error = f"no answer within {self._limits.whole:g} s"
        except httpcore.ConnectTimeout:
            error = f"no connection within {self._limits.connect:g} s"
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as fault:
            error = _in_one_line(fault)
        return Answer(status, error, time.monotonic() - begun, asked_for)

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
        async with self._pool.stream(
            "POST",
            httpcore.URL(
                scheme=target.scheme, host=target.host, port=target.port, target=target.path
            ),
            headers=sent,
            content=body,
            extensions={"timeout": {"connect": self._limits.connect}},
        ) as response:
            got = {
                name.lower().decode("latin-1"): value.decode("latin-1")
                for name, value in response.headers
            }
            await self._read_some(response)
        return response.status, schedule.retry_after(got, now)

    async def _read_some(self, response: httpcore.Response) -> None:
        size = 0
        try:
            async with asyncio.timeout(self._limits.body):
                async for piece in response.aiter_stream():
                    size += len(piece)
                    if size > MOST_READ:
                        return
        except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
            # The status has come; a body that doesn't only costs the connection.
            return


def _said(status: int) -> str:
    if schedule.is_success(status):
        return ""
    if status // 100 == 3:
        return f"answered {status}, and redirects are not followed"
    return f"answered {status}"


def _in_one_line(fault: Exception) -> str:
    words = " ".join(str(fault).split()) or type(fault).__name__
    printable = "".join(c if c.isprintable() else "?" for c in words)
    return printable[:LONGEST_ERROR]
