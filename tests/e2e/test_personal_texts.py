"""A batch of personal texts against the phone: each hears their own name, without a click."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, update

from bitel.demo.play import read_wav
from bitel.demo.stage import Stage
from bitel.domain.calls import CallStatus
from bitel.g711 import Pcm, alaw_decode, ulaw_decode
from bitel.recordings.audio_match import match
from bitel.store.database import Database
from bitel.store.schema import call, campaign
from tests.support.clocks import FakeClock
from tests.support.personal_texts import parts_of, place_personal
from tests.support.store_world import World
from tests.support.waiting import wait_until

NAMES = [
    *("علی", "سارا", "رضا", "مریم", "حسن", "زهرا", "امیر", "لیلا", "کاوه", "نرگس"),
    *("بهرام", "شیرین", "فرهاد", "پریسا", "سهراب", "تهمینه", "داریوش", "آناهیتا", "جمشید", "مهسا"),
]
TEXT = "سلام {name} عزیز، بدهی شما {amount} تومان است."
QUIET = 200
"""Of 32768: -44 dB."""

LAWS = {"PCMA": (".alaw", alaw_decode), "PCMU": (".ulaw", ulaw_decode)}


@contextmanager
def opened(stage: Stage) -> Iterator[World]:
    """The service's database, with a project of its own."""
    database = Database.open(f"sqlite:///{stage.folder / 'data' / 'bitel.db'}")
    try:
        yield World.make(database, FakeClock(time.time()))
    finally:
        database.close(5.0)


@pytest.mark.parametrize("codec", LAWS)
def test_each_person_hears_their_own_name(tmp_path: Path, codec: str) -> None:
    with Stage(tmp_path, rules=["*=answer:after=0"], dialer={"codecs": [codec]}) as stage:
        stage.start_phone()
        stage.start_service()
        with opened(stage) as world:
            rows = [{"name": name, "amount": f"{1250 + n}000"} for n, name in enumerate(NAMES)]
            campaign_id, ids = place_personal(world, TEXT, rows, due_in=3600)
            wait_until(lambda: all(parts_of(world, ids)), 30)
            parts = parts_of(world, ids)
            assert len({each[1] for each in parts}) == len(NAMES)
            assert len({(each[0], each[2], each[4]) for each in parts}) == 1
            now = time.time()
            world.do(
                lambda conn: conn.execute(
                    update(call).where(call.c.campaign_id == campaign_id).values(due_at=now)
                )
            )
            wait_until(lambda: all(world.call(each).status.final for each in ids), 60)
            assert {world.call(each).status for each in ids} == {CallStatus.NORMAL}
            numbers = {
                row.id: row.e164
                for row in world.do(lambda conn: conn.execute(select(call.c.id, call.c.e164)).all())
            }
        assert stage.stop_service() == 0
        for call_id, of_call in zip(ids, parts, strict=True):
            [heard] = stage.heard.glob(f"{numbers[call_id]}*.wav")
            check(stage, codec, read_wav(heard), of_call)


def check(stage: Stage, codec: str, heard: Pcm, parts: tuple[str, ...]) -> None:
    """Compare what a phone has received with the clips of the parts, sample by sample."""
    suffix, decode = LAWS[codec]
    clips = [clip(stage, part + suffix, decode) for part in parts]
    sent = np.concatenate(clips)
    found = match(sent, heard)
    assert found.correlation > 0.9999
    assert (found.covered, found.longest_gap_ms) == (1.0, 0.0)
    begin = found.offset_samples
    assert np.array_equal(heard[begin : begin + len(sent)], sent)
    for join in accumulate(map(len, clips), initial=begin):
        around = heard[max(0, join - 8) : join + 8].astype(int)
        assert np.abs(around).max() <= QUIET, "no part begins or ends at full level"
        assert np.abs(np.diff(around)).max() <= 64, "no sample jumps"
    # Speech goes on soon after each join: 250 ms without any would sound as a pause.
    loud = np.flatnonzero(np.abs(sent.astype(int)) > QUIET)
    assert np.diff(loud).max() < 0.45 * 8000
    # What came before and after is silence, not a rest of another part.
    assert np.abs(heard[:begin].astype(int)).max(initial=0) <= 8
    assert np.abs(heard[begin + len(sent) :].astype(int)).max(initial=0) <= 8


def clip(stage: Stage, name: str, decode: Callable[..., Pcm]) -> Pcm:
    """A stored clip as samples."""
    codes = (stage.folder / "data" / "voices" / name).read_bytes()
    return decode(np.frombuffer(codes, np.uint8))


def test_parts_that_are_lost_leave_the_call_waiting_and_no_phone_rings(tmp_path: Path) -> None:
    with Stage(tmp_path, rules=["*=answer:after=0"]) as stage:
        stage.start_phone()
        stage.start_service()
        with opened(stage) as world:
            campaign_id, [call_id] = place_personal(
                world, "سلام {name}", [{"name": "علی"}], "fa", 900
            )
            wait_until(lambda: all(parts_of(world, [call_id])), 30)
            [parts] = parts_of(world, [call_id])
            for path in (tmp_path / "data" / "voices").glob(f"{parts[1]}*"):
                path.rename(tmp_path / path.name)
            now = time.time()
            due = update(call).where(call.c.campaign_id == campaign_id).values(due_at=now)
            world.do(lambda conn: conn.execute(due))
            wait_until(lambda: "recordings_unreachable" in stage.service_log.read_text(), 20)
            assert world.call(call_id).status is CallStatus.WAITING
            for path in tmp_path.glob(f"{parts[1]}*"):
                path.rename(tmp_path / "data" / "voices" / path.name)
            wait_until(lambda: world.call(call_id).status.final, 40)
            assert world.call(call_id).status is CallStatus.NORMAL
            assert world.count(campaign) == 1
        assert stage.phone_log.read_text().count('"event": "invite"') == 1
        assert stage.stop_service() == 0
