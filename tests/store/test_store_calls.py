"""Calls as clients place and see them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import IntegrityError

from bitel.domain.calls import Call, CallStatus
from bitel.errors import InvalidRequestError
from bitel.store import calls, claims
from tests.support import call_rows

if TYPE_CHECKING:
    from tests.support.store_world import World


def test_a_call_reads_as_it_was_placed(world: World) -> None:
    call_id = world.place(phone_number="۰۹۱۲ ۱۲۳ ۴۵۶۷", campaign_id="c" * 32)

    assert world.call(call_id) == Call(
        id=call_id,
        project_id=world.project_id,
        campaign_id="c" * 32,
        phone_number="۰۹۱۲ ۱۲۳ ۴۵۶۷",
        status=CallStatus.WAITING,
        bill_seconds=0,
        requested_at=world.clock(),
        executed_at=0.0,
        price=Decimal(0),
        reason="",
    )
    assert isinstance(world.call(call_id).status, CallStatus)


def test_another_projects_call_is_not_found(world: World) -> None:
    call_id = world.place()

    assert world.do(lambda conn: calls.find(conn, "another", call_id)) is None
    assert world.do(lambda conn: calls.find(conn, world.project_id, "unknown")) is None


def test_many_are_found_in_the_order_asked_for(world: World) -> None:
    new = [world.new_call() for _ in range(2500)]
    world.do(lambda conn: call_rows.place(conn, new))
    ids = [one.id for one in reversed(new)]

    asked = [(world.project_id, one) for one in [*ids[:7], "unknown", *ids[7:]]]
    found = world.do(lambda conn: calls.find_each(conn, asked))

    assert [one.id if one else None for one in found] == [*ids[:7], None, *ids[7:]]


def test_none_is_placed_where_one_cannot_be(world: World) -> None:
    good = world.new_call()
    with pytest.raises(InvalidRequestError, match="voiceId"):
        world.do(
            lambda conn: call_rows.place(
                conn, [good, replace(world.new_call(), recording_id="none")]
            )
        )
    assert world.do(lambda conn: calls.find(conn, world.project_id, good.id)) is None
    world.do(lambda conn: call_rows.place(conn, []))


def test_calls_are_counted_by_status(world: World) -> None:
    for _ in range(3):
        world.place()
    world.place(expires_at=world.clock())
    world.do(lambda conn: claims.expire(conn, "main", world.clock()))

    counts = world.do(call_rows.counts_by_status)

    assert counts == {CallStatus.WAITING: 3, CallStatus.EXPIRED: 1}


def test_the_database_itself_refuses_to_make_a_final_call_due(world: World) -> None:
    call_id = world.place(expires_at=world.clock())
    world.do(lambda conn: claims.expire(conn, "main", world.clock()))

    with pytest.raises(IntegrityError):
        world.do(lambda conn: conn.exec_driver_sql("UPDATE call SET due_at = 1"))
    assert world.call(call_id).status is CallStatus.EXPIRED


def test_many_are_found_in_one_go_each_by_its_own_project_alone(world: World) -> None:
    other = world.another("other")
    mine, also_mine, theirs = world.place(), world.place(), other.place()
    asked = [(world.project_id, mine), (world.project_id, theirs), (other.project_id, theirs),
             (world.project_id, "f" * 32), (world.project_id, also_mine),
             (world.project_id, mine), (other.project_id, mine)]  # fmt: skip

    found = world.do(lambda conn: calls.find_each(conn, asked))

    assert (found[0], found[2]) == (world.call(mine), other.call(theirs))
    assert [one and one.id for one in found] == [mine, None, theirs, None, also_mine, mine, None]
    assert world.do(lambda conn: calls.find_each(conn, [])) == []
