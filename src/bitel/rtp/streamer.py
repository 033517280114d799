"""Plays recordings to many calls at once: the part that the rest of the service speaks to.

The streamer lends local RTP ports and hands streams to its sender processes. All of it runs on the
event loop and does nothing per packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from os import urandom
from pathlib import Path

from bitel.rtp.addresses import host_problem
from bitel.rtp.ipc import Change, End, Latch, Law, Play
from bitel.rtp.packet import PCMA, PCMU, PTIMES
from bitel.rtp.port_pool import NoPortError, PortPool, share_of
from bitel.rtp.priority import core_for
from bitel.rtp.shared_clip import SharedClip
from bitel.rtp.supervisor import DEFAULT_QUEUE_LIMIT, SenderFailedError, SupervisedSender

__all__ = [
    "Clip",
    "FarEndError",
    "Latch",
    "Law",
    "NoPortError",
    "SenderFailedError",
    "StreamReport",
    "StreamStart",
    "Streamer",
    "StreamerStats",
    "senders_for",
]

STREAMS_OF_ONE = 4000  # that a sender process carries with room to spare on today's cores
COMFORTABLE = 2000  # calls that a process is given before the next one gets any
MAX_CLIPS = 256  # in one playlist
DEFAULT_SOCKETS = 64  # of each process
MAX_DESCRIPTORS = 1 << 16  # taken for this process; at most half of them become RTP sockets

Clip = SharedClip | Path
"""What a stream plays: a recording in memory, or a file that its sender opens by itself."""

_NOWHERE = ("0.0.0.0", "::")  # of IPv4, and of IPv6: what a far end names that holds the call
_STATIC_LAWS: dict[int, Law] = {PCMU: "ulaw", PCMA: "alaw"}


def senders_for(streams: int, cores: int) -> int:
    """How many sender processes so many streams at once are worth; at most one for each core."""
    return max(1, min(cores, -(-streams // STREAMS_OF_ONE)))


class FarEndError(ValueError):
    """An address that RTP can't or must not be sent to; it came from a stranger's SDP."""


@dataclass(frozen=True, slots=True)
class StreamReport:
    """How a stream ended.

    `packets` counts those that the kernel took; None: the sender process is gone, and with it the
    count. `finished`: the playlist was sent to its end, and
    the last packet has been heard out; False: it was stopped or failed. `error` is one sentence
    where something went wrong, also when single packets of a finished stream were refused.

    The rest is known where the streamer receives. `received`: about how many RTP packets have come
    from the callee; audio is counted by every 16th sequence number, with many streams by every
    256th. `silent_for`: seconds from the last one that was looked at, or from a later change of the
    media, to the end; None where none came. `digits`: those keyed, of 0-9*#ABCD; `digits_at`: when
    the first of them came, by CLOCK_MONOTONIC. `far_loss` (0 to 1, of all packets up to then) and
    `far_jitter_ms` are from the callee's last RTCP report, None where none came.

    `unexpected`: RTP packets from addresses that were not accepted; where streams share the port,
    only those that are known to be meant for this one. `stopped`: packets had come, and then none
    for so long, 6 s or more, that neither loss nor the sparse look at them explains it.
    """

    stream: int
    packets: int | None
    finished: bool
    error: str = ""
    received: int = 0
    silent_for: float | None = None
    digits: str = ""
    far_loss: float | None = None
    far_jitter_ms: float | None = None
    digits_at: float | None = None
    unexpected: int = 0
    stopped: bool = False


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
    totals since the start, lateness is that of the last 10 seconds or so; a tenth of the ticks of
    the last half second were later than `tenth_ms`. `refused` are packets that the kernel did not
    take. `cpu_seconds` is the CPU time of the sender processes. `reported_ago`: seconds since the
    last report of the sender that has been silent for longest; each reports every quarter of one,
    unless it hangs or is dead. `failures`: how often a process died or hung, or could not be
    started again.
    """

    running: int = 0
    packets: int = 0
    refused: int = 0
    ticks: int = 0
    late_ticks: int = 0
    worst_ms: float = 0.0
    p99_ms: float = 0.0
    tenth_ms: float = 0.0
    cpu_seconds: float = 0.0
    reported_ago: float = 0.0
    failures: int = 0


@dataclass(slots=True)
class _Running:
    sender: SupervisedSender
    on_end: Callable[[StreamReport], None]
    far: tuple[str, int]  # as it was named last
    on_silence: Callable[[], None] | None = None


