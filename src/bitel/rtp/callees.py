"""The receiving side of the sender's streams: RTP, RTCP and silence of the callees."""

from __future__ import annotations

import time
from collections.abc import Callable

from bitel.rtp.inactivity_timer import Silence
from bitel.rtp.ipc import Change, End, Play, Silent
from bitel.rtp.rtcp_session import Reporting
from bitel.rtp.rtp_receiver import RtpReceiver
from bitel.rtp.stream_table import StreamTable

LONGEST_READ_PAUSE = 0.5  # seconds: longest read pause that does not count as silence of callees
STOPPED_AFTER = 6.0  # seconds: shortest silence after which a callee has stopped sending
STOPPED_GAPS = 2.5  # the same in multiples of `Reception.gap`; the longer of the two applies


class Callees:
    """The callees that are listened to; false where there are none."""

    def __init__(self, engine: StreamTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._silence = Silence()
        self._read_all_at = clock()
        self.listener = RtpReceiver(self._latch, clock, self._silence.sign)
        self.reporting = Reporting(engine.progress, clock, self._silence.sign)

    def __bool__(self) -> bool:
        return len(self.listener) > 0

    def add(self, command: Play) -> None:
        """Begin to receive from the callee of this stream."""
        self.listener.listen(command)
        self.reporting.add(command)
        if command.patience > 0:
            self._silence.watch(command.stream, command.patience, self._clock())

    def change(self, command: Change) -> None:
        """Apply a change of the callee's media."""
        self.listener.change(command)
        if command.far is not None:
            self.reporting.redirect(command.stream, command.far, awaited=command.awaited)

    def attend(self, deadline: float) -> None:
        """Reads and reports, until the deadline where that is possible."""
        read_all = self.listener.read(deadline)
        self.reporting.send(deadline)
        self.reporting.read(deadline)
        now = self._clock()
        if now - self._read_all_at > LONGEST_READ_PAUSE:
            # This process was stopped, or is too busy to read: that must not end calls.
            self._silence.note_read_pause(now)
        if read_all:
            self._read_all_at = now

    def fallen_silent(self) -> list[Silent]:
        """The streams whose callees had sent packets, and have sent none for too long."""
        return [Silent(stream) for stream in self._silence.fallen(self._clock())]

    def complete(self, end: End) -> End:
        """`end` with what was received from the callee."""
        self._silence.forget(end.stream)
        received = self.listener.forget(end.stream)
        view = self.reporting.remove(end.stream, end.packets or 0)
        silent_for = None
        if received.at is not None:
            silent_for = self._clock() - max(received.at, self._silence.unread_until)
        limit = max(STOPPED_AFTER, STOPPED_GAPS * received.gap)
        return end._replace(
            received=received.packets,
            silent_for=None if silent_for is None else round(silent_for, 3),
            digits=received.digits,
            far_loss=view.loss,
            far_jitter_ms=view.jitter_ms,
            digits_at=received.digits_at,
            unexpected=received.unexpected,
            stopped=silent_for is not None and silent_for >= limit,
        )

    def _latch(self, stream: int, far: tuple[str, int]) -> None:
        self._engine.latch(stream, far, self._clock())
        self.reporting.accept(stream, far)
