"""How many streams one sender process carries, and at what cost: `python bench/streams.py`.

A sink process drains UDP sockets on 127.0.0.1 and counts. For each N: N streams of a recording are
started, and after they have settled the sender's CPU time, its packets and how late its ticks were
are measured for some seconds. Streams go through few ports (shared sockets) or, with `--own-ports`,
each through a port of its own, which costs a system call per packet. The figures are the
sender's own: also on a busy machine us/packet tells something, and lateness little.

Where there is a C compiler, `sendmmsg_loop.c` sends as many packets to the same sink, after each
measurement: what the kernel takes, and the least that a sender can cost. With `--talk` callees talk
back, 50 packets/s each, and are listened to; ports are then each stream's own.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bitel.rtp.memory import Packets
from bitel.rtp.streamer import Streamer, StreamerStats

HOST = "127.0.0.1"
SINK_SOCKETS = 4
CLIP_SECONDS = 60


def sink(pipe: Connection) -> None:
    """Drains sockets until told to stop; answers how many packets came."""
    sockets = []
    for _ in range(SINK_SOCKETS):
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        bound.bind((HOST, 0))
        bound.setblocking(False)
        sockets.append(bound)
    pipe.send([bound.getsockname()[1] for bound in sockets])
    drain = Drain()
    count = 0
    while not pipe.poll():
        time.sleep(0.002)
        count += sum(map(drain, sockets))
    pipe.send(count)


class Drain:
    """Empties a socket in few system calls, so that the sink takes little of the machine."""

    def __init__(self) -> None:
        self._packets = Packets(1024, socket.AF_INET)
        self._space = np.zeros((1024, 256), np.uint8)
        self._packets.payloads[:] = self._space.ctypes.data + np.arange(1024, dtype=np.uintp) * 256
        self._call = ctypes.PyDLL(None).recvmmsg
        integers = [ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int]
        self._call.argtypes = [*integers, ctypes.c_void_p]

    def __call__(self, bound: socket.socket) -> int:
        """How many packets there were."""
        total = 0
        while True:
            got: int = self._call(
                bound.fileno(), self._packets.address, 1024, socket.MSG_DONTWAIT, None
            )
            if got <= 0:
                return total
            total += got


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(
    count: int, ports: range, seconds: float, clip: Path, far: list[int], *, talk: bool
) -> tuple[str, float]:
    """One line of the table, and microseconds a packet."""
    streamer = Streamer(HOST, ports, max_sockets=len(ports), receive=talk)
    await streamer.start()
    callees = Streamer(HOST, range(ports.stop, ports.stop + len(ports)), max_sockets=len(ports))
    if talk:
        await callees.start()
    pid = streamer.sender_pids()[0]
    ended: list[int] = []
    streams = []
    for i in range(count):
        port = streamer.open_port()
        to = (HOST, far[i % len(far)])
        if talk:
            to = (HOST, callees.open_port())
            callees.play(to[1], (HOST, port), 8, [clip], lambda r: None)
        streams.append(streamer.play(port, to, 8, [clip], lambda r: ended.append(r.packets)))
        if i % 50 == 49:
            await asyncio.sleep(0.01)
    await asyncio.sleep(11)  # until the beginning is out of the lateness of the last 10 s
    before, began, cpu = streamer.stats(), time.monotonic(), cpu_seconds(pid)
    await asyncio.sleep(seconds)
    after, span, cpu = streamer.stats(), time.monotonic() - began, cpu_seconds(pid) - cpu
    line = row(f"{count}", before, after, span, cpu)
    for stream in streams:
        streamer.stop_stream(stream)
    while len(ended) < count:
        await asyncio.sleep(0.02)
    await streamer.stop()
    await callees.stop()
    return line, cpu / max(1, after.packets - before.packets) * 1e6


def bare_loop(program: Path, count: int, sockets: int, seconds: float, far: list[int]) -> float:
    """Microseconds a packet of the loop in C."""
    values = [count, sockets, seconds, *far]
    told = subprocess.run([program, *map(str, values)], stdout=subprocess.PIPE, check=True)
    packets, cpu = map(float, told.stdout.split())
    return cpu / packets * 1e6


def compiled(folder: Path) -> Path | None:
    """The loop in C, where there is a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    program = folder / "sendmmsg_loop"
    source = Path(__file__).with_name("sendmmsg_loop.c")
    subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return program


def row(name: str, before: StreamerStats, after: StreamerStats, span: float, cpu: float) -> str:
    """Figures of the time between two readings."""
    packets = after.packets - before.packets
    late = (after.late_ticks - before.late_ticks) / max(1, after.ticks - before.ticks)
    return (
        f"{name:>8} {packets / span:>10.0f} {cpu / span:>8.1%} {cpu / max(1, packets) * 1e6:>9.2f}"
        f" {after.p99_ms:>8.2f} {after.worst_ms:>9.2f} {late:>8.2%} {after.refused:>8}"
    )


async def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=[100, 1000, 5000])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--ports", type=int, default=8, help="local sockets the streams share")
    parser.add_argument("--own-ports", action="store_true")
    parser.add_argument("--talk", action="store_true", help="callees talk, and are listened to")
    options = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=sink, args=(theirs,))
    process.start()
    far = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.alaw"
        clip.write_bytes(random.randbytes(8000 * CLIP_SECONDS))
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(" streams  packets/s      CPU us/packet   p99 ms  worst ms     >5ms  refused")
        loop = compiled(Path(folder))
        for count in options.counts:
            sockets = count if options.own_ports or options.talk else options.ports
            ports = range(30000, 30000 + 2 * sockets)
            line, cost = await measure(count, ports, options.seconds, clip, far, talk=options.talk)
            print(line, flush=True)
            if loop is not None:
                bare = bare_loop(loop, count, sockets, options.seconds, far)
                print(f"   in C: {bare:27.2f}   {cost / bare:.2f} x", flush=True)
    ours.send("stop")
    print(f"the sink took {ours.recv()} packets")
    process.join()


if __name__ == "__main__":
    asyncio.run(main())
