"""The user agent as a caller against SIPp: both sides must count every call as gone right."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bitel.sip.auth import Credentials
from bitel.sip.events import Answered, Ended, Failed, Provisional
from tests.peers.sipp import SippReport, sipp
from tests.support.sip_caller import Caller, caller

CALLS = 30
USERNAME = "trunk-7"
PASSWORD = "open sesame"
ALL_RIGHT = SippReport(exit_code=0, successful=CALLS, failed=0, complaints="")


async def hang_up_when_answered(one: Caller, call: str) -> Ended:
    assert isinstance(await one.settled(call), Answered)
    one.hang_up(call)
    return await one.saw(call, Ended)


async def test_answered_and_hung_up_by_us(tmp_path: Path) -> None:
    async with sipp("answering", CALLS, tmp_path) as callee, caller(callee.address) as one:
        calls = [one.call(f"98912{i:07}") for i in range(CALLS)]
        ends = await asyncio.gather(*(hang_up_when_answered(one, call) for call in calls))
        assert {end.by for end in ends} == {"us"}
        assert await callee.report() == ALL_RIGHT


async def test_answered_and_hung_up_by_the_callee(tmp_path: Path) -> None:
    async with (
        sipp("answering_then_hanging_up", CALLS, tmp_path, hang_up_after=200) as callee,
        caller(callee.address) as one,
    ):
        calls = [one.call(f"98912{i:07}") for i in range(CALLS)]
        ends = await asyncio.gather(*(one.saw(call, Ended) for call in calls))
        assert {end.by for end in ends} == {"far"}
        assert await callee.report() == ALL_RIGHT


async def test_busy(tmp_path: Path) -> None:
    async with sipp("busy", CALLS, tmp_path) as callee, caller(callee.address) as one:
        calls = [one.call(f"98912{i:07}") for i in range(CALLS)]
        results = await asyncio.gather(*(one.settled(call) for call in calls))
        assert {(r.code, r.why) for r in results if isinstance(r, Failed)} == {(486, "response")}
        assert not any(isinstance(r, Answered) for r in results)
        assert await callee.report() == ALL_RIGHT


async def test_never_answered_so_called_off(tmp_path: Path) -> None:
    async def give_up(one: Caller, call: str) -> Answered | Failed:
        assert (await one.saw(call, Provisional)).code == 180
        one.cancel(call)
        return await one.settled(call)

    async with sipp("never_answering", CALLS, tmp_path) as callee, caller(callee.address) as one:
        calls = [one.call(f"98912{i:07}") for i in range(CALLS)]
        results = await asyncio.gather(*(give_up(one, call) for call in calls))
        assert {(r.code, r.why) for r in results if isinstance(r, Failed)} == {(487, "canceled")}
        assert not any(isinstance(r, Answered) for r in results)
        assert await callee.report() == ALL_RIGHT


@pytest.mark.parametrize("scenario", ["demanding_credentials", "demanding_proxy_credentials"])
async def test_right_credentials_are_verified_and_answered(scenario: str, tmp_path: Path) -> None:
    async with (
        sipp(scenario, CALLS, tmp_path, username=USERNAME, password=PASSWORD) as callee,
        caller(callee.address) as one,
    ):
        credentials = Credentials(USERNAME, PASSWORD)
        calls = [one.call(f"98912{i:07}", credentials=credentials) for i in range(CALLS)]
        ends = await asyncio.gather(*(hang_up_when_answered(one, call) for call in calls))
        assert {end.by for end in ends} == {"us"}
        assert await callee.report() == ALL_RIGHT


async def test_wrong_credentials_are_refused(tmp_path: Path) -> None:
    async with (
        sipp("demanding_credentials", 1, tmp_path, username=USERNAME, password=PASSWORD) as callee,
        caller(callee.address) as one,
    ):
        failed = await one.settled(one.call("98912", credentials=Credentials(USERNAME, "wrong")))
        assert isinstance(failed, Failed)
        assert failed.code == 403
        report = await callee.report()
        assert (report.successful, report.failed) == (0, 1)
