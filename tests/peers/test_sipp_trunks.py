"""Trunks against SIPp: failover, REGISTER and OPTIONS, each by its section of RFC 3261."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bitel.dialer.failover import TO_ANOTHER_NUMBER
from bitel.dialer.trunk import Trunk
from bitel.domain.attempts import Outcome
from bitel.sip import Credentials
from bitel.store.database import Database
from tests.peers.sipp import sipp
from tests.support.service_calls import folder
from tests.support.sip_dialer import dialer
from tests.support.switchboard import switchboard
from tests.support.waiting import until

CALLS = 3


async def test_rfc3261_21_5_4_another_trunk_after_503(tmp_path: Path) -> None:
    async with (
        sipp(
            "rfc3261_21.5.4_service_unavailable", CALLS, folder(tmp_path, "first"), retry_after="0"
        ) as first,
        sipp("answering", CALLS, folder(tmp_path, "second")) as second,
    ):
        trunks = [f"sip:127.0.0.1:{each.port}" for each in (first, second)]
        async with dialer(tmp_path, *trunks, t1=0.5) as calls:
            attempts = await asyncio.gather(*(calls.call() for _ in range(CALLS)))
        assert {result.outcome for result in attempts} == {Outcome.ANSWERED}
        for callee in (first, second):
            report = await callee.report()
            assert (report.exit_code, report.successful) == (0, CALLS), report


async def test_rfc3261_20_33_who_asks_for_rest_gets_it(tmp_path: Path) -> None:
    scenario = "rfc3261_21.5.4_service_unavailable"
    async with (
        sipp(scenario, 1, folder(tmp_path, "first"), retry_after="120") as first,
        sipp("answering", CALLS, folder(tmp_path, "second")) as second,
    ):
        trunks = [f"sip:127.0.0.1:{each.port}" for each in (first, second)]
        async with dialer(tmp_path, *trunks, t1=0.5) as calls:
            for _ in range(CALLS):
                assert (await calls.call()).outcome is Outcome.ANSWERED
        # One call each is all that they were to have.
        assert (await first.report()).successful == 1
        assert (await second.report()).successful == CALLS


async def test_rfc3261_20_33_the_only_address_is_called_all_the_same(tmp_path: Path) -> None:
    """Retry-After is the word of one call, perhaps of one callee, and would stop all others."""
    scenario = "rfc3261_21.5.4_service_unavailable"
    async with sipp(scenario, CALLS, folder(tmp_path, "sipp"), retry_after="3600") as only:
        async with dialer(tmp_path, f"sip:127.0.0.1:{only.port}", t1=0.5) as calls:
            for _ in range(CALLS):
                assert (await calls.call()).outcome is Outcome.TRUNK_TROUBLE
                assert calls.dialer.up
        report = await only.report()
    assert (report.exit_code, report.successful) == (0, CALLS), report


async def test_rfc3261_8_1_2_by_way_of_an_outbound_proxy(tmp_path: Path) -> None:
    scenario = "rfc3261_8.1.2_outbound_proxy"
    async with sipp(scenario, CALLS, folder(tmp_path, "sipp")) as proxy:
        edge = Trunk.parse(f"sip:127.0.0.1:{proxy.port}")
        async with dialer(tmp_path, "sip:carrier.invalid", t1=0.5, outbound_proxy=edge) as calls:
            attempts = await asyncio.gather(*(calls.call() for _ in range(CALLS)))
        report = await proxy.report()
    assert {result.outcome for result in attempts} == {Outcome.ANSWERED}
    assert (report.exit_code, report.successful) == (0, CALLS), report


async def test_rfc3261_19_1_1_the_caller_as_the_carrier_wants_it(tmp_path: Path) -> None:
    scenario = "rfc3261_19.1.1_caller_and_extra_headers"
    async with sipp(scenario, CALLS, folder(tmp_path, "sipp")) as callee:
        async with dialer(
            tmp_path,
            f"sip:127.0.0.1:{callee.port}",
            t1=0.5,
            caller_id="+982191000000",
            identity="pai",
            from_domain="pbx.example",
            user_phone=True,
            extra_headers=(("X-Account", "42"),),
            credentials=Credentials("acme", "s3cret"),
        ) as calls:
            attempts = await asyncio.gather(*(calls.call() for _ in range(CALLS)))
        report = await callee.report()
    assert {result.outcome for result in attempts} == {Outcome.ANSWERED}
    assert (report.exit_code, report.successful) == (0, CALLS), report


async def test_rfc3261_8_1_3_4_no_other_number_is_called(tmp_path: Path) -> None:
    scenario = "rfc3261_8.1.3.4_redirect_to_another_number"
    async with sipp(scenario, 1, folder(tmp_path, "sipp")) as trunk:
        async with dialer(tmp_path, f"sip:127.0.0.1:{trunk.port}", t1=0.5) as calls:
            result = await calls.call("+989121234567")
        report = await trunk.report()
    assert (result.outcome, result.sip_code) == (Outcome.REFUSED, 302)
    assert result.detail.endswith(TO_ANOTHER_NUMBER)
    assert (report.exit_code, report.successful, report.failed) == (0, 1, 0), report


async def test_rfc3261_10_2_registered_refreshed_and_gone(tmp_path: Path) -> None:
    async with sipp(
        "rfc3261_10.2_registrar", 1, folder(tmp_path, "sipp"), username="acme", password="s3cret"
    ) as registrar:
        async with dialer(
            tmp_path,
            f"sip:127.0.0.1:{registrar.port}",
            t1=0.5,
            register=True,
            credentials=Credentials("acme", "s3cret"),
        ) as calls:
            assert not calls.dialer.up
            await until(lambda: calls.dialer.up)
            await asyncio.sleep(2.2)  # SIPp's clock is a real one
            assert calls.dialer.up, "it was granted 2 s, and is refreshed before"
        report = await registrar.report()
        assert (report.exit_code, report.successful, report.failed) == (0, 1, 0), report


async def test_rfc3261_11_any_answer_to_options_will_do(tmp_path: Path) -> None:
    async with sipp("rfc3261_11_options", CALLS, folder(tmp_path, "sipp")) as callee:
        trunk = f"sip:127.0.0.1:{callee.port}"
        async with dialer(tmp_path, trunk, t1=0.5, ping_interval=0.2) as calls:
            report = await callee.report()
            assert (report.exit_code, report.successful) == (0, CALLS), report
            assert calls.dialer.up
            # SIPp is gone after that, and the trunk with it.
            await until(lambda: not calls.dialer.up)


@pytest.mark.parametrize(
    "scenario", ["rfc3261_13.2.2.4_late_200_after_timer_b", "rfc3261_9.1_slow_trunk"]
)
async def test_a_slow_trunk_is_left_for_another_and_nobody_is_billed_twice(
    scenario: str, tmp_path: Path, sqlite_database: Database
) -> None:
    """It answers after all, or rings, when the call has long been placed elsewhere."""
    async with (
        sipp(scenario, 1, folder(tmp_path, "slow")) as slow,
        sipp("answering", 1, folder(tmp_path, "other")) as other,
    ):
        trunks = [f"sip:127.0.0.1:{each.port}" for each in (slow, other)]
        async with switchboard(
            tmp_path, sqlite_database, *trunks, t1=0.05, trunk_timeout=0.5
        ) as board:
            record = await board.call()
            reports = [await callee.report() for callee in (slow, other)]
    assert [(each.exit_code, each.successful) for each in reports] == [(0, 1)] * 2, reports
    assert (record.outcome, record.bills) == (Outcome.ANSWERED, 1)
