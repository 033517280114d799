"""Keyed opt-outs: on the do-not-call list at once, else with the end of the call, by any way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.journal import Journal
from bitel.domain.attempts import AttemptResult, Media, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.retry import Finish
from bitel.store import do_not_call, settling
from bitel.store.database import Database
from bitel.store.db_errors import StoreUnavailable
from bitel.store.schema import attempt, call, campaign_key
from bitel.store.settling import Settlement
from tests.dialing.scripted import Play, ScriptedDialer, at_work
from tests.support.clocks import FakeClock
from tests.support.store_world import World
from tests.support.waiting import until

PRESSED = Media(500, 100, "19", reports=("yes", "out"), opted_out=True)


@pytest.fixture
async def play(database: Database) -> Play:
    made = Play(database, FakeClock())
    await made.set_up()
    return made


@pytest.fixture
def world(database: Database) -> World:
    return World.make(database, FakeClock())


class Pressing(ScriptedDialer):
    """Opts out in each call, as a key of its menu would."""

    dispatcher: Dispatcher

    async def _dial(self, order: Any, heard: Any) -> AttemptResult:
        result = await super()._dial(order, heard)
        await self.dispatcher.opt_out(order.attempt_id)
        return result


def listed(play: Play, number: str) -> set[str]:
    return play.database.read_now(
        lambda conn: do_not_call.contains_many(conn, play.project_id, {number})
    )


async def test_an_opt_out_is_tried_until_the_database_takes_it(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, refused = do_not_call.add, 0

    def add(conn: Connection, project_id: str, e164: str) -> Any:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise StoreUnavailable("it restarts")
        return plain(conn, project_id, e164)

    monkeypatch.setattr(do_not_call, "add", add)
    dialer = Pressing(play.clock, [Outcome.ANSWERED])
    dialer.dispatcher = play.dispatcher(dialer)
    [call_id] = await play.place()
    async with at_work(dialer.dispatcher):
        await play.until_over([call_id])
    assert refused == 3
    assert listed(play, "+989120000000") == {"+989120000000"}


def settlement(world: World, media: Media) -> Settlement:
    lease = world.take_over()
    world.place()
    (claimed,) = world.claim(lease)
    world.heard(lease, claimed)
    result = AttemptResult(
        Outcome.ANSWERED, claimed.started_at, claimed.started_at + 9, claimed.started_at, 200,
        media=media,
    )  # fmt: skip
    return Settlement(claimed.attempt_id, claimed.call_id, result, Finish(CallStatus.NORMAL))


@pytest.mark.parametrize("opted_out", [True, False])
def test_the_end_of_the_call_writes_it_too(world: World, *, opted_out: bool) -> None:
    one = settlement(world, PRESSED._replace(opted_out=opted_out))
    world.do(lambda conn: settling.settle_journaled(conn, "main", [one], world.clock()))
    e164 = world.do(lambda conn: conn.execute(select(call.c.e164)).scalar_one())
    found = world.do(lambda conn: do_not_call.contains_many(conn, world.project_id, {e164}))
    assert found == ({e164} if opted_out else set())
    row = world.do(lambda conn: conn.execute(select(attempt)).one())
    assert (row.digits, row.reports) == ("19", ("yes", "out"))
    assert world.count(campaign_key) == 0


@pytest.mark.parametrize("journaled", [True, False])
def test_it_counts_though_another_worker_has_taken_the_call_over(
    world: World, *, journaled: bool
) -> None:
    former = world.take_over()
    one = settlement(world, PRESSED)
    now = world.clock()
    world.take_over()
    if journaled:
        written = world.do(lambda conn: settling.settle_journaled(conn, "main", [one], now))
    else:
        written = world.do(lambda conn: settling.settle(conn, former, [one], now))
    assert written == set()
    e164 = world.do(lambda conn: conn.execute(select(call.c.e164)).scalar_one())
    assert world.do(lambda conn: do_not_call.contains_many(conn, world.project_id, {e164}))


def test_it_is_kept_of_a_result_that_can_not_be_stored(world: World) -> None:
    one = settlement(world, PRESSED)
    reduced = settling.minimal(one.attempt_id, one.call_id, one.result, world.clock())
    world.do(lambda conn: settling.settle_journaled(conn, "main", [reduced], world.clock()))
    e164 = world.do(lambda conn: conn.execute(select(call.c.e164)).scalar_one())
    assert world.do(lambda conn: do_not_call.contains_many(conn, world.project_id, {e164}))


@pytest.mark.parametrize("size", [1, 400])
def test_the_journal_keeps_it_even_where_it_drops_the_rest(tmp_path: Path, size: int) -> None:
    media = PRESSED._replace(digits="1" * 200, reports=("word",) * size)
    result = AttemptResult(Outcome.ANSWERED, 1.0, 2.0, 1.0, 200, detail="x" * 200, media=media)
    one = Settlement("a" * 32, "c" * 32, result, Finish(CallStatus.NORMAL))
    journal = Journal(tmp_path / "j", 10)
    assert journal.open() == []
    assert journal.append([one]) == []
    journal.close()
    (found,) = Journal(tmp_path / "j", 10).open()
    assert found.result.media is not None
    assert found.result.media.opted_out
    assert found.result.media.reports == (("word",) if size == 1 else ())


def test_calls_without_a_menu_are_written_as_the_version_before_reads_them(
    tmp_path: Path,
) -> None:
    result = AttemptResult(Outcome.ANSWERED, 1.0, 2.0, 1.0, 200, media=Media(500, 100, "1"))
    one = Settlement("a" * 32, "c" * 32, result, Finish(CallStatus.NORMAL))
    journal = Journal(tmp_path / "j", 10)
    journal.open()
    journal.append([one])
    journal.close()
    content = (tmp_path / "j").read_bytes()
    assert b"opted_out" not in content
    assert b"reports" not in content
    assert b"machine" not in content


async def test_an_opt_out_ends_with_its_call(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away must not keep the call's channel."""

    def add(*_: Any) -> None:
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(do_not_call, "add", add)
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    dispatcher = play.dispatcher(dialer)
    await play.place()
    async with at_work(dispatcher):
        await until(lambda: dialer.orders)
        task = asyncio.create_task(dispatcher.opt_out(dialer.orders[0].attempt_id))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert dialer.hold is not None
        dialer.hold.set()
