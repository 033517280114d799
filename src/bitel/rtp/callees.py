"""The other direction of the sender's streams: what callees send, and how they hear us."""

from __future__ import annotations

import time
from collections.abc import Callable

from bitel.rtp.engine import Engine
from bitel.rtp.listener import Listener
from bitel.rtp.reporting import Reporting
from bitel.rtp.silence import Silence
from bitel.rtp.wire import Change, End, Play, Silent

LONGEST_DEAFNESS = 0.5  # seconds without a look at all that has come, that callees don't suffer for
STOPPED_AFTER = 6.0  # seconds without a packet, at least, after which a callee has stopped sending
STOPPED_GAPS = 2.5  # times the time from one packet that is looked at to the next, if that is more


class Callees:
    """The callees that are listened to; false where there are none."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._silence = Silence()
        self._heard_all_at = clock()
        self.listener = Listener(self._latch, clock, self._silence.sign)
        self.reporting = Reporting(engine.progress, clock, self._silence.sign)

    def __bool__(self) -> bool:
        return len(self.listener) > 0

    def add(self, command: Play) -> None:
        """Attends to the callee of this stream."""
        self.listener.listen(command)
        self.reporting.add(command)
        if command.patience > 0:
            self._silence.watch(command.stream, command.patience, self._clock())

    def change(self, command: Change) -> None:
        """The callee's media has changed."""
        self.listener.change(command)
        if command.far is not None:
            self.reporting.redirect(command.stream, command.far)

    def attend(self, deadline: float) -> None:
        """Reads and reports, until the deadline where that is possible."""
        heard_all = self.listener.read(deadline)
        self.reporting.send(deadline)
        self.reporting.read(deadline)
        now = self._clock()
        if now - self._heard_all_at > LONGEST_DEAFNESS:
            # We were stopped, or are too busy to listen: that must not end calls that go well.
            self._silence.was_deaf(now)
        if heard_all:
            self._heard_all_at = now

    def fallen_silent(self) -> list[Silent]:
        """The streams whose callees were heard, and have sent nothing for too long."""
        return [Silent(stream) for stream in self._silence.fallen(self._clock())]

    def complete(self, end: End) -> End:
        """The stream's end, with what was heard of its callee."""
        self._silence.forget(end.stream)
        heard = self.listener.forget(end.stream)
        view = self.reporting.remove(end.stream, end.packets)
        silent_for = None
        if heard.at is not None:
            silent_for = self._clock() - max(heard.at, self._silence.deaf_until)
        limit = max(STOPPED_AFTER, STOPPED_GAPS * heard.gap)
        return end._replace(
            received=heard.packets,
            silent_for=None if silent_for is None else round(silent_for, 3),
            digits=heard.digits,
            far_loss=view.loss,
            far_jitter_ms=view.jitter_ms,
            digits_at=heard.digits_at,
            unexpected=heard.unexpected,
            stopped=silent_for is not None and silent_for >= limit,
        )

    def _latch(self, stream: int, far: tuple[str, int]) -> None:
        self._engine.redirect(stream, far)
        self.reporting.accept(stream, far[0])
