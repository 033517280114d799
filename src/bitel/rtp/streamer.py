"""Plays recordings to many calls at once: the part that the rest of the service speaks to.

The streamer lends local RTP ports and hands streams to its sender processes. All of it runs on the
event loop and does nothing per packet.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import urandom
from pathlib import Path

from bitel.rtp.packet import PCMA, PCMU
from bitel.rtp.ports import NoPortError, PortPool
from bitel.rtp.supervisor import DEFAULT_QUEUE_LIMIT, SenderFailedError, SupervisedSender
from bitel.rtp.wire import End, Law, Play

__all__ = [
    "NoPortError",
    "SenderFailedError",
    "StreamReport",
    "StreamStart",
    "Streamer",
    "StreamerStats",
]

MAX_CLIPS = 256  # in one playlist
DEFAULT_SOCKETS = 1024
MAX_DESCRIPTORS = 1 << 16  # taken for this process; at most half of them become RTP sockets

_STATIC_LAWS: dict[int, Law] = {PCMU: "ulaw", PCMA: "alaw"}


@dataclass(frozen=True, slots=True)
class StreamReport:
    """How a stream ended.

    `packets` counts those that the kernel took. `finished`: the playlist was sent to its end, and
    the last packet's 20 ms have passed; False: it was stopped or failed. `error` is one sentence
    where something went wrong, also when single packets of a finished stream were refused.
    """

    stream: int
    packets: int
    finished: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class StreamStart:
    """The first values of a stream's header; random, not to be guessed (RFC 3550 section 5.1)."""

    sequence: int
    timestamp: int
    ssrc: int

    @classmethod
    def random(cls) -> StreamStart:
        """Unpredictable values."""
        bits = urandom(10)
        return cls(int.from_bytes(bits[:2]), int.from_bytes(bits[2:6]), int.from_bytes(bits[6:]))


@dataclass(frozen=True, slots=True)
class StreamerStats:
    """How the senders are doing; at most about a second old.

    A tick is one batch of streams sent, 2 ms apart. It is late by the time from when it was due to
    when its last packet was handed to the kernel; `late_ticks` are those over 5 ms. Counts are
    totals since the start, lateness is that of the last 10 seconds or so. `refused` are packets
    that the kernel did not take. `cpu_seconds` is the CPU time of the sender processes.
    """

    running: int = 0
    packets: int = 0
    refused: int = 0
    ticks: int = 0
    late_ticks: int = 0
    worst_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_seconds: float = 0.0


