"""The dialer against baresip over every transport: what is heard, and what is written of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bitel.domain.attempts import Outcome
from bitel.sip_transport.tls import TlsFiles
from bitel.store.database import Database
from tests.peers.baresip_phone import Keyed, baresip_phone
from tests.peers.phone_process import Transport
from tests.support.certificates import Authority
from tests.support.service_calls import folder
from tests.support.switchboard import Record, assert_answered, switchboard


async def call(
    transport: Transport, hang_up_after: float | None, tmp_path: Path, database: Database
) -> Record:
    """One call of 0.5 s, over that transport alone."""
    authority = Authority.make(folder(tmp_path, "certificates"))
    certificate = authority.sign("IP:127.0.0.1").in_one_file()
    async with baresip_phone(
        "answer", hang_up_after=hang_up_after, transport=transport, certificate=certificate
    ) as phone:
        async with switchboard(
            tmp_path,
            database,
            phone.trunk,
            clip=0.5 if hang_up_after is None else 5.0,
            t1=0.5,
            tls=TlsFiles(ca=authority.files.certificate),
        ) as board:
            record = await board.call()
        await phone.saw("closed")
        assert phone.events.count("incoming") == 1
    return record


@pytest.mark.interop("answers over {transport}", rfc="RFC 3261 §18.1")
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_we_hang_up(transport: Transport, tmp_path: Path, sqlite_database: Database) -> None:
    record = await call(transport, None, tmp_path, sqlite_database)
    assert (record.outcome, record.attempt.ended_by) == (Outcome.ANSWERED, "us")
    assert (record.bill_seconds, record.bills) == (math.ceil(record.talked), 1)
    assert record.talked >= 0.5


@pytest.mark.interop("hangs up over {transport}", rfc="RFC 3261 §18.2")
@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_baresip_hangs_up(
    transport: Transport, tmp_path: Path, sqlite_database: Database
) -> None:
    """Its BYE comes by the connection that we opened, or by one of its own."""
    record = await call(transport, 0.4, tmp_path, sqlite_database)
    assert (record.outcome, record.attempt.ended_by) == (Outcome.ANSWERED, "far")
    assert (record.bill_seconds, record.bills) == (math.ceil(record.talked), 1)


@pytest.mark.interop(
    "keys digits by {keyed}, and reports loss and jitter", rfc="RFC 4733 §2.5, RFC 6086 §4"
)
@pytest.mark.parametrize("keyed", ["rtpevent", "info"])
async def test_what_baresip_keys_is_kept(
    keyed: Keyed, tmp_path: Path, sqlite_database: Database
) -> None:
    """And so is how its RTCP says that it heard us."""
    async with (
        baresip_phone("answer", digits="159#", keyed=keyed) as phone,
        switchboard(tmp_path, sqlite_database, phone.trunk, clip=6.0, t1=0.5) as board,
    ):
        record = await board.call()
        await phone.saw("closed")
    assert record.outcome is Outcome.ANSWERED
    media = record.attempt.media
    assert media is not None
    assert (media.digits, media.sent) == ("159#", 300)
    assert media.received > 100, "baresip sends silence"
    assert media.loss is not None
    assert media.jitter_ms is not None


@pytest.mark.interop("puts the call on hold, and resumes it", rfc="RFC 3264 §8.4")
async def test_baresip_puts_us_on_hold(tmp_path: Path, sqlite_database: Database) -> None:
    async with (
        baresip_phone("answer", hold=1.0) as phone,
        switchboard(tmp_path, sqlite_database, phone.trunk, clip=1.0, t1=0.5) as board,
    ):
        record = await board.call()
        await phone.saw("closed")
    assert "resumed" in phone.events
    assert (record.outcome, record.bills) == (Outcome.ANSWERED, 1)
    assert record.talked > 1.9, "a second of recording, and a second of hold"


@pytest.mark.interop("asks for a transfer, which is refused", rfc="RFC 3515 §2.4.2")
async def test_baresip_asks_for_a_transfer(tmp_path: Path, sqlite_database: Database) -> None:
    async with (
        baresip_phone("answer", transfer=True) as phone,
        switchboard(tmp_path, sqlite_database, phone.trunk, clip=1.0, t1=0.5) as board,
    ):
        record = await board.call()
        await phone.saw("closed")
    assert "transfer refused" in phone.events
    assert_answered(record)
