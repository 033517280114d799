"""A Watch that counts the INVITEs of one dialer, and passes everything on to another."""

from __future__ import annotations

from bitel.calls.outcome import Attempted
from bitel.dialers.watch import Watch
from bitel.dialing.dialer import Order


class Counted:
    """`invites` are those sent, each trunk's that an attempt went to, but not their repetitions."""

    def __init__(self, inner: Watch) -> None:
        self.invites = 0
        self.tap = inner.tap
        self._inner = inner

    def invited(self, order: Order, sip_call_id: str) -> None:
        """Count it."""
        self.invites += 1
        self._inner.invited(order, sip_call_id)

    def over(self, order: Order, attempted: Attempted | None) -> None:
        """Pass it on."""
        self._inner.over(order, attempted)
