"""What the operator keeps no longer is deleted, and nothing else."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update

from bitel.domain.attempts import Media
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.ids import new_id
from bitel.domain.recipients import Recipient, pack
from bitel.errors import NotFoundError
from bitel.maintenance import retention
from bitel.maintenance.retention import DAY, ORPHANED_AFTER, Retention
from bitel.recordings.decode import Decoded
from bitel.recordings.storage import VoiceStore
from bitel.settings import RetentionSettings
from bitel.store import (
    balances,
    campaigns,
    idempotency,
    pausing,
    recipient_lists,
    recordings,
    speech_parts,
    webhooks,
)
from bitel.store import retention as store
from bitel.store.campaigns import Campaign
from bitel.store.database import Database
from bitel.store.pausing import Pause
from bitel.store.recipient_lists import RecipientList
from bitel.store.schema import attempt, call, campaign, speech_part, webhook_event, webhook_try
from bitel.store.speech_parts import SpeechPart
from bitel.store.webhooks import DeliveryAttempt
from tests.support.clocks import FakeClock
from tests.support.factories import answered
from tests.support.personal_texts import place_personal
from tests.support.s3_server import BUCKET, s3_server
from tests.support.store_world import World
from tests.support.waiting import until


@pytest.fixture
def world(database: Database, clock: FakeClock) -> World:
    made = World.make(database, clock)
    made.change(webhook_url="https://example.net/hook", webhook_secret="whsec_x")
    made.set_balance(Decimal(1000))
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE", "SHORT_PAUSE"):
        monkeypatch.setattr(retention, name, 0.0)


@pytest.fixture
def voices(tmp_path: Path) -> VoiceStore:
    return VoiceStore.open("", tmp_path / "data")


def keeping(world: World, voices: VoiceStore, **days: float) -> Retention:
    settings = RetentionSettings(**days)
    return Retention(world.database, voices, lambda: settings, world.clock, world.clock)


def finish(world: World, keyed: str = "12#", **more: Any) -> str:
    """A call that was answered, billed and over, with keyed digits and a webhook event."""
    call_id = world.place(**more)
    lease = world.take_over()
    [claim] = [one for one in world.claim(lease) if one.call_id == call_id]
    done = answered(claim)
    media = done.result._replace(media=Media(10, 10, keyed))
    world.settle(lease, done._replace(result=media))
    return call_id


def deliver(world: World) -> None:
    now = world.clock()
    due = world.do(lambda conn: webhooks.claim_due(conn, now, 99, 99))
    tried = [DeliveryAttempt(one.event_id, now, 0.1, True, 200, "", None) for one in due]
    world.do(lambda conn: webhooks.record(conn, tried))


def calls_left(world: World) -> list[str]:
    return list(world.do(lambda conn: conn.execute(select(call.c.id)).scalars().all()))


async def test_calls_that_are_old_go_with_all_that_is_theirs(
    world: World, voices: VoiceStore
) -> None:
    now = world.clock()
    campaign_id = new_id(now)
    made = Campaign(campaign_id, world.project_id, "main", world.recording_id, now, 3)
    world.do(lambda conn: campaigns.add(conn, made))
    old = [finish(world, campaign_id=campaign_id) for _ in range(3)]
    deliver(world)
    waiting = world.place(expires_at=world.clock() + 100 * DAY, dialer_id="other")
    world.clock.advance(9 * DAY)
    young = finish(world)
    balance, entries = world.balance(), world.ledger()
    assert len(entries) == 5
    world.clock.advance(2 * DAY)

    await keeping(world, voices, calls=10).work()

    assert calls_left(world) == [waiting, young]
    assert (world.balance(), sum(world.ledger())) == (balance, sum(entries))
    found = world.do(lambda conn: balances.entries(conn, world.project_id))
    kinds = {each.kind: each for each in found}
    assert len(found) == len(kinds) == 3
    carried = kinds["calls"]
    assert (carried.amount, carried.call_id) == (3 * Decimal("-34.2"), None)
    assert now - DAY < carried.created_at <= now, "of the day of these calls"
    assert kinds["call"].call_id == young
    assert world.count(attempt) == world.count(webhook_event) == 1
    assert world.count(webhook_try) == world.count(campaign) == 0
    assert not set(old) & set(calls_left(world))


async def test_by_default_everything_is_kept(world: World, voices: VoiceStore) -> None:
    kept = finish(world)
    world.clock.advance(10_000 * DAY)
    await keeping(world, voices).work()
    assert calls_left(world) == [kept]
    assert world.call(kept).phone_number


async def test_a_call_counts_from_its_end(world: World, voices: VoiceStore) -> None:
    """It waited for long."""
    late = world.place(expires_at=world.clock() + 100 * DAY)
    world.clock.advance(20 * DAY)
    lease = world.take_over()
    world.settle(lease, *map(answered, world.claim(lease)))
    world.clock.advance(5 * DAY)
    await keeping(world, voices, calls=10).work()
    assert calls_left(world) == [late]
    world.clock.advance(6 * DAY)
    await keeping(world, voices, calls=10).work()
    assert calls_left(world) == []


async def test_lists_go_after_30_days(world: World, voices: VoiceStore) -> None:
    for age in (2, 1):
        now = world.clock()
        new = RecipientList(new_id(now), world.project_id, f"{age}.csv", now, 1, ())
        packed = [pack([Recipient("09121234567")])]
        world.do(partial(recipient_lists.add, new=new, packed=packed))
        world.clock.advance(DAY)

    def names() -> list[str]:
        left = world.do(partial(recipient_lists.pages, project_id=world.project_id))
        return [each.name for each in left]

    keep = keeping(world, voices)
    world.clock.advance(27.5 * DAY)
    await keep.work()
    assert names() == ["2.csv", "1.csv"]
    world.clock.advance(DAY)
    await keep.work()
    assert names() == ["1.csv"]
    world.clock.advance(DAY)
    await keep.work()
    assert names() == []


async def test_events_go_once_they_need_no_more_tries(world: World, voices: VoiceStore) -> None:
    finish(world)
    deliver(world)
    finish(world)
    world.clock.advance(5 * DAY)
    await keeping(world, voices, webhook_events=3).work()
    [event] = world.do(lambda conn: webhooks.history(conn, world.project_id))
    assert event.state == "pending"
    assert len(calls_left(world)) == 2


async def test_numbers_and_keyed_digits_are_blanked(world: World, voices: VoiceStore) -> None:
    number = "+989121234567"
    old = finish(world, phone_number="0912 123 4567", e164=number)
    password = {"recording_id": None, "lane": Lane.OTP, "digits": "4711", "repeat_count": 2}
    otp = finish(world, keyed="9", e164=number, **password)
    deliver(world)
    later = world.clock() + 100 * DAY
    waiting = world.place(e164=number, expires_at=later, dialer_id="other")
    world.clock.advance(9 * DAY)
    young = finish(world, e164="+989121234568")
    told_later = young
    world.clock.advance(2 * DAY)
    keep = keeping(world, voices, numbers=10)
    for _ in range(2):
        await keep.work()

    def stored(call_id: str) -> Any:
        columns = (call.c.e164, call.c.phone_number, call.c.digits)
        return world.do(
            lambda conn: conn.execute(select(*columns).where(call.c.id == call_id)).one()
        )

    assert tuple(stored(old)) == ("", "", None)
    assert tuple(stored(otp)) == ("", "", "")
    assert stored(waiting).e164 == number
    assert stored(young).e164 == "+989121234568"
    digits = world.do(lambda conn: conn.execute(select(attempt.c.digits, attempt.c.call_id)).all())
    assert {row.digits for row in digits if row.call_id in (old, otp)} == {""}
    seen = world.call(old)
    assert (seen.phone_number, seen.status, seen.price) == ("", CallStatus.NORMAL, Decimal("34.2"))
    # One that is to be told of keeps its number until that is done.
    world.clock.advance(20 * DAY)
    await keep.work()
    assert stored(told_later).e164 == "+989121234568"
    deliver(world)
    await keep.work()
    assert stored(told_later).e164 == ""


async def test_the_next_pass_begins_behind_what_is_blank(
    world: World, voices: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PIECE", 2)
    for _ in range(5):
        finish(world)
    deliver(world)
    world.clock.advance(2 * DAY)
    await keeping(world, voices, numbers=1).work()
    last = world.do(lambda conn: store.cursor(conn, "numbers"))
    assert last == max(calls_left(world))


def audio(folder: Path) -> Decoded:
    codes = np.arange(800, dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    for name in ("a", "u"):
        codes.tofile(folder / name)
    return Decoded(folder / "a", folder / "u", 0.1, 800)


async def test_recordings_that_no_call_is_placed_with_go(
    world: World, voices: VoiceStore, tmp_path: Path
) -> None:
    ids = {}
    for name in ("unused", "used", "needed"):
        ids[name] = new_id(world.clock())
        made = recordings.Recording(ids[name], world.project_id, name, 1.0, 800, world.clock())
        world.do(lambda conn, made=made: recordings.add(conn, made))  # type: ignore[misc]
        await voices.put(ids[name], audio(tmp_path / "in"))
    later = world.clock() + 100 * DAY
    world.place(recording_id=ids["needed"], expires_at=later, dialer_id="other")
    world.clock.advance(8 * DAY)
    finish(world, recording_id=ids["used"])
    world.clock.advance(4 * DAY)

    await keeping(world, voices, recordings=10).work()

    left = world.do(lambda conn: recordings.page(conn, world.project_id))
    assert {one.name for one in left} == {"used", "needed"}
    names = set(os.listdir(tmp_path / "data" / "voices"))
    assert names == {
        f"{ids[each]}.{law}" for each in ("used", "needed") for law in ("alaw", "ulaw")
    }


async def test_spoken_parts_go_a_week_after_the_last_campaign_that_needs_them(
    world: World, voices: VoiceStore, tmp_path: Path
) -> None:
    """A part's use counts, and it stays while a campaign that was given it is unfinished."""
    campaign_id, [call_id] = place_personal(world, "{name}", [{"name": "Ali"}])
    parts = [SpeechPart(new_id(world.clock()), world.project_id, key, 0.5) for key in "abc"]
    for part in parts:
        await put(voices, tmp_path, part.id)
    used, stale, again = parts
    now = world.clock()
    world.do(lambda conn: speech_parts.add(conn, parts, now))
    world.do(lambda conn: speech_parts.finish(conn, [(call_id, (used.id,))], [], now))
    age = update(speech_part).where(speech_part.c.id == stale.id)
    world.do(lambda conn: conn.execute(age.values(used_on=0)))
    await keeping(world, voices).work()
    assert await left(voices, parts) == [used, again], "one is older than the campaign"
    world.clock.advance(30 * DAY)
    await keeping(world, voices).work()
    assert await left(voices, parts) == [used, again], "the campaign is unfinished"
    over = update(campaign).where(campaign.c.id == campaign_id)
    world.do(lambda conn: conn.execute(over.values(finished_at=world.clock())))
    now = world.clock()
    world.do(lambda conn: speech_parts.use(conn, world.project_id, ["c"], now))
    world.clock.advance(6 * DAY)
    await keeping(world, voices).work()
    assert await left(voices, parts) == [again], "it was used since"
    assert await keeping(world, voices).sweep() == 0
    world.clock.advance(2 * DAY)
    await keeping(world, voices).work()
    assert await left(voices, parts) == []


