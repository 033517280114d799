"""The streams of the sender: destination, payload, packet length, hold. It has no clock."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from bitel.rtp.ipc import Change, ClipOpened, Play
from bitel.rtp.packet import SAMPLE_RATE, SAMPLES_PER_MS
from bitel.rtp.sender.packet_batch import Batch, StreamRow
from bitel.rtp.sender.playlist import Clip, Playlist
from bitel.rtp.sender.rtcp import Progress
from bitel.rtp.sender.sendmmsg import Transmit, sockaddr
from bitel.rtp.sender.tick_schedule import TICK_MS, TICK_SECONDS, SlotScheduler
from bitel.rtp.stream_spec import UNHEARD, StreamReport


@dataclass(slots=True)
class _Stream:
    batch: Batch
    playlist: Playlist
    port: int
    family: socket.AddressFamily
    held: bool
    awaiting: bool
    """Nothing may be sent before a packet of the remote has come."""
    paused: StreamRow | None = None
    """Set while it is not in the batch, being held or awaiting its remote."""
    held_from: tuple[float, int] | None = None
    """When the latest pause began, and the timestamp of the packet that was next then; the time
    since counts until that packet is sent."""
    stopped: bool = False
    error: str = ""
    """Why it was stopped, if that is to be reported."""
    finished: bool = False
    octets: int = 0
    """Correction of the bytes sent, for packets sent at another length than the current one."""
    next_index: int = 0
    """The tick of its next packet, after a change of the packet time."""


class StreamTable:
    """Streams spread over their packet time; `tick` sends those that are due.

    Each `play` is answered by one report among those that `tick` and `play` return. Times are
    seconds of one steady clock.
    """

    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit
        self._schedulers: dict[int, SlotScheduler] = {}  # by ptime
        self._ports: dict[int, socket.socket] = {}
        self._streams: dict[int, _Stream] = {}
        self._clips: dict[int, Clip] = {}

    def open(self, port: int, bound: socket.socket) -> None:
        """Streams of this port are sent through this socket from now on."""
        self._ports[port] = bound

    def open_clip(self, number: int, descriptor: int) -> ClipOpened:
        """Streams may play this clip from now on; the descriptor is closed."""
        try:
            self._clips[number] = Clip(descriptor)
        except (OSError, ValueError) as error:
            return ClipOpened(number, f"recording {number} can't be mapped: {error}")
        finally:
            os.close(descriptor)
        return ClipOpened(number)

    def close_clips(self, numbers: Sequence[int]) -> None:
        """Forget clips; those that a stream plays are unmapped when it ends."""
        for number in numbers:
            self._clips.pop(number, None)

    def play(self, command: Play, now: float = 0.0) -> StreamReport | None:
        """Adds a stream, sent at the first tick at or after `now`; a report if it can't be."""
        number, spec = command.stream, command.spec
        bound = self._ports.get(spec.port)
        if bound is None:
            return StreamReport.failed(number, f"RTP port {spec.port} is not open")
        for clip in command.clips:
            if clip not in self._clips:
                return StreamReport.failed(number, f"recording {clip} is not loaded")
        family = socket.AddressFamily(bound.family)
        try:
            remote = sockaddr(family, *spec.remote)
        except OSError as error:
            return StreamReport.failed(number, str(error))
        clips = [self._clips[clip] for clip in command.clips]
        playlist = Playlist(clips, spec.law, spec.ptime * SAMPLES_PER_MS)
        segment = playlist.next_segment()
        assert segment is not None  # a clip is never empty
        batch = self._scheduler(spec.ptime, family).choose(spec.port)
        stream = self._streams[number] = _Stream(
            batch, playlist, spec.port, family, spec.held, spec.awaited
        )
        new = StreamRow(
            number,
            bound.fileno(),
            remote,
            spec.payload_type,
            command.sequence,
            command.timestamp,
            command.ssrc,
            *segment,
            begin=now,
        )
        if spec.held or spec.awaited:
            stream.paused, stream.held_from = new, (now, new.timestamp)
        else:
            batch.add(new)
        return None

    def stop(self, number: int, *, if_awaited: bool = False) -> None:
        """Ends a stream; its report comes with its batch's next tick.

        With `if_awaited` only one that awaits its remote.
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
        with the samples sent, and over a hold with the clock, by whole packets. A stream that was
        held is sent at the first tick at or after `now`.
        """
        number, spec = command.stream, command.spec
        stream = self._running(number)
        if stream is None:
            return
        stream.held = spec.held
        if command.moved:
            stream.awaiting = spec.awaited
        is_paused = stream.held or stream.awaiting
        if is_paused and stream.paused is None:
            had_sent = stream.batch.has_sent(number)
            stream.paused = stream.batch.take(number)
            if had_sent or stream.held_from is None:
                stream.held_from = now, stream.paused.timestamp
        if command.moved:
            self._redirect(number, stream, spec.remote)
        if stream.paused is None:
            stream.batch.set_payload_type(number, spec.payload_type)
        else:
            stream.paused = stream.paused._replace(payload_type=spec.payload_type)
        if spec.ptime * SAMPLES_PER_MS != stream.batch.samples:
            self._repacketize(number, stream, spec.ptime, now)
        if not is_paused:
            self._resume(stream, now)

    def _resume(self, stream: _Stream, now: float) -> None:
        if stream.paused is None:
            return
        timestamp = _timestamp_after_hold(stream, stream.batch.samples, now)
        # A stream that is added begins with the marker bit, as a talkspurt does (RFC 3551 4.1).
        stream.batch.add(stream.paused._replace(timestamp=timestamp, begin=now, marker=True))
        stream.paused = None

    def latch(self, number: int, remote: tuple[str, int], now: float) -> None:
        """The stream is sent to `remote` from its next packet on, as the remote sends from there.

        One that awaited that begins or goes on, unless it is held.
        """
        stream = self._running(number)
        if stream is None:
            return
        self._redirect(number, stream, remote)
        stream.awaiting = False
        if not stream.held:
            self._resume(stream, now)

    def _redirect(self, number: int, stream: _Stream, remote: tuple[str, int]) -> None:
        name = sockaddr(stream.family, *remote)
        if stream.paused is None:
            stream.batch.redirect(number, name)
        else:
            stream.paused = stream.paused._replace(remote=name)

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
        scheduler = self._scheduler(ptime, stream.family)
        if stream.paused is not None:
            stream.batch = scheduler.choose(stream.port)
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
            stream.batch = scheduler.choose(stream.port)
        else:
            stream.batch = scheduler.batch_at(stream.next_index)
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
        for scheduler in self._schedulers.values():  # noqa: SIM110 - a generator costs more
            if not scheduler.batch_at(index).idle:
                return False
        return True

    def tick(self, index: int, due: float) -> tuple[int, int, list[StreamReport]]:
        """Sends the packets of tick number `index`.

        Returns how many left, how many were refused, and the reports of streams that ended. A
        stream ends one packet time after its last packet, when that has been played out.
        """
        sent, refused = 0, 0
        ends: list[StreamReport] = []
        for scheduler in self._schedulers.values():
            batch = scheduler.batch_at(index)
            if not batch.idle:
                batch.due, batch.index = due, index
                self._advance_segments(batch)
                ends += map(self._end, batch.settle())
                # One that goes on after a pause may have nothing left of its segment.
                if self._advance_segments(batch):
                    ends += map(self._end, batch.settle())
                left, kept = batch.send() if len(batch) else (0, 0)
                sent, refused = sent + left, refused + kept
        return sent, refused, ends

    def _advance_segments(self, batch: Batch) -> bool:
        """Gives the rows that have run out their next segment; True: some have none."""
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

    def _end(self, row: StreamRow) -> StreamReport:
        stream = self._streams.pop(row.stream)
        error = stream.error
        if row.refused:
            error = f"{row.refused} packets could not be sent: {os.strerror(row.errno)}"
        # If the network took no packet at all, nothing was played to its end.
        finished = stream.finished and row.sent > 0
        return StreamReport(row.stream, row.sent, finished, error)

    def _running(self, number: int) -> _Stream | None:
        """The stream, unless it is over or about to be."""
        stream = self._streams.get(number)
        return None if stream is None or stream.stopped else stream

    def _scheduler(self, ptime: int, family: socket.AddressFamily) -> SlotScheduler:
        if ptime not in self._schedulers:
            self._schedulers[ptime] = SlotScheduler(ptime, family, self._transmit)
        return self._schedulers[ptime]


def _timestamp_after_hold(stream: _Stream, samples: int, now: float) -> int:
    """That of the first packet after a hold: the timestamp at the hold's begin, and the time since
    then in whole packets of `samples`."""
    assert stream.held_from is not None, "the stream was not held"
    began, timestamp = stream.held_from
    missed: int = samples * round((now - began) * SAMPLE_RATE / samples)
    return (timestamp + missed) % 2**32