class Streamer:
    """Local RTP ports, and streams of raw G.711 files from them.

    `host` is the local IP address that RTP is sent from; `ports` the range of which the even ones
    are used. `processes` sender processes share the ports among them; each fills one core at most.
    `max_sockets` ports are bound at most: a packet from a port of its own costs two to three times
    the CPU of one that leaves with others from a shared port, and with many calls a core has no
    time for that. `queue_limit` is how many commands may wait for a sender before new streams are
    refused. `transmit` names the way out: `auto` is `sendmmsg` where the system has it.
    """

    def __init__(
        self,
        host: str,
        ports: range,
        *,
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
        processes: int = 1,
        max_sockets: int = DEFAULT_SOCKETS,
        transmit: str = "auto",
    ) -> None:
        if processes < 1:
            raise ValueError(f"{processes} sender processes; at least 1 is needed")
        self.on_failure: Callable[[Exception], None] | None = None
        self._ports = PortPool(host, ports, max_sockets=min(max_sockets, _descriptors() // 2))
        self._version = ipaddress.ip_address(host).version
        self._senders = [
            SupervisedSender(self._ended, self._failed, transmit=transmit, queue_limit=queue_limit)
            for _ in range(processes)
        ]
        self._streams: dict[int, tuple[SupervisedSender, Callable[[StreamReport], None]]] = {}
        self._last_stream = 0
        self._started = False

    async def start(self) -> None:
        """Starts the sender processes and waits until they read; `SenderFailedError` otherwise."""
        try:
            await asyncio.gather(*(sender.start() for sender in self._senders))
        except BaseException:
            await self.stop()
            raise
        self._started = True

    async def stop(self) -> None:
        """Ends every stream (`finished=False`), the senders, and the ports."""
        self._started = False
        await asyncio.gather(*(sender.stop() for sender in self._senders))
        self._ports.close()

    def open_port(self) -> int:
        """A bound local port for a call: one of its own while there are free ones, else shared.

        Raises `NoPortError` where none of the range can be bound.
        """
        return self._ports.open()

    def release_port(self, port: int) -> None:
        """The call needs its port no more; it rests 5 s before another call gets it alone."""
        self._ports.release(port)

    def play(
        self,
        port: int,
        far: tuple[str, int],
        payload_type: int,
        clips: Sequence[Path],
        on_end: Callable[[StreamReport], None],
        *,
        law: Law | None = None,
        start: StreamStart | None = None,
    ) -> int:
        """Sends the clips, one after the other, from `port` to `far`; returns the stream's number.

        Clips are raw G.711 files of the law that `payload_type` names (0 µ-law, 8 A-law; any other
        needs `law`). Each clip's last packet is filled up with silence to its 20 ms. `on_end` is
        called once, later, on the event loop; also for an address that can't be sent to and for a
        clip that can't be read. A port that is not open, or an unknown payload type, is
        a `ValueError`: that is a fault of the caller.
        """
        bound = self._ports.socket(port)
        law = law or _STATIC_LAWS.get(payload_type)
        if law is None or not 0 <= payload_type <= 127:
            raise ValueError(f"payload type {payload_type} names no G.711 law")
        self._last_stream += 1
        stream = self._last_stream
        sender = self._senders[port // 2 % len(self._senders)]
        self._streams[stream] = (sender, on_end)
        problem = self._problem(far, clips)
        if problem:
            self._ended(End(stream, 0, False, problem))
            return stream
        begin = start or StreamStart.random()
        command = Play(
            stream,
            port,
            far[0],
            far[1],
            payload_type,
            law,
            [str(clip) for clip in clips],
            begin.sequence,
            begin.timestamp,
            begin.ssrc,
        )
        sender.play(command, bound)
        return stream

    def stop_stream(self, stream: int) -> None:
        """Not one packet more; `on_end` follows. A stream that has ended already is left alone."""
        if stream in self._streams:
            self._streams[stream][0].stop_stream(stream)

    def stats(self) -> StreamerStats:
        """The senders' figures, summed; of their lateness the worst."""
        total = StreamerStats(running=len(self._streams))
        for sender in self._senders:
            load = sender.load()
            total = replace(
                total,
                packets=total.packets + load.packets,
                refused=total.refused + load.refused,
                ticks=total.ticks + load.ticks,
                late_ticks=total.late_ticks + load.late_ticks,
                worst_ms=max(total.worst_ms, load.worst_ms),
                p99_ms=max(total.p99_ms, load.p99_ms),
                cpu_seconds=total.cpu_seconds + load.cpu_seconds,
            )
        return total

    def sender_pids(self) -> list[int]:
        """The process ids of the senders that run now."""
        return [sender.pid for sender in self._senders if sender.pid is not None]

    def _problem(self, far: tuple[str, int], clips: Sequence[Path]) -> str:
        """Why this can't be played, in a sentence; empty where it can."""
        if not self._started:
            return "the streamer is not running"
        if not 1 <= len(clips) <= MAX_CLIPS:
            return f"a playlist holds 1 to {MAX_CLIPS} clips, not {len(clips)}"
        host, port = far
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return f"{host!r} is not an IP address to send RTP to"
        # The address comes from a stranger's SDP. 0.0.0.0 would reach this machine itself.
        if address.is_unspecified or address.is_multicast or "%" in host:
            return f"{host} is not an address of one callee to send RTP to"
        if address.version != self._version:
            return f"RTP to {host} needs IPv{address.version}, and is sent from IPv{self._version}"
        if not 1 <= port <= 65535:
            return f"{port} is not a port to send RTP to"
        return ""

    def _ended(self, end: End) -> None:
        """Tells the stream's owner, in the loop's next round, so that `play` returns first."""
        known = self._streams.pop(end.stream, None)
        if known is not None:
            report = StreamReport(end.stream, end.packets, end.finished, end.error)
            asyncio.get_running_loop().call_soon(known[1], report)

    def _failed(self, error: Exception) -> None:
        if self.on_failure is not None:
            self.on_failure(error)


def _descriptors() -> int:
    """Takes as many descriptors as the system lets us have, up to 65,536; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
