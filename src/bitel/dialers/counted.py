"""A Watch that counts the INVITEs of one dialer, and passes everything on to another."""

from __future__ import annotations

from typing import Literal

from bitel.calls.outcome import Attempted
from bitel.dialers.watch import Watch
from bitel.dialing.dialer import Order
from bitel.sip.grammar import Address


class Counted:
    """`invites` are those sent, each trunk's that an attempt went to, but not their repetitions."""

    def __init__(self, inner: Watch) -> None:
        self.invites = 0
        self._inner = inner

    def invited(self, order: Order, sip_call_id: str) -> None:
        """Count it."""
        self.invites += 1
        self._inner.invited(order, sip_call_id)

    def tap(
        self, direction: Literal["in", "out"], data: bytes, address: Address, at: float
    ) -> None:
        """Pass it on."""
        self._inner.tap(direction, data, address, at)

    def over(self, order: Order, attempted: Attempted | None) -> None:
        """Pass it on."""
        self._inner.over(order, attempted)
