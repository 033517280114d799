"""The streams of a sender: destination, payload, packet length, hold. It has no clock."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from bitel.rtp.ipc import Change, ClipOpened, Play, Replace
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
    """Nothing may be sent before a packet of the remote was received."""
    paused: StreamRow | None = None
    """Its row, while it is held or awaiting and so not in the batch."""
    held_from: tuple[float, int] | None = None
    """Begin of the latest pause, and the timestamp of the next packet at that time."""
    stopped: bool = False
    error: str = ""
    """Error to report, if it was stopped because of one."""
    finished: bool = False
    octets: int = 0
    """Correction of the octet count for packets that had another length than the current one."""
    next_index: int = 0
    """Tick of its next packet, after a change of the packet time."""


class StreamTable:
    """All streams; `tick` sends those that are due.

    For each `play`, `play` itself or a later `tick` returns one report. Times are seconds of a
    monotonic clock.
    """

    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit
        self._schedulers: dict[int, SlotScheduler] = {}  # by ptime
        self._ports: dict[int, socket.socket] = {}
        self._streams: dict[int, _Stream] = {}
        self._clips: dict[int, Clip] = {}

    def open(self, port: int, bound: socket.socket) -> None:
        """Sets the socket of a port."""
        self._ports[port] = bound

    def open_clip(self, number: int, descriptor: int) -> ClipOpened:
        """Maps a clip and closes the descriptor."""
        try:
            self._clips[number] = Clip(descriptor)
        except (OSError, ValueError) as error:
            return ClipOpened(number, f"recording {number} can't be mapped: {error}")
        finally:
            os.close(descriptor)
        return ClipOpened(number)

    def close_clips(self, numbers: Sequence[int]) -> None:
        """Removes clips; those that streams play are unmapped when these end."""
        for number in numbers:
            self._clips.pop(number, None)

    def play(self, command: Play, now: float = 0.0) -> StreamReport | None:
        """Adds a stream, sent from the first tick at or after `now`; a report if that fails."""
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
        """Ends a stream; the next tick of its batch returns the report.

        With `if_awaited` only if it awaits its remote.
        """
        stream = self._running(number)
        if stream is None or (if_awaited and not stream.awaiting):
            return
        stream.error = UNHEARD if if_awaited else ""
        stream.stopped = True
        if stream.paused is not None:
            stream.batch.add(stream.paused)  # `settle` then returns its counts
        stream.batch.remove(number)

    def replace(self, command: Replace) -> None:
        """Sends other clips from the stream's next packet on. SSRC, sequence number and timestamp
        continue.

        Does nothing for a stream that has ended. One whose new clips are not loaded ends with an
        error.
        """
        number = command.stream
        stream = self._running(number)
        if stream is None or stream.finished:
            return
        missing = [clip for clip in command.clips if clip not in self._clips]
        if missing or not command.clips:
            self.stop(number)
            stream.error = f"recording {missing[0]} is not loaded" if missing else "no recording"
            return
        clips = [self._clips[clip] for clip in command.clips]
        stream.playlist = stream.playlist.replaced_by(clips)
        segment = stream.playlist.next_segment()
        assert segment is not None  # a clip is never empty
        if stream.paused is None:
            stream.batch.repoint(number, *segment)
        else:
            payload, packets = segment
            stream.paused = stream.paused._replace(payload=payload, packets=packets)

    def change(self, command: Change, now: float) -> None:
        """Changes the media from the stream's next packet on, as `Streamer.change`.

        During a hold, the timestamp continues with the clock, by whole packets. A stream that was
        held is sent from the first tick at or after `now`.
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
        # A talkspurt begins, so the marker bit is set (RFC 3551 section 4.1).
        stream.batch.add(stream.paused._replace(timestamp=timestamp, begin=now, marker=True))
        stream.paused = None

    def latch(self, number: int, remote: tuple[str, int], now: float) -> None:
        """Sends the stream to `remote`, the latched address, from its next packet on.

        If the stream awaited its remote, it starts, unless it is held.
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
        """Sends the rest of the recording in packets of `ptime` ms."""
        old = stream.batch
        had_sent = stream.paused is None and old.has_sent(number)
        row = old.look(number) if stream.paused is None else stream.paused
        samples = ptime * SAMPLES_PER_MS
        stream.playlist.recut(samples, row.packets)
        segment = stream.playlist.next_segment()
        if segment is None:
            return  # everything was sent; the old batch reports the end
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
            # The next packet remains due at the end of the last one's audio.
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
        """Timestamp and counts for a sender report; None before the first packet."""
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
        """Whether tick number `index` has nothing to do."""
        for scheduler in self._schedulers.values():  # noqa: SIM110 - a generator costs more
            if not scheduler.batch_at(index).idle:
                return False
        return True

    def tick(self, index: int, due: float) -> tuple[int, int, list[StreamReport]]:
        """Sends the packets of tick number `index`.

        Returns the numbers of packets sent and refused, and the reports of streams that ended. A
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
                # The segment of a resumed stream may already be sent.
                if self._advance_segments(batch):
                    ends += map(self._end, batch.settle())
                counts = batch.send() if len(batch) else (0, 0)
                sent, refused = sent + counts[0], refused + counts[1]
        return sent, refused, ends

    def _advance_segments(self, batch: Batch) -> bool:
        """Sets the next segment of rows that need one; True if some have none left."""
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
        # A stream of which no packet could be sent has not finished.
        finished = stream.finished and row.sent > 0
        return StreamReport(row.stream, row.sent, finished, error)

    def _running(self, number: int) -> _Stream | None:
        """The stream, unless it has ended or was stopped."""
        stream = self._streams.get(number)
        return None if stream is None or stream.stopped else stream

    def _scheduler(self, ptime: int, family: socket.AddressFamily) -> SlotScheduler:
        if ptime not in self._schedulers:
            self._schedulers[ptime] = SlotScheduler(ptime, family, self._transmit)
        return self._schedulers[ptime]


def _timestamp_after_hold(stream: _Stream, samples: int, now: float) -> int:
    """The RTP timestamp after a hold: advanced by the clock, in whole packets of `samples`."""
    assert stream.held_from is not None, "the stream was not held"
    began, timestamp = stream.held_from
    missed: int = samples * round((now - began) * SAMPLE_RATE / samples)
    return (timestamp + missed) % 2**32
