"""A place for RTP to arrive at, which notes what each packet is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HOST = "127.0.0.1"
_HEADER = 12


@dataclass(frozen=True, slots=True)
class Packet:
    """The payload type of one RTP packet, and how many bytes of audio it carries."""

    payload_type: int
    size: int


@dataclass(slots=True)
class Ear(asyncio.DatagramProtocol):
    """The packets that came, with the loop's time of each."""

    port: int = 0
    packets: list[Packet] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Note a packet; RTCP is not counted."""
        payload_type = data[1] & 0x7F
        if not 64 <= payload_type <= 95:
            self.packets.append(Packet(payload_type, len(data) - _HEADER))
            self.times.append(asyncio.get_running_loop().time())

    @property
    def longest_pause(self) -> float:
        """Seconds between two packets, the most."""
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


@asynccontextmanager
async def ear() -> AsyncIterator[Ear]:
    """An ear on a free port."""
    loop = asyncio.get_running_loop()
    transport, made = await loop.create_datagram_endpoint(Ear, local_addr=(HOST, 0))
    made.port = transport.get_extra_info("sockname")[1]
    try:
        yield made
    finally:
        transport.close()
