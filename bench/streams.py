"""Measures the number of streams, CPU cost, loss and jitter of the RTP senders.

`python -m bench.streams [N…]` starts N streams of a recording for each N, and measures for some
seconds the CPU time of the sender processes, and at a receiver (`rtp_receiver.c`) the packet loss
and the deviation of packet spacing from 20 ms. Then a loop around `sendmmsg` in C
(`sendmmsg_loop.c`) sends the same to an equal receiver: the minimum cost of a sender.

Streams share few ports, or with `--own-ports` have one each, which costs a system call per packet.
With `--talk` remotes send 50 packets/s each, which are received; then there is no receiver, and
each stream has its own port.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.processes import cpu_seconds, machine_seconds
from bench.report import Result, Row, Series, at_most, say
from bench.rtp_receiver import Arrived, Receiver, compiled
from bitel.rtp.packet import PCMA
from bitel.rtp.shared_clip import SharedClip, read_clip
from bitel.rtp.streamer import Streamer, StreamSpec

HOST = "127.0.0.1"
FIRST_PORT = 20000
RECEIVER_SOCKETS = 16
CLIP_SECONDS = 60
SETTLE = 2.0  # seconds from the last start to the first reading
AT_ONCE = 50  # streams started at a time
PAUSE = 1.0  # seconds until all packets have arrived
ONE_PROCESS = 4000  # streams; above this, one sender per core by default


@dataclass(frozen=True, slots=True)
class Span:
    """Between two readings. The senders' packets and the CPU time for them are from their
    reports; other CPU seconds are from the kernel.
    """

    seconds: float
    senders: float
    receiver: float
    busy: float  # share of the machine, 0 to 1
    cost: float  # microseconds of CPU a packet
    refused: int
    p99_late_ms: float
    arrived: Arrived


@dataclass(frozen=True, slots=True)
class Measured:
    """Results for one number of streams. `lost`: packets sent but not received."""

    streams: int
    processes: int
    span: Span
    lost: int
    bare: float  # microseconds a packet of the loop in C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("counts", nargs="*", type=int, default=[100, 1000, 3000, 10000])
    parser.add_argument("--seconds", type=float, default=10.0, help="between two readings")
    parser.add_argument("--ports", type=int, default=64, help="local sockets the streams share")
    parser.add_argument("--processes", type=int, help="sender processes")
    parser.add_argument("--own-ports", action="store_true")
    parser.add_argument("--talk", action="store_true", help="callees talk, and are listened to")


def measure(given: argparse.Namespace) -> Result:
    """Measures each number of streams."""
    found = []
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        recording = Path(folder) / "clip.alaw"
        recording.write_bytes(random.randbytes(8000 * CLIP_SECONDS))
        clip = read_clip(recording)
        programs = [compiled(name, Path(folder)) for name in ("rtp_receiver", "sendmmsg_loop")]
        for count in given.counts:
            one = asyncio.run(_measure(count, given, clip, *programs))
            say(_note(one))
            found.append(one)
    costs = tuple((float(one.streams), one.span.cost) for one in found)
    bare = tuple((float(one.streams), one.bare) for one in found)
    cores = tuple((float(one.streams), one.span.senders / one.span.seconds) for one in found)
    return Result(
        "Streams of G.711 in packets of 20 ms",
        [row for one in found for row in _rows(one, talk=given.talk)],
        [_note(one) for one in found],
        [
            Series("bitel's senders", "running streams", "CPU, µs a packet", costs),
            Series("sendmmsg loop in C", "running streams", "CPU, µs a packet", bare),
            Series("bitel's senders", "running streams", "CPU, cores", cores),
        ],
    )


async def _measure(
    count: int, given: argparse.Namespace, clip: SharedClip, receiver_program: Path, loop: Path
) -> Measured:
    """Measures `count` streams of the senders, then of the loop in C."""
    sockets = count if given.own_ports or given.talk else given.ports
    processes = given.processes or (2 if count > ONE_PROCESS else 1)
    ports = range(FIRST_PORT, FIRST_PORT + 2 * sockets)
    streamer = Streamer(HOST, ports, max_sockets=sockets, processes=processes, receive=given.talk)
    await streamer.start()
    sent: list[int] = []
    with Receiver(receiver_program, RECEIVER_SOCKETS) as receiver:
        async with _callees(receiver, ports, talk=given.talk) as far:
            streams = []
            for i in range(count):
                port = streamer.open_port()
                spec = StreamSpec(port, far(i, port, clip), PCMA, "alaw")
                streams.append(
                    streamer.play(spec, [clip], lambda report: sent.append(report.packets or 0))
                )
                if i % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(SETTLE)
            before = receiver.arrived().packets
            span = await _span(streamer, receiver, given.seconds)
            for stream in streams:
                streamer.stop_stream(stream)
            while len(sent) < count:
                await asyncio.sleep(0.02)  # processes of their own say so
            await asyncio.sleep(PAUSE)
            arrived = before + span.arrived.packets + receiver.arrived().packets
    await streamer.stop()
    with Receiver(receiver_program, RECEIVER_SOCKETS) as receiver:
        bare = _bare_loop(loop, count, sockets, given.seconds / 2, receiver.ports)
    return Measured(count, processes, span, sum(sent) - arrived, bare)


@asynccontextmanager
async def _callees(
    receiver: Receiver, ports: range, *, talk: bool
) -> AsyncIterator[Callable[[int, int, SharedClip], tuple[str, int]]]:
    """Returns the destination of stream number i, sent from this port."""
    if not talk:
        yield lambda i, port, clip: (HOST, receiver.ports[i % len(receiver.ports)])
        return
    callees = Streamer(HOST, range(ports.stop, ports.stop + len(ports)), max_sockets=len(ports))
    await callees.start()

    def talking(i: int, port: int, clip: SharedClip) -> tuple[str, int]:
        far = callees.open_port()
        spec = StreamSpec(far, (HOST, port), PCMA, "alaw")
        callees.play(spec, [clip], lambda report: None)
        return HOST, far

    try:
        yield talking
    finally:
        await callees.stop()


async def _span(streamer: Streamer, receiver: Receiver, seconds: float) -> Span:
    """Takes two readings."""
    pids = streamer.sender_pids()
    stats, began = streamer.stats(), time.monotonic()
    machine, ear = machine_seconds(), cpu_seconds(receiver.pid)
    senders = sum(map(cpu_seconds, pids))
    await asyncio.sleep(seconds)
    after, span = streamer.stats(), time.monotonic() - began
    machine_after, ear = machine_seconds(), cpu_seconds(receiver.pid) - ear
    senders = sum(map(cpu_seconds, pids)) - senders
    arrived = receiver.arrived()
    ran, all_seconds = (late - early for late, early in zip(machine_after, machine, strict=True))
    return Span(
        span,
        senders,
        ear,
        ran / all_seconds,
        (after.cpu_seconds - stats.cpu_seconds) / max(1, after.packets - stats.packets) * 1e6,
        after.refused - stats.refused,
        after.p99_ms,
        arrived,
    )


def _bare_loop(program: Path, count: int, sockets: int, seconds: float, far: list[int]) -> float:
    """Microseconds per packet of the loop in C."""
    values = [count, sockets, seconds, *far]
    told = subprocess.run([program, *map(str, values)], stdout=subprocess.PIPE, check=True)
    packets, cpu = map(float, told.stdout.split())
    return cpu / packets * 1e6


def _rows(one: Measured, *, talk: bool) -> list[Row]:
    name, span, arrived = f"{one.streams:,} streams", one.span, one.span.arrived
    rows = [
        Row(
            f"{name}: CPU a packet",
            span.cost,
            "µs",
            one.bare,
            "loop in C",
            at_most(1.6, "ratio"),
        ),
        Row(f"{name}: CPU of the senders", span.senders / span.seconds, "cores"),
    ]
    if talk:
        return rows
    return [
        *rows,
        Row(f"{name}: packets arrived a second", arrived.packets / span.seconds, "packets/s"),
        Row(f"{name}: packets missing at the receiver", one.lost, "packets", bar=at_most(0)),
        Row(f"{name}: spacing off 20 ms, p99", arrived.off_p99, "ms", bar=at_most(10)),
        Row(f"{name}: spacing off 20 ms, p99.9", arrived.off_p999, "ms", bar=at_most(20)),
        Row(f"{name}: the same, p99 of the worst stream", arrived.off_p99_of_worst, "ms"),
    ]


def _note(one: Measured) -> str:
    """Notes about overload and loss."""
    span, arrived = one.span, one.span.arrived
    return (
        f"{one.streams:,} streams, {one.processes} sender processes: the machine was "
        f"{span.busy:.0%} busy, the receiver took {span.receiver / span.seconds:.2f} cores; "
        f"ticks were {span.p99_late_ms:.1f} ms late at p99, the kernel refused {span.refused} "
        f"packets, {arrived.streams:,} streams arrived with {arrived.missing} packets missing, "
        f"{arrived.overflowed} of them in the receiver's full buffers."
    )


if __name__ == "__main__":
    report.main("streams", __doc__, measure, add_arguments)
