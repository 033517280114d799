"""The collector of cyclic garbage: what it may keep waiting, and that nothing is left for ever."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from bitel import collector
from bitel.collector import (
    OFTEN,
    SELDOM,
    collect_when_quiet,
    is_due,
    measuring_pauses,
    spare_the_old,
)


@pytest.fixture
def own_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class _Looped:
    """Garbage that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


def _runs() -> list[int]:
    return [each["collections"] for each in gc.get_stats()]


@pytest.mark.usefixtures("own_thresholds")
def test_what_lives_long_is_not_looked_through_while_calls_run() -> None:
    spare_the_old()
    young, middle, old = _runs()
    kept = [[number] for number in range(200_000)]
    assert len(kept) == 200_000
    assert _runs()[0] > young
    assert _runs()[1:] == [middle, old]


@pytest.mark.usefixtures("own_thresholds")
def test_what_is_young_is_freed_at_once() -> None:
    spare_the_old()
    seen = weakref.ref(_Looped())
    kept = [[number] for number in range(3 * collector.YOUNG)]
    assert seen() is None, len(kept)


@pytest.mark.usefixtures("own_thresholds")
async def test_what_outlived_its_youth_is_freed_when_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "LOOK", 0.001)
    monkeypatch.setattr(collector, "OFTEN", 0.0)
    quiet = False
    spare_the_old()
    looped = _Looped()
    gc.collect(0)
    gc.collect(1)  # it is old by now
    seen = weakref.ref(looped)
    del looped
    task = asyncio.create_task(collect_when_quiet(lambda: quiet))
    await asyncio.sleep(0.02)
    assert seen() is not None
    quiet = True
    async with asyncio.timeout(10):
        while seen() is not None:
            await asyncio.sleep(0.001)
    task.cancel()


def test_it_waits_for_quiet_but_not_for_ever() -> None:
    assert not is_due(OFTEN - 1, quiet=True)
    assert is_due(OFTEN, quiet=True)
    assert not is_due(SELDOM - 1, quiet=False)
    assert is_due(SELDOM, quiet=False)


def test_pauses_are_counted() -> None:
    with measuring_pauses() as pauses:
        gc.collect()
        gc.collect(0)
    gc.collect()
    assert sum(pauses.counts) >= 2
    assert 0 < pauses.total < 10