async def test_audio_of_parts_is_not_swept(
    world: World, voices: VoiceStore, tmp_path: Path
) -> None:
    now = world.clock()
    part = SpeechPart(new_id(now), world.project_id, "key", 0.5)
    await put(voices, tmp_path, part.id)
    orphan = new_id(now)
    await put(voices, tmp_path, orphan)
    world.do(lambda conn: speech_parts.add(conn, [part], now))
    world.clock.now = time.time() + 2 * ORPHANED_AFTER
    assert await keeping(world, voices).sweep() == 1
    assert await left(voices, [part]) == [part]


async def test_variables_references_and_parts_are_blanked_with_the_number(
    world: World, voices: VoiceStore
) -> None:
    world.change(webhook_url=None)
    _, [call_id] = place_personal(world, "{name}", [{"name": "Ali"}])
    named = update(call).where(call.c.id == call_id).values(reference="customer 17")
    world.do(lambda conn: conn.execute(named))
    now = world.clock()
    world.do(lambda conn: speech_parts.finish(conn, [], [(call_id, "refused")], now))
    world.clock.advance(3 * DAY)
    await keeping(world, voices, numbers=2).work()
    row = world.do(lambda conn: conn.execute(select(call).where(call.c.id == call_id)).one())
    assert (row.e164, row.reference, row.variables, row.parts) == ("", None, None, None)


