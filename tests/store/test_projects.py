"""Projects, their balance, tokens and recordings."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from bitel.domain.ids import new_id
from bitel.errors import ConflictError, InvalidRequestError, NotFoundError
from bitel.store import projects, recordings, tokens
from bitel.store.database import Database
from bitel.store.recordings import Recording
from bitel.store.schema import Money

if TYPE_CHECKING:
    from tests.support.clocks import FakeClock
    from tests.support.store_world import World


def test_a_project_is_found_by_name_and_by_id(database: Database, clock: FakeClock) -> None:
    made = database.write_now(lambda conn: projects.create(conn, "فروشگاه", clock()))

    assert made.balance is None
    assert database.read_now(lambda conn: projects.by_id(conn, made.id)) == made
    assert database.read_now(lambda conn: projects.find(conn, made.id)) == made
    assert database.read_now(lambda conn: projects.find(conn, "فروشگاه")) == made
    assert database.read_now(lambda conn: projects.find(conn, "other")) is None
    assert database.read_now(lambda conn: projects.by_id(conn, "فروشگاه")) is None
    assert database.read_now(projects.listing) == [made]


def test_two_projects_have_two_names(world: World) -> None:
    with pytest.raises(ConflictError, match="shop"):
        world.do(lambda conn: projects.create(conn, "shop", world.clock()))


@pytest.mark.parametrize("name", ["", "x" * 65, "two\nlines", "nul\0", "0123456789abcdef" * 2])
def test_a_bad_name_is_refused(database: Database, clock: FakeClock, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        database.write_now(lambda conn: projects.create(conn, name, clock()))


def test_a_balance_is_the_sum_of_its_entries(world: World) -> None:
    for amount in (Decimal(100), Decimal("12.3456"), None, Decimal(0), Decimal("-5.5")):
        world.set_balance(amount)
        assert world.balance() == amount
        if amount is not None:
            assert sum(world.ledger()) == amount
    count = len(world.ledger())
    world.set_balance(Decimal("-5.5"))
    assert len(world.ledger()) == count


def test_the_balance_of_an_unknown_project_cannot_be_set(database: Database) -> None:
    with pytest.raises(NotFoundError):
        database.write_now(lambda conn: projects.set_balance(conn, "nobody", Decimal(1), 1.0))


def test_only_what_is_named_is_changed(world: World) -> None:
    before = world.project()
    changes: dict[str, Any] = {
        "default_dialer": "main",
        "disabled": True,
        "webhook_secret": "whsec_x",
        "webhook_url": "https://example.net/",
        "daily_spend": Decimal("12.5"),
        "requests_per_minute": 600,
        "calls_per_minute": 60,
        "allowed_prefixes": ("+98", "+4930"),
        "forbidden_prefixes": ("+98909",),
        "window": "sat-wed 09:00-21:00 Asia/Tehran",
        "dialers": ("main", "other"),
    }
    for name, value in changes.items():
        changed = world.change(**{name: value})
        assert changed == replace(before, **{name: value})
        assert world.project() == changed
        before = changed
    assert world.change() == before
    nothing = dict.fromkeys(changes, None) | {"disabled": False, "forbidden_prefixes": ()}
    cleared = world.change(**nothing)
    assert {name: getattr(cleared, name) for name in changes} == nothing
    assert world.change(allowed_prefixes=()).allowed_prefixes == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": "always"},
        {"allowed_prefixes": ("98",)},
        {"forbidden_prefixes": ("+98,+1",)},
        {"requests_per_minute": 0},
        {"calls_per_minute": -5},
        {"daily_spend": Decimal("-0.01")},
        {"webhook_url": "https://example.net/"},  # and no secret
    ],
    ids=str,
)
def test_a_change_to_what_cannot_be_is_refused(world: World, wrong: dict[str, Any]) -> None:
    before = world.project()
    with pytest.raises(InvalidRequestError):
        world.change(**wrong)
    assert world.project() == before


def test_an_unknown_project_cannot_be_changed(world: World) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        world.change("nobody", disabled=True)


def test_the_secret_shows_in_no_log(world: World) -> None:
    assert "whsec" not in repr(world.change(webhook_secret="whsec_x"))


@given(st.decimals(min_value=-(10**14), max_value=10**14, places=4))
def test_money_is_exact(amount: Decimal) -> None:
    money, dialect = Money(), sqlite.dialect()
    stored = money.process_bind_param(amount, dialect)
    assert money.process_result_value(stored, dialect) == amount


def test_a_token_lives_until_it_is_revoked_or_expires(world: World) -> None:
    now = world.clock()
    token_id, brief_id = new_id(now), new_id(now)

    def live(token: str, project: str = world.project_id, at: float = now) -> bool:
        return bool(world.do(lambda conn: tokens.find_project(conn, token, project, at)))

    world.do(lambda conn: tokens.add(conn, token_id, world.project_id, now))
    world.do(lambda conn: tokens.add(conn, brief_id, world.project_id, now, now + 10))

    assert live(token_id, at=now + 1e9)
    assert live(brief_id, at=now + 9.9)
    assert not live(brief_id, at=now + 10)
    assert not live(token_id, project="another")
    assert not live("unknown")
    assert world.do(lambda conn: tokens.revoke(conn, token_id, now))
    assert not live(token_id)
    assert not world.do(lambda conn: tokens.revoke(conn, token_id, now))
    assert not world.do(lambda conn: tokens.revoke(conn, "unknown", now))


def test_a_disabled_project_has_no_live_token(world: World) -> None:
    token_id = new_id(1.0)
    world.do(lambda conn: tokens.add(conn, token_id, world.project_id, 1.0))
    world.do(lambda conn: conn.exec_driver_sql("UPDATE project SET disabled = true"))

    assert not world.do(lambda conn: tokens.find_project(conn, token_id, world.project_id, 2.0))


def test_a_recording_is_its_projects_alone(world: World) -> None:
    new = Recording(new_id(1.0), world.project_id, "سلام\0", 12.5, 2**33, 1.0)
    world.do(lambda conn: recordings.add(conn, new))

    def find(project_id: str) -> Recording | None:
        return world.do(lambda conn: recordings.find(conn, project_id, new.id))

    found = find(world.project_id)
    assert found is not None
    assert (found.duration, found.size, found.name[:4]) == (12.5, 2**33, "سلام")
    assert find("another") is None
    world.do(lambda conn: conn.exec_driver_sql("UPDATE recording SET deleted_at = 5"))
    assert find(world.project_id) is None
