"""Observer of calls: sees each SIP message and the call that it belongs to."""

from __future__ import annotations

from typing import Literal, Protocol

from bitel.domain.attempts import AttemptResult, DialRequest
from bitel.sip.grammar import Address


class CallObserver(Protocol):
    """Must be quick, and must not raise: it is called for every message."""

    def invited(self, order: DialRequest, sip_call_id: str) -> None:
        """An INVITE for `order` is about to leave; an attempt may have several."""

    def tap(
        self, direction: Literal["in", "out"], data: bytes, address: Address, at: float, /
    ) -> None:
        """A datagram came or leaves; `at` is in Unix seconds."""

    def over(self, order: DialRequest, attempted: AttemptResult | None) -> None:
        """The attempt has ended; None where it was cancelled.

        One may end without an INVITE: there may have been nothing to play.
        """
