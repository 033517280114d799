"""A socket knows when more comes than it reads."""

from __future__ import annotations

import asyncio
import socket

from bitel.sip.grammar import Address
from bitel.sip_transport.udp import MAX_BATCH, DeliveryError, UdpSocket, datagram_socket


class Reader:
    """Counts what comes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def messages_received(self, messages: list[tuple[bytes, Address]]) -> None:
        self.batches.append(len(messages))

    def delivery_failed(self, destination: Address) -> None:
        raise AssertionError("nothing was sent")

    def delivery_errors(self, errors: list[DeliveryError]) -> None:
        raise AssertionError("nothing was sent")


async def test_it_is_behind_from_the_first_full_batch_until_one_is_not_full() -> None:
    sock = datagram_socket(("127.0.0.1", 0))
    reader = Reader()
    reading = UdpSocket(sock, reader)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        for _ in range(2 * MAX_BATCH + 1):
            far.sendto(b"\r\n\r\n", sock.getsockname())
    assert reading.behind == 0.0
    seen = []
    async with asyncio.timeout(5.0):
        while sum(reader.batches) < 2 * MAX_BATCH + 1:
            await asyncio.sleep(0)
            if reader.batches and len(reader.batches) < 3:
                seen.append(reading.behind)
    assert reader.batches == [MAX_BATCH, MAX_BATCH, 1]
    assert seen == sorted(seen)
    assert seen[-1] > 0.0
    assert reading.behind == 0.0
    reading.close()
