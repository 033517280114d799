"""The collector of cyclic garbage: it keeps nobody waiting, and nothing is left for ever."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from bitel.observability import event_loop
from bitel.observability.event_loop import (
    IDLE_INTERVAL,
    LONGEST_INTERVAL,
    MOST_OBJECTS,
    collect_when_quiet,
    disable_collector,
    is_due,
    measuring_pauses,
)
from tests.support.waiting import until


@pytest.fixture
def on_again() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


class _Looped:
    """Garbage that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("on_again")
def test_it_does_not_run_by_itself() -> None:
    disable_collector()
    before = [each["collections"] for each in gc.get_stats()]
    kept = [[number] for number in range(200_000)]
    assert len(kept) == 200_000
    assert [each["collections"] for each in gc.get_stats()] == before
    assert gc.get_count()[0] >= 200_000


@pytest.mark.usefixtures("on_again")
async def test_it_runs_when_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop, "CHECK_INTERVAL", 0.001)
    monkeypatch.setattr(event_loop, "IDLE_INTERVAL", 0.0)
    quiet, looks = False, 0

    def is_quiet() -> bool:
        nonlocal looks
        looks += 1
        return quiet

    disable_collector()
    seen = weakref.ref(_Looped())
    task = asyncio.create_task(collect_when_quiet(is_quiet))
    await until(lambda: looks >= 3)
    assert seen() is not None
    quiet = True
    await until(lambda: seen() is None)
    task.cancel()


def test_it_waits_for_quiet_but_not_for_ever_nor_at_any_price() -> None:
    assert not is_due(IDLE_INTERVAL - 1, 10, quiet=True)
    assert is_due(IDLE_INTERVAL, 10, quiet=True)
    assert not is_due(LONGEST_INTERVAL - 1, MOST_OBJECTS - 1, quiet=False)
    assert is_due(LONGEST_INTERVAL, 10, quiet=False)
    assert is_due(1, MOST_OBJECTS, quiet=False)


def test_pauses_are_counted() -> None:
    with measuring_pauses() as pauses:
        gc.collect()
        gc.collect(0)
    gc.collect()
    assert sum(pauses.counts) >= 2
    assert 0 < pauses.total < 10
