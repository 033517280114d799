"""Turns of projects at the workers: one that asks for much holds up no other."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.recordings.worker_process import SERVICE, Turns


class Work:
    """Pieces of work that take turns and end when the test says so."""

    def __init__(self, slots: int) -> None:
        self.turns = Turns(slots)
        self.running: list[tuple[str, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, *owners: str) -> list[str]:
        """Ask for turns in this order; the owners of those that run then."""
        for owner in owners:
            self.tasks.append(asyncio.create_task(self._work(owner)))
            await asyncio.sleep(0)
        return await self.settled()

    async def end(self, place: int = 0) -> list[str]:
        """End the work that has run for longest, or another; the owners of those that run then."""
        self.running[place][1].set()
        return await self.settled()

    async def settled(self) -> list[str]:
        for _ in range(10):
            await asyncio.sleep(0)
        return [owner for owner, _ in self.running]

    async def _work(self, owner: str) -> None:
        async with self.turns.turn(owner):
            mine = owner, asyncio.Event()
            self.running.append(mine)
            try:
                await mine[1].wait()
            finally:
                self.running.remove(mine)


async def test_six_heavy_uploads_leave_a_turn_for_another_project() -> None:
    work = Work(2)
    assert await work.begin(*["heavy"] * 6) == ["heavy"]
    assert await work.begin("other") == ["heavy", "other"]
    assert await work.end(1) == ["heavy"]
    assert await work.end() == ["heavy"]


async def test_a_free_turn_goes_to_the_project_with_the_fewest() -> None:
    work = Work(4)
    assert await work.begin("a", "a", "a", "a", "b", "c") == ["a", "a", "b", "c"]
    assert await work.begin("b", "d") == ["a", "a", "b", "c"]
    assert await work.end() == ["a", "b", "c", "d"]


async def test_what_calls_wait_for_is_not_bounded() -> None:
    work = Work(4)
    assert await work.begin(*[SERVICE] * 5) == [SERVICE] * 4


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
async def test_one_project_never_has_all_turns(cores: int) -> None:
    work = Work(cores)
    running = await work.begin(*["a"] * 20)
    assert len(running) == max(cores, 2) // 2


async def test_who_gives_up_leaves_its_turn_to_others() -> None:
    work = Work(2)
    await work.begin("a", "a", "a")
    work.tasks[1].cancel()  # it waits
    assert await work.settled() == ["a"]
    work.tasks[0].cancel()  # it runs, and the third gets its turn
    assert await work.settled() == ["a"]
    work.tasks[2].cancel()
    assert await work.settled() == []
    assert await work.begin("a", "b") == ["a", "b"]


async def test_a_turn_that_is_given_to_one_that_was_just_cancelled_is_not_lost() -> None:
    work = Work(2)
    await work.begin("a", "b", "a", "b")
    work.running[0][1].set()
    await asyncio.sleep(0)
    work.tasks[2].cancel()
    await work.settled()
    assert await work.begin("a") == ["b", "a"]


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60),
)
def test_no_turn_is_left_free_while_a_project_below_its_share_waits(
    slots: int, steps: list[tuple[str, bool]]
) -> None:
    async def run() -> None:
        work = Work(slots)
        asked = Counter[str]()
        total = max(slots, 2)
        for owner, ends in steps:
            if ends and work.running:
                asked[work.running[0][0]] -= 1
                await work.end()
            elif not ends:
                asked[owner] += 1
                await work.begin(owner)
            running = Counter(await work.settled())
            assert running.total() <= total
            assert all(count <= total // 2 for count in running.values())
            able = sum(min(count, total // 2) for count in asked.values())
            assert running.total() == min(total, able)
        for task in work.tasks:
            task.cancel()
        await asyncio.gather(*work.tasks, return_exceptions=True)

    asyncio.run(run())
