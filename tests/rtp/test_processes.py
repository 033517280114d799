"""Streams that several sender processes share."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from bitel.rtp.packet import RtpHeader
from bitel.rtp.streamer import Streamer, StreamReport, senders_for
from tests.rtp.streams import play
from tests.support.free_ports import free_range

HOST = "127.0.0.1"
STREAMS = 20


@pytest.mark.parametrize(
    ("streams", "cores", "senders"),
    [(1, 8, 1), (4000, 8, 1), (4001, 8, 2), (10_000, 2, 2), (10_000, 8, 3), (10_000, 1, 1)],
)
def test_senders_for_so_many_streams(streams: int, cores: int, senders: int) -> None:
    assert senders_for(streams, cores) == senders


async def test_every_stream_is_whole_whichever_process_sends_it(tmp_path: Path) -> None:
    clip = tmp_path / "clip.alaw"
    clip.write_bytes(bytes(160 * 25))
    ends: list[StreamReport] = []
    over = asyncio.Event()

    def ended(report: StreamReport) -> None:
        ends.append(report)
        if len(ends) == STREAMS:
            over.set()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        far.bind((HOST, free_range(1).start))
        far.setblocking(False)
        # Taken ones are skipped; with some more than there are streams each has its own.
        ports = free_range(2 * STREAMS)
        streamer = Streamer(HOST, ports, processes=2)
        await streamer.start()
        assert len(set(streamer.sender_pids())) == 2
        for _ in range(STREAMS):
            play(streamer, streamer.open_port(), far.getsockname(), 8, [clip], ended)
        async with asyncio.timeout(20):
            await over.wait()
        await streamer.stop()
        arrived: dict[int, list[int]] = {}
        while True:
            try:
                header = RtpHeader.parse(far.recv(400))[0]
            except BlockingIOError:
                break
            arrived.setdefault(header.ssrc, []).append(header.sequence)
    assert all(report.finished and report.packets == 25 for report in ends)
    assert len(arrived) == STREAMS
    for sequences in arrived.values():
        first = sequences[0]
        assert sequences == [(first + n) % 2**16 for n in range(25)]
