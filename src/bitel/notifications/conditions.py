"""Finds the conditions that an operator should act on, at regular intervals."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection

from bitel.dialer.trunk_monitor import TrunkState
from bitel.errors import UnavailableError
from bitel.notifications.monitor import Change, Condition, ConditionMonitor, Kind
from bitel.store import projects
from bitel.store.database import Database

log = structlog.get_logger(__name__)

INTERVAL: Final = 5.0
"""Seconds between two looks."""
BALANCE_INTERVAL: Final = 30.0
"""Seconds between two looks at balances, which ask the database."""

_MEGABYTE: Final = 1024 * 1024


def of_dialer(dialer_id: str, trunks: Iterable[TrunkState], paused_reason: str) -> list[Condition]:
    """What is wrong with an active dialer.

    Args:
        dialer_id: the dialer.
        trunks: its trunks' addresses; a trunk is down when none of its addresses can be used, or
            when it should be registered and is not.
        paused_reason: why its calls wait; empty where they don't.
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
            free = shutil.disk_usage(folder).free // _MEGABYTE
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
    """Looks at dialers, balances and disks, and passes each change on.

    Args:
        dialers: give the conditions of one active dialer each.
        folders: whose file systems must have `disk_megabytes` free; 0: not looked at.
        low_balance: below which a project's balance is reported; None: not looked at.
        put: takes each change.
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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._dialers = dialers
        self._folders = folders
        self._disk_megabytes = disk_megabytes
        self._low_balance = low_balance
        self._currency = currency
        self._put = put
        self._monotonic = monotonic
        self._monitor = ConditionMonitor()
        self._balances_at = -BALANCE_INTERVAL

    async def run(self) -> None:
        """Look every `INTERVAL` seconds, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("conditions_not_found")  # the next look may succeed
            await asyncio.sleep(INTERVAL)

    async def look(self) -> None:
        """Look once."""
        now = self._monotonic()
        found = [condition for dialer in self._dialers for condition in dialer()]
        kinds = {Kind.TRUNK_DOWN, Kind.DIALER_PAUSED}
        if self._disk_megabytes:
            found += await asyncio.to_thread(low_disk, self._folders, self._disk_megabytes)
            kinds.add(Kind.DISK_LOW)
        if self._low_balance is not None and now - self._balances_at >= BALANCE_INTERVAL:
            try:
                found += await self._low_balances(self._low_balance)
            except UnavailableError:
                pass  # said by everything else that needs the database
            else:
                kinds.add(Kind.BALANCE_LOW)
                self._balances_at = now
        for change in self._monitor.update(found, kinds, now):
            self._put(change)

    async def _low_balances(self, limit: Decimal) -> Sequence[Condition]:
        return await self._database.read(lambda conn: low_balances(conn, limit, self._currency))
