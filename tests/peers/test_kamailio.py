"""Kamailio between the dialer and SIPp, as many carriers have it."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from bitel.dialer.trunk import Trunk
from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus
from bitel.sip import Credentials
from bitel.sip_transport.tls import TlsFiles
from bitel.store.database import Database
from tests.peers.kamailio_carrier import PASSWORD, USERNAME, Option, kamailio
from tests.peers.sipp import sipp
from tests.support.certificates import Authority
from tests.support.service_calls import folder
from tests.support.switchboard import switchboard

CALLS = 5
ROUTED = "rfc3261_12.1.1_record_routed"
PATIENT = 2.0
"""Seconds of T1: what is counted must not be repeated where the machine is slow."""
CREDENTIALS = Credentials(USERNAME, PASSWORD)


@pytest.mark.interop("demands digest, and stays in the path of five calls", rfc="RFC 3261 §22.3")
@pytest.mark.parametrize("options", [[], ["WITH_SHA256"]], ids=["md5", "sha256"])
async def test_calls_through_a_proxy_that_demands_digest(
    options: list[Option], tmp_path: Path, sqlite_database: Database
) -> None:
    async with (
        sipp(ROUTED, CALLS, folder(tmp_path, "sipp")) as callee,
        kamailio(folder(tmp_path, "kamailio"), callee.port, options) as proxy,
        switchboard(
            tmp_path,
            sqlite_database,
            f"sip:127.0.0.1:{proxy.port}",
            t1=PATIENT,
            credentials=CREDENTIALS,
        ) as board,
    ):
        records = await asyncio.gather(*(board.call(f"0912{n:07}") for n in range(CALLS)))
        report = await callee.report()
    assert (report.exit_code, report.successful) == (0, CALLS), report
    assert {record.outcome for record in records} == {Outcome.ANSWERED}
    assert {record.bills for record in records} == {1}
    # The proxy stays on the way, and credentials are not asked for twice within a call.
    for method in ("INVITE", "BYE"):
        assert proxy.said.count(f"relayed {method} over udp") == CALLS, proxy.said
    assert proxy.said.count("relayed ACK over udp") >= CALLS
    assert proxy.said.count("challenged INVITE") == CALLS
    assert "challenged BYE" not in proxy.said
    assert not [line for line in proxy.said if line.startswith("strayed")]


@pytest.mark.interop("is an outbound proxy, and gets all of a call", rfc="RFC 3261 §8.1.2")
@pytest.mark.parametrize(
    ("scenario", "options"), [(ROUTED, []), ("answering", ["WITHOUT_RECORD_ROUTE"])]
)
async def test_as_outbound_proxy_it_gets_all_of_a_call(
    scenario: str, options: list[Option], tmp_path: Path, sqlite_database: Database
) -> None:
    """Also where it records no route, and the callee's Contact would be another way."""
    async with (
        sipp(scenario, CALLS, folder(tmp_path, "sipp")) as callee,
        kamailio(folder(tmp_path, "kamailio"), callee.port, options) as proxy,
        switchboard(
            tmp_path,
            sqlite_database,
            "sip:carrier.invalid",
            outbound_proxy=Trunk.parse(f"sip:127.0.0.1:{proxy.port}"),
            t1=PATIENT,
            credentials=CREDENTIALS,
        ) as board,
    ):
        records = await asyncio.gather(*(board.call(f"0912{n:07}") for n in range(CALLS)))
        report = await callee.report()
    assert (report.exit_code, report.successful) == (0, CALLS), report
    assert {record.outcome for record in records} == {Outcome.ANSWERED}
    for method in ("INVITE", "BYE"):
        assert proxy.said.count(f"relayed {method} over udp") == CALLS, proxy.said
    assert proxy.said.count("relayed ACK over udp") >= CALLS
    assert not [line for line in proxy.said if line.startswith("strayed")]


@pytest.mark.interop("refuses wrong credentials", rfc="RFC 3261 §22.3")
async def test_wrong_credentials_get_nowhere(tmp_path: Path, sqlite_database: Database) -> None:
    async with (
        sipp(ROUTED, 1, folder(tmp_path, "sipp")) as callee,
        kamailio(folder(tmp_path, "kamailio"), callee.port) as proxy,
        switchboard(
            tmp_path,
            sqlite_database,
            f"sip:127.0.0.1:{proxy.port}",
            t1=PATIENT,
            credentials=Credentials(USERNAME, "wrong"),
        ) as board,
    ):
        record = await board.call()
    assert (record.outcome, record.attempt.sip_code) == (Outcome.REFUSED, 407)
    assert (record.status, record.bills) == (CallStatus.ERROR, 0)
    assert proxy.said == ["challenged INVITE"] * 2, "once is enough to know"


