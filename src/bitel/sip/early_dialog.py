"""Early dialogs, created by provisional responses to our INVITE (RFC 3261 §12.1).

Each has its own answer to the offer of the INVITE. Reliable responses are acknowledged by PRACK,
once and in order (RFC 3262). After a reliable answer the far end may change the media by UPDATE
(RFC 3311).
"""

from __future__ import annotations

from typing import Literal

from bitel.sip.authentication import Authentication, Tries, is_challenge
from bitel.sip.body import session_description_of
from bitel.sip.client_transaction import ClientTransaction
from bitel.sip.core import Core
from bitel.sip.dialog import Dialog
from bitel.sip.grammar import Address
from bitel.sip.message import Request, Response
from bitel.sip.requests import ALLOW, CAPABILITIES, SDP_TYPE
from bitel.sip.sdp import (
    NegotiatedMedia,
    SdpError,
    SessionDescription,
    agreement,
    answer_later_offer,
    with_earlier_events,
)
from bitel.sip.server_transaction import ServerTransaction

MAX_RELIABLE = 32
"""How many reliable responses of one phone are acknowledged: each PRACK may be sent 11 times."""
MAX_RSEQ = 2**32


class EarlyDialog:
    """One early dialog: its answer, and the requests within it in both directions."""

    __slots__ = (
        "_authentication",
        "_core",
        "_count",
        "_is_complete",
        "_last_rseq",
        "agreed",
        "answer",
        "dialog",
        "is_updated",
        "local",
    )

    def __init__(
        self,
        core: Core,
        dialog: Dialog,
        authentication: Authentication | None,
        offer: SessionDescription,
    ) -> None:
        """`offer` is that of the INVITE."""
        self._core = core
        self.dialog = dialog
        self._authentication = authentication
        self._last_rseq = 0
        self._count = 0
        self._is_complete = False
        self.local = offer
        """Our last description in this dialog."""
        self.answer: SessionDescription | None = None
        """The far end's current description: its answer, or the offer of a later UPDATE."""
        self.agreed: NegotiatedMedia | None = None
        """What the two agree on; None where there is no answer."""
        self.is_updated = False
        """Whether an UPDATE has replaced the answer to the INVITE's offer."""

    @property
    def had_requests(self) -> bool:
        """Whether either side has sent a request in it, so that a CSeq has advanced."""
        return self._count > 0 or self.dialog.remote_cseq is not None

    def take_answer(self, response: Response, *, reliable: bool = False) -> bool:
        """Take a response's session description as the answer, if it is the first usable one.

        Later ones are ignored (RFC 3261 §13.2.1), except that of the first reliable response, which
        is the answer itself (RFC 3262 §5); those of unreliable responses are a preview of it.
        Returns whether it was taken.
        """
        if self._is_complete or (self.answer is not None and not reliable):
            return False
        answer = description_in(response)
        agreed = agreement(self.local, answer)
        if agreed is None:
            return False
        self.answer, self.agreed, self._is_complete = answer, agreed, reliable
        return True

    def acknowledge(self, response: Response, rseq: int, now: float) -> bool:
        """Send PRACK if the response is the first or the next one in order (RFC 3262 §4).

        Returns whether it is.

        A repeated one is passed over: its PRACK repeats itself. One that came before its turn
        will be repeated by its sender. Neither must be processed any further.
        """
        if self._count >= MAX_RELIABLE or (self._last_rseq and rseq != self._last_rseq + 1):
            return False
        self._count += 1
        self._last_rseq = rseq
        rack = f"{rseq} {response.cseq} INVITE"
        _Prack(self._core, self.dialog, self._authentication, rack).send(now)
        return True

    # Requests of the far end

    def receive_request(
        self, request: Request, transaction: ServerTransaction, source: Address, now: float
    ) -> None:
        """Answer UPDATE and OPTIONS; a callee has no use for other requests before its answer."""
        dialog = self.dialog
        if request.method == "INVITE":
            # Our own is in progress (RFC 3261 §14.2).
            transaction.respond(491, now)
            return
        if request.method not in ("UPDATE", "OPTIONS"):
            transaction.respond(481, now)
            return
        if dialog.remote_cseq is not None and request.cseq < dialog.remote_cseq:
            transaction.respond(500, now, reason="CSeq Out Of Order")
            return
        dialog.remote_cseq = request.cseq
        dialog.received_from(source)
        if request.method == "OPTIONS":
            transaction.respond(200, now, [self._contact(), *CAPABILITIES])
        else:
            self._receive_update(request, transaction, now)

    def _receive_update(self, request: Request, transaction: ServerTransaction, now: float) -> None:
        headers = [self._contact(), ("Allow", ALLOW), self._core.user_agent]
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
            offer, answer, agreed = answer_later_offer(self.local, self.agreed, description)
        except SdpError:
            transaction.respond(488, now)
            return
        self.dialog.refresh_target(request)
        self.local, self.answer = answer, offer
        self.agreed = with_earlier_events(agreed, self.agreed)
        self.is_updated = True
        transaction.respond(200, now, [*headers, SDP_TYPE], answer.to_bytes())

    def _contact(self) -> tuple[str, str]:
        return self._core.contact_by(self.dialog.fallback.transport)


class _Prack:
    """The PRACK of one response, sent once more with credentials where those are demanded."""

    __slots__ = ("_authentication", "_core", "_dialog", "_rack", "_tries")

    def __init__(
        self, core: Core, dialog: Dialog, authentication: Authentication | None, rack: str
    ) -> None:
        self._core = core
        self._dialog = dialog
        self._authentication = authentication
        self._rack = rack
        self._tries = Tries()

    def send(self, now: float) -> None:
        headers = [("RAck", self._rack), self._core.user_agent]
        if self._authentication is not None:
            headers += self._authentication.headers("PRACK", self._dialog.request_uri)
        request, destination = self._dialog.next_request(
            "PRACK", self._core.new_via(self._dialog.next_hop.transport), tuple(headers)
        )
        ClientTransaction(self._core, self, request, destination, now)

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        """Answer a challenge. Any other answer changes nothing: the INVITE's own will come."""
        if not is_challenge(response.code) or self._authentication is None:
            return
        if self._authentication.learn(response, self._core.new_token(), self._tries):
            self.send(now)

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        """The far end gives its INVITE up by itself when no PRACK comes (§3)."""


def description_in(response: Response) -> SessionDescription | None:
    """The session description of a response, None where there is none or it can't be read."""
    data = session_description_of(response)
    if not data:
        return None
    try:
        return SessionDescription.parse(data)
    except SdpError:
        return None


def rseq_of(response: Response) -> int | None:
    """The RSeq of a response that wants a PRACK; None of one that does not (§7.1)."""
    if response.code == 100 or "require" not in response:
        return None
    if "100rel" not in [option.lower() for option in response.values("require")]:
        return None
    text = response.header("rseq")
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    return int(text) if 0 < int(text) < MAX_RSEQ else None