class Streamer:
    """Local RTP ports, and streams of raw G.711 files from them.

    `host` is the local IP address that RTP is sent from; `ports` the range of which the even ones
    are used. `processes` sender processes share the ports among them; each fills one core at most,
    and the first ones are filled first: a process that has many streams sends each for less.
    `max_sockets` ports are bound for each process at most: a packet from a port of its own costs
    two to three times the CPU of one that leaves with others from a shared port, and with many
    calls a core has no time for that. `queue_limit` is how many commands may wait for a sender
    before new streams are refused. `transmit` names the way out: `auto` is `sendmmsg` where the
    system has it. With `receive` callees are listened to: a stream follows its callee to the port
    that it sends from (symmetric RTP; the host must be the one named), keyed digits are read, and
    RTCP goes out and in on the port above each RTP port. That costs the senders some time, and has
    no claim to it: ticks come first.
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
        receive: bool = False,
    ) -> None:
        if processes < 1:
            raise ValueError(f"{processes} sender processes; at least 1 is needed")
        self.on_failure: Callable[[SenderFailedError], None] | None = None
        """Called when a sender process has died, hangs, or could not be started again."""
        self._failures = 0
        self._receive = receive
        room = _descriptors() // (4 if receive else 2) // processes  # with RTCP two for each port
        # A phone that answered before a crash may still send to the port of its forgotten call.
        # After the restart the calls begin at another place of the range, out of its way.
        first = random.randrange(max(1, len(ports)))
        self._pools = [  # of each sender
            PortPool(
                host,
                ports,
                max_sockets=min(max_sockets, room),
                listen=receive,
                share=(number, processes),
                first=first,
            )
            for number in range(processes)
        ]
        self._version = ipaddress.ip_address(host).version
        self._senders = [
            SupervisedSender(
                self._ended,
                self._failed,
                self._silent,
                transmit=transmit,
                queue_limit=queue_limit,
                core=core_for(number, processes),
            )
            for number in range(processes)
        ]
        self._streams: dict[int, _Running] = {}
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
        for pool in self._pools:
            pool.close()

    def open_port(self) -> int:
        """A bound local port for a call: one of its own while there are free ones, else shared.

        Raises `NoPortError` where none of the range can be bound.
        """
        *others, last = self._pools_by_rank()
        for pool in others:
            with contextlib.suppress(NoPortError):
                return pool.open()
        return last.open()

    def release_port(self, port: int) -> None:
        """The call needs its port no more; it rests 5 s before another call gets it alone."""
        self._pools[self._number(port)].release(port)

    async def prepare(self, port: int, clips: Iterable[Clip]) -> None:
        """Waits until the sender of `port` has these clips in memory, so that it can play them.

        Each clip goes to each sender once and stays there while it is referenced here; a sender
        that is restarted gets it anew. What `play` is given as a path is not looked at. Raises
        `UnavailableError`.
        """
        shared = [clip for clip in clips if isinstance(clip, SharedClip)]
        await self._senders[self._number(port)].open_clips(shared)

    def play(
        self,
        port: int,
        far: tuple[str, int],
        payload_type: int,
        clips: Sequence[Clip],
        on_end: Callable[[StreamReport], None],
        *,
        law: Law | None = None,
        start: StreamStart | None = None,
        ptime: int = 20,
        event_types: Iterable[int] = (),
        latch: Latch = "port",
        held: bool = False,
        awaited: bool = False,
        patience: float = 0.0,
        on_silence: Callable[[], None] | None = None,
    ) -> int:
        """Sends the clips, one after the other, from `port` to `far`; returns the stream's number.

        Clips are raw G.711 of the law that `payload_type` names (0 µ-law, 8 A-law; any other needs
        `law`), in memory or as files that the sender opens when the stream begins. A packet holds
        `ptime` ms: 10, 20, 30, 40 or 60, as the callee asks for in its SDP; each clip's last one is
        filled up with silence. `on_end` is called once, later, on the event loop; also for an
        address that can't be sent to and for a clip that can't be read. A port that is not open,
        an unknown payload type, or another `ptime`, is a `ValueError`: that is a fault of the
        caller. `event_types` are the payload types that may be used for telephone-event; of
        those, where the streamer receives, keyed digits are read. `latch`: which source of RTP the
        stream then goes to (`wire.Latch`).

        A stream that is `held` sends nothing until a `change` that is not; `far` may then be
        0.0.0.0. One that is `awaited` sends nothing before a packet of the callee was accepted, by
        `latch` or from `far`: for a `far` that only stands for where it may send from. That takes
        a streamer that receives. `on_silence` is called when the callee, having been heard, has
        sent neither RTP nor reports for `patience` seconds (0: never), and again while that lasts.
        """
        number = self._number(port)
        pool, sender = self._pools[number], self._senders[number]
        bound = pool.socket(port)
        law = law or _STATIC_LAWS.get(payload_type)
        if law is None or not 0 <= payload_type <= 127:
            raise ValueError(f"payload type {payload_type} names no G.711 law")
        if ptime not in PTIMES:
            raise ValueError(f"packets of {ptime} ms are not sent; known are {PTIMES}")
        self._last_stream += 1
        stream = self._last_stream
        self._streams[stream] = _Running(sender, on_end, far, on_silence)
        nowhere = held and far[0] in _NOWHERE
        problem = self._problem(clips) or ("" if nowhere else self.address_problem(far))
        if problem:
            self._ended(End(stream, 0, False, problem))
            return stream
        begin = start or StreamStart.random()
        command = Play(
            stream,
            port,
            _NOWHERE[self._version == 6] if nowhere else far[0],
            far[1],
            payload_type,
            law,
            [clip.number if isinstance(clip, SharedClip) else str(clip) for clip in clips],
            begin.sequence,
            begin.timestamp,
            begin.ssrc,
            ptime,
            self._receive,
            tuple(event_types),
            patience if on_silence is not None else 0.0,
            held,
            latch,
            awaited,
        )
        shared = [clip for clip in clips if isinstance(clip, SharedClip)]
        sender.play(command, (bound, pool.companion(port)), shared)
        return stream

    def stop_stream(self, stream: int, *, if_awaited: bool = False) -> None:
        """Not one packet more; `on_end` follows. A stream that has ended already is left alone.

        With `if_awaited` only one that still waits for its callee's first packet, with the error
        `wire.UNHEARD`.
        """
        if stream in self._streams:
            self._streams[stream].sender.stop_stream(stream, if_awaited=if_awaited)

    def change(
        self,
        stream: int,
        far: tuple[str, int],
        payload_type: int,
        *,
        ptime: int = 20,
        event_types: Iterable[int] = (),
        held: bool = False,
        awaited: bool = False,
    ) -> None:
        """The media of a stream from its next packet on; parameters as in `play`.

        The SSRC stays, sequence number and timestamp go on without a jump, and so does the
        recording, whatever the packets' length. A stream that is `held` sends nothing, and its
        recording waits. The first packet after a hold bears the marker bit (RFC 3551 section 4.1),
        and the timestamp has gone on by the time that it took.

        An address that is the one named last is left alone: where the callee turned out to send
        from another port, that still holds. A new one restarts that search. `FarEndError` where
        `far` can't be sent to and the stream is not held: then nothing changes. A stream that has
        ended is left alone.
        """
        if ptime not in PTIMES or not 0 <= payload_type <= 127:
            raise ValueError(f"payload type {payload_type} in packets of {ptime} ms is not sent")
        problem = self.address_problem(far)
        if problem and not held:
            raise FarEndError(problem)
        running = self._streams.get(stream)
        if running is None:
            return
        moved = None if problem or running.far == far else far
        if moved is not None:
            running.far = moved
        running.sender.change(
            Change(stream, moved, payload_type, ptime, tuple(event_types), held, awaited)
        )

    def address_problem(self, far: tuple[str, int]) -> str:
        """Why nothing can be sent to this address, in a sentence; empty where it can."""
        host, port = far
        if problem := host_problem(host, self._version):
            return problem
        if not 1 <= port <= 65535:
            return f"{port} is not a port to send RTP to"
        return ""

    def stats(self) -> StreamerStats:
        """The senders' figures, summed; of their lateness the worst."""
        total = StreamerStats(running=len(self._streams), failures=self._failures)
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
                tenth_ms=max(total.tenth_ms, load.tenth_ms),
                cpu_seconds=total.cpu_seconds + load.cpu_seconds,
                reported_ago=max(total.reported_ago, sender.reported_ago()),
            )
        return total

    def sender_pids(self) -> list[int]:
        """The process ids of the senders that run now."""
        return [sender.pid for sender in self._senders if sender.pid is not None]

    def _number(self, port: int) -> int:
        """The sender, and the pool, that a port belongs to."""
        return share_of(port, len(self._pools))

    def _pools_by_rank(self) -> list[PortPool]:
        """Where the next call is best put, and where it goes if there is no port."""
        if self._pools[0].calls < COMFORTABLE:
            return self._pools
        return sorted(self._pools, key=lambda pool: max(pool.calls, COMFORTABLE - 1))

    def _problem(self, clips: Sequence[Clip]) -> str:
        """Why this can't be played, in a sentence; empty where it can."""
        if not self._started:
            return "the streamer is not running"
        if not 1 <= len(clips) <= MAX_CLIPS:
            return f"a playlist holds 1 to {MAX_CLIPS} clips, not {len(clips)}"
        return ""

    def _ended(self, end: End) -> None:
        """Tells the stream's owner, in the loop's next round, so that `play` returns first."""
        known = self._streams.pop(end.stream, None)
        if known is not None:
            asyncio.get_running_loop().call_soon(known.on_end, StreamReport(*end))

    def _silent(self, stream: int) -> None:
        known = self._streams.get(stream)
        if known is not None and known.on_silence is not None:
            known.on_silence()

    def _failed(self, error: SenderFailedError) -> None:
        self._failures += 1
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
