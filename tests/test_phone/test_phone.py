from __future__ import annotations

import asyncio
import json
import socket
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from bitel.g711 import alaw_decode
from bitel.rtp.packet import PCMA, RtpHeader
from bitel.sip.events import Answered, Ended, Failed, Provisional
from bitel.test_phone.phone import Entry, Phone, PhoneConfig
from bitel.test_phone.rtp_sinks import recording_name
from bitel.test_phone.rules import parse_rules
from tests.support.rtp_packets import pack
from tests.support.sip_caller import Caller, caller
from tests.support.waiting import until

HOST = "127.0.0.1"


@asynccontextmanager
async def running(
    *rules: str, record: Path | None = None, log: Path | None = None
) -> AsyncIterator[tuple[Phone, Caller]]:
    """A phone with those rules, and a caller that calls it."""
    phone = Phone(PhoneConfig((HOST, 0), parse_rules(rules), record=record, log=log))
    await phone.start()
    try:
        async with caller(phone.address) as one:
            yield phone, one
    finally:
        await phone.stop(grace=0.1)


def events(phone: Phone, call_id: str) -> list[str]:
    """What the log says of a call, in order."""
    return [entry.event for entry in phone.log.entries if entry.call == call_id]


def entry(phone: Phone, call_id: str, event: str) -> Entry:
    return next(e for e in phone.log.entries if e.call == call_id and e.event == event)


