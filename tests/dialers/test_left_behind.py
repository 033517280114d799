"""What goes wrong on our side leaves nobody on the line, and nothing in our tables."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bitel.dialers.asking import Asker
from bitel.dialing.dialer import Order
from bitel.sip import OutgoingRequest, RequestDone
from bitel.transports.sip_transport import SipTransport
from tests.dialers.calling import dialer
from tests.dialers.carrier import answering, carrier, until
from tests.sip.far_end import FAR
from tests.sip.party import agent_at

ORDER = Order("attempt", f"{1:032x}", "+989121234567", "recording")


async def test_who_answered_is_hung_up_on_where_the_answer_brings_us_down(tmp_path: Path) -> None:
    async def heard(at: float) -> bool:
        raise RuntimeError("the database has gone")

    async with carrier() as only, dialer(tmp_path, only.uri) as calls:
        with pytest.raises(RuntimeError, match="gone"):
            await calls.dialer.dial(ORDER, heard)
        await until(lambda: len(only.of("BYE")) == 1)
        await until(lambda: calls.dialer._sip.agent.counts().dialogs == 0)


async def test_who_rings_is_rung_no_longer_when_the_attempt_is_cancelled(tmp_path: Path) -> None:
    async def heard(at: float) -> bool:
        return True

    async with carrier() as only, dialer(tmp_path, only.uri) as calls:
        only.does["INVITE"] = answering(180)
        attempt = asyncio.create_task(calls.dialer.dial(ORDER, heard))
        await until(lambda: len(only.of("INVITE")) == 1)
        await asyncio.sleep(0.05)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await until(lambda: len(only.of("CANCEL")) == 1)
        await until(lambda: calls.dialer._sip.agent.counts().dialogs == 0)
        assert not calls.dialer._legs
        assert not calls.dialer._attempts


async def test_the_end_of_a_request_that_nobody_waits_for_is_not_that_of_the_next() -> None:
    transport = await SipTransport.open(("127.0.0.1", 0), agent_at, lambda event: None)
    asker = Asker(transport)
    later = OutgoingRequest(
        "REGISTER", "sip:192.0.2.9", FAR, "sip:a@b", "sip:a@b", call_id="one", cseq=7
    )
    waiting = asyncio.create_task(asker.ask(later))
    await asyncio.sleep(0)
    asker.receive(RequestDone("one", 408, "Request Timeout", (), "timeout", 3))
    asker.receive(RequestDone("one", 200, "OK", (), "response", 8))
    assert (await waiting).code == 200
    await transport.close()
