"""Early dialogs of an INVITE client, with PRACK (RFC 3262) and UPDATE (RFC 3311).

Provisional responses to our INVITE create early dialogs (RFC 3261 §12.1). Each has its own answer
to the offer of the INVITE. Reliable responses are acknowledged by PRACK, once and in order. After a
reliable answer the far end may change the media by UPDATE.
"""

from __future__ import annotations

from bitel.sip.auth import Tries
from bitel.sip.body import session_description_of
from bitel.sip.dialog import Dialog
from bitel.sip.message import Response
from bitel.sip.message_writer import ALLOW, CAPABILITIES, SDP_TYPE
from bitel.sip.sdp import Negotiation, SdpError, SessionDescription
from bitel.sip.transaction import Failure, ServerTransaction, TransactionLayer

MAX_RELIABLE = 32
"""How many reliable responses of one phone are acknowledged: each PRACK may be sent 11 times."""


class EarlyDialog:
    """One early dialog: its answer, and the requests within it in both directions."""

    def __init__(self, layer: TransactionLayer, dialog: Dialog, offer: SessionDescription) -> None:
        """`offer` is that of the INVITE."""
        self._layer = layer
        self._last_rseq = self._count = 0
        self._is_complete = False
        self.dialog = dialog
        self.media = Negotiation(offer)
        self.is_updated = False
        """Whether an UPDATE has replaced the answer to the INVITE's offer."""

    @property
    def had_requests(self) -> bool:
        """Whether either side has sent a request in it, so that a CSeq has advanced."""
        return self._count > 0 or self.dialog.remote_cseq is not None

    def take_answer(self, response: Response, *, reliable: bool) -> bool:
        """Take a response's session description as the answer, if it is the first usable one.

        Later ones are ignored (RFC 3261 §13.2.1), except that of the first reliable response, which
        is the answer itself (RFC 3262 §5); those of unreliable responses are a preview of it.
        Returns whether it was taken.
        """
        if self._is_complete or (self.media.agreed is not None and not reliable):
            return False
        media = Negotiation(self.media.local, description_in(response))
        if media.agreed is None:
            return False
        self.media, self._is_complete = media, reliable
        return True

    def acknowledge(self, response: Response, rseq: int, now: float) -> bool:
        """Send PRACK if the response is the first or the next one in order (RFC 3262 §4).

        Returns whether it is. If not, the response must not be processed any further: a repeated
        one has its PRACK, which repeats itself, and one that came before its turn will be repeated.
        """
        if self._count >= MAX_RELIABLE or (self._last_rseq and rseq != self._last_rseq + 1):
            return False
        self._count += 1
        self._last_rseq = rseq
        rack = ("RAck", f"{rseq} {response.cseq} INVITE")
        _Prack(self.dialog, (rack, self._layer.identity.user_agent)).send(now)
        return True

    def receive_request(self, transaction: ServerTransaction, now: float) -> None:
        """Answer UPDATE and OPTIONS; a callee has no use for other requests before its answer."""
        method = transaction.request.method
        if method == "INVITE":
            # Our own is in progress (RFC 3261 §14.2).
            transaction.respond(491, now)
        elif method not in ("UPDATE", "OPTIONS"):
            transaction.respond(481, now)
        elif not self.dialog.accepts(transaction, now):
            return
        elif method == "OPTIONS":
            transaction.respond(200, now, [self.dialog.contact, *CAPABILITIES])
        else:
            self._receive_update(transaction, now)

    def _receive_update(self, transaction: ServerTransaction, now: float) -> None:
        request = transaction.request
        headers = [self.dialog.contact, ("Allow", ALLOW), self._layer.identity.user_agent]
        description = session_description_of(request)
        if not description:
            self.dialog.refresh_target(request)
            transaction.respond(200, now, headers)
            return
        if not self._is_complete:
            # The offer of our INVITE waits for its answer (RFC 3311 §5.2).
            transaction.respond(491, now)
            return
        try:
            answer = self.media.answer(description)
        except SdpError:
            transaction.respond(488, now)
            return
        self.dialog.refresh_target(request)
        self.is_updated = True
        transaction.respond(200, now, [*headers, SDP_TYPE], answer.to_bytes())


class _Prack:
    """The PRACK of one response, sent once more with credentials where those are demanded."""

    def __init__(self, dialog: Dialog, headers: tuple[tuple[str, str], ...]) -> None:
        self._dialog = dialog
        self._headers = headers
        self._tries: Tries = []

    def send(self, now: float) -> None:
        self._dialog.send_request(self, "PRACK", now, self._headers)

    def receive_response(self, response: Response, now: float) -> None:
        """Answer a challenge. Any other response changes nothing: the INVITE's own will come."""
        if self._dialog.can_answer(response, self._tries):
            self.send(now)

    def transaction_failed(self, why: Failure, now: float) -> None:
        """The far end gives its INVITE up by itself when no PRACK comes (RFC 3262 §3)."""


def description_in(response: Response) -> SessionDescription | None:
    """The session description of a response, None where there is none or it can't be read."""
    data = session_description_of(response)
    if not data:
        return None
    try:
        return SessionDescription.parse(data)
    except SdpError:
        return None
