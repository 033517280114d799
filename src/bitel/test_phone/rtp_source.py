"""What the phone sends in a call: a recording, and keys.

Keys are telephone events (RFC 4733), SIP INFO, or tones in the audio.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from bitel.g711 import SAMPLE_RATE, Pcm, alaw_encode, ulaw_encode
from bitel.rtp.packet import SAMPLES_PER_PACKET, VERSION
from bitel.rtp.telephone_event import KEYS
from bitel.sip.grammar import HostPort
from bitel.sip.sdp import TELEPHONE_EVENT, SessionDescription
from bitel.test_phone.rules import KeyPresses

PACKET_SECONDS: Final = 0.02
EVENT_PACKETS: Final = 8
"""Packets of one key; of an event, three more repeat its end."""
END_PACKETS: Final = 3
VOLUME: Final = 10
"""-dBm0 of an event."""
LEVEL: Final = 7000
"""Amplitude of each of the two tones, of 32767."""
ROWS: Final = (697.0, 770.0, 852.0, 941.0)
COLUMNS: Final = (1209.0, 1336.0, 1477.0, 1633.0)
PAD: Final = ("123A", "456B", "789C", "*0#D")
"""The keys by the tones of their row and column (ITU-T Q.23)."""


class RtpSource:
    """The audio and the keys of one answered call.

    `send` sends an RTP packet to an address, `send_info` a key by INFO.
    """

    def __init__(
        self,
        offer: SessionDescription,
        answer: SessionDescription,
        send: Callable[[bytes, HostPort], None],
        send_info: Callable[[str], None],
    ) -> None:
        self._remote = (offer.address, offer.port)
        self._send = send
        self._send_info = send_info
        self._codec = answer.codecs[0]
        events = [codec for codec in answer.codecs if codec.name == TELEPHONE_EVENT]
        self._event_type = events[0].payload_type if events else None
        self._ssrc = random.getrandbits(32)
        self._sequence = random.getrandbits(16)
        self._timestamp = random.getrandbits(32)

    async def press(self, presses: Sequence[KeyPresses]) -> None:
        """Press keys at their times from now on."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for each in presses:
            await asyncio.sleep(begun + each.after - loop.time())
            for key in each.keys:
                await self._press(key, each.by)
                await asyncio.sleep(each.pause)

    async def play(self, pcm: Pcm) -> None:
        """Send audio at 8 kHz, a packet every 20 ms."""
        loop = asyncio.get_running_loop()
        codes = self._encode(pcm)
        begun = loop.time()
        for number, at in enumerate(range(0, len(codes), SAMPLES_PER_PACKET)):
            payload = codes[at : at + SAMPLES_PER_PACKET]
            self._send(
                self._packet(self._codec.payload_type, payload, marker=at == 0), self._remote
            )
            self._timestamp += SAMPLES_PER_PACKET
            await asyncio.sleep(begun + (number + 1) * PACKET_SECONDS - loop.time())

    def _encode(self, pcm: Pcm) -> bytes:
        encode = alaw_encode if self._codec.name == "PCMA" else ulaw_encode
        return encode(pcm).tobytes()

    async def _press(self, key: str, by: str) -> None:
        if by == "info":
            self._send_info(key)
            return
        packets = self._tones(key) if by == "tone" else self._events(key)
        for packet in packets:
            self._send(packet, self._remote)
            await asyncio.sleep(PACKET_SECONDS)

    def _events(self, key: str) -> Iterator[bytes]:
        """The packets of a telephone event; none if the caller offers no events."""
        if self._event_type is None:
            return
        for number in range(1, EVENT_PACKETS + END_PACKETS + 1):
            is_end = number > EVENT_PACKETS
            duration = min(number, EVENT_PACKETS) * SAMPLES_PER_PACKET
            payload = struct.pack("!BBH", KEYS.index(key), is_end << 7 | VOLUME, duration)
            yield self._packet(self._event_type, payload, marker=number == 1)
        self._timestamp += (EVENT_PACKETS + END_PACKETS) * SAMPLES_PER_PACKET

    def _tones(self, key: str) -> Iterator[bytes]:
        """The packets of a key's two tones."""
        row = next(at for at, keys in enumerate(PAD) if key in keys)
        tones = ROWS[row], COLUMNS[PAD[row].index(key)]
        times = np.arange(EVENT_PACKETS * SAMPLES_PER_PACKET) / SAMPLE_RATE
        low, high = (np.sin(2 * np.pi * hertz * times) for hertz in tones)
        codes = self._encode(((low + high) * LEVEL).astype(np.int16))
        for at in range(0, len(codes), SAMPLES_PER_PACKET):
            payload = codes[at : at + SAMPLES_PER_PACKET]
            yield self._packet(self._codec.payload_type, payload, marker=at == 0)
            self._timestamp += SAMPLES_PER_PACKET

    def _packet(self, payload_type: int, payload: bytes, *, marker: bool) -> bytes:
        self._sequence += 1
        return (
            struct.pack(
                "!BBHII",
                VERSION << 6,
                marker << 7 | payload_type,
                self._sequence % 2**16,
                self._timestamp % 2**32,
                self._ssrc,
            )
            + payload
        )
