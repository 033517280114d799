"""Calls over a link that loses, doubles and reorders 10 % of the SIP datagrams: all end right."""

from __future__ import annotations

from pathlib import Path

from tests.support.lossy_calls import play
from tests.support.lossy_relay import Loss

CALLS = 400


async def test_at_ten_percent_every_call_ends_right(tmp_path: Path) -> None:
    played = await play(tmp_path, Loss(0.1, 0.1, 0.1, seed=5), CALLS, pace=50, patience=120.0)
    assert played.wrong == []
    assert played.statuses == {"NORMAL": 280, "USER_BUSY": 40, "ERROR": 40, "NO_ANSWER": 40}
    passed = played.passed
    assert passed.came > 6 * CALLS, passed
    # What is lost and what is doubled are about as many.
    assert -0.05 < 1 - passed.went / passed.came < 0.05