def send_audio(answered: Answered, payload: bytes) -> int:
    """Send A-law audio in packets of 20 ms, without a pause between them; how many packets."""
    packets = [
        pack(RtpHeader(PCMA, i, 160 * i, 7, marker=i == 0)) + payload[160 * i : 160 * (i + 1)]
        for i in range(len(payload) // 160)
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for packet in packets:
            sender.sendto(packet, (answered.answer.address, answered.answer.port))
    return len(packets)


async def test_answers_counts_packets_and_sees_the_bye() -> None:
    async with running("98912*=answer:after=0.05") as (phone, one):
        call = one.call("+98912")
        answered = await one.settled(call)
        assert isinstance(answered, Answered)
        assert any(isinstance(e, Provisional) and e.code == 180 for e in one.events[call])
        sent = send_audio(answered, bytes(160 * 100))
        await until(lambda: "audio" in events(phone, call))
        one.hang_up(call)
        assert (await one.saw(call, Ended)).by == "us"
        await until(lambda: phone.calls == 0)
        assert events(phone, call) == ["invite", "answered", "audio", "bye", "end"]
        assert entry(phone, call, "end").details["packets"] == sent
        assert entry(phone, call, "invite").details["from"] == "caller"
        assert {e.number for e in phone.log.entries} == {"+98912"}


async def test_answers_at_once_without_ringing() -> None:
    async with running("*=answer:after=0") as (_, one):
        call = one.call("1")
        assert isinstance(await one.settled(call), Answered)
        assert not any(isinstance(e, Provisional) for e in one.events[call])


async def test_hangs_up_after_the_answer() -> None:
    async with running("*=answer:after=0:hangup=0.2") as (phone, one):
        call = one.call("1")
        assert (await one.saw(call, Ended)).by == "far"
        await until(lambda: phone.calls == 0)
        assert events(phone, call) == ["invite", "answered", "hangup", "end"]
        assert 0.15 < float(entry(phone, call, "end").details["seconds"]) < 5


async def test_busy_and_rejected() -> None:
    async with running("1=busy", "2=reject:404") as (phone, one):
        for number, code in (("1", 486), ("2", 404)):
            call = one.call(number)
            failed = await one.settled(call)
            assert isinstance(failed, Failed)
            assert (failed.code, failed.why) == (code, "response")
            assert events(phone, call) == ["invite", "rejected", "end"]
            assert entry(phone, call, "rejected").details["code"] == code


async def test_rings_until_the_caller_gives_up() -> None:
    async with running("*=ring") as (phone, one):
        call = one.call("1")
        assert (await one.saw(call, Provisional)).code == 180
        one.cancel(call)
        failed = await one.settled(call)
        assert isinstance(failed, Failed)
        assert (failed.code, failed.why) == (487, "canceled")
        await until(lambda: phone.calls == 0)
        assert events(phone, call) == ["invite", "cancel", "end"]


async def test_a_silent_number_sends_nothing_at_all() -> None:
    phone = Phone(PhoneConfig((HOST, 0), parse_rules(["1=silent", "*=answer:after=0"])))
    await phone.start()
    async with caller(phone.address, t1=0.02) as one:
        silent, other = one.call("1"), one.call("2")
        failed = await one.settled(silent)
        assert isinstance(failed, Failed)
        assert (failed.code, failed.why, failed.rang) == (408, "timeout", False)
        assert one.events[silent] == [failed]
        assert isinstance(await one.settled(other), Answered)
        # Its INVITE was repeated, and is one call all the same.
        assert events(phone, silent) == ["invite"]
    await phone.stop(grace=0.1)


async def test_no_byte_leaves_for_a_silent_number() -> None:
    phone = Phone(PhoneConfig((HOST, 0), parse_rules(["+98*=silent"])))
    await phone.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        raw.bind((HOST, 0))
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        for number, method in (("+98912", "INVITE"), ("+98912", "OPTIONS"), ("4930", "OPTIONS")):
            raw.sendto(request(method, number, raw.getsockname()[1]), phone.address)
        answer = await asyncio.wait_for(loop.sock_recv(raw, 4096), 5)
        assert b"Call-ID: OPTIONS-4930" in answer
        await asyncio.sleep(0)
        try:
            more = raw.recv(4096)
        except BlockingIOError:
            more = b""
        assert more == b""
    await phone.stop()


def request(method: str, number: str, port: int) -> bytes:
    lines = [
        f"{method} sip:{number}@{HOST} SIP/2.0",
        f"Via: SIP/2.0/UDP {HOST}:{port};branch=z9hG4bK{method}{number};rport",
        "Max-Forwards: 70",
        f"From: <sip:a@{HOST}>;tag=1",
        f"To: <sip:{number}@{HOST}>",
        f"Call-ID: {method}-{number}",
        f"CSeq: 1 {method}",
        f"Contact: <sip:a@{HOST}:{port}>",
        "Content-Length: 0",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_busy_twice_and_then_answers() -> None:
    async with running("*=busy*2,answer:after=0") as (_, one):
        codes = []
        for _ in range(4):
            result = await one.settled(one.call("1"))
            codes.append(result.code if isinstance(result, Failed) else 200)
        assert codes == [486, 486, 200, 200]


async def test_an_invite_without_an_offer_is_not_acceptable() -> None:
    async with running("*=answer:after=0") as (phone, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
            raw.bind((HOST, 0))
            raw.setblocking(False)
            raw.sendto(request("INVITE", "1", raw.getsockname()[1]), phone.address)
            await until(lambda: "end" in events(phone, "INVITE-1"))
        assert entry(phone, "INVITE-1", "rejected").details["code"] == 488


async def test_records_what_it_hears_bit_for_bit(tmp_path: Path) -> None:
    audio = np.random.default_rng(1).integers(0, 256, 160 * 150, dtype=np.uint8)
    async with running("*=answer:after=0", record=tmp_path / "heard") as (phone, one):
        call = one.call("+98912")
        answered = await one.settled(call)
        assert isinstance(answered, Answered)
        send_audio(answered, audio.tobytes())
        await until(lambda: "audio" in events(phone, call))
        one.hang_up(call)
        await until(lambda: "recorded" in events(phone, call))
    name = entry(phone, call, "recorded").details["file"]
    assert name == f"+98912_{call}.wav"
    with wave.open(str(tmp_path / "heard" / str(name))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        heard = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert np.array_equal(heard, alaw_decode(audio))
    assert [path.name for path in (tmp_path / "heard").iterdir()] == [name]


async def test_the_log_is_on_disk_as_it_happens(tmp_path: Path) -> None:
    path = tmp_path / "phone.jsonl"
    async with running("*=answer:after=0", log=path) as (phone, one):
        call = one.call("1")
        await one.settled(call)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["event"] for line in lines] == ["invite", "answered"]
        assert {(line["call"], line["number"]) for line in lines} == {(call, "1")}
        assert lines[0]["at"] <= lines[1]["at"]
        one.hang_up(call)
        await until(lambda: phone.calls == 0)
    assert json.loads(path.read_text().splitlines()[-1])["event"] == "end"


async def test_stopping_hangs_up_what_runs() -> None:
    phone = Phone(PhoneConfig((HOST, 0), parse_rules(["1=answer:after=0", "2=ring"])))
    await phone.start()
    async with caller(phone.address) as one:
        answered, ringing = one.call("1"), one.call("2")
        await one.settled(answered)
        await one.saw(ringing, Provisional)
        await phone.stop()
        assert (await one.saw(answered, Ended)).by == "far"
        refused = await one.settled(ringing)
        assert isinstance(refused, Failed)
        assert refused.code == 480
        assert phone.calls == 0


async def test_a_full_phone_refuses_with_503() -> None:
    phone = Phone(PhoneConfig((HOST, 0), parse_rules(["*=ring"]), max_calls=1))
    await phone.start()
    async with caller(phone.address) as one:
        await one.saw(one.call("1"), Provisional)
        refused = await one.settled(one.call("2"))
        assert isinstance(refused, Failed)
        assert refused.code == 503
    await phone.stop(grace=0.1)


def test_a_recording_is_named_safely() -> None:
    assert recording_name("+98912", "a1@h.example")[:11] == "+98912_a1-h"
    hostile = recording_name("../../etc/passwd\0", "/../" * 100)
    assert "/" not in hostile
    assert "\0" not in hostile
    assert not hostile.startswith(".")
    assert len(hostile) < 200
    assert recording_name("1", "a@b") != recording_name("1", "a/b")
