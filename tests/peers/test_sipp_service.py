"""The whole service against SIPp as a carrier that nobody here wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bitel.demo.stage import Stage
from tests.peers.sipp import sipp
from tests.support.service_calls import call_all, folder, numbers, reports

CALLS = 20


@pytest.mark.parametrize(
    ("scenario", "dialer", "status"),
    [
        ("answering", {}, "NORMAL"),
        ("busy", {}, "USER_BUSY"),
        ("never_answering", {"ring_timeout": 2}, "NO_ANSWER"),
        ("demanding_credentials", {"username": "acme", "password": "s3cret"}, "NORMAL"),
        ("demanding_proxy_credentials", {"username": "acme", "password": "s3cret"}, "NORMAL"),
        ("demanding_credentials", {"username": "acme", "password": "wrong"}, "ERROR"),
    ],
)
async def test_a_carrier(
    tmp_path: Path, scenario: str, dialer: dict[str, object], status: str
) -> None:
    sipp_folder = folder(tmp_path, "sipp")
    async with sipp(scenario, CALLS, sipp_folder, username="acme", password="s3cret") as carrier:
        settings = {"calls_per_second": 100, **dialer}
        trunk = f"sip:127.0.0.1:{carrier.port}"
        with Stage(tmp_path / "stage", dialer=settings, trunk=trunk) as stage:
            calls = await asyncio.to_thread(call_all, stage, numbers(CALLS), 0.2)
        assert {call["status"] for call in calls} == {status}, reports(calls)
        assert all((call["billSec"] > 0) == (status == "NORMAL") for call in calls)
        if status == "ERROR":
            return  # SIPp counts a wrong password as its own failure, and that is as it should be
        report = await carrier.report()
        assert (report.exit_code, report.successful, report.failed) == (0, CALLS, 0), report
        assert "s3cret" not in (stage.folder / "serve.log").read_text()


async def test_a_carrier_that_hangs_up(tmp_path: Path) -> None:
    scenario = "answering_then_hanging_up"
    async with sipp(scenario, CALLS, folder(tmp_path, "sipp"), hang_up_after=1200) as carrier:
        trunk = f"sip:127.0.0.1:{carrier.port}"
        with Stage(tmp_path / "stage", dialer={"calls_per_second": 100}, trunk=trunk) as stage:
            calls = await asyncio.to_thread(call_all, stage, numbers(CALLS), 10.0)
        assert reports(calls) == [("NORMAL", 2)] * CALLS
        assert (await carrier.report()).exit_code == 0
