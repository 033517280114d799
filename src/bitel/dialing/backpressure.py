"""When this machine carries as many calls as it can, and when there is room again.

Three signs tell that more calls would be done badly. A sign begins the moment its figure reaches
one limit, and ends once the figure has stayed at or below a second, lower one for `CALM` seconds:
a figure that wavers between the two changes nothing. While any sign lasts no call is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

OverloadReason = Literal["late packets", "late loop", "waiting writes"]

CALM: Final = 0.5
"""Seconds for which a figure must have stayed low before its sign ends."""


@dataclass(frozen=True, slots=True)
class LoadSample:
    """How the machine fares at this moment."""

    packets_late: float = 0.0
    """By how many milliseconds RTP leaves late; 0 while it does not."""
    loop_late: float = 0.0
    """By how many milliseconds the event loop is late for what is due."""
    writes_waiting: int = 0
    """Units of work that wait for the database's writer."""
    messages_late: float = 0.0
    """For how many milliseconds SIP messages have been waiting to be read; 0 while none do."""

    def figure(self, sign: OverloadReason) -> float:
        """The figure that `sign` is about."""
        match sign:
            case "late packets":
                return self.packets_late
            case "late loop":
                return self.loop_late
            case "waiting writes":
                return self.writes_waiting


@dataclass(frozen=True, slots=True)
class Limit:
    """At which figure a sign begins, and at or below which it may end; `ends` is the lower."""

    begins: float
    ends: float


LIMITS: Final[Mapping[OverloadReason, Limit]] = MappingProxyType(
    {
        # A packet that is 20 ms late comes when the next one should; phones buffer 40 to 60 ms.
        # The figure is what a tenth of a second's packets are later than.
        "late packets": Limit(begins=20.0, ends=10.0),
        # An answer waits for its ACK so long, and T1 is 500 ms.
        "late loop": Limit(begins=200.0, ends=50.0),
        # Four full transactions: whoever answers now waits for all of them.
        "waiting writes": Limit(begins=2000, ends=500),
    }
)


class Backpressure:
    """The signs that last. Times are seconds; none lasts longer for a clock that is set back."""

    def __init__(self, limits: Mapping[OverloadReason, Limit] = LIMITS, calm: float = CALM) -> None:
        self._limits = limits
        self._calm = calm
        self._low_since: dict[OverloadReason, float | None] = {}
        self._began_at = 0.0
        self._seconds = 0.0

    @property
    def signs(self) -> frozenset[OverloadReason]:
        """Those that last; empty: there is room."""
        return frozenset(self._low_since)

    def seconds(self, now: float) -> float:
        """For how long calls have been held back until now, all together."""
        return self._seconds + (max(0.0, now - self._began_at) if self._low_since else 0.0)

    def look(self, load: LoadSample, now: float) -> bool:
        """Take note of `load`; True where holding back begins or ends with it."""
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