@pytest.mark.interop("passes our CANCEL on", rfc="RFC 3261 §16.10")
async def test_a_callee_that_never_answers_is_cancelled_through_the_proxy(
    tmp_path: Path, sqlite_database: Database
) -> None:
    async with (
        sipp("rfc3261_9.2_canceled_behind_proxy", 1, folder(tmp_path, "sipp")) as callee,
        kamailio(folder(tmp_path, "kamailio"), callee.port) as proxy,
        switchboard(
            tmp_path,
            sqlite_database,
            f"sip:127.0.0.1:{proxy.port}",
            t1=PATIENT,
            ring_timeout=1.0,
            credentials=CREDENTIALS,
        ) as board,
    ):
        record = await board.call()
        report = await callee.report()
    assert (report.exit_code, report.successful) == (0, 1), report
    assert (record.outcome, record.bills) == (Outcome.NO_ANSWER, 0)


@pytest.mark.interop("registers us for 2 s at a time", rfc="RFC 3261 §10.2")
async def test_registered_refreshed_used_and_gone(
    tmp_path: Path, sqlite_database: Database
) -> None:
    """The proxy takes calls from nobody who is not registered, and grants 2 s at a time."""
    async with (
        sipp(ROUTED, 1, folder(tmp_path, "sipp")) as callee,
        kamailio(
            folder(tmp_path, "kamailio"), callee.port, ["WITH_REGISTRATION"], max_expires=2
        ) as proxy,
    ):
        async with switchboard(
            tmp_path,
            sqlite_database,
            f"sip:127.0.0.1:{proxy.port}",
            t1=PATIENT,
            register=True,
            credentials=CREDENTIALS,
        ) as board:
            await proxy.saying("register 1 over udp")
            await proxy.saying("register 2 over udp", times=2)
            assert board.dialer.up
            record = await board.call()
            report = await callee.report()
        await proxy.saying("register 3 over udp")
    assert (record.outcome, record.bills) == (Outcome.ANSWERED, 1)
    assert (report.exit_code, report.successful) == (0, 1), report


@pytest.mark.parametrize(
    "transport",
    [
        pytest.param(
            "tcp",
            marks=pytest.mark.interop(
                "takes registration and calls over one TCP connection", rfc="RFC 3261 §18.1"
            ),
        ),
        pytest.param(
            "tls",
            marks=pytest.mark.interop(
                "takes registration and calls over one TLS connection", rfc="RFC 3261 §26.2.1"
            ),
        ),
    ],
)
async def test_calls_through_a_proxy_over_a_connection(
    transport: str, tmp_path: Path, sqlite_database: Database
) -> None:
    """One connection takes them all to the proxy, which goes on over UDP."""
    authority, tls = Authority.make(folder(tmp_path, "certificates")), transport == "tls"
    options: list[Option] = ["WITH_STREAMS", "WITH_REGISTRATION"]
    if tls:
        options.append("WITH_TLS")
    async with (
        sipp(ROUTED, CALLS, folder(tmp_path, "sipp")) as callee,
        kamailio(
            folder(tmp_path, "kamailio"),
            callee.port,
            options,
            certificate=authority.sign("IP:127.0.0.1") if tls else None,
        ) as proxy,
    ):
        udp, sips = f"sip:127.0.0.1:{proxy.port}", f"sips:127.0.0.1:{proxy.tls_port}"
        async with switchboard(
            tmp_path,
            sqlite_database,
            sips if tls else f"{udp};transport=tcp",
            t1=PATIENT,
            register=True,
            credentials=CREDENTIALS,
            tls=TlsFiles(ca=authority.files.certificate) if tls else None,
        ) as board:
            await proxy.saying(f"register 1 over {transport}")
            records = await asyncio.gather(*(board.call(f"0912{n:07}") for n in range(CALLS)))
            report = await callee.report()
        await proxy.saying(f"register 3 over {transport}")
    assert (report.exit_code, report.successful) == (0, CALLS), report
    assert {(record.outcome, record.bills) for record in records} == {(Outcome.ANSWERED, 1)}
    for method in ("INVITE", "ACK", "BYE"):
        assert proxy.said.count(f"relayed {method} over {transport}") >= CALLS, proxy.said