async def put(voices: VoiceStore, folder: Path, recording_id: str) -> None:
    path = folder / f"{recording_id}.raw"
    path.write_bytes(b"\xd5" * 4000)
    await voices.put(recording_id, Decoded(path, path, 0.5, 4000))


async def left(voices: VoiceStore, parts: list[SpeechPart]) -> list[SpeechPart]:
    """The parts whose audio is stored."""
    found = []
    for part in parts:
        with suppress(NotFoundError):
            await voices.clip(part.id, "PCMA")
            found.append(part)
    return found


@pytest.fixture(params=["local", "s3"])
def any_voices(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VoiceStore]:
    if request.param == "local":
        yield VoiceStore.open("", tmp_path / "data")
        return
    with s3_server(tmp_path / "s3") as server:
        yield VoiceStore.open(f"s3://{BUCKET}/a/b", tmp_path / "data", server.settings)


async def test_audio_without_a_recording_is_swept_once_it_is_old(
    world: World, any_voices: VoiceStore, tmp_path: Path
) -> None:
    kept = recordings.Recording(new_id(1.0), world.project_id, "kept", 1.0, 800, world.clock())
    world.do(lambda conn: recordings.add(conn, kept))
    orphan = new_id(2.0)
    for each in (kept.id, orphan):
        await any_voices.put(each, audio(tmp_path / "in"))
    settings = RetentionSettings()
    now = time.time()

    def sweeper(at: float) -> Retention:
        return Retention(world.database, any_voices, lambda: settings, world.clock, lambda: at)

    assert await sweeper(now).sweep() == 0, "its recording may be added in a moment"
    later = now + ORPHANED_AFTER + 60
    restored = Pause("service", "", "from a backup", 1.0, is_restored=True)
    world.do(lambda conn: pausing.add(conn, restored))
    assert await sweeper(later).sweep() == 0, "a newer database may know it"
    world.do(lambda conn: pausing.remove(conn, "service", ""))
    assert await sweeper(later).sweep() == 1
    assert await any_voices.clip(kept.id, "PCMA")
    found = [ids async for ids in any_voices.stored_before(later)]
    assert found == [[kept.id]]


