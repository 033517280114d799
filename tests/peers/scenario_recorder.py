"""A plugin for pytest that runs no SIPp, and writes down which scenarios the tests would run.

For `test_scenarios`: `pytest -p tests.peers.scenario_recorder`, with a file's path in RECORD. Each
test is skipped where it needs to know anything of the SIPp that it has started.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.peers import sipp

RECORD = "BITEL_TEST_SCENARIO_RECORD"
"""The environment variable that names the file to which scenarios are added, one a line."""


class _NotRunning:
    def __getattr__(self, name: str) -> Any:
        pytest.skip("only the scenario's name is wanted")


@asynccontextmanager
async def _recorded(scenario: str, *_: Any, **__: Any) -> AsyncIterator[_NotRunning]:
    with open(os.environ[RECORD], "a") as record:
        record.write(f"{scenario}\n")
    yield _NotRunning()


def pytest_configure() -> None:
    """Take SIPp's place before the tests are collected, which import it by name."""
    sipp.sipp = _recorded  # type: ignore[assignment] # what it yields is never looked at
