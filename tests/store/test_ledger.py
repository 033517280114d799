"""The ledger, and money put in by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from bitel.store import balances, projects

if TYPE_CHECKING:
    from tests.support.store_world import World


def set_balance(world: World, amount: str) -> None:
    now = world.clock.advance(1)
    world.do(lambda conn: projects.set_balance(conn, world.project_id, Decimal(amount), now))


def test_what_moves_a_balance_is_an_entry(world: World) -> None:
    set_balance(world, "10")
    set_balance(world, "12.5")
    set_balance(world, "12.4999")

    assert world.ledger() == [Decimal("10"), Decimal("2.5"), Decimal("-0.0001")]
    assert sum(world.ledger()) == world.balance() == Decimal("12.4999")


def test_entries_come_the_newest_first_and_page_by_page(world: World) -> None:
    world.set_balance(Decimal(0))
    for amount in range(1, 6):
        set_balance(world, str(sum(range(1, amount + 1))))
    other = world.another("other")
    other.set_balance(Decimal(99))
    found: list[balances.LedgerEntry] = []
    before = None
    while page := world.do(
        lambda conn: balances.entries(conn, world.project_id, limit=2, before=before)  # noqa: B023
    ):
        found += page
        before = page[-1].id

    assert [entry.amount for entry in found] == [5, 4, 3, 2, 1]
    assert {(entry.kind, entry.call_id, entry.project_id) for entry in found} == {
        ("top-up", None, world.project_id)
    }
    assert found[0].created_at == found[-1].created_at + 4
