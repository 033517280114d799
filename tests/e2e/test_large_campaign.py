"""A large campaign of personal texts from one list, dialled with a flat memory.

BITEL_TEST_RECIPIENTS=100000 makes it five times as large.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from bitel.demo.stage import Stage
from tests.support import phone_log

RECIPIENTS = int(os.environ.get("BITEL_TEST_RECIPIENTS", "20000"))
NAMES = 200
GROWTH = 64.0
"""MiB by which the service may grow between the first and the last tenth of the campaign."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database_setting(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return ""
    server: URL = request.getfixturevalue("postgres")
    return f'database_url = "{server.render_as_string(hide_password=False)}"'


def names() -> Iterator[str]:
    """Syllables in pairs, over and over."""
    syllables = ("ba", "do", "fi", "ga", "ho", "ja", "ki", "lo", "ma", "ne", "po", "ra", "si", "ta",
                 "vu")  # fmt: skip
    pairs = [f"{one}{other}".title() for one, other in itertools.product(syllables, syllables)]
    return itertools.cycle(pairs[:NAMES])


def resident(pid: int) -> float:
    """The resident memory of a process, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the process is gone")


@pytest.mark.soak
def test_memory_stays_flat_over_a_large_campaign_of_personal_texts(
    tmp_path: Path, database_setting: str
) -> None:
    rows = [
        f"0912{number:07},{name}" for number, name in zip(range(RECIPIENTS), names(), strict=False)
    ]
    content = "\n".join(["phone,name", *rows]).encode()
    stage = Stage(
        tmp_path,
        rules=("*=busy",),
        record=False,
        log_level="warning",
        extra=database_setting,
        dialer={"calls_per_second": 1000, "max_channels": 1000},
    )
    with stage:
        stage.start_phone()
        stage.start_service()
        assert stage.service is not None
        with stage.client(stage.token()) as http:
            http.timeout = 120
            began = time.monotonic()
            files = {"file": ("people.csv", content, "text/csv")}
            listed = http.post("/api/v2/files/list", files=files).json()["result"]
            uploaded = time.monotonic() - began
            assert (listed["rows"], listed["valid"]) == (RECIPIENTS, RECIPIENTS)
            body = {
                "listId": listed["id"],
                "text": "Dear {name}, your appointment is tomorrow.",
                "language": "en",
                "retryCount": 0,
            }
            began = time.monotonic()
            placed = http.post("/api/v2/voice/batch/tts", json=body)
            assert placed.status_code == 200, placed.text[:500]
            stored = time.monotonic() - began
            path = f"/api/v2/voice/campaign/{placed.json()['campaignId']}"
            began, sizes = time.monotonic(), []
            over = 0
            while over < RECIPIENTS:
                time.sleep(0.5)  # samples of another process
                found = http.get(path).json()["result"]
                over = found["total"] - found["byStatus"]["WAITING"]
                sizes.append(resident(stage.service.pid))
                assert time.monotonic() - began < 1500, found
            took = time.monotonic() - began
        assert found["byStatus"]["USER_BUSY"] == RECIPIENTS, found
        assert found["state"] == "FINISHED"
        assert stage.stop_service() == 0
    tenth = max(1, len(sizes) // 10)
    growth = max(sizes[-tenth:]) - max(sizes[:tenth])
    print(
        f"list {uploaded:.1f} s, placed {stored:.1f} s, {RECIPIENTS / took:.0f} calls/s, "
        f"{max(sizes):.0f} MiB at most, {growth:+.0f} MiB"
    )
    assert growth < GROWTH
    seen = phone_log.read(stage.phone_log)
    assert len(seen) == RECIPIENTS
    assert all(len(calls) == 1 for calls in seen.values())
