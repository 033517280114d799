"""The stream table of the sender: payload, packet length and destination. It has no clock."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bitel.rtp.batch import Batch, Count, NewStream
from bitel.rtp.clips import ClipCache, ClipError, Playlist
from bitel.rtp.ipc import UNHEARD, Change, ClipOpened, End, Play
from bitel.rtp.memory import sockaddr
from bitel.rtp.packet import SAMPLE_RATE, SAMPLES_PER_MS
from bitel.rtp.rtcp_session import Progress
from bitel.rtp.sendmmsg import Transmit
from bitel.rtp.slot_scheduler import TICK_MS, TICK_SECONDS, Cadence


@dataclass(slots=True)
class _Stream:
    batch: Batch
    playlist: Playlist
    port: int
    family: socket.AddressFamily
    paused: NewStream | None = None  # taken out of the batch
    held_from: tuple[float, int] | None = None
    """When the latest hold began, and the timestamp of the packet that was next then; the time
    since counts until that packet is sent."""
    held: bool = False
    awaiting: bool = False
    """Whether nothing may be sent before a packet of the callee has come."""
    stopped: bool = False
    error: str = ""
    """Why it was stopped, if that is to be reported."""
    finished: bool = False
    octets: int = 0
    """Correction of the bytes sent, for packets sent at another length than the current one."""
    next_index: int = 0
    """The tick of its next packet, after a change of the packet time."""


class _Local(NamedTuple):
    """A local port."""

    bound: socket.socket
    descriptor: int
    family: socket.AddressFamily


class StreamTable:
    """Streams spread over their packet time; `tick` sends those whose turn it is.

    Each `play` is answered by one `End` among those that `tick` and `play` return. Times
    are seconds of one steady clock.
    """

    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit
        self._cadences: dict[int, Cadence] = {}  # by ptime
        self._ports: dict[int, _Local] = {}
        self._streams: dict[int, _Stream] = {}
        self._clips = ClipCache()

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, port: int, bound: socket.socket) -> None:
        """Streams of this port go out through this socket from now on."""
        self._ports[port] = _Local(bound, bound.fileno(), socket.AddressFamily(bound.family))

    def open_clip(self, number: int, descriptor: int) -> ClipOpened:
        """Streams may play this clip from now on; the descriptor is closed."""
        try:
            self._clips.load(number, descriptor)
        except ClipError as error:
            return ClipOpened(number, str(error))
        return ClipOpened(number)

    def close_clips(self, numbers: Sequence[int]) -> None:
        """Streams that begin from now on don't play these clips."""
        self._clips.unload(numbers)

    def play(self, command: Play, now: float = 0.0) -> End | None:
        """Adds a stream; its `End` at once where it can't be.

        No tick that was due before `now` sends anything of it.
        """
        local = self._ports.get(command.port)
        if local is None:
            return End(command.stream, 0, False, f"RTP port {command.port} is not open")
        samples = command.ptime * SAMPLES_PER_MS
        try:
            far = sockaddr(local.family, command.far_host, command.far_port)
            playlist = Playlist(self._clips, command.clips, command.law, samples)
        except (ClipError, OSError) as error:
            return End(command.stream, 0, False, str(error))
        segment = playlist.next_segment()
        assert segment is not None  # a clip is never empty
        batch = self._cadence(command.ptime, local.family).choose(command.port)
        stream = self._streams[command.stream] = _Stream(
            batch,
            playlist,
            command.port,
            local.family,
            held=command.held,
            awaiting=command.awaited,
        )
        new = NewStream(
            command.stream,
            local.descriptor,
            far,
            command.payload_type,
            command.sequence,
            command.timestamp,
            command.ssrc,
            *segment,
            begin=now,
        )
        if command.held or command.awaited:
            stream.paused, stream.held_from = new, (now, new.timestamp)
        else:
            batch.add(new)
        return None

    def stop(self, number: int, *, if_awaited: bool = False) -> None:
        """Takes a stream out; its `End` comes with its batch's next tick.

        With `if_awaited` only one that waits for a packet of its callee.
        """
        stream = self._running(number)
        if stream is None or (if_awaited and not stream.awaiting):
            return
        stream.error = UNHEARD if if_awaited else ""
        stream.stopped = True
        if stream.paused is not None:
            stream.batch.add(stream.paused)  # for the count of what it sent
        stream.batch.remove(number)

    def change(self, command: Change, now: float) -> None:
        """The stream's media from its next packet on.

        SSRC, sequence number and the position in the recording continue. The timestamp continues
        with the samples sent, and over a hold with the clock, by whole packets. A tick that was due
        before `now` sends no packet of a stream that was held.
        """
        number = command.stream
        stream = self._running(number)
        if stream is None:
            return
        stream.held = command.held
        if command.far is not None:
            stream.awaiting = command.awaited
        is_paused = stream.held or stream.awaiting
        if is_paused and stream.paused is None:
            had_sent = stream.batch.has_sent(number)
            stream.paused = stream.batch.take(number)
            if had_sent or stream.held_from is None:
                stream.held_from = now, stream.paused.timestamp
        if command.far is not None:
            self._redirect(number, stream, command.far)
        if stream.paused is None:
            stream.batch.rename(number, command.payload_type)
        else:
            stream.paused = stream.paused._replace(payload_type=command.payload_type)
        if command.ptime * SAMPLES_PER_MS != stream.batch.samples:
            self._repacketize(number, stream, command.ptime, now)
        if not is_paused:
            self._resume(stream, now)

    def _resume(self, stream: _Stream, now: float) -> None:
        if stream.paused is None:
            return
        timestamp = _timestamp_after_hold(stream, stream.batch.samples, now)
        # A stream that is added begins with the marker bit, as a talkspurt does (RFC 3551 4.1).
        stream.batch.add(stream.paused._replace(timestamp=timestamp, begin=now, marker=True))
        stream.paused = None

    def latch(self, number: int, far: tuple[str, int], now: float) -> None:
        """The stream goes to `far` from its next packet on: its callee sends from there.

        One that waited for that begins or goes on, unless it is held.
        """
        stream = self._running(number)
        if stream is None:
            return
        self._redirect(number, stream, far)
        stream.awaiting = False
        if not stream.held:
            self._resume(stream, now)

    def _redirect(self, number: int, stream: _Stream, far: tuple[str, int]) -> None:
        name = sockaddr(stream.family, *far)
        if stream.paused is None:
            stream.batch.redirect(number, name)
        else:
            stream.paused = stream.paused._replace(far=name)

    def _repacketize(self, number: int, stream: _Stream, ptime: int, now: float) -> None:
        """Send the rest of the recording in packets of `ptime` ms."""
        old = stream.batch
        had_sent = stream.paused is None and old.has_sent(number)
        row = old.look(number) if stream.paused is None else stream.paused
        samples = ptime * SAMPLES_PER_MS
        stream.playlist.recut(samples, row.packets)
        segment = stream.playlist.next_segment()
        if segment is None:
            return  # all of it was sent; the old batch reports the end
        stream.octets += row.sent * (old.samples - samples)
        payload, packets = segment
        cadence = self._cadence(ptime, stream.family)
        if stream.paused is not None:
            stream.batch = cadence.choose(stream.port)
            stream.paused = row._replace(payload=payload, packets=packets)
            return
        new = old.take(number)._replace(payload=payload, packets=packets)
        if had_sent:
            stream.held_from = None
            # The next packet stays due at the end of the audio of the last one.
            ticks = old.samples // (TICK_MS * SAMPLES_PER_MS)
            stream.next_index = old.index + ticks
            new = new._replace(begin=old.due + (ticks - 0.5) * TICK_SECONDS, marker=False)
        elif stream.held_from is not None:
            timestamp = _timestamp_after_hold(stream, samples, now)
            new = new._replace(timestamp=timestamp, begin=now)
        if new.marker:
            stream.batch = cadence.choose(stream.port)
        else:
            stream.batch = cadence.batch_at(stream.next_index)
        stream.batch.add(new)

    def progress(self, number: int, now: float) -> Progress | None:
        """How far a stream is, for its sender report; None while nothing of it was sent."""
        stream = self._running(number)
        if stream is None:
            return None
        batch, paused = stream.batch, stream.paused
        row = batch.look(number) if paused is None else paused
        if not row.sent:
            return None
        since, timestamp = row.begin, row.timestamp
        if paused is not None and stream.held_from is not None:
            since, timestamp = stream.held_from
        elif batch.has_sent(number):
            since = batch.due + batch.samples / SAMPLE_RATE
        timestamp += round((now - since) * SAMPLE_RATE)
        octets = stream.octets + row.sent * batch.samples
        return Progress(timestamp % 2**32, row.sent, octets, paused is None)

    def idle(self, index: int) -> bool:
        """Tick number `index` has nothing to do."""
        for cadence in self._cadences.values():  # noqa: SIM110 - a generator costs more, each time
            if not cadence.batch_at(index).idle:
                return False
        return True

    def tick(self, index: int, due: float) -> tuple[int, int, list[End]]:
        """Sends the packets of tick number `index`, which was due then.

        Returns how many left, how many were refused, and who ended. A stream ends one tick after
        its last packet: when that has been heard out.
        """
        sent, refused = 0, 0
        ends: list[End] = []
        for cadence in self._cadences.values():
            batch = cadence.batch_at(index)
            if not batch.idle:
                batch.due, batch.index = due, index
                self._point_on(batch)
                ends += self._settle(batch)
                # One that goes on after a pause may have nothing left of its segment.
                if self._point_on(batch):
                    ends += self._settle(batch)
                left, kept = batch.send() if len(batch) else (0, 0)
                sent, refused = sent + left, refused + kept
        return sent, refused, ends

    def _point_on(self, batch: Batch) -> bool:
        """Points the rows that have run out to their next segment; True: some have none."""
        over = False
        for row, number in batch.run_out():
            stream = self._streams[number]
            segment = stream.playlist.next_segment()
            if segment is None:
                stream.finished = over = True
                batch.remove(number)
            else:
                batch.point(row, *segment)
        return over

    def _settle(self, batch: Batch) -> list[End]:
        return [self._end(number, count) for number, count in batch.settle()]

    def _end(self, number: int, count: Count) -> End:
        stream = self._streams.pop(number)
        stream.playlist.close()
        error = stream.error
        if count.refused:
            error = f"{count.refused} packets could not be sent: {count.problem}"
        # A callee of whom the network took no packet at all has heard nothing to its end.
        return End(number, count.sent, stream.finished and count.sent > 0, error)

    def _running(self, number: int) -> _Stream | None:
        """The stream, unless it is over or about to be."""
        stream = self._streams.get(number)
        return None if stream is None or stream.stopped else stream

    def _cadence(self, ptime: int, family: socket.AddressFamily) -> Cadence:
        if ptime not in self._cadences:
            self._cadences[ptime] = Cadence(ptime, family, self._transmit)
        return self._cadences[ptime]


def _timestamp_after_hold(stream: _Stream, samples: int, now: float) -> int:
    """The timestamp of a stream that continues now: that of the hold's begin, and the time since in
    whole packets of `samples`."""
    assert stream.held_from is not None, "the stream was not held"
    began, timestamp = stream.held_from
    missed: int = samples * round((now - began) * SAMPLE_RATE / samples)
    return (timestamp + missed) % 2**32
