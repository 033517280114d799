"""Batches of concurrent items: who shares one, and what a failure does to the others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from bitel.batcher import AT_ONCE, LARGEST, Batcher
from bitel.errors import BitelError, NotFoundError, UnavailableError


class Sink:
    """Takes batches, each only when it is let through."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def flush(self, items: Sequence[int]) -> Sequence[bool]:
        self.batches.append(list(items))
        await self.open.wait()
        return [item % 2 == 0 for item in items]


async def test_what_comes_while_a_write_runs_goes_with_the_next() -> None:
    sink = Sink()
    batcher = Batcher(sink.flush, retries=True)
    first = batcher.put(0)
    await asyncio.sleep(0)
    rest = [batcher.put(n) for n in range(1, 10)]
    sink.open.set()
    assert await first
    assert await asyncio.gather(*rest) == [n % 2 == 0 for n in range(1, 10)]
    assert sink.batches == [[0], list(range(1, 10))]


async def test_a_batch_has_a_largest_size() -> None:
    sink = Sink()
    sink.open.set()
    batcher = Batcher(sink.flush, retries=True)
    await asyncio.gather(*(batcher.put(n) for n in range(LARGEST * 2 + 1)))
    assert [len(batch) for batch in sink.batches] == [LARGEST, LARGEST, 1]


@pytest.mark.parametrize("count", [1, 2, 7, LARGEST])
async def test_an_item_that_can_not_be_written_fails_alone(count: int) -> None:
    bad, writes = count // 2, 0

    async def flush(items: Sequence[int]) -> Sequence[bool]:
        nonlocal writes
        writes += 1
        if bad in items:
            raise OSError("disk")
        return [True] * len(items)

    batcher = Batcher(flush, retries=True)
    results = await asyncio.gather(*map(batcher.put, range(count)), return_exceptions=True)
    assert [n for n, result in enumerate(results) if result is not True] == [bad]
    assert isinstance(results[bad], OSError)
    assert writes <= 2 * math.ceil(math.log2(count)) + 1
    assert await batcher.put(count)


async def test_a_flush_that_answers_too_little_fails_too() -> None:
    async def flush(items: Sequence[int]) -> Sequence[bool]:
        return []

    batcher = Batcher(flush, retries=True)
    async with asyncio.timeout(5):
        with pytest.raises(ValueError):
            await batcher.put(1)


async def test_after_a_long_outage_it_is_written_within_a_second() -> None:
    back_at = asyncio.get_running_loop().time() + 3.5

    async def flush(items: Sequence[int]) -> Sequence[bool]:
        if asyncio.get_running_loop().time() < back_at:
            raise UnavailableError("the database can't be reached")
        return [True] * len(items)

    assert await Batcher(flush, retries=True).put(1)
    assert asyncio.get_running_loop().time() < back_at + 1.0


async def test_an_item_whose_caller_went_away_hurts_nobody() -> None:
    sink = Sink()
    batcher = Batcher(sink.flush, retries=True)
    gone = batcher.put(2)
    stays = batcher.put(4)
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    sink.open.set()
    assert await stays


async def test_after_a_write_it_rests_and_what_comes_meanwhile_goes_together() -> None:
    sink = Sink()
    sink.open.set()
    batcher = Batcher(sink.flush, rest=0.02)
    await batcher.put(0)  # at once: nothing was written before
    late = []
    for number in (1, 2, 3):
        late.append(batcher.put(number))
        await asyncio.sleep(0)
    assert sink.batches == [[0]]
    await asyncio.gather(*late)
    assert sink.batches == [[0], [1, 2, 3]]


async def test_what_a_database_out_of_reach_could_not_take_is_tried_again_together() -> None:
    tries: list[list[int]] = []

    async def flush(items: Sequence[int]) -> Sequence[bool]:
        tries.append(list(items))
        if len(tries) == 1:
            raise UnavailableError("the database can't be reached")
        return [True] * len(items)

    batcher = Batcher(flush, retries=True)
    stays, gone, given_up = (batcher.put(number) for number in (1, 2, 3))
    await asyncio.sleep(0)
    gone.cancel()
    given_up.set_result(False)
    assert await stays
    assert not await given_up
    assert tries == [[1, 2, 3], [1]]


async def test_a_batch_that_nobody_waits_for_is_not_tried_again() -> None:
    tries: list[list[int]] = []

    async def flush(items: Sequence[int]) -> Sequence[bool]:
        tries.append(list(items))
        if items == [1]:
            raise UnavailableError("the database can't be reached")
        return [True] * len(items)

    batcher = Batcher(flush, retries=True)
    batcher.put(1).cancel()
    left = batcher.put(1)
    await asyncio.sleep(0)
    left.cancel()
    assert await batcher.put(2)
    assert tries == [[1], [2]]


async def test_of_a_large_batch_a_few_are_told_in_one_turn() -> None:
    async def flush(items: Sequence[int]) -> Sequence[bool]:
        return [True] * len(items)

    batcher = Batcher(flush, retries=True)
    told = 0
    most = 0

    def count(_: object) -> None:
        nonlocal told
        told += 1

    futures = [batcher.put(number) for number in range(LARGEST)]
    for future in futures:
        future.add_done_callback(count)
    while told < LARGEST:
        before = told
        await asyncio.sleep(0)
        most = max(most, told - before)
    assert most == AT_ONCE


async def test_without_retries_a_database_out_of_reach_fails_the_whole_batch_at_once() -> None:
    tries: list[list[int]] = []

    async def process(items: Sequence[int]) -> Sequence[bool]:
        tries.append(list(items))
        raise UnavailableError("the database can't be reached")

    batcher: Batcher[int, bool] = Batcher(process)
    results = await asyncio.gather(*map(batcher.put, range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableError] * 5
    assert tries == [[0, 1, 2, 3, 4]]


class Doubling:
    """Doubles numbers; odd ones are not found, and 13 breaks the whole batch."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, asked: Sequence[int]) -> Sequence[int | BitelError]:
        self.seen.append(list(asked))
        await self.gate.wait()
        if 13 in asked:
            raise ZeroDivisionError
        return [NotFoundError(str(one)) if one % 2 else 2 * one for one in asked]


async def test_an_error_in_the_results_is_raised_for_its_item_alone() -> None:
    work = Doubling()
    work.gate.set()
    asking: Batcher[int, int] = Batcher(work)
    answers = await asyncio.gather(*(asking.submit(n) for n in range(4)), return_exceptions=True)
    assert answers[::2] == [0, 4]
    assert [type(answer) for answer in answers[1::2]] == [NotFoundError, NotFoundError]


async def test_a_batch_that_breaks_is_processed_in_halves() -> None:
    work = Doubling()
    work.gate.set()
    asking: Batcher[int, int] = Batcher(work)
    answers = await asyncio.gather(*(asking.submit(n) for n in (2, 13, 4)), return_exceptions=True)
    assert answers[0] == 4
    assert isinstance(answers[1], ZeroDivisionError)
    assert answers[2] == 8
    assert work.seen == [[2, 13, 4], [2], [13, 4], [13], [4]]
