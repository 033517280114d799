"""State of the conditions that an operator is notified of: when each begins and ends.

A condition is reported when it has held for `HOLD` seconds, and its end when it has been absent for
`CLEAR_AFTER` seconds. So a trunk that answers every second ping is reported once, not at each ping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What is wrong; the value is the type of the notification."""

    TRUNK_DOWN = "trunk.down"
    DIALER_PAUSED = "dialer.paused"
    BALANCE_LOW = "balance.low"
    DISK_LOW = "disk.low"


HOLD: Final[Mapping[Kind, float]] = {
    Kind.TRUNK_DOWN: 30.0,
    Kind.DIALER_PAUSED: 0.0,
    Kind.BALANCE_LOW: 0.0,
    Kind.DISK_LOW: 0.0,
}
"""Seconds that a condition must hold before it is reported. A trunk has time to register at the
start, and to answer the next ping."""

CLEAR_AFTER: Final = 60.0
"""Seconds that a reported condition must be absent before its end is reported."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now."""

    kind: Kind
    subject: str
    """What it is about: a dialer and trunk, a project's id, a folder. With `kind` it identifies the
    condition."""
    message: str
    """One sentence for a person."""
    details: Mapping[str, str | int] = field(default_factory=dict)
    """The same for a program."""


@dataclass(frozen=True, slots=True)
class Change:
    """The begin or the end of a condition."""

    condition: Condition
    """As it was last seen."""
    began: bool
    """Whether it began; else it ended."""


@dataclass(slots=True)
class _Seen:
    condition: Condition
    since: float
    last: float
    reported: bool = False


class ConditionMonitor:
    """Turns the conditions of each look into changes."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Kind, str], _Seen] = {}

    def update(
        self, conditions: Iterable[Condition], looked_at: Iterable[Kind], now: float
    ) -> list[Change]:
        """The changes that this look shows.

        Args:
            conditions: all that is wrong now, of the kinds `looked_at`.
            looked_at: the kinds that could be judged; what is known of others stays as it is.
            now: seconds on a monotonic clock.
        """
        kinds = frozenset(looked_at)
        changes: list[Change] = []
        present: set[tuple[Kind, str]] = set()
        for condition in conditions:
            key = (condition.kind, condition.subject)
            present.add(key)
            seen = self._seen.setdefault(key, _Seen(condition, now, now))
            seen.condition, seen.last = condition, now
            if not seen.reported and now - seen.since >= HOLD[condition.kind]:
                seen.reported = True
                changes.append(Change(condition, began=True))
        for key, seen in list(self._seen.items()):
            if key in present or key[0] not in kinds:
                continue
            if not seen.reported:
                del self._seen[key]
            elif now - seen.last >= CLEAR_AFTER:
                del self._seen[key]
                changes.append(Change(seen.condition, began=False))
        return changes
