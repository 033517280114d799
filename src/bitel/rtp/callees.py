"""The other direction of the sender's streams: what callees send, and how they hear us."""

from __future__ import annotations

import time
from dataclasses import replace

from bitel.rtp.engine import Engine
from bitel.rtp.listener import Listener
from bitel.rtp.reporting import Reporting
from bitel.rtp.wire import End, Play, Redirect


class Callees:
    """The callees that are listened to; false where there are none."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.listener = Listener(self._latch)
        self.reporting = Reporting(engine.progress)

    def __bool__(self) -> bool:
        return len(self.listener) > 0

    def add(self, command: Play) -> None:
        """Attends to the callee of this stream."""
        self.listener.listen(command)
        self.reporting.add(command)

    def expect(self, stream: int, far: tuple[str, int]) -> None:
        """The callee has named another address."""
        self.listener.expect(stream, far)
        self.reporting.redirect(stream, far)

    def attend(self, deadline: float) -> None:
        """Reads and reports, until the deadline where that is possible."""
        self.listener.read(deadline)
        self.reporting.send(deadline)
        self.reporting.read(deadline)

    def complete(self, end: End) -> End:
        """The stream's end, with what was heard of its callee."""
        heard = self.listener.forget(end.stream)
        view = self.reporting.remove(end.stream, end.packets)
        return replace(
            end,
            received=heard.packets,
            silent_for=None if heard.at is None else round(time.monotonic() - heard.at, 3),
            digits=heard.digits,
            far_loss=view.loss,
            far_jitter_ms=view.jitter_ms,
        )

    def _latch(self, stream: int, far: tuple[str, int]) -> None:
        self._engine.redirect(Redirect(stream, *far))
