"""What counts as wrong: trunks, balances, disks."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection

from bitel.dialer.trunk_monitor import TrunkState
from bitel.notifications.conditions import (
    BALANCE_INTERVAL,
    Change,
    Condition,
    ConditionWatcher,
    Kind,
    low_balances,
    low_disk,
    of_dialer,
)
from bitel.sip.grammar import Address
from bitel.store import projects
from bitel.store.database import Database
from tests.support.small_disk import fill, small_disk

if TYPE_CHECKING:
    from tests.support.clocks import FakeClock

A, B = Address("192.0.2.1", 5060), Address("192.0.2.2", 5060)


def state(
    trunk: str = "sip:a", address: Address = A, usable: bool = True, registered: bool | None = None
) -> TrunkState:
    return TrunkState(trunk, address, usable, not usable, registered, None)


@pytest.mark.parametrize(
    ("states", "down"),
    [
        ([state()], []),
        ([state(), state(address=B, usable=False)], []),
        ([state(usable=False), state(address=B, usable=False)], ["main sip:a"]),
        ([state(registered=True)], []),
        ([state(registered=False)], ["main sip:a"]),
        ([state(usable=False), state("sip:b")], ["main sip:a"]),
        ([], []),
    ],
)
def test_a_trunk_is_down_when_no_address_of_it_takes_calls(
    states: list[TrunkState], down: list[str]
) -> None:
    found = of_dialer("main", states, "")
    assert [(each.kind, each.subject) for each in found] == [(Kind.TRUNK_DOWN, s) for s in down]


def test_a_dialer_that_is_paused_says_why() -> None:
    [found] = of_dialer("main", [state()], "ten calls were refused in a row")
    assert (found.kind, found.details) == (Kind.DIALER_PAUSED, {"dialer": "main"})
    assert "ten calls were refused in a row" in found.message


def test_balances(database: Database, clock: FakeClock) -> None:
    def work(conn: Connection) -> list[Condition]:
        balances = {"poor": "9.99", "at-limit": "10", "in-debt": "-5", "off": "1", "free": None}
        for name, balance in balances.items():
            made = projects.create(conn, name, clock())
            amount = None if balance is None else Decimal(balance)
            projects.set_balance(conn, made.id, amount, clock())
            if name == "off":
                projects.change(conn, made.id, disabled=True)
        return low_balances(conn, Decimal(10), "EUR")

    found = database.write_now(work)
    assert [each.details["name"] for each in found] == ["in-debt", "poor"]
    assert "9.99" in found[1].message
    assert "EUR" in found[1].message


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    assert low_disk([tmp_path], 0) == []
    with small_disk(tmp_path / "disk") as disk:
        (disk / "folder").mkdir()
        fill(disk)
        [found] = low_disk([disk, disk / "folder"], 1)
        assert found.details == {"folder": str(disk), "freeMegabytes": 0}
    [gone] = low_disk([tmp_path / "absent"], 1)
    assert "can't be read: No such file" in gone.message


async def test_balances_are_asked_for_now_and_then_only(
    database: Database, clock: FakeClock
) -> None:
    poor = database.write_now(lambda conn: projects.create(conn, "poor", clock()))
    database.write_now(lambda conn: projects.set_balance(conn, poor.id, Decimal(1), clock()))
    changes: list[Change] = []
    is_mine = False
    watcher = ConditionWatcher(
        database, [], [], 0, Decimal(5), "EUR", changes.append, lambda: is_mine, monotonic=clock
    )
    await watcher.look()
    assert not changes, "another process checks them"
    is_mine = True
    await watcher.look()
    assert [change.condition.subject for change in changes] == [poor.id]
    database.write_now(lambda conn: projects.set_balance(conn, poor.id, Decimal(50), clock()))
    for _ in range(5):
        clock.advance(BALANCE_INTERVAL)
        await watcher.look()
    assert [change.began for change in changes] == [True, False]
