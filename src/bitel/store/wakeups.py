"""Wake-ups between processes that share a PostgreSQL, by LISTEN and NOTIFY.

A process that has placed calls, or ended some, sends a topic after its commit, and the others look
at once instead of with their next poll. Nothing depends on it: a wake-up that is lost, as in a
crash or behind a pooler that does not support LISTEN, costs the time until that poll. So
notifications are not part of the transactions that they are about, whose commits would else wait
for each other.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy import URL

if TYPE_CHECKING:
    import psycopg

log = structlog.get_logger(__name__)

EVENTS: Final = "events"
"""Topic: events are to be delivered."""
EVERYTHING: Final = ""
"""Topic after a connection was lost: anything may have been missed."""
PAUSE: Final = 0.02
"""Seconds between two sends; the same topic is sent once."""

_CHANNEL: Final = "bitel"
_LISTENING: Final = 1.0
"""Seconds for which one read waits."""
_FIRST_RETRY: Final = 1.0
_LONGEST_RETRY: Final = 30.0


def calls_of(dialer_id: str) -> str:
    """Topic: calls of the dialer are due, or to be canceled."""
    return f"calls:{dialer_id}"


class Wakeups:
    """Sends topics to other processes, and calls `on_wakeup` with theirs, in a thread of its own.

    Call `start`, and `close` at the end.
    """

    def __init__(self, url: URL, on_wakeup: Callable[[str], None]) -> None:
        self._conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._on_wakeup = on_wakeup
        self._me = secrets.token_hex(4)
        self._topics: set[str] = set()
        self._has_topics = threading.Event()
        self._is_closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True)
            for name, work in (("wakeups-listen", self._listen), ("wakeups-send", self._send))
        ]

    def start(self) -> None:
        """Begin to listen."""
        for thread in self._threads:
            thread.start()

    def send(self, topic: str) -> None:
        """Wake the other processes; returns at once."""
        self._topics.add(topic)
        self._has_topics.set()

    def close(self) -> None:
        """Stop, without waiting for the database."""
        self._is_closed.set()
        self._has_topics.set()

    def _repeat(self, work: Callable[[psycopg.Connection[Any]], None]) -> None:
        """Do the work with a connection, and with another one when that is lost, until closed."""
        import psycopg

        pause = _FIRST_RETRY
        while not self._is_closed.is_set():
            with (
                contextlib.suppress(psycopg.Error),
                psycopg.connect(
                    self._conninfo, autocommit=True, connect_timeout=5, application_name="bitel"
                ) as connection,
            ):
                pause = _FIRST_RETRY
                work(connection)
            self._is_closed.wait(pause)
            pause = min(2 * pause, _LONGEST_RETRY)

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(f"LISTEN {_CHANNEL}".encode())
        self._wake(EVERYTHING)
        while not self._is_closed.is_set():
            for each in connection.notifies(timeout=_LISTENING):
                sender, _, topic = each.payload.partition(":")
                if sender != self._me:
                    self._wake(topic)

    def _wake(self, topic: str) -> None:
        try:
            self._on_wakeup(topic)
        except Exception:
            log.exception("wakeup_broke", topic=topic)

    def _send(self, connection: psycopg.Connection[Any]) -> None:
        while True:
            self._has_topics.wait()
            if self._is_closed.is_set():
                return
            self._has_topics.clear()
            while self._topics:
                topic = self._topics.pop()
                connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, f"{self._me}:{topic}"))
            self._is_closed.wait(PAUSE)
