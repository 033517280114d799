"""What is fuzzed: each target takes a random source, feeds damaged input, and asserts its rules.

A target raises where the code under test does what it must not: raise anything but its own error,
return what its callers can't use, or keep state that grows.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import structlog

from bitel.api.multipart import LONGEST_NAME, FilePart
from bitel.dialing.journal import Journal
from bitel.errors import InvalidRequestError
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.rtp.sender.rtcp import (
    receiver_report,
    reception_reports,
    sender_report,
    source_description,
)
from bitel.rtp.telephone_event import KEYS, MAX_DIGITS, Digits
from bitel.sip.grammar import Address
from bitel.sip.message import MessageError, parse
from bitel.sip.sdp import (
    Negotiation,
    SdpError,
    SessionDescription,
    make_answer,
    make_offer,
)
from bitel.test_phone.packet_recorder import PacketRecorder
from tests.fuzz.mutation import mutated
from tests.fuzz.sip_scene import SPLICES, Scene, finish
from tests.support.factories import some_settlement as settlement
from tests.support.rtp_packets import pack
from tests.support.sip_bench import ANSWER, FAR

SOURCES = (FAR, FAR, Address("198.51.100.1", 1), Address("2001:db8::1", 65535))


def sip(rng: random.Random) -> None:
    """Calls in every phase get damaged messages: nothing raises, nothing is left behind."""
    scene = Scene()
    agent = scene.agent
    for _ in range(100):
        data = mutated(rng, scene.messages, SPLICES)
        agent.receive_datagram(data, rng.choice(SOURCES), scene.now)
        if rng.random() < 0.05:
            scene.now += rng.uniform(0, 2)
            agent.handle_timer(scene.now)
        scene.take_all()
    counts = agent.counts()
    assert counts.server_transactions <= 50, counts
    assert counts.dialogs <= 25, counts
    finish(scene)


def sip_parser(rng: random.Random) -> None:
    """A message is read or refused, and what is read of it can be asked for."""
    scene = Scene()
    for _ in range(500):
        data = mutated(rng, scene.messages, SPLICES, most=6)
        with suppress(MessageError):
            message = parse(data)
            assert message.call_id, data
            for name in ("via", "contact", "record-route", "require", "reason"):
                assert len(message.values(name)) <= len(data)


SDP_MESSAGES = [
    ANSWER.encode(),
    str(make_offer(("192.0.2.1", 4000))).encode(),
    str(make_offer(("2001:db8::1", 4000))).encode(),
    ANSWER.replace("sendrecv", "sendonly").replace("192.0.2.9", "media.example").encode(),
]


def sdp(rng: random.Random) -> None:
    """A description is read or refused; what is agreed on with it can be sent."""
    offer = make_offer(("192.0.2.1", 4000))
    for _ in range(500):
        data = mutated(rng, SDP_MESSAGES, SPLICES, most=5)
        try:
            remote = SessionDescription.parse(data)
        except SdpError:
            continue
        assert 0 <= remote.port <= 65535, data
        SessionDescription.parse(str(remote).encode())
        media = Negotiation(offer, remote)
        agreed = media.agreed
        if agreed is not None:
            assert 0 <= agreed.payload_type <= 127, data
            assert agreed.ptime in (10, 20, 30, 40, 60), data
            assert agreed.codec_name in ("PCMA", "PCMU"), data
        with suppress(SdpError):
            make_answer(remote, ("192.0.2.1", 4000))
        with suppress(SdpError):
            media.answer(data)


RTP_PACKETS = [
    pack(RtpHeader(8, 1000, 160, 7)) + b"\xd5" * 160,
    pack(RtpHeader(8, 65535, 2**32 - 160, 7, marker=True, csrcs=(1, 2, 3))) + b"\xd5" * 160,
    b"\x90" + pack(RtpHeader(8, 1001, 320, 7))[1:] + struct.pack("!HHI", 1, 1, 5) + b"\xd5" * 80,
    pack(RtpHeader(101, 1002, 480, 7)) + struct.pack("!BBH", 5, 0x80, 800) * 4,
    sender_report(7, 1_700_000_000.5, 160, 1, 160) + source_description(7, "name"),
    receiver_report(7),
    struct.pack("!BBHIIIIIII", 0x81, 201, 7, 99, 7, 3, 1000, 4, 0, 0),
]
_BYTES = [bytes([each]) for each in (0, 1, 0x7F, 0x80, 0x8F, 0xBF, 0xFF)]


def rtp(rng: random.Random) -> None:
    """Packets of RTP, RTCP and keyed digits are read or refused, and no state grows."""
    hearing, digits = PacketRecorder(minutes=0.01), Digits()
    for number in range(1000):
        data = mutated(rng, RTP_PACKETS, _BYTES, most=4)
        hearing.receive(data, number * 0.02)
        with suppress(PacketError):
            header, payload = RtpHeader.parse(data)
            assert len(payload) <= len(data)
            digits.receive(header.ssrc, header.timestamp, payload)
        with suppress(PacketError):
            for report in reception_reports(data):
                assert 0 <= report.highest < 2**32
    assert hearing.packets <= 1000
    assert len(hearing.pcm16()) <= 2 * 60 * 8000
    assert len(digits.text) <= MAX_DIGITS
    assert set(digits.text) <= set(KEYS)


TYPE = "multipart/form-data; boundary=bound"
FORMS = [
    b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    + bytes(range(256))
    + b"\r\n--bound--\r\n",
    b'--bound\r\nContent-Disposition: form-data; name="note"\r\n\r\nx\r\n'
    b"--bound\r\nContent-Type: audio/wav\r\nContent-Disposition: form-data; name=file; "
    b'filename="..\\..\\b/c"\r\n\r\n--boun\r\n-bound\r\n--bound--\r\nepilogue',
]
_FORM_SPLICES = [
    *(b"\r\n", b"--bound", b"--bound--", b"--", b'"', b";", b"=", b"name=file", b"\0", b"\xff"),
    *(b"\r\n\r\n", b"filename*=UTF-8''%2e%2e", b"Content-Disposition: form-data", b"a" * 5000),
]


def multipart(rng: random.Random) -> None:
    """A form gives the bytes of its file or one sentence, however it is cut into pieces."""
    for _ in range(200):
        body = mutated(rng, FORMS, _FORM_SPLICES, most=5)
        content_type = (
            TYPE if rng.random() < 0.9 else mutated(rng, [TYPE.encode()], _BYTES).decode("latin-1")
        )
        whole = asyncio.run(_read_form(content_type, [body]))
        pieces, rest = [], body
        while rest:
            size = rng.choice((1, 2, 7, 100, 4096))
            pieces.append(rest[:size])
            rest = rest[size:]
        assert asyncio.run(_read_form(content_type, pieces)) == whole, body


async def _read_form(content_type: str, pieces: list[bytes]) -> tuple[str, bytes] | None:
    """The name and bytes of the file; None where the form is refused."""

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    try:
        part = FilePart(content_type)
        content = b"".join([chunk async for chunk in part.chunks(stream())])
    except InvalidRequestError:
        return None
    assert 1 <= len(part.name) <= LONGEST_NAME
    assert "/" not in part.name
    assert part.name.isprintable()
    return part.name, content


_JSON_SPLICES = [
    *(b"null", b"[]", b"{}", b'""', b"-1", b"1e999", b"NaN", b"[" * 5000, b'"', b",", b"}"),
    *(b'"outcome"', b'"status":"x"', b'"price":"x"', b"true", b"\xff", b"\\ud800"),
]


def journal(rng: random.Random) -> None:
    """A damaged journal gives the whole settlements before the damage, and is of use again."""
    count = rng.randint(0, 4)
    written = [settlement(number) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs():
        path = Path(folder) / "unsettled.journal"
        made = Journal(path, 20)
        made.open()
        assert made.append(written) == []
        made.close()
        content = path.read_bytes()
        path.write_bytes(_damaged_journal(rng, content))
        after = Journal(path, 20)
        found = after.open()
        for one in found:
            assert isinstance(one.attempt_id, str)
            assert isinstance(one.call_id, str)
        after.clear()
        assert after.append([settlement(7)]) == []
        after.close()
        again = Journal(path, 20)
        assert again.open() == [settlement(7)]
        again.close()


def _damaged_journal(rng: random.Random, content: bytes) -> bytes:
    """Either damaged anywhere, or with whole entries that hold damaged JSON."""
    used = content.rstrip(b"\0")
    if rng.random() < 0.5:
        damaged = mutated(rng, [used or content[:64]], _BYTES, most=4)
        return damaged + bytes(rng.choice((0, 8, len(content) - len(used))))
    entries = b""
    for _ in range(rng.randint(1, 3)):
        payload = _entry(rng)
        entries += struct.pack(">II", len(payload), zlib.crc32(payload)) + payload
    return content[:16] + entries + bytes(rng.choice((0, 8, 4096)))


def _entry(rng: random.Random) -> bytes:
    whole = {
        "attempt_id": "0" * 32,
        "call_id": "1" * 32,
        "attempted": {**settlement(1).result._asdict(), "outcome": "answered", "media": None},
        "verdict": ["final", {"status": 1, "reason": ""}],
        "bill": [18, "34.2"],
    }
    return mutated(rng, [json.dumps(whole, default=str).encode()], _JSON_SPLICES, most=4)


TARGETS: dict[str, Callable[[random.Random], None]] = {
    each.__name__: each for each in (sip, sip_parser, sdp, rtp, multipart, journal)
}
