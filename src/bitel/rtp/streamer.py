"""`Streamer`: the interface of this package, which plays recordings to many calls at once.

It lends local RTP ports and passes streams to its sender processes. It runs on the event loop and
does no work per packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import resource
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from os import urandom

from bitel.rtp.ipc import Change, Play, StreamerStats
from bitel.rtp.packet import PTIMES
from bitel.rtp.port_pool import NoPortError, PortPool, share_of
from bitel.rtp.sender.priority import core_for
from bitel.rtp.sender_process import DEFAULT_QUEUE_LIMIT, SenderFailedError, SupervisedSender
from bitel.rtp.shared_clip import SharedClip
from bitel.rtp.stream_spec import (
    UNSPECIFIED_HOSTS,
    Latch,
    Law,
    OnAudio,
    OnKeys,
    RemoteAddressError,
    StreamReport,
    StreamSpec,
    host_problem,
    normalized,
)

__all__ = [
    "Latch",
    "Law",
    "NoPortError",
    "RemoteAddressError",
    "SenderFailedError",
    "SharedClip",
    "StreamReport",
    "StreamSpec",
    "Streamer",
    "StreamerStats",
    "senders_for",
]

STREAMS_OF_ONE = 4000  # streams per sender process, with a margin on current cores
COMFORTABLE = 2000  # calls of a process before the next one gets any
MAX_CLIPS = 256  # per playlist
DEFAULT_SOCKETS = 64  # per process
MAX_DESCRIPTORS = 1 << 16  # limit set for this process; at most half of them become RTP sockets


def senders_for(streams: int, cores: int) -> int:
    """The number of sender processes for `streams` concurrent streams; at most one per core."""
    return max(1, min(cores, -(-streams // STREAMS_OF_ONE)))


class Streamer:
    """Local RTP ports, and streams of raw G.711 clips from them.

    `host` is the local IP address to send from; the even ports of `ports` are used. `processes`
    sender processes divide the ports; each uses one core at most, and the first ones are filled
    first, because the cost per stream falls with the number of streams in a process. `max_sockets`
    is the number of ports bound per process: a packet from a port of its own costs two to three
    times the CPU of one that is sent with others from a shared port. New streams are refused while
    `queue_limit` commands wait for a sender.

    With `receive` streams latch onto the source address of their remote (`Latch`), digits are read,
    and RTCP is sent and received on the port above each RTP port, in the time between ticks.
    """

    def __init__(
        self,
        host: str,
        ports: range,
        *,
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
        processes: int = 1,
        max_sockets: int = DEFAULT_SOCKETS,
        receive: bool = False,
    ) -> None:
        if processes < 1:
            raise ValueError(f"{processes} sender processes; at least 1 is needed")
        self.on_failure: Callable[[SenderFailedError], None] | None = None
        """Called when a sender process has died, hangs, or could not be started again."""
        self._receive = receive
        room = _descriptors() // (4 if receive else 2) // processes  # with RTCP two for each port
        # After a crash, phones may still send to the ports of their old calls. New calls begin at
        # another place of the range to avoid these.
        first = random.randrange(max(1, len(ports)))
        self._pools = [  # of each sender
            PortPool(
                host,
                ports,
                max_sockets=min(max_sockets, room),
                receive=receive,
                share=(number, processes),
                first=first,
            )
            for number in range(processes)
        ]
        self._version = ipaddress.ip_address(host).version
        self._senders = [
            SupervisedSender(self._failed, queue_limit, core_for(number, processes))
            for number in range(processes)
        ]
        self._last_stream = 0
        self._started = False

    async def start(self) -> None:
        """Starts the sender processes and waits until they are ready; raises SenderFailedError."""
        try:
            await asyncio.gather(*(sender.start() for sender in self._senders))
        except BaseException:
            await self.stop()
            raise
        self._started = True

    async def stop(self) -> None:
        """Ends all streams (`finished=False`) and sender processes, and closes the ports."""
        self._started = False
        await asyncio.gather(*(sender.stop() for sender in self._senders))
        for pool in self._pools:
            pool.close()

    def open_port(self) -> int:
        """Lends a bound local port to a call: an unused one if possible, else a shared one.

        Raises NoPortError if none of the range can be bound.
        """
        *others, last = self._pools_by_rank()
        for pool in others:
            with contextlib.suppress(NoPortError):
                return pool.open()
        return last.open()

    def release_port(self, port: int) -> None:
        """Ends a call's use of a port, which is reused after 5 s."""
        self._pools[self._number(port)].release(port)

    async def prepare(self, port: int, clips: Iterable[SharedClip]) -> None:
        """Waits until the sender of `port` has mapped these clips; raises UnavailableError.

        Each clip is passed to each sender once, and again after a restart. It stays mapped while it
        is referenced here.
        """
        await self._senders[self._number(port)].open_clips(clips)

    def play(
        self,
        spec: StreamSpec,
        clips: Sequence[SharedClip],
        on_end: Callable[[StreamReport], None],
        on_silence: Callable[[], None] | None = None,
        on_keys: OnKeys | None = None,
        on_audio: OnAudio | None = None,
    ) -> int:
        """Starts a stream that sends the clips one after the other; returns its number.

        `on_end` is called once, later, on the event loop, also if the address or a clip can't be
        used. `on_silence` is called each time the remote was silent for `silence_timeout`,
        `on_keys` with the keys of its telephone events, soon after each, `on_audio` with
        all of its audio, twenty times a second, until `stop_audio`. Raises
        ValueError for a port that is not open, a payload type or a packet time out of range.
        """
        number = self._number(spec.port)
        pool, sender = self._pools[number], self._senders[number]
        sockets = pool.sockets(spec.port)
        _check(spec)
        self._last_stream += 1
        stream = self._last_stream * len(self._senders) + number
        host, port = spec.remote
        nowhere = spec.held and host in UNSPECIFIED_HOSTS
        problem = "" if nowhere else self.address_problem(spec.remote)
        if not 1 <= len(clips) <= MAX_CLIPS:
            problem = f"a playlist holds 1 to {MAX_CLIPS} clips, not {len(clips)}"
        if not self._started:
            problem = "the streamer is not running"
        if problem:
            # The caller needs the stream's number before `on_end` is called.
            asyncio.get_running_loop().call_soon(on_end, StreamReport.failed(stream, problem))
            return stream
        host = UNSPECIFIED_HOSTS[self._version == 6] if nowhere else normalized(host)
        spec = spec._replace(remote=(host, port))
        numbers = [clip.number for clip in clips]
        reports = on_keys is not None, on_audio is not None
        command = Play(stream, spec, numbers, *random_start(), self._receive, *reports)
        sender.play(command, sockets, clips, on_end, on_silence, on_keys, on_audio)
        return stream

    def stop_audio(self, stream: int) -> None:
        """Passes no further audio of the remote to `on_audio`, which costs CPU."""
        self._sender_of(stream).stop_audio(stream)

    def replace(self, stream: int, clips: Sequence[SharedClip]) -> None:
        """Sends other clips from the stream's next packet on, in place of what is left.

        SSRC, sequence number and timestamp continue. The clips must be prepared, as by `prepare`.
        Does nothing for a stream that has ended. Raises ValueError for none, or too many.
        """
        if not 1 <= len(clips) <= MAX_CLIPS:
            raise ValueError(f"a playlist holds 1 to {MAX_CLIPS} clips, not {len(clips)}")
        self._sender_of(stream).replace(stream, clips)

    def stop_stream(self, stream: int, *, if_awaited: bool = False) -> None:
        """Ends a stream; `on_end` follows. Does nothing for one that has ended.

        With `if_awaited` only if it still awaits its remote's first packet, with the error
        `UNHEARD`.
        """
        self._sender_of(stream).stop_stream(stream, if_awaited=if_awaited)

    def change(self, stream: int, spec: StreamSpec) -> None:
        """Applies a new specification from the stream's next packet on.

        SSRC, sequence number and the position in the recording continue. The timestamp continues
        with the samples, and during a hold with the clock. The first packet after a hold has the
        marker bit (RFC 3551 section 4.1).

        A new remote address restarts latching; an unchanged one keeps the latched address. Raises
        RemoteAddressError, and changes nothing, if the address can't be sent to and the stream is
        not held. Does nothing for a stream that has ended.
        """
        _check(spec)
        problem = self.address_problem(spec.remote)
        if problem and not spec.held:
            raise RemoteAddressError(problem)
        if not problem:
            host, port = spec.remote
            spec = spec._replace(remote=(normalized(host), port))
        self._sender_of(stream).change(Change(stream, spec, moved=not problem))

    def address_problem(self, remote: tuple[str, int]) -> str:
        """Why RTP can't be sent to this address, as a sentence; empty if it can."""
        host, port = remote
        if problem := host_problem(host, self._version):
            return problem
        if not 1 <= port <= 65535:
            return f"{port} is not a port to send RTP to"
        return ""

    def stats(self) -> StreamerStats:
        """The load of all senders: sums of counts, maxima of lateness."""
        return reduce(StreamerStats.plus, (sender.stats() for sender in self._senders))

    def sender_pids(self) -> list[int]:
        """The process ids of the running senders."""
        return [sender.pid for sender in self._senders if sender.pid is not None]

    def _sender_of(self, stream: int) -> SupervisedSender:
        return self._senders[stream % len(self._senders)]

    def _number(self, port: int) -> int:
        """The index of the sender and the pool of a port."""
        return share_of(port, len(self._pools))

    def _pools_by_rank(self) -> list[PortPool]:
        """The pools in the order in which a new call should try them."""
        if self._pools[0].calls < COMFORTABLE:
            return self._pools
        return sorted(self._pools, key=lambda pool: max(pool.calls, COMFORTABLE - 1))

    def _failed(self, error: SenderFailedError) -> None:
        if self.on_failure is not None:
            self.on_failure(error)


def random_start() -> tuple[int, int, int]:
    """Random initial sequence number, timestamp and SSRC (RFC 3550 section 5.1)."""
    bits = urandom(10)
    return int.from_bytes(bits[:2]), int.from_bytes(bits[2:6]), int.from_bytes(bits[6:])


def _check(spec: StreamSpec) -> None:
    if spec.ptime not in PTIMES or not 0 <= spec.payload_type <= 127:
        raise ValueError(
            f"payload type {spec.payload_type} in packets of {spec.ptime} ms is not sent"
        )


def _descriptors() -> int:
    """Raises the limit of open descriptors as far as possible, up to 65,536; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
