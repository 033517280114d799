"""What the callee hears of a call, and what is heard of the callee: real SIP, real RTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.pricing import Bill, Rate, Tariff
from tests.support.carrier import sdp
from tests.support.media_carrier import (
    MediaCarrier,
    RtpPort,
    media_carrier,
    packets_come,
    payloads,
    reception,
    sound,
)
from tests.support.sip_dialer import Dialled, dialer
from tests.support.waiting import until

TARIFF = Tariff((Rate("+", Decimal(60), increment=1),))
PACKET = 160  # bytes of 20 ms


@asynccontextmanager
async def called(
    folder: Path, far: MediaCarrier, played: bytes, **config: Any
) -> AsyncIterator[tuple[Dialled, asyncio.Task[AttemptResult]]]:
    """A call that has begun."""
    async with dialer(folder, far.uri, sound=played, **config) as calls:
        call = asyncio.create_task(calls.call())
        try:
            yield calls, call
        finally:
            await asyncio.wait_for(call, 20)


async def test_what_the_callee_keys_and_reports_is_kept(tmp_path: Path) -> None:
    async with media_carrier() as far:
        far.body = sdp(far.rtp.port, formats="8 96", events=96)
        async with called(tmp_path, far, sound(230)) as (_, call):
            await until(lambda: len(far.rtp.packets) >= 3)
            for at, code in enumerate((1, 2, 10)):
                far.rtp.key(far.caller, code, 96, 8000 * at)
            far.rtp.key(far.caller, 6, 97, 45_000)  # neither side has named that payload type
            far.rtp.key(far.caller, 5, 101, 50_000)  # the one of our offer
            await far.rtp.speak_for(far.caller, 0.3)
            host, port = far.caller
            await until(lambda: len(far.rtcp.datagrams) >= 1)
            ssrc, first = far.rtp.packets[0][0].ssrc, far.rtp.packets[0][0].sequence
            for lost, jitter in ((5, 40), (10, 24)):
                report = reception(ssrc, first + 39, lost, jitter)
                far.rtcp.socket.sendto(report, (host, port + 1))
            far.rtcp.socket.sendto(reception(ssrc + 1, first + 39, 39, 99), (host, port + 1))
    media = call.result().media
    assert media is not None
    assert media.sent == len(far.rtp.packets) == 230
    assert media.digits == "12*5"
    assert 64 <= media.received <= 100
    assert (media.loss, media.jitter_ms) == (0.25, 3.0)
    first_report, *_, last_report = far.rtcp.datagrams
    assert first_report[1] == 200, "a sender report"
    assert int.from_bytes(first_report[4:8]) == ssrc
    assert last_report[-8:-4] == b"\x81\xcb\x00\x01", "a goodbye"


async def test_nothing_is_heard_of_callees_where_that_is_switched_off(tmp_path: Path) -> None:
    async with media_carrier() as far:
        async with called(tmp_path, far, sound(40), receive=False) as (_, call):
            await until(lambda: far.rtp.packets)
            far.rtp.speak(far.caller, 32)
            far.rtp.key(far.caller, 1, 101, 0)
        media = call.result().media
        assert media is not None
        assert (media.sent, media.received, media.digits) == (40, 0, "")
        assert not far.rtcp.datagrams


async def test_audio_follows_a_port_of_the_callees_host_and_nobody_else(tmp_path: Path) -> None:
    stranger, behind_nat, played = RtpPort("127.0.0.2"), RtpPort(), sound(60)
    async with media_carrier() as far:
        async with called(tmp_path, far, played) as (_, call):
            await until(lambda: far.rtp.packets)
            for _ in range(3):
                stranger.speak(far.caller, 20)
                stranger.key(far.caller, 7, 101, 0)
                await packets_come(2, far.rtp)
            behind_nat.speak(far.caller, 20)
            await until(lambda: len(behind_nat.packets) > 3)
            stranger.speak(far.caller, 40)
        assert stranger.datagrams == []
        assert payloads(far.rtp, behind_nat) == played
    media = call.result().media
    assert media is not None
    assert media.digits == ""
    for ear in (stranger, behind_nat):
        ear.close()


@pytest.mark.parametrize("ptime", [10, 30, 60, 25])
async def test_the_packet_time_that_the_answer_asks_for(tmp_path: Path, ptime: int) -> None:
    async with media_carrier() as far:
        far.body = sdp(far.rtp.port, more=f"a=ptime:{ptime}\r\n")
        async with called(tmp_path, far, sound(15)) as (_, call):
            pass
        assert call.result().outcome is Outcome.ANSWERED
        # G.711 of 25 ms is not sent by anybody here: 20 ms is what everybody takes.
        expected = {25: 20}.get(ptime, ptime)
        assert {len(payload) for _, payload in far.rtp.packets} == {8 * expected}


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (sdp(0), "488"),
        (sdp(4000, formats="9 101"), "488"),
        (sdp(4000, host="::1"), "RTP to ::1 needs IPv6, and is sent from IPv4"),
        (sdp(4000, host="255.255.255.255"), "255.255.255.255 is not an address of one callee"),
        (sdp(4000, host="224.0.0.1"), "488"),
    ],
    ids=["port 0", "no common codec", "IPv6", "broadcast", "multicast"],
)
async def test_an_answer_that_nothing_can_be_played_to(
    tmp_path: Path, answer: bytes, detail: str
) -> None:
    async with media_carrier() as far:
        far.body = answer
        async with called(tmp_path, far, sound(5)) as (_, call):
            pass
        result = call.result()
        assert result.outcome is Outcome.MEDIA_MISMATCH
        assert result.detail.startswith(detail)
        assert result.media is None
        # The carrier charges every 2xx.
        assert result.answered_at is not None
        assert TARIFF.bill("+989121234567", result) == Bill(1, Decimal(1))
        assert far.methods == ["INVITE", "ACK", "BYE"], "the callee is not left on an open line"


def _held(port: int, how: str, version: int) -> bytes:
    if how == "0.0.0.0":
        return sdp(port, host="0.0.0.0", version=version)
    return sdp(port, more=f"a={how}\r\n", version=version)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("INVITE", "sendonly"),
        ("INVITE", "0.0.0.0"),
        ("UPDATE", "inactive"),
        ("UPDATE", "0.0.0.0"),
    ],
)
async def test_a_held_recording_goes_on_where_it_paused(
    tmp_path: Path, method: str, how: str
) -> None:
    played = sound(40)
    async with media_carrier() as far:
        async with called(tmp_path, far, played, media_timeout=0.5) as (_, call):
            await until(lambda: len(far.rtp.packets) >= 5)
            far.rtp.speak(far.caller, 16)  # so that it is known to send
            answer = await far.ask(method, _held(far.rtp.port, how, 2))
            assert answer.code == 200
            direction = b"a=recvonly" if how == "sendonly" else b"a=inactive"
            assert direction in answer.body
            before = await far.rtp.quiet(0.7)
            assert before < 40, "held before its end"
            far.rtp.speak(far.caller, 16)
            assert (await far.ask(method, sdp(far.rtp.port, version=3))).code == 200
            while not call.done():
                await far.rtp.speak_for(far.caller, 0.02)
        packets = far.rtp.packets
    assert payloads(far.rtp) == played
    last, first = packets[before - 1][0], packets[before][0]
    assert first.marker
    assert first.sequence == (last.sequence + 1) % 2**16
    assert 0.6 * 8000 <= (first.timestamp - last.timestamp) % 2**32 <= 15 * 8000
    result = call.result()
    assert (result.outcome, result.ended_by) == (Outcome.ANSWERED, "us")
    assert result.answered_at is not None
    assert result.ended_at - result.answered_at >= 40 * 0.02 + 0.6


@pytest.mark.parametrize("how", ["inactive", "0.0.0.0"])
async def test_a_call_that_is_held_from_the_start(tmp_path: Path, how: str) -> None:
    played = sound(20)
    async with media_carrier() as far:
        far.body = _held(far.rtp.port, how, 1)
        async with called(tmp_path, far, played) as (_, call):
            await until(lambda: "ACK" in far.methods)
            assert await far.rtp.quiet(0.2) == 0
            assert (await far.ask("INVITE", sdp(far.rtp.port, version=2))).code == 200
        assert payloads(far.rtp) == played
    assert call.result().outcome is Outcome.ANSWERED


async def test_a_callee_that_moves_takes_the_audio_along(tmp_path: Path) -> None:
    played, elsewhere = sound(40), RtpPort("127.0.0.3")
    async with media_carrier() as far:
        async with called(tmp_path, far, played):
            await until(lambda: len(far.rtp.packets) >= 5)
            moved = sdp(elsewhere.port, host="127.0.0.3", version=2)
            assert (await far.ask("INVITE", moved)).code == 200
            await until(lambda: elsewhere.packets)
            # What can't be played to is not followed, and does not end the call.
            other_family = sdp(elsewhere.port, host="::1", version=3)
            assert (await far.ask("UPDATE", other_family)).code == 200
            await elsewhere.quiet(0.2)
            assert len(payloads(far.rtp, elsewhere)) < len(played), "held before its end"
            assert (await far.ask("UPDATE", moved)).code == 200
        assert payloads(far.rtp, elsewhere) == played
    elsewhere.close()


async def test_a_codec_that_was_not_agreed_on_is_not_taken_up_in_the_middle(tmp_path: Path) -> None:
    played, elsewhere = sound(40), RtpPort()
    async with media_carrier() as far:
        async with called(tmp_path, far, played) as (_, call):
            await until(lambda: len(far.rtp.packets) >= 5)
            other_law = sdp(far.rtp.port, formats="0 101", version=2)
            assert (await far.ask("INVITE", other_law)).code == 488
            both = sdp(far.rtp.port, formats="0 8 101", version=2)
            taken = await far.ask("UPDATE", both)
            assert (taken.code, b" RTP/AVP 8 101\r\n" in taken.body) == (200, True)
            # An offer of ours is asked for; the answer to it moves the audio.
            ours = await far.ask("INVITE", ack=sdp(elsewhere.port, version=3))
            assert b" RTP/AVP 8 101\r\n" in ours.body
        assert elsewhere.packets
        assert payloads(far.rtp, elsewhere) == played
        assert {header.payload_type for header, _ in far.rtp.packets} == {8}
    elsewhere.close()
    assert call.result().outcome is Outcome.ANSWERED


async def test_early_media_is_neither_billed_nor_spoken_over(tmp_path: Path) -> None:
    async with media_carrier() as far:
        far.codes = [100, 183]
        async with called(tmp_path, far, sound(10)) as (_, call):
            await until(lambda: far.methods)
            far.rtp.speak(far.caller, 32)
            assert await far.rtp.quiet(0.3) == 0
            answered_at = time.time()
            far.answer(200)
        result = call.result()
        assert result.answered_at is not None
        assert result.answered_at >= answered_at
        assert result.media is not None
        assert result.media.sent == len(far.rtp.packets) == 10


async def test_early_media_of_a_call_that_nobody_answers_costs_nothing(tmp_path: Path) -> None:
    async with media_carrier() as far:
        far.codes = [183, 486]
        async with called(tmp_path, far, sound(10)) as (_, call):
            pass
        result = call.result()
        assert result.outcome is Outcome.BUSY
        assert (result.answered_at, result.media) == (None, None)
        assert not far.rtp.datagrams


async def test_a_callee_that_falls_silent_is_hung_up_on(tmp_path: Path) -> None:
    async with media_carrier() as far:
        began = time.time()
        async with called(tmp_path, far, sound(1000), media_timeout=0.8) as (_, call):
            await until(lambda: far.rtp.packets)
            last = await far.rtp.speak_for(far.caller, 0.4)
            await until(lambda: "BYE" in far.methods)
        result = call.result()
        assert (result.outcome, result.ended_by) == (Outcome.ANSWERED, "us")
        assert result.detail == ("media time-out: nothing came from the far end for 0.8 s")
        assert result.media is not None
        assert 0 < (result.media.sent or 0) < 1000
        assert began < last - 0.3 < result.ended_at


@pytest.mark.parametrize("says", ["nothing", "it will not send"])
async def test_a_callee_that_need_not_send_may_be_silent(tmp_path: Path, says: str) -> None:
    async with media_carrier() as far:
        if says != "nothing":
            far.body = sdp(far.rtp.port, more="a=recvonly\r\n")
        async with called(tmp_path, far, sound(50), media_timeout=0.2) as (_, call):
            await until(lambda: far.rtp.packets)
            if says != "nothing":
                far.rtp.speak(far.caller, 16)
        assert len(far.rtp.packets) == 50
        assert call.result().detail == ""


async def test_who_is_called_off_hears_no_more_whether_or_not_bye_is_answered(
    tmp_path: Path,
) -> None:
    async with media_carrier() as far:
        far.answers_bye = False
        async with called(tmp_path, far, sound(1000)) as (calls, call):
            await until(lambda: len(far.rtp.packets) > 3)
            off_at = time.time()
            calls.dialer.cancel("attempt1")
            before = await far.rtp.quiet(0.2)
            assert not call.done(), "BYE is not answered yet"
        assert len(far.rtp.packets) == before
        result = call.result()
        assert (result.outcome, result.ended_by) == (Outcome.ANSWERED, "us")
        assert result.ended_at - off_at < 0.5, "the wait for an answer to BYE is not billed"


async def _hangs_up(far: MediaCarrier, when: Callable[[], object]) -> None:
    await until(when)
    assert (await far.ask("BYE")).code == 200


async def test_what_was_heard_until_the_far_end_hung_up(tmp_path: Path) -> None:
    async with media_carrier() as far:
        async with called(tmp_path, far, sound(1000)) as (_, call):
            await until(lambda: far.rtp.packets)
            far.rtp.key(far.caller, 3, 101, 0)
            await _hangs_up(far, lambda: len(far.rtp.packets) >= 10)
        result = call.result()
        assert result.ended_by == "far"
        assert result.media is not None
        assert result.media.digits == "3"
        assert result.media.sent == len(far.rtp.packets)


async def test_a_call_over_ipv6(tmp_path: Path) -> None:
    played = sound(10)
    async with media_carrier("::1") as far:
        far.body = sdp(far.rtp.port, host="::1")
        async with called(tmp_path, far, played, bind=("::1", 0)) as (_, call):
            await until(lambda: far.rtp.packets)
            far.rtp.key(far.caller, 4, 101, 0)
        assert payloads(far.rtp) == played
        assert far.rtcp.datagrams
    media = call.result().media
    assert media is not None
    assert media.digits == "4"
