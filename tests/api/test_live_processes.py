"""How many processes answer the API, and the share of a rate limit that each of them allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from bitel.api.app import build_app
from bitel.api.live_processes import BEAT, DEAD_AFTER, FORGET_AFTER, LiveProcesses
from bitel.errors import TooManyRequestsError
from bitel.store.schema import api_process

if TYPE_CHECKING:
    from bitel.store.database import Database
    from tests.api.stage import Stage
    from tests.support.clocks import FakeClock


@pytest.fixture
def processes(database: Database, clock: FakeClock) -> Sequence[LiveProcesses]:
    return [LiveProcesses(database, clock, clock) for _ in range(3)]


async def beat(*processes: LiveProcesses) -> list[int]:
    for each in processes:
        await each.beat()
    return [each.count for each in processes]


def rows(database: Database) -> int:
    return database.read_now(
        lambda conn: int(conn.execute(select(func.count(api_process.c.id))).scalar_one())
    )


async def test_processes_that_start_and_stop_are_noticed_with_the_next_heartbeat(
    database: Database, processes: Sequence[LiveProcesses]
) -> None:
    one, two, _ = processes
    assert one.count == 1, "before its first heartbeat"
    assert await beat(one, two, one) == [2, 2, 2]
    await two.leave()
    assert await beat(one) == [1]
    assert rows(database) == 1


async def test_the_one_that_has_been_running_longest_is_the_first(
    database: Database, clock: FakeClock
) -> None:
    older = LiveProcesses(database, clock, clock)
    clock.advance(1.0)
    newer = LiveProcesses(database, clock, clock)
    assert not older.is_first, "before its first heartbeat"
    await beat(newer, older, newer)
    assert (older.is_first, newer.is_first) == (True, False)
    await older.leave()
    await beat(newer)
    assert newer.is_first


async def test_a_process_that_is_killed_is_noticed_within_ten_seconds(
    processes: Sequence[LiveProcesses], clock: FakeClock
) -> None:
    one, two, killed = processes
    await beat(*processes)
    assert await beat(one, two) == [3, 3]
    seconds = 0.0
    while one.count == 3:
        clock.advance(BEAT)
        seconds += BEAT
        await beat(one, two)
    assert DEAD_AFTER <= seconds < 10.0
    await beat(killed)  # it was only stopped
    assert await beat(one, two) == [3, 3]


async def test_an_outage_of_the_database_is_no_death_of_all_others(
    processes: Sequence[LiveProcesses], clock: FakeClock
) -> None:
    await beat(*processes)
    await beat(*processes)
    clock.advance(300.0)
    assert await beat(processes[0]) == [3]
    clock.advance(BEAT)
    assert await beat(*processes) == [3, 3, 3]


async def test_the_row_of_a_killed_process_goes_and_one_that_was_stopped_comes_back(
    database: Database, processes: Sequence[LiveProcesses], clock: FakeClock
) -> None:
    one, two, _ = processes
    await beat(one, two)
    for _ in range(int(FORGET_AFTER / BEAT) + 2):
        clock.advance(BEAT)
        await beat(one)
    assert rows(database) == 1
    await beat(two)
    assert await beat(one) == [2]


async def accepted(stages: Sequence[Stage]) -> int:
    """Requests that are answered until each process refuses."""
    count = 0
    for stage in stages:
        async with stage.client() as client:
            while (await client.get("/api/v2/account")).status_code == 200:
                count += 1
    return count


@pytest.mark.parametrize("most", [2, 7, 60])
async def test_a_limit_holds_for_the_sum_of_all_processes(
    make_stage: Callable[..., Stage], clock: FakeClock, most: int
) -> None:
    stage = make_stage(limits={"requests_per_minute": most})
    processes = [LiveProcesses(stage.parts.database, clock, clock) for _ in range(2)]
    await beat(*processes)
    stages = []
    for each in processes:
        parts = replace(stage.parts, live_processes=counter(each))
        stages.append(replace(stage, parts=parts, app=build_app(parts)))
    await beat(processes[0])
    total = await accepted(stages)
    assert most - len(stages) < total <= most
    for _ in range(4):
        clock.advance(30.0)
        total += await accepted(stages)
    assert most * 3 - len(stages) < total <= most * 3, "a full minute at once, then two of refill"
    await processes[1].leave()
    await beat(processes[0])
    clock.advance(60.0)
    assert most - 1 <= await accepted(stages[:1]) <= most


def counter(processes: LiveProcesses) -> Callable[[], int]:
    return lambda: processes.count


async def test_a_process_that_joins_takes_its_share_of_what_is_left(
    sqlite_stage: Stage, clock: FakeClock
) -> None:
    from bitel.api.rate_limits import RateLimiter

    project = replace(sqlite_stage.project(), calls_per_minute=10)
    count = 1
    limits = RateLimiter(lambda: sqlite_stage.parts.settings.limits, clock, lambda: count)
    limits.count_calls(project, 2)
    count = 2
    limits.count_calls(project, 5)
    with pytest.raises(TooManyRequestsError, match="10 calls a minute") as refused:
        limits.count_calls(project, 1)
    assert refused.value.retry_after == 12
