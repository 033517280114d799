"""The receiving side of streams: RTP, RTCP and inactivity of the remotes."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable

from bitel.rtp.ipc import Change, Message, Play, Silent
from bitel.rtp.sender.rtcp import RtcpSessions
from bitel.rtp.sender.rtp_receiver import RtpReceiver
from bitel.rtp.sender.stream_table import StreamTable
from bitel.rtp.stream_spec import StreamReport

LONGEST_READ_PAUSE = 0.5  # seconds: longest read pause that does not count as silence of the remote
STOPPED_AFTER = 6.0  # seconds of silence after which a remote has stopped sending, at least
STOPPED_GAPS = 2.5  # the same in multiples of `RemoteSource.gap`; the longer of the two applies
CHECK_INTERVAL = 10.0  # seconds at most, so that streams that have ended leave the heap


class StreamReceiver:
    """Receives for the streams that `receive`; false if there are none."""

    def __init__(self, table: StreamTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock
        self._inactivity = InactivityTimer()
        self._read_all_at = clock()
        self.rtp = RtpReceiver(self._latch, clock, self._inactivity.note_packet)
        self.rtcp = RtcpSessions(table.progress, clock, self._inactivity.note_packet)

    def __bool__(self) -> bool:
        return len(self.rtp) > 0

    def add(self, command: Play) -> None:
        """Starts receiving for a stream."""
        self.rtp.add(
            command.stream,
            command.spec,
            reports_keys=command.reports_keys,
            reports_audio=command.reports_audio,
        )
        self.rtcp.add(command)
        if command.spec.silence_timeout > 0:
            self._inactivity.add(command.stream, command.spec.silence_timeout, self._clock())

    def change(self, command: Change) -> None:
        """Applies a change of the stream's media."""
        self.rtp.change(command)
        if command.moved:
            self.rtcp.redirect(command)

    def read(self, deadline: float) -> list[Message]:
        """Reads RTP and RTCP and sends RTCP reports, if possible until the deadline.

        Returns audio that is to be reported, the keys that were pressed, and the streams whose
        `silence_timeout` has expired.
        """
        read_all = self.rtp.read(deadline)
        self.rtcp.send(deadline)
        self.rtcp.read(deadline)
        now = self._clock()
        if now - self._read_all_at > LONGEST_READ_PAUSE:
            # A process that was stopped or is overloaded must not end calls.
            self._inactivity.unread_until = now
        if read_all:
            self._read_all_at = now
        pressed, self.rtp.pressed = self.rtp.pressed, []
        heard = self.rtp.heard()
        return [*heard, *pressed, *(Silent(stream) for stream in self._inactivity.expired(now))]

    def complete(self, report: StreamReport) -> StreamReport:
        """Ends the stream; returns its report with the reception statistics."""
        source = self.rtp.remove(report.stream)
        if source is None:
            return report  # it does not receive
        self._inactivity.remove(report.stream)
        quality = self.rtcp.remove(report.stream, report.packets or 0)
        silent_for = None
        if source.at is not None:
            since = max(source.at, self._inactivity.unread_until)
            silent_for = round(self._clock() - since, 3)
        limit = max(STOPPED_AFTER, STOPPED_GAPS * source.gap)
        return report._replace(
            received=source.packets,
            silent_for=silent_for,
            digits=source.digits,
            far_loss=quality.loss,
            far_jitter_ms=quality.jitter_ms,
            digits_at=source.digits_at,
            unexpected=source.unexpected,
            stopped=silent_for is not None and silent_for >= limit,
        )

    def _latch(self, stream: int, remote: tuple[str, int]) -> None:
        self._table.latch(stream, remote, self._clock())
        self.rtcp.accept(stream, remote)


class InactivityTimer:
    """Finds remotes that have stopped sending; times are the caller's, in seconds.

    Remotes that never sent are ignored. A packet only updates a time, and each stream is checked
    about once per timeout.
    """

    def __init__(self) -> None:
        self._timeouts: dict[int, float] = {}
        self._received_at: dict[int, float] = {}
        self._due: list[tuple[float, int]] = []  # a heap
        self.unread_until = float("-inf")
        """Silence before this time does not count, as nothing was read."""

    def add(self, stream: int, timeout: float, now: float) -> None:
        """Makes `expired` return the stream after `timeout` seconds without a packet."""
        self._timeouts[stream] = timeout
        self._plan(stream, now + timeout, now)

    def note_packet(self, stream: int, now: float) -> None:
        """Notes a packet of the stream's remote."""
        if stream in self._timeouts:
            self._received_at[stream] = now

    def remove(self, stream: int) -> None:
        """Removes a stream."""
        self._timeouts.pop(stream, None)
        self._received_at.pop(stream, None)

    def expired(self, now: float) -> list[int]:
        """The streams whose timeout has expired; each again after another timeout."""
        expired = []
        while self._due and self._due[0][0] <= now:
            _, stream = heapq.heappop(self._due)
            if stream not in self._timeouts:
                continue
            since, timeout = now, self._timeouts[stream]
            if stream in self._received_at:
                since = max(self._received_at[stream], self.unread_until)
                if now - since >= timeout:
                    expired.append(stream)
                    since = now
            self._plan(stream, since + timeout, now)
        return expired

    def _plan(self, stream: int, due: float, now: float) -> None:
        # Later than `now`, or rounding could make `expired` loop.
        later = max(min(due, now + CHECK_INTERVAL), math.nextafter(now, math.inf))
        heapq.heappush(self._due, (later, stream))
