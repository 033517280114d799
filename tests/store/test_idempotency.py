"""Idempotency keys: one request of many alike is carried out, in one process or in several."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from bitel.errors import ConflictError
from bitel.store import idempotency
from bitel.store.database import Connection, Database
from bitel.store.idempotency import LIFETIME
from bitel.store.schema import call, idempotency_key
from tests.support import call_rows

if TYPE_CHECKING:
    from tests.support.store_world import World

HASH = "f" * 64


def request(world: World, key: str = "k", body_hash: str = HASH) -> bytes:
    """What a request with this key answers."""
    return world.do(lambda conn: carry_out(conn, world, key, body_hash))


def carry_out(conn: Connection, world: World, key: str, body_hash: str) -> bytes:
    now = world.clock()
    answer = idempotency.first_answer(conn, world.project_id, key, body_hash, now)
    if answer is None:
        new = world.new_call()
        call_rows.place(conn, [new])
        answer = new.id.encode()
        idempotency.keep(conn, world.project_id, key, answer)
    return answer


def test_the_second_request_gets_the_answer_of_the_first(world: World) -> None:
    first = request(world)
    world.clock.advance(LIFETIME - 1)

    assert request(world) == first
    assert world.count(call) == 1


def test_another_key_or_another_project_is_another_request(world: World) -> None:
    answers = {request(world), request(world, "K"), request(world.another("other"))}
    assert len(answers) == world.count(call) == 3


def test_the_same_key_with_another_body_is_refused(world: World) -> None:
    request(world)
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        request(world, body_hash="0" * 64)
    assert world.count(call) == 1


def test_a_key_is_new_after_a_day(world: World) -> None:
    first = request(world)
    world.clock.advance(LIFETIME)

    second = request(world, body_hash="0" * 64)

    assert second != first
    assert request(world, body_hash="0" * 64) == second
    assert world.count(call) == 2


def test_a_request_that_failed_takes_its_key_back(world: World) -> None:
    def fails(conn: Connection) -> None:
        carry_out(conn, world, "k", HASH)
        raise ConflictError("no")

    with pytest.raises(ConflictError):
        world.do(fails)

    assert world.count(idempotency_key) == 0
    request(world, body_hash="0" * 64)
    assert world.count(call) == 1


async def test_a_hundred_at_once_place_one_call(world: World) -> None:
    def work(conn: Connection) -> bytes:
        return carry_out(conn, world, "k", HASH)

    answers = await asyncio.gather(*(world.database.write(work) for _ in range(100)))

    assert len(set(answers)) == 1
    assert await world.database.read(lambda conn: call_rows.counts_by_status(conn)) == {0: 1}


async def test_a_hundred_at_once_from_two_processes_place_one_call(
    world: World, database_url: str
) -> None:
    def work(conn: Connection) -> bytes:
        return carry_out(conn, world, "k", HASH)

    with Database.open(database_url) as other:
        both = [database.write(work) for _ in range(50) for database in (world.database, other)]
        answers = await asyncio.gather(*both)

    assert len(set(answers)) == 1
    assert await world.database.read(lambda conn: call_rows.counts_by_status(conn)) == {0: 1}


def test_old_keys_are_forgotten_a_few_at_a_time(world: World) -> None:
    for n in range(5):
        request(world, f"old {n}")
    world.clock.advance(LIFETIME)
    kept = request(world, "young")

    def forget() -> int:
        return world.do(lambda conn: idempotency.forget_old(conn, world.clock(), limit=3))

    assert [forget(), forget(), forget()] == [3, 2, 0]
    assert request(world, "young") == kept
    assert world.count(idempotency_key) == 1


def test_a_key_that_is_forgotten_between_insert_and_look_up_is_new(
    world: World, database_url: str
) -> None:
    first = request(world)
    world.clock.advance(LIFETIME)
    if database_url.startswith("sqlite"):
        return  # one writer: nothing comes between two statements of a transaction
    deleted = threading.Event()

    def delete_once(*_: object) -> None:
        if not deleted.is_set():
            deleted.set()
            with Database.open(database_url) as other:
                assert other.write_now(lambda c: idempotency.forget_old(c, world.clock())) == 1

    def work(conn: Connection) -> bytes:
        # After the insert has met the old row, and before that is read.
        event.listen(conn, "after_cursor_execute", delete_once)
        try:
            return carry_out(conn, world, "k", "0" * 64)
        finally:
            event.remove(conn, "after_cursor_execute", delete_once)

    assert world.do(work) != first
    assert deleted.is_set()
    assert world.count(call) == 2
