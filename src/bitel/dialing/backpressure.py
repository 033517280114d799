"""Backpressure: detects overload of this machine, with hysteresis.

There are three signs of overload. A sign begins when its figure reaches one limit, and ends when
the figure has stayed at or below a second, lower limit for `CALM` seconds. No call is claimed while
there is any sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

OverloadReason = Literal["late packets", "late loop", "waiting writes"]

CALM: Final = 0.5
"""Seconds for which a figure must stay low before its sign ends."""


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The load of the machine at one moment."""

    packets_late: float = 0.0
    """Milliseconds by which RTP packets are sent late."""
    loop_late: float = 0.0
    """Milliseconds by which the event loop runs timers late."""
    writes_waiting: int = 0
    """Units of work that wait for the database's writer."""
    messages_late: float = 0.0
    """Milliseconds for which SIP messages have been waiting to be read."""

    def figure(self, sign: OverloadReason) -> float:
        """The figure of `sign`."""
        match sign:
            case "late packets":
                return self.packets_late
            case "late loop":
                return self.loop_late
            case "waiting writes":
                return self.writes_waiting


@dataclass(frozen=True, slots=True)
class Limit:
    """The figure at which a sign begins, and the lower one at or below which it may end."""

    begins: float
    ends: float


LIMITS: Final[Mapping[OverloadReason, Limit]] = MappingProxyType(
    {
        # One packet interval; phones buffer 40 to 60 ms. The figure is the 90th percentile.
        "late packets": Limit(begins=20.0, ends=10.0),
        # It delays the ACK of an answer, and T1 is 500 ms.
        "late loop": Limit(begins=200.0, ends=50.0),
        # Four full transactions, for which a new answer has to wait.
        "waiting writes": Limit(begins=2000, ends=500),
    }
)


class Backpressure:
    """The present signs. Times are seconds; a clock that is set back prolongs no sign."""

    def __init__(self, limits: Mapping[OverloadReason, Limit] = LIMITS, calm: float = CALM) -> None:
        self._limits = limits
        self._calm = calm
        self._low_since: dict[OverloadReason, float | None] = {}
        self._began_at = 0.0
        self._seconds = 0.0

    @property
    def signs(self) -> frozenset[OverloadReason]:
        """The present signs; empty if there is no overload."""
        return frozenset(self._low_since)

    def seconds(self, now: float) -> float:
        """Seconds for which there has been any sign until now, in total."""
        return self._seconds + (max(0.0, now - self._began_at) if self._low_since else 0.0)

    def look(self, load: LoadSample, now: float) -> bool:
        """Update the signs; True if the overload begins or ends."""
        before = bool(self._low_since)
        for sign, limit in self._limits.items():
            self._look_at(sign, limit, load.figure(sign), now)
        if not before and self._low_since:
            self._began_at = now
        elif before and not self._low_since:
            self._seconds += max(0.0, now - self._began_at)
        return before != bool(self._low_since)

    def _look_at(self, sign: OverloadReason, limit: Limit, figure: float, now: float) -> None:
        if figure >= limit.begins:
            self._low_since[sign] = None
        elif sign in self._low_since:
            since = self._low_since[sign]
            if figure > limit.ends:
                self._low_since[sign] = None
            elif since is None or now < since:  # the clock may have been set back
                self._low_since[sign] = now
            elif now - since >= self._calm:
                del self._low_since[sign]
