"""One try: post an event to its receiver, within limits, and say what came of it."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from bitel.errors import InvalidRequestError
from bitel.webhooks import retry_policy, url_policy
from bitel.webhooks.connecting import ConnectFault, Resolve, connect
from bitel.webhooks.exchange import ClosedEarly, Connection, ExchangeError, Head, request
from bitel.webhooks.url_policy import Target

USER_AGENT: Final = "bitel-webhooks/1"
KEPT_FOR: Final = 15.0
"""Seconds that a connection is kept for the next event to the same receiver."""
LONGEST_ERROR: Final = 200
"""Characters."""

_Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a receiver has."""

    connect: float = 5.0
    """To be found and connected to."""
    answer: float = 15.0
    """Until its status has come, `connect` included."""
    body: float = 2.0
    """For the body after that. The status counts, whether a body follows or not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a try: a status, or an error where none came."""

    status: int | None
    error: str
    """Empty where there is a status; else what went wrong, in one line."""
    seconds: float
    """From the start of the try to its end."""
    retry_after: float | None = None
    """Seconds for which the receiver asked to be left alone."""


class Poster:
    """Posts to any number of receivers, on connections that are kept for a while.

    No redirect is followed, and no proxy of the environment is used. Whoever calls `post` bounds
    how many run at once. Close it when done.
    """

    def __init__(
        self,
        resolve: Resolve,
        tls: ssl.SSLContext,
        *,
        allow_private: bool = False,
        limits: TimeLimits = TimeLimits(),
        most_kept: int = 64,
    ) -> None:
        self._resolve = resolve
        self._tls = tls
        self._allow_private = allow_private
        self._limits = limits
        self._most_kept = most_kept
        self._kept: dict[_Origin, list[Connection]] = {}
        self._count = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection that is kept."""
        for connections in self._kept.values():
            for connection in connections:
                connection.close()
        self._kept.clear()
        self._count = 0

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
        """Post `body` to `url`; whatever the receiver does, there is an Answer.

        `now` is the Unix time, against which a date in `Retry-After` is held.
        """
        begun = time.monotonic()
        try:
            head = await self._exchange(url_policy.parse(url), headers, body)
        except (InvalidRequestError, ConnectFault, ExchangeError) as fault:
            error = _one_line(str(fault))
            _release(fault)
        except TimeoutError as fault:
            error = f"no answer within {self._limits.answer:g} s"
            _release(fault)
        except OSError as fault:
            error = _one_line(_words(fault))
            _release(fault)
        else:
            asked_for = retry_policy.retry_after(head.headers, now)
            return Answer(head.status, "", time.monotonic() - begun, asked_for)
        return Answer(None, error, time.monotonic() - begun)

    async def _exchange(self, target: Target, headers: Mapping[str, str], body: bytes) -> Head:
        sent = {"host": target.host_header, "user-agent": USER_AGENT, "accept": "*/*", **headers}
        data = request(target.path, sent, body)
        origin = (target.scheme, target.host, target.port)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._limits.answer):
                connection, head = await self._answered(target, self._take(origin), data)
            await self._drop_body(connection)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._keep(origin, connection)
        return head

    async def _answered(
        self, target: Target, kept: Connection | None, data: bytes
    ) -> tuple[Connection, Head]:
        if kept is not None:
            try:
                return kept, await self._head(kept, data)
            except (ClosedEarly, ConnectionError):
                # The receiver had given this connection up, which happens; it says nothing of it.
                pass
        fresh = await connect(
            target,
            self._limits.connect,
            resolve=self._resolve,
            tls=self._tls,
            allow_private=self._allow_private,
        )
        return fresh, await self._head(fresh, data)

    async def _head(self, connection: Connection, data: bytes) -> Head:
        try:
            return await connection.exchange(data)
        except BaseException:
            connection.close()
            raise

    async def _drop_body(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._limits.body):
                await connection.drop_body()
        except TimeoutError:
            connection.close()

    def _take(self, origin: _Origin) -> Connection | None:
        for connection in reversed(tuple(self._kept.get(origin, ()))):
            self._forget(origin, connection)
            if not connection.lost:
                return connection
        return None

    def _keep(self, origin: _Origin, connection: Connection) -> None:
        if connection.lost:
            return
        if self._count >= self._most_kept:
            connection.close()
            return
        self._kept.setdefault(origin, []).append(connection)
        self._count += 1
        uses = connection.uses
        asyncio.get_running_loop().call_later(KEPT_FOR, self._expire, origin, connection, uses)

    def _forget(self, origin: _Origin, connection: Connection) -> None:
        kept = self._kept[origin]
        kept.remove(connection)
        self._count -= 1
        if not kept:
            del self._kept[origin]

    def _expire(self, origin: _Origin, connection: Connection, uses: int) -> None:
        if connection.uses == uses and connection in self._kept.get(origin, []):
            self._forget(origin, connection)
            connection.close()


def _release(fault: BaseException | None) -> None:
    """Have an error that was dealt with refer to no frame.

    The future that it came by would keep it, and so the frames, and they the future, until the
    collector of cyclic garbage runs, which it hardly ever does.
    """
    seen: set[int] = set()
    while fault is not None and id(fault) not in seen:
        seen.add(id(fault))
        fault.__traceback__ = None
        fault = fault.__cause__ or fault.__context__


def _words(fault: OSError) -> str:
    # asyncio's own words for a refused connection name the address once more.
    if fault.errno and not isinstance(fault, ssl.SSLError):
        return os.strerror(fault.errno)
    return str(fault) or type(fault).__name__


def _one_line(words: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in words)
    return " ".join(printable.split())[:LONGEST_ERROR]
