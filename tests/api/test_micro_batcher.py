"""Rounds: asks that come while one runs share the next, and none suffers for another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bitel.api import micro_batcher
from bitel.api.micro_batcher import MicroBatcher
from bitel.errors import BitelError, NotFoundError


class Doubling:
    """Doubles numbers; odd ones are not found, and 13 breaks the whole round."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, asked: Sequence[int]) -> Sequence[int | BitelError]:
        self.seen.append(list(asked))
        await self.gate.wait()
        if 13 in asked:
            raise ZeroDivisionError
        return [NotFoundError(str(one)) if one % 2 else 2 * one for one in asked]


async def test_what_comes_meanwhile_shares_the_next_round() -> None:
    work = Doubling()
    asking: MicroBatcher[int, int] = MicroBatcher(work)
    asks = [asyncio.create_task(asking.submit(0))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asks += [asyncio.create_task(asking.submit(number)) for number in (2, 4, 6)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(*asks) == [0, 4, 8, 12]
    assert work.seen == [[0], [2, 4, 6]]


async def test_an_error_is_for_the_one_who_asked() -> None:
    work = Doubling()
    work.gate.set()
    asking: MicroBatcher[int, int] = MicroBatcher(work)
    answers = await asyncio.gather(*(asking.submit(n) for n in range(4)), return_exceptions=True)
    assert answers[::2] == [0, 4]
    assert [type(answer) for answer in answers[1::2]] == [NotFoundError, NotFoundError]


async def test_a_round_that_breaks_is_done_again_one_by_one() -> None:
    work = Doubling()
    work.gate.set()
    asking: MicroBatcher[int, int] = MicroBatcher(work)
    answers = await asyncio.gather(*(asking.submit(n) for n in (2, 13, 4)), return_exceptions=True)
    assert answers[0] == 4
    assert isinstance(answers[1], ZeroDivisionError)
    assert answers[2] == 8
    assert work.seen == [[2, 13, 4], [2], [13], [4]]


async def test_whoever_gives_up_holds_up_nobody() -> None:
    work = Doubling()
    asking: MicroBatcher[int, int] = MicroBatcher(work)
    first, second = (asyncio.create_task(asking.submit(n)) for n in (2, 4))
    await asyncio.sleep(0)
    first.cancel()
    work.gate.set()
    assert await second == 8
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asking.submit(6) == 12


async def test_a_round_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batcher, "LARGEST", 3)
    work = Doubling()
    work.gate.set()
    asking: MicroBatcher[int, int] = MicroBatcher(work)
    await asyncio.gather(*(asking.submit(2 * n) for n in range(8)))
    assert [len(each) for each in work.seen] == [3, 3, 2]
