"""Detects the conditions that an operator is notified of, and when they begin and end.

`ConditionWatcher` checks at regular intervals, `ConditionMonitor` compares with the last check. A
condition is reported when it has held for `HOLD` seconds, its end when it has been absent for
`CLEAR_AFTER` seconds, so that a trunk that answers every second ping is reported once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection

from bitel.dialer.trunk_monitor import TrunkState
from bitel.errors import UnavailableError
from bitel.store import projects
from bitel.store.database import Database

log = structlog.get_logger(__name__)

INTERVAL: Final = 5.0
"""Seconds between two checks."""
BALANCE_INTERVAL: Final = 30.0
"""Seconds between two checks of balances, which query the database."""


class Kind(StrEnum):
    """Kind of a condition; the value is the type of the notification."""

    TRUNK_DOWN = "trunk.down"
    DIALER_PAUSED = "dialer.paused"
    BALANCE_LOW = "balance.low"
    DISK_LOW = "disk.low"


HOLD: Final[Mapping[Kind, float]] = {Kind.TRUNK_DOWN: 30.0}
"""Seconds that a condition must hold before it is reported; 0 for other kinds. Gives a trunk time
to register at the start, and to answer the next ping."""

CLEAR_AFTER: Final = 60.0
"""Seconds that a reported condition must be absent before its end is reported."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now."""

    kind: Kind
    subject: str
    """Identifies the condition among its kind: a dialer and trunk, a project's id, a folder."""
    message: str
    """One sentence for the operator."""
    details: Mapping[str, str | int] = field(default_factory=dict)
    """The same as machine-readable values."""


@dataclass(frozen=True, slots=True)
class Change:
    """The begin or the end of a condition."""

    condition: Condition
    began: bool
    """False: it ended, and `condition` is as it was last seen."""


@dataclass(slots=True)
class _Seen:
    condition: Condition
    since: float
    last: float
    reported: bool = False


class ConditionMonitor:
    """Turns the conditions of each check into changes."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Kind, str], _Seen] = {}

    def update(
        self, conditions: Iterable[Condition], looked_at: Iterable[Kind], now: float
    ) -> list[Change]:
        """Record a check, and return the changes.

        Args:
            conditions: all present conditions of the kinds `looked_at`.
            looked_at: the kinds that were checked; the state of others stays as it is.
            now: seconds of a monotonic clock.
        """
        kinds = frozenset(looked_at)
        changes: list[Change] = []
        present: set[tuple[Kind, str]] = set()
        for condition in conditions:
            key = (condition.kind, condition.subject)
            present.add(key)
            seen = self._seen.setdefault(key, _Seen(condition, now, now))
            seen.condition, seen.last = condition, now
            if not seen.reported and now - seen.since >= HOLD.get(condition.kind, 0.0):
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


def of_dialer(dialer_id: str, trunks: Iterable[TrunkState], paused_reason: str) -> list[Condition]:
    """Conditions of an active dialer; `paused_reason` says why its calls wait, if they do.

    A trunk is down when none of its addresses can be used, or when it should be registered and is
    not.
    """
    found = []
    addresses: dict[str, list[TrunkState]] = {}
    for state in trunks:
        addresses.setdefault(state.trunk, []).append(state)
    for trunk, states in addresses.items():
        unregistered = all(state.registered is False for state in states)
        if any(state.usable for state in states) and not unregistered:
            continue
        why = "is not registered" if unregistered else "does not answer, or asked for a rest"
        message = f"the trunk {trunk} of the dialer {dialer_id} {why}"
        details = {"dialer": dialer_id, "trunk": trunk}
        found.append(Condition(Kind.TRUNK_DOWN, f"{dialer_id} {trunk}", message, details))
    if paused_reason:
        message = f"the dialer {dialer_id} places no calls: {paused_reason}"
        found.append(Condition(Kind.DIALER_PAUSED, dialer_id, message, {"dialer": dialer_id}))
    return found


def low_balances(conn: Connection, limit: Decimal, currency: str) -> list[Condition]:
    """Enabled projects with a balance below `limit`."""
    return [
        Condition(
            Kind.BALANCE_LOW,
            project.id,
            f"the balance of the project {project.name} is {project.balance} {currency}",
            {"project": project.id, "name": project.name, "balance": str(project.balance)},
        )
        for project in projects.with_balance_below(conn, limit)
    ]


def low_disk(folders: Sequence[Path], megabytes: int) -> list[Condition]:
    """File systems of `folders` with less than `megabytes` free; each file system once."""
    found: dict[int | str, Condition] = {}
    for folder in folders:
        details: dict[str, str | int] = {"folder": str(folder)}
        device: int | str = str(folder)
        try:
            device = os.stat(folder).st_dev
            free = shutil.disk_usage(folder).free // 2**20
        except OSError as fault:
            message = f"the disk of {folder} can't be read: {fault.strerror}"
        else:
            if free >= megabytes:
                continue
            message = f"the disk of {folder} has {free} MiB left"
            details["freeMegabytes"] = free
        found.setdefault(device, Condition(Kind.DISK_LOW, str(folder), message, details))
    return list(found.values())


class ConditionWatcher:
    """Checks dialers, balances and disks, and calls `put` with each change.

    Args:
        dialers: each returns the conditions of one active dialer.
        folders: their file systems must have `disk_megabytes` (MiB) free; 0: not checked.
        low_balance: a balance below it is reported; None: not checked.
        checks_balances: whether this process is the one, of several, that checks them now.
    """

    def __init__(
        self,
        database: Database,
        dialers: Sequence[Callable[[], Sequence[Condition]]],
        folders: Sequence[Path],
        disk_megabytes: int,
        low_balance: Decimal | None,
        currency: str,
        put: Callable[[Change], None],
        checks_balances: Callable[[], bool] = lambda: True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._dialers = dialers
        self._folders = folders
        self._disk_megabytes = disk_megabytes
        self._low_balance = low_balance
        self._currency = currency
        self._put = put
        self._checks_balances = checks_balances
        self._monotonic = monotonic
        self._monitor = ConditionMonitor()
        self._balances_at = -BALANCE_INTERVAL

    async def run(self) -> None:
        """Check every `INTERVAL` seconds, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("conditions_not_found")  # the next check may succeed
            await asyncio.sleep(INTERVAL)

    async def look(self) -> None:
        """Check once."""
        now = self._monotonic()
        found = [condition for dialer in self._dialers for condition in dialer()]
        kinds = {Kind.TRUNK_DOWN, Kind.DIALER_PAUSED}
        if self._disk_megabytes:
            found += await asyncio.to_thread(low_disk, self._folders, self._disk_megabytes)
            kinds.add(Kind.DISK_LOW)
        limit = self._low_balance
        is_due = now - self._balances_at >= BALANCE_INTERVAL
        if limit is not None and is_due and self._checks_balances():
            try:
                found += await self._database.read(
                    lambda conn: low_balances(conn, limit, self._currency)
                )
            except UnavailableError:
                pass  # already logged by other users of the database
            else:
                kinds.add(Kind.BALANCE_LOW)
                self._balances_at = now
        for change in self._monitor.update(found, kinds, now):
            self._put(change)
