"""Media changes by re-INVITE in a running call, and the sources of RTP that are accepted."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from pathlib import Path

import pytest

from bitel.dialer.call_attempt import CallLeg
from bitel.domain.attempts import AttemptResult, Irregularity, Media, Outcome
from bitel.sip import KeyedDigits
from bitel.sip.grammar import Address
from tests.support.carrier import HOST
from tests.support.media_carrier import RtpPort, media_carrier, packets_come
from tests.support.sip_dialer import running_call
from tests.support.waiting import until

PACKET = 160  # bytes of 20 ms


def media_of(call: asyncio.Task[AttemptResult]) -> Media:
    media = call.result().media
    assert media is not None
    return media


def audio(port: int, formats: dict[int, str], version: int = 1, more: str = "") -> bytes:
    """A description of audio with these payload types, all of 8 kHz."""
    types = " ".join(map(str, formats))
    maps = "".join(f"a=rtpmap:{kind} {name}/8000\r\n" for kind, name in formats.items())
    return (
        f"v=0\r\no=- 1 {version} IN IP4 {HOST}\r\ns=-\r\nc=IN IP4 {HOST}\r\nt=0 0\r\n"
        f"m=audio {port} RTP/AVP {types}\r\n{maps}{more}"
    ).encode()


@pytest.mark.parametrize(("name", "silence"), [("PCMA", 0xD5), ("PCMU", 0xFF)])
async def test_g711_under_a_dynamic_payload_type(tmp_path: Path, name: str, silence: int) -> None:
    async with media_carrier() as far:
        far.body = audio(far.rtp.port, {98: name, 101: "telephone-event"})
        played = bytes(200)
        async with running_call(tmp_path, far.uri, sound=played) as (_, call):
            pass
        packets = far.rtp.packets
    assert call.result().outcome is Outcome.ANSWERED
    assert {header.payload_type for header, _ in packets} == {98}
    assert b"".join(payload for _, payload in packets) == played.ljust(320, bytes([silence]))


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
async def test_all_of_the_media_changes_in_one_stream(tmp_path: Path, method: str) -> None:
    played, elsewhere = random.randbytes(60 * PACKET), RtpPort()
    async with media_carrier() as far:
        far.body = audio(far.rtp.port, {8: "PCMA", 101: "telephone-event"})
        async with running_call(tmp_path, far.uri, sound=played) as (_, call):
            await until(lambda: len(far.rtp.packets) >= 5)
            far.rtp.key(far.caller, 1, 101, 0)
            changed = {97: "PCMA", 100: "telephone-event"}
            body = audio(elsewhere.port, changed, 2, "a=ptime:40\r\n")
            assert (await far.ask(method, body)).code == 200
            await until(lambda: len(elsewhere.packets) >= 3)
            elsewhere.key(far.caller, 2, 100, 8000)
            await until(lambda: len(elsewhere.packets) >= 6)
        packets = far.rtp.packets + elsewhere.packets
    elsewhere.close()
    assert {(h.payload_type, len(audio)) for h, audio in far.rtp.packets} == {(8, 160)}
    kinds = {
        (header.payload_type, len(payload)) for header, payload in packets[len(far.rtp.packets) :]
    }
    assert kinds == {(97, 320)}
    assert b"".join(payload for _, payload in packets).rstrip(b"\xd5") == played.rstrip(b"\xd5")
    assert [header.marker for header, _ in packets] == [True] + [False] * (len(packets) - 1)
    for (last, payload), (header, _) in pairwise(packets):
        assert header.ssrc == last.ssrc
        assert header.sequence == (last.sequence + 1) % 2**16
        assert header.timestamp == (last.timestamp + len(payload)) % 2**32
    assert call.result().outcome is Outcome.ANSWERED
    assert call.result().irregularities == ()
    assert media_of(call).digits == "12"


@pytest.mark.parametrize("first", ["INFO", "RFC 4733"])
async def test_digits_that_come_both_ways_count_once(tmp_path: Path, first: str) -> None:
    played = random.randbytes(60 * PACKET)
    async with (
        media_carrier() as far,
        running_call(tmp_path, far.uri, sound=played) as (_calls, call),
    ):
        await until(lambda: far.rtp.packets)
        if first == "INFO":
            assert await far.key("1") == 200
        far.rtp.key(far.caller, 2, 101, 0)
        sent = len(far.rtp.packets)
        # Packets are sent and read by turns: after some more, the digit was read.
        await until(lambda: len(far.rtp.packets) >= sent + 8)
        assert await far.key("3") == 200
    assert media_of(call).digits == ("13" if first == "INFO" else "2")


async def test_digits_by_info_count_before_the_first_packet_and_up_to_the_bye(
    tmp_path: Path,
) -> None:
    async with media_carrier() as far:
        far.answers_bye = False
        async with running_call(tmp_path, far.uri, sound=bytes(PACKET)) as (_, call):
            await until(lambda: "INVITE" in far.methods)
            assert [await far.key(digit) for digit in "12"] == [200, 200]
            await until(lambda: "BYE" in far.methods)
            assert await far.key("3") == 481
    assert media_of(call).digits == "12"


def test_digits_by_info_are_bounded() -> None:
    async def collect() -> CallLeg:
        leg = CallLeg(
            "call", Address("192.0.2.9", 5060), lambda: None, lambda host: asyncio.sleep(0, host)
        )
        for _ in range(100):
            leg.receive(KeyedDigits("call", "0123456789"))
        return leg

    assert len(asyncio.run(collect()).digits) == 256


@pytest.mark.parametrize("latch", ["off", "port", "host"])
async def test_which_source_the_audio_follows(tmp_path: Path, latch: str) -> None:
    """`off` none, `port` another port of the named host, `host` the first source there is."""
    other_host, other_port = RtpPort("127.0.0.2"), RtpPort()
    other_host.ssrc, other_port.ssrc = 2, 3
    followed = {"off": None, "port": other_port, "host": other_host}[latch]
    async with media_carrier() as far:
        async with running_call(tmp_path, far.uri, sound=bytes(100 * PACKET), latch=latch) as (
            _,
            call,
        ):
            await until(lambda: far.rtp.packets)
            for number, ear in enumerate((other_host, other_port)):
                for _ in range(10):
                    ear.speak(far.caller, 16)
                    await packets_come(3, far.rtp, other_host, other_port)
                ear.key(far.caller, 1 + number, 101, 0)
            if followed is not None:
                await until(lambda: followed.packets)
        for ear in (other_host, other_port):
            assert bool(ear.packets) is (ear is followed)
    assert media_of(call).digits == {"off": "", "port": "2", "host": "1"}[latch]
    result = call.result()
    assert result.irregularities == (Irregularity.MEDIA_FROM_ELSEWHERE,)
    assert result.detail == "media came from an address that was not agreed on"
    other_host.close()
    other_port.close()
