"""The ACK of a 2xx (RFC 3261 §13.2.2.4): the same datagram again for every repeated 2xx."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitel.sip.core import Core
    from bitel.sip.grammar import Address


LOST_AFTER = 16
"""In units of T1: a 2xx that is repeated this long after our ACK shows that the far end does not
get the ACK. By then the 2xx has come four times more (§13.3.1.4), each time acknowledged."""


class Ack:
    """An ACK that may be withheld for a while.

    Meanwhile the far end repeats its 2xx, and ends the call after 64*T1 (§13.3.1.4). So the call
    does not stay up if this process ends before it sends the ACK.
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
        """Acknowledge a repeated 2xx, unless the ACK is still withheld."""
        if self._sent_at is not None:
            self.is_lost |= now - self._sent_at >= LOST_AFTER * self._core.config.t1
            self._core.retransmissions += 1
            self._core.send(self._data, self._destination)