async def test_it_waits_while_the_machine_is_busy(
    world: World, voices: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BUSY_PAUSE", 0.001)
    monkeypatch.setattr(store, "PIECE", 1)
    for _ in range(3):
        finish(world)
    world.clock.advance(9 * DAY)
    settings, busy, looks = RetentionSettings(calls=1), True, 0

    def is_busy() -> bool:
        nonlocal looks
        looks += 1
        return busy

    keep = Retention(world.database, voices, lambda: settings, world.clock, world.clock, is_busy)
    task = asyncio.create_task(keep.work())
    await until(lambda: len(calls_left(world)) != 3)
    seen = looks
    await until(lambda: looks >= seen + 5)
    assert len(calls_left(world)) == 2, "not another piece"
    busy = False
    await task
    assert calls_left(world) == []


async def test_erasing_a_person_leaves_answers_that_place_no_call_again(world: World) -> None:
    number, body = (
        "+989121234567",
        b'{"result":[{"id":"%s","phoneNumber":"0912"},{"id":"x","phoneNumber":"0913"}],"error":null}',
    )
    theirs = finish(world, e164=number, phone_number="0912")
    others = finish(world)
    answer = body.replace(b"%s", theirs.encode())
    now = world.clock()
    world.do(lambda conn: idempotency.first_answer(conn, world.project_id, "k", "hash", now))
    world.do(lambda conn: idempotency.keep(conn, world.project_id, "k", answer))
    last, found = world.do(lambda conn: store.calls_to(conn, world.project_id, number, ""))
    assert (last, found) == (max(theirs, others), [(theirs, True)])
    world.do(lambda conn: store.erase_calls(conn, world.project_id, [theirs]))
    world.do(lambda conn: store.forget_number(conn, world.project_id, number))
    assert world.call(theirs).phone_number == ""
    assert world.call(others).phone_number != ""
    kept = world.do(lambda conn: idempotency.first_answer(conn, world.project_id, "k", "hash", now))
    assert kept is not None
    assert b'"phoneNumber":""' in kept.replace(b" ", b"")
    assert b"0913" in kept
    assert b"0912" not in kept


@pytest.mark.parametrize("piece", [store.delete_calls, store.blank_numbers, store.delete_events])
def test_pieces_leave_no_reference_cycles(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, clock: FakeClock, piece: Any
) -> None:
    """The collector of cyclic garbage hardly ever runs in a service at work."""
    monkeypatch.setattr(store, "PIECE", 2)
    world = World.make(sqlite_database, clock)
    world.change(webhook_url="https://example.net/hook", webhook_secret="whsec_x")
    for _ in range(24):
        finish(world)
    deliver(world)
    before = world.clock.advance(5 * DAY)

    def work(after: str) -> str:
        last: str = world.database.write_now(partial(piece, before=before, after=after))[0]
        return last

    after = work(work(""))
    gc.collect()
    gc.disable()
    try:
        for _ in range(8):
            after = work(after)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(each).__name__ for each in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
