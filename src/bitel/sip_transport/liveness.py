"""When a connection is asked whether it still lives, and when it is given up. Without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What a connection may cost, times in seconds.

    `connecting` bounds a connection attempt, and `pause` is how long a destination is not tried
    again after one that failed. `message` is how long a stranger may take for a first message, and
    anybody for one that has begun. A ping leaves after `ping_every` of silence; who has ever
    answered one has `pong_within` for the next. A connection without a message for `idle` is
    closed: longer than a session lasts without a refresh (half of RFC 4028's 1800 s). `unsent`
    bytes may wait for a far end that does not read, and as many for a connection being made.
    An INVITE for a connection from which nothing came for `probe_after`, not even an
    acknowledgement, waits up to `probe_within` until it has acknowledged a ping.
    `opened` counts connections of ours, `answering` those that were opened only for a response,
    `accepted` and `per_source` those of others. All of it is looked at every `look_every`.
    """

    connecting: float = 5.0
    pause: float = 1.0
    message: float = 30.0
    ping_every: float = 30.0
    pong_within: float = 10.0
    idle: float = 2000.0
    probe_after: float = 5.0
    probe_within: float = 2.0
    unsent: int = 1024 * 1024
    opened: int = 1000
    answering: int = 50
    accepted: int = 1000
    per_source: int = 50
    look_every: float = 5.0


class Liveness:
    """What is known of one connection. With `ours`, which we have opened, it is we who ping."""

    __slots__ = (
        "_answers",
        "_limits",
        "_message_at",
        "_ours",
        "_pinged_at",
        "_quiet_since",
        "_seen_message",
        "_waiting_since",
        "_was_answering",
    )

    def __init__(self, limits: StreamLimits, now: float, *, ours: bool) -> None:
        self._limits = limits
        self._ours = ours
        self._message_at = self._quiet_since = now
        # Since when the end of a message is waited for; a stranger owes us one from the start.
        self._waiting_since = None if ours else now
        self._seen_message = ours
        self._pinged_at: float | None = None
        self._answers = self._was_answering = False

    def sent(self, now: float) -> None:
        """A message left."""
        self._message_at = self._quiet_since = now

    def received(self, now: float) -> None:
        """A whole message came."""
        self._message_at = now
        self._seen_message = True
        self._waiting_since = None

    def heard(self, now: float, *, is_between: bool) -> None:
        """Bytes came and were dealt with; `is_between` where no message is half received."""
        self._quiet_since = now
        self._pinged_at = None
        if not is_between:
            self._waiting_since = self._waiting_since or now
        elif self._seen_message:
            self._waiting_since = None

    def pinged(self, now: float) -> None:
        """A ping left that `due` did not ask for."""
        self._pinged_at = self._quiet_since = now

    def pong(self) -> None:
        """One CRLF came."""
        self._was_answering = self._answers
        self._answers = self._answers or self._pinged_at is not None

    def ping(self) -> None:
        """Another CRLF came right after it: that was no answer of theirs, but their own ping."""
        self._answers = self._was_answering

    def due(self, now: float) -> Literal["ping", "dead", "idle", "slow"] | None:
        """What has to be done by now. After "ping" one is taken to have been sent."""
        limits = self._limits
        if self._waiting_since is not None and now - self._waiting_since >= limits.message:
            return "slow"
        if now - self._message_at >= limits.idle:
            return "idle"
        pinged_at = self._pinged_at
        if self._answers and pinged_at is not None and now - pinged_at >= limits.pong_within:
            return "dead"
        if self._ours and now - self._quiet_since >= limits.ping_every:
            self._pinged_at = self._quiet_since = now
            return "ping"
        return None