@pytest.mark.interop("can't prove its name, its certificate being {fault}", rfc="RFC 5922 §7.2")
@pytest.mark.parametrize("fault", ["untrusted", "another host's"])
async def test_a_proxy_that_cannot_prove_its_name_hears_nothing(
    fault: str, tmp_path: Path, sqlite_database: Database
) -> None:
    ours, theirs = (Authority.make(folder(tmp_path, name)) for name in ("ours", "theirs"))
    certificate = (
        theirs.sign("IP:127.0.0.1") if fault == "untrusted" else ours.sign("DNS:carrier.test")
    )
    async with (
        sipp(ROUTED, 1, folder(tmp_path, "sipp")) as callee,
        kamailio(
            folder(tmp_path, "kamailio"),
            callee.port,
            ["WITH_STREAMS", "WITH_TLS"],
            certificate=certificate,
        ) as proxy,
        switchboard(
            tmp_path,
            sqlite_database,
            f"sips:127.0.0.1:{proxy.tls_port}",
            t1=PATIENT,
            credentials=CREDENTIALS,
            tls=TlsFiles(ca=ours.files.certificate),
        ) as board,
    ):
        record = await board.call()
        assert not board.dialer.up
    assert (record.outcome, record.bills) == (Outcome.TRUNK_TROUBLE, 0)
    assert record.attempt.sip_code == 503
    assert proxy.said == []


@pytest.mark.interop("passes the callee's BYE on, over {transport}", rfc="RFC 3261 §12.2.1.1")
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_the_callee_hangs_up_through_the_proxy(
    transport: str, tmp_path: Path, sqlite_database: Database
) -> None:
    """Over TLS there is no way to us but the connection that we opened: we don't listen for it."""
    authority = Authority.make(folder(tmp_path, "certificates"))
    async with (
        sipp("rfc3261_12.2.1.1_bye_through_proxy", 1, folder(tmp_path, "sipp")) as callee,
        kamailio(
            folder(tmp_path, "kamailio"),
            callee.port,
            ["WITH_STREAMS", "WITH_TLS"],
            certificate=authority.sign("IP:127.0.0.1"),
        ) as proxy,
        switchboard(
            tmp_path,
            sqlite_database,
            f"sip:127.0.0.1:{proxy.tls_port if transport == 'tls' else proxy.port}"
            f";transport={transport}",
            clip=5.0,
            t1=PATIENT,
            credentials=CREDENTIALS,
            tls=TlsFiles(ca=authority.files.certificate),
        ) as board,
    ):
        record = await board.call()
        report = await callee.report()
    assert (report.exit_code, report.successful) == (0, 1), report
    assert (record.outcome, record.attempt.ended_by) == (Outcome.ANSWERED, "far")
    assert record.bills == 1


@pytest.mark.interop("forks the call, and two phones answer", rfc="RFC 3261 §13.2.2.4")
async def test_two_phones_that_are_both_picked_up_are_one_call_and_one_bill(
    tmp_path: Path, sqlite_database: Database
) -> None:
    async with (
        sipp(ROUTED, 1, folder(tmp_path, "first")) as first,
        sipp("rfc3261_13.2.2.4_late_fork", 1, folder(tmp_path, "second")) as second,
        kamailio(
            folder(tmp_path, "kamailio"), first.port, ["WITH_FORK"], second_callee=second.port
        ) as proxy,
        switchboard(
            tmp_path,
            sqlite_database,
            f"sip:127.0.0.1:{proxy.port}",
            clip=1.0,
            t1=PATIENT,
            credentials=CREDENTIALS,
        ) as board,
    ):
        record = await board.call()
        reports = [await callee.report() for callee in (first, second)]
    assert [(each.exit_code, each.successful) for each in reports] == [(0, 1)] * 2, reports
    assert (record.outcome, record.bills) == (Outcome.ANSWERED, 1)
    assert record.bill_seconds == math.ceil(record.talked)
    assert proxy.said.count("relayed ACK over udp") >= 2
    assert proxy.said.count("relayed BYE over udp") == 2
