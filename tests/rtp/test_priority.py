from __future__ import annotations

import os
import sys

import pytest

from bitel.rtp.priority import FULL, LEVEL, PATIENCE, Priority

Claims = list[tuple[int, int]]


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Claims:
    """What the system is asked for: policy and level. This process stays as it is."""
    if sys.platform != "linux":
        pytest.skip("real time is claimed on Linux")
    asked: Claims = []

    def ask(pid: int, policy: int, param: os.sched_param) -> None:
        assert policy & os.SCHED_RESET_ON_FORK
        asked.append((policy & ~os.SCHED_RESET_ON_FORK, param.sched_priority))

    monkeypatch.setattr(os, "sched_setscheduler", ask)
    monkeypatch.setattr(os, "setpriority", lambda *given: None)
    monkeypatch.setattr("builtins.open", _refuse)
    return asked


def _refuse(*given: object) -> None:
    raise PermissionError


def test_real_time_is_claimed_while_the_core_is_not_full(claims: Claims) -> None:
    priority = Priority()
    priority.take()
    assert priority.real_time
    for used in [FULL + 0.05] * (PATIENCE - 1) + [FULL] + [1.0] * (PATIENCE - 1):
        priority.review(used)
    assert claims == [(os.SCHED_RR, LEVEL)], "late ticks that are caught up don't count"
    priority.review(1.0)
    assert not priority.real_time
    for used in [0.5] * (PATIENCE - 1) + [1.0] + [0.5] * (PATIENCE - 1):
        priority.review(used)
    assert not priority.real_time
    priority.review(0.5)
    assert priority.real_time
    assert claims == [(os.SCHED_RR, LEVEL), (os.SCHED_OTHER, 0), (os.SCHED_RR, LEVEL)]


def test_where_it_is_refused_nothing_is_said(
    claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_setscheduler", _refuse)
    monkeypatch.setattr(os, "setpriority", _refuse)
    priority = Priority()
    priority.take()
    for _ in range(3 * PATIENCE):
        priority.review(0.5)
    assert not priority.real_time
