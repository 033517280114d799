"""Texts of waiting calls are rendered ahead: each part once, those that are due first first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from bitel.domain.calls import CallStatus
from bitel.recordings import worker_process
from bitel.recordings.limits import Verdict
from bitel.recordings.storage import VoiceStore
from bitel.speech import renderer as text_renderer
from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary
from bitel.speech.renderer import TextRenderer
from bitel.store import campaigns
from bitel.store.database import Database
from bitel.store.schema import campaign, speech_part
from tests.support.clocks import FakeClock
from tests.support.personal_texts import parts_of, place_personal
from tests.support.store_world import World
from tests.support.waiting import until

SPEECH_WORKER = "bitel.speech.worker"
NAMES = ["علی", "سارا", "رضا", "مریم", "حسن"]
TEMPLATE = "سلام {name} عزیز، بدهی شما {amount} تومان است."


@pytest.fixture
def world(database: Database, clock: FakeClock) -> World:
    return World.make(database, clock)


class Bench:
    """A renderer, and the texts that its engine was given."""

    def __init__(self, world: World, folder: Path, quota: int = 10**9) -> None:
        self.voices = VoiceStore.open("", folder)
        self.speech = SpeechLibrary(folder / "speech", SpeechOptions())
        self.woken: list[str] = []
        self.renderer = TextRenderer(
            world.database, self.voices, self.speech, world.clock, lambda: quota, self.woken.append
        )

    async def finish(self) -> int:
        """Work until nothing is left to do; returns the number of pieces."""
        pieces = 0
        while await self.renderer.work():
            pieces += 1
        return pieces


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    return Bench(world, tmp_path)


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The lines that each run of the engine was given."""
    runs: list[list[str]] = []
    run = worker_process.run

    async def noted(module: str, arguments: Any, wall: float, stdin: bytes, *more: Any) -> Any:
        if module == SPEECH_WORKER:
            runs.append(stdin.decode().splitlines())
        return await run(module, arguments, wall, stdin, *more)

    monkeypatch.setattr(worker_process, "run", noted)
    return runs


def break_engine(
    monkeypatch: pytest.MonkeyPatch, status: int, on: str = "", times: list[int] | None = None
) -> None:
    """Let the engine end with `status` where a line has `on`; only while `times` has a number."""
    run = worker_process.run

    async def broken(module: str, arguments: Any, wall: float, stdin: bytes, *more: Any) -> Any:
        if on in stdin.decode() and (times is None or times):
            if times:
                times.pop()
            return worker_process.Ended(status, "broken")
        return await run(module, arguments, wall, stdin, *more)

    monkeypatch.setattr(worker_process, "run", broken)


def recipients(names: Iterable[str], amount: str = "1250") -> list[dict[str, str]]:
    return [{"name": name, "amount": amount} for name in names]


async def test_each_part_is_rendered_once(
    world: World, bench: Bench, spoken: list[list[str]]
) -> None:
    _, ids = place_personal(world, TEMPLATE, recipients(NAMES * 3))
    await bench.finish()
    lines = [line for run in spoken for line in run]
    assert sorted(lines) == sorted(
        ["سلام,", "عزیز، بدهی شما,", "1250,", "تومان است.", *(f"{name}," for name in NAMES)]
    )
    parts = parts_of(world, ids)
    assert all(len(each) == 5 for each in parts)
    assert parts[: len(NAMES)] * 3 == parts
    assert len({each[1] for each in parts}) == len(NAMES)
    assert len({(each[0], *each[2:]) for each in parts}) == 1
    for part_id in {part for each in parts for part in each}:
        assert (await bench.voices.clip(part_id, "PCMA")).stat().st_size > 1000
        assert (await bench.voices.clip(part_id, "PCMU")).stat().st_size > 1000
    assert bench.woken == ["main"]
    spoken.clear()
    _, more = place_personal(world, "{name}، سلام", recipients(["علی"]))
    await bench.finish()
    assert [line for run in spoken for line in run] == ["علی،", "سلام."]
    assert parts_of(world, more)[0]


