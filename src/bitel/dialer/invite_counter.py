"""A Watch that counts the INVITEs of one dialer, and passes everything on to another."""

from __future__ import annotations

from bitel.dialer.call_observer import CallObserver
from bitel.domain.attempts import AttemptResult, DialRequest


class InviteCounter:
    """`invites` are those sent, each trunk's that an attempt went to, but not their repetitions."""

    def __init__(self, inner: CallObserver) -> None:
        self.invites = 0
        self.tap = inner.tap
        self._inner = inner

    def invited(self, order: DialRequest, sip_call_id: str) -> None:
        """Count it."""
        self.invites += 1
        self._inner.invited(order, sip_call_id)

    def over(self, order: DialRequest, attempted: AttemptResult | None) -> None:
        """Pass it on."""
        self._inner.over(order, attempted)
