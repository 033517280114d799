"""The ACK of a 2xx (RFC 3261 §13.2.2.4): the same datagram again for every repeated 2xx."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitel.sip.core import Core
    from bitel.sip.grammar import Address


class Ack:
    """An ACK that may be held back for a while.

    As long as it is, the far end repeats its 2xx, and it gives the call up by itself after 64·T1
    (§13.3.1.4): a caller that dies meanwhile leaves nobody behind on a line that stays open.
    """

    __slots__ = ("_core", "_data", "_destination", "_sent")

    def __init__(self, core: Core, data: bytes, destination: Address) -> None:
        self._core = core
        self._data = data
        self._destination = destination
        self._sent = False

    @property
    def held_back(self) -> bool:
        return not self._sent

    def send(self) -> None:
        """Send it, unless it has been sent."""
        if not self._sent:
            self._sent = True
            self._core.send(self._data, self._destination)

    def answer_repeated(self) -> None:
        """The 2xx came again: so does the ACK, if it was not still held back."""
        if self._sent:
            self._core.retransmissions += 1
            self._core.send(self._data, self._destination)