async def test_the_first_due_are_rendered_first(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_renderer, "FIRST_PIECE", 2)
    monkeypatch.setattr(text_renderer, "PIECE", 3)
    _, later = place_personal(world, "{name}", recipients(NAMES), due_in=3600)
    _, sooner = place_personal(world, "{name}", recipients(NAMES), due_in=60, spread=-1)
    await bench.renderer.work()
    assert [bool(each) for each in parts_of(world, sooner)] == [False, False, False, True, True]
    await bench.renderer.work()
    assert all(parts_of(world, sooner))
    assert not any(parts_of(world, later))
    await bench.finish()
    assert all(parts_of(world, later))


async def test_projects_take_turns(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_renderer, "FIRST_PIECE", 1)
    monkeypatch.setattr(text_renderer, "PIECE", 1)
    other = world.another("other")
    _, many = place_personal(world, "{name}", recipients(NAMES))
    _, few = place_personal(other, "{name}", recipients(NAMES[:2]), due_in=900)
    for _ in range(4):
        await bench.renderer.work()
    assert sum(map(bool, parts_of(world, many))) == 2
    assert all(parts_of(world, few))
    # Parts are of one project: a project that is deleted takes its own with it.
    own = {part for each in parts_of(world, many) for part in each}
    assert own.isdisjoint(part for each in parts_of(world, few) for part in each)


async def test_paused_campaigns_are_rendered_and_canceled_ones_are_not(
    world: World, bench: Bench
) -> None:
    paused, waiting = place_personal(world, "{name}", recipients(NAMES[:1]))
    canceled, gone = place_personal(world, "{name}", recipients(NAMES[1:2]))
    world.do(
        lambda conn: conn.execute(
            update(campaign).where(campaign.c.id == paused).values(paused_at=world.clock())
        )
    )
    now, project_id = world.clock(), world.project_id
    world.do(lambda conn: campaigns.mark_canceled(conn, project_id, canceled, now))
    await bench.finish()
    assert all(parts_of(world, waiting))
    assert not any(parts_of(world, gone))
    assert bench.speech.rendered == 1


