"""Background tasks go on after an unexpected error, which is logged."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from bitel.supervision import background, keep_running


async def test_a_task_that_fails_is_begun_again_after_longer_and_longer_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 5:
            raise RuntimeError("unforeseen")

    with capture_logs() as logs:
        await keep_running("sweeping", work, 1.0, 4.0)
    assert (begun, pauses) == (5, [1.0, 2.0, 4.0, 4.0])
    assert [(each["event"], each["task"]) for each in logs] == [("task_failed", "sweeping")] * 4
    assert all(each["exc_info"] for each in logs)


async def test_what_ends_by_itself_or_is_cancelled_is_not_begun_again() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with background("waiting", work) as task:
        await begun.wait()
    assert task.cancelled()
    await keep_running("done", _nothing)


async def _nothing() -> None:
    pass
