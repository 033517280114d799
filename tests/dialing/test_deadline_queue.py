"""Waits that last too long, on a loop whose time stands still until a test moves it."""

from __future__ import annotations

import asyncio

import pytest

from bitel.dialing.deadline_queue import DeadlineQueue


class Times:
    """The running loop's time and its one timer, in the hands of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, object]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop, "call_later", self._call_later)

    def _call_later(self, delay: float, callback: object) -> object:
        self.timers.append((self.now + delay, callback))
        return object()

    def go_on(self, seconds: float) -> None:
        """Let time pass, and call what is due within it."""
        end = self.now + seconds
        while self.timers and min(due for due, _ in self.timers) <= end:
            first = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = first[0]
            assert callable(first[1])
            first[1]()
        self.now = end


async def test_each_wait_ends_when_its_own_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch)
    loop = asyncio.get_running_loop()
    ran_out: list[tuple[str, float]] = []

    def run_out(item: str, future: asyncio.Future[bool]) -> None:
        ran_out.append((item, times.now))
        future.set_result(False)

    patience = DeadlineQueue(3.0, run_out)
    futures = {name: loop.create_future() for name in "abcd"}
    for name, future in futures.items():
        patience.begin(name, future)
        times.go_on(1.0)
    assert ran_out == [("a", 103.0), ("b", 104.0)]
    futures["c"].set_result(True)
    times.go_on(10.0)
    assert ran_out == [("a", 103.0), ("b", 104.0), ("d", 106.0)]
    assert times.timers == []


async def test_what_is_over_is_not_kept_until_its_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Times(monkeypatch)
    loop = asyncio.get_running_loop()
    patience = DeadlineQueue[int](3.0, lambda item, future: None)
    for number in range(1000):
        future = loop.create_future()
        patience.begin(number, future)
        future.set_result(True)
    assert len(patience._waits) == 1


async def test_one_timer_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch)
    patience = DeadlineQueue[int](3.0, lambda item, future: None)
    for number in range(10):
        patience.begin(number, asyncio.get_running_loop().create_future())
    assert len(times.timers) == 1
