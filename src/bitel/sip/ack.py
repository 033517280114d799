"""The ACK of a 2xx (RFC 3261 §13.2.2.4): the same datagram again for every repeated 2xx."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitel.sip.core import Core
    from bitel.sip.grammar import Address


LOST_AFTER = 16
"""Times T1 after our ACK, at which a 2xx that still comes says that the far end lacks the ACK: its
2xx was repeated four times by then (§13.3.1.4), and each was acknowledged."""


class Ack:
    """An ACK that may be withheld for a while.

    As long as it is, the far end repeats its 2xx, and ends the call by itself after 64*T1
    (§13.3.1.4): the call does not stay up where this process ends meanwhile.
    """

    __slots__ = ("_core", "_data", "_destination", "_sent_at", "invite_cseq", "is_lost")

    def __init__(self, core: Core, invite_cseq: int, data: bytes, destination: Address) -> None:
        self._core = core
        self._data = data
        self._destination = destination
        self._sent_at: float | None = None
        self.invite_cseq = invite_cseq
        self.is_lost = False
        """Whether the 2xx was repeated 16*T1 or more after the ACK had been sent."""

    @property
    def is_withheld(self) -> bool:
        return self._sent_at is None

    def send(self, now: float) -> None:
        """Send it, unless it has been sent."""
        if self._sent_at is None:
            self._sent_at = now
            self._core.send(self._data, self._destination)

    def answer_repeated(self, now: float) -> None:
        """Send it again, as the 2xx came again, unless it is still withheld."""
        if self._sent_at is not None:
            self.is_lost |= now - self._sent_at >= LOST_AFTER * self._core.config.t1
            self._core.retransmissions += 1
            self._core.send(self._data, self._destination)
