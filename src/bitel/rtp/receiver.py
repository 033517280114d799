"""A UDP port that hears one call: the phone's ear."""

from __future__ import annotations

import asyncio

from bitel.rtp.packet_recorder import DEFAULT_MINUTES, PacketRecorder, ReceptionStats

__all__ = ["Receiver", "ReceptionStats"]


class Receiver:
    """Open it, name its `port` in the SDP, and close it when the call is over."""

    def __init__(self, transport: asyncio.DatagramTransport, ear: _Ear) -> None:
        self._transport = transport
        self._ear = ear
        self.port: int = transport.get_extra_info("sockname")[1]

    @classmethod
    async def open(
        cls, host: str = "127.0.0.1", port: int = 0, *, minutes: float = DEFAULT_MINUTES
    ) -> Receiver:
        """Listens on `host`; port 0 takes any that is free. `OSError` where it can't be bound.

        At most `minutes` of audio are kept, 0.5 MB each.
        """
        loop = asyncio.get_running_loop()
        transport, ear = await loop.create_datagram_endpoint(
            lambda: _Ear(loop, minutes), local_addr=(host, port)
        )
        return cls(transport, ear)

    def heard(self) -> ReceptionStats:
        """All that has come in so far."""
        return self._ear.hearing.heard()

    def close(self) -> ReceptionStats:
        """Listens no more; what was heard."""
        self._transport.close()
        return self.heard()


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, loop: asyncio.AbstractEventLoop, minutes: float) -> None:
        self._loop = loop
        self.hearing = PacketRecorder(minutes)

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.hearing.receive(data, self._loop.time())
