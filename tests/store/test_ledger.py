"""The ledger, and money put in by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from bitel.errors import ConflictError, NotFoundError
from bitel.store import ledger

if TYPE_CHECKING:
    from tests.support.store_world import World


def top_up(world: World, amount: str, project_id: str | None = None) -> Decimal:
    which, now = project_id or world.project_id, world.clock.advance(1)
    return world.do(lambda conn: ledger.top_up(conn, which, Decimal(amount), now))


def test_a_balance_is_topped_up(world: World) -> None:
    world.set_balance(Decimal(10))

    assert top_up(world, "2.5") == Decimal("12.5")
    assert top_up(world, "-0.0001") == world.balance() == Decimal("12.4999")
    assert sum(world.ledger()) == world.balance()


def test_what_has_no_limit_cannot_be_topped_up(world: World) -> None:
    with pytest.raises(ConflictError, match="without a limit"):
        top_up(world, "1")
    with pytest.raises(NotFoundError):
        top_up(world, "1", "nobody")
    assert world.ledger() == []


def test_entries_come_the_newest_first_and_page_by_page(world: World) -> None:
    world.set_balance(Decimal(0))
    for amount in range(1, 6):
        top_up(world, str(amount))
    other = world.another("other")
    other.set_balance(Decimal(99))
    found: list[ledger.LedgerEntry] = []
    before = None
    while page := world.do(
        lambda conn: ledger.entries(conn, world.project_id, limit=2, before=before)  # noqa: B023
    ):
        found += page
        before = page[-1].id

    assert [entry.amount for entry in found] == [5, 4, 3, 2, 1]
    assert {(entry.kind, entry.call_id, entry.project_id) for entry in found} == {
        ("top-up", None, world.project_id)
    }
    assert found[0].created_at == found[-1].created_at + 4