async def test_a_crash_between_any_two_steps_is_made_good(
    world: World, tmp_path: Path, spoken: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after each await in turn; the next one goes on from the rows alone."""
    _, ids = place_personal(world, TEMPLATE, recipients(NAMES))
    writes = 0
    write = world.database.write

    async def dying(work: Any) -> Any:
        nonlocal writes
        await write(work)
        writes += 1
        raise asyncio.CancelledError  # after the commit, and before anything else

    for _ in range(8):
        with monkeypatch.context() as patched:
            patched.setattr(world.database, "write", dying)
            with suppress(asyncio.CancelledError):
                await Bench(world, tmp_path).finish()
        if all(parts_of(world, ids)):
            break
    await Bench(world, tmp_path).finish()
    assert writes >= 3
    assert all(len(each) == 5 for each in parts_of(world, ids))
    voices = VoiceStore.open("", tmp_path)
    for part_id in {part for each in parts_of(world, ids) for part in each}:
        await voices.clip(part_id, "PCMU")


async def test_two_processes_at_once_agree(world: World, tmp_path: Path) -> None:
    _, ids = place_personal(world, TEMPLATE, recipients(NAMES))
    first, second = Bench(world, tmp_path), Bench(world, tmp_path)
    await asyncio.gather(first.finish(), second.finish())
    parts = {part for each in parts_of(world, ids) for part in each}
    assert len(parts) == 9 == world.count(speech_part)
    assert all(len(each) == 5 for each in parts_of(world, ids))
    stored = {path.stem for path in (tmp_path / "voices").iterdir()}
    assert stored == parts, "no audio of the slower process is left"


async def test_a_part_that_cant_be_spoken_ends_its_calls_alone(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine crashes on one name, says that another is too long, and speaks the others."""
    break_engine(monkeypatch, Verdict.TOO_LONG, on="سارا")
    break_engine(monkeypatch, -11, on="رضا")
    _, ids = place_personal(world, TEMPLATE, recipients(NAMES))
    await bench.finish()
    states = [world.call(each) for each in ids]
    assert [each.status for each in states] == [
        CallStatus.WAITING, CallStatus.ERROR, CallStatus.ERROR,
        CallStatus.WAITING, CallStatus.WAITING,
    ]  # fmt: skip
    assert "takes longer than 600 s to speak" in states[1].reason
    assert "The speech engine failed on the text" in states[2].reason
    assert [bool(each) for each in parts_of(world, ids)] == [True, False, False, True, True]


async def test_a_missing_variable_ends_the_call_with_a_reason(world: World, bench: Bench) -> None:
    _, ids = place_personal(world, TEMPLATE, [{"name": "علی"}, {"name": "علی", "amount": "5"}])
    await bench.finish()
    assert world.call(ids[0]).reason == ("recipient has no variable 'amount', which the text needs")
    assert all(parts_of(world, ids[1:]))


@pytest.mark.parametrize("status", [Verdict.NO_ENGINE, -11, 1])
async def test_a_failing_engine_leaves_calls_waiting_and_is_tried_again(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    failures = list(range(6))
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(
        text_renderer.log, "warning", lambda event, **fields: events.append(fields), raising=False
    )
    break_engine(monkeypatch, status, times=failures)
    monkeypatch.setattr(text_renderer, "FIRST_PAUSE", 0.01)
    _, ids = place_personal(world, "{name}", recipients(NAMES[:1]))
    task = asyncio.create_task(bench.renderer.run())
    bench.renderer.wake()
    await until(lambda: all(parts_of(world, ids)))
    task.cancel()
    assert not failures
    assert world.call(ids[0]).status is CallStatus.WAITING
    pauses = [each["again_in"] for each in events]
    assert len(pauses) >= 2
    assert pauses == [0.01 * 2**n for n in range(len(pauses))]


async def test_one_failing_language_keeps_no_other_waiting(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_engine(monkeypatch, Verdict.NO_ENGINE, on="hello")
    _, failing = place_personal(world, "hello {name}", recipients(NAMES), language="en")
    _, working = place_personal(world, "{name}", recipients(NAMES), due_in=3600)
    await bench.finish()
    assert all(parts_of(world, working))
    assert not any(parts_of(world, failing))


async def test_a_full_quota_ends_calls_and_unneeded_parts_make_room(
    world: World, tmp_path: Path
) -> None:
    bench = Bench(world, tmp_path, quota=16_000)  # a second
    _, ids = place_personal(world, "{name}", recipients(NAMES))
    await bench.finish()
    _, more = place_personal(world, "{name}", recipients(["آرزو"]))
    await bench.finish()
    assert all(parts_of(world, ids)), "the last piece may exceed it"
    assert "limits.storage_megabytes" in world.call(more[0]).reason
    world.do(lambda conn: conn.execute(update(campaign).values(finished_at=world.clock())))
    world.clock.advance(86_400.0)
    _, again = place_personal(world, "{name}", recipients(["آرزو"]))
    await bench.finish()
    assert all(parts_of(world, again))
    kept = {path.stem for path in (tmp_path / "voices").iterdir()}
    assert kept == set(parts_of(world, again)[0])


async def test_it_polls_for_calls_that_other_processes_place(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_renderer, "POLL", 0.05)
    async with running(bench.renderer, monkeypatch) as looks:
        await until(lambda: looks)
        _, ids = place_personal(world, "{name}", recipients(NAMES[:1]))
        await until(lambda: all(parts_of(world, ids)))


async def test_it_wakes_when_calls_are_placed(
    world: World, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_renderer, "POLL", 3600.0)
    async with running(bench.renderer, monkeypatch) as looks:
        await until(lambda: looks)
        _, ids = place_personal(world, "{name}", recipients(NAMES[:1]))
        bench.renderer.wake()
        await until(lambda: all(parts_of(world, ids)))


@asynccontextmanager
async def running(
    renderer: TextRenderer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[bool]]:
    """Run the renderer; yields what each of its looks for work has found."""
    looks: list[bool] = []
    work = renderer.work

    async def counted() -> bool:
        looks.append(await work())
        return looks[-1]

    monkeypatch.setattr(renderer, "work", counted)
    task = asyncio.create_task(renderer.run())
    try:
        yield looks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
