"""An answered call, placed or taken: re-INVITE, UPDATE, INFO, BYE."""

from __future__ import annotations

from typing import Literal

from bitel.sip.ack import Ack
from bitel.sip.authentication import Authentication, Tries, is_challenge
from bitel.sip.body import session_description_of, unsupported_body
from bitel.sip.client_transaction import ClientTransaction, ClientUser
from bitel.sip.core import Core
from bitel.sip.dialog import Dialog
from bitel.sip.dtmf_info import DTMF_TYPES, carries_digits, digits_of
from bitel.sip.events import Confirmed, Ended, Ending, KeyedDigits, MediaChanged
from bitel.sip.grammar import Address
from bitel.sip.message import Message, Request, Response
from bitel.sip.reason import q850_cause, q850_reason
from bitel.sip.refresh import SessionRefresh
from bitel.sip.requests import ALLOW, CAPABILITIES, SDP_TYPE
from bitel.sip.sdp import (
    NegotiatedMedia,
    SdpError,
    SessionDescription,
    answer_later_offer,
    audio_names,
    check_answer,
    settled,
    with_earlier_events,
)
from bitel.sip.server_transaction import ServerTransaction, UnacknowledgedAnswer
from bitel.sip.session_timer import MIN_SE, asks_too_little


class Session:
    """Owns the dialog from its 2xx to the end of its BYE, and tells `Ended` exactly once."""

    __slots__ = (
        "_ack",
        "_allow",
        "_bye_answered",
        "_core",
        "_ending",
        "_hang_up_wanted",
        "_offering",
        "_q850",
        "_refresh",
        "_tries",
        "_unacknowledged",
        "_waiting_cseq",
        "agreed",
        "authentication",
        "call_id",
        "dialog",
        "is_confirmed",
        "local",
    )

    def __init__(
        self,
        core: Core,
        dialog: Dialog,
        local: SessionDescription,
        agreed: NegotiatedMedia | None,
        authentication: Authentication | None = None,
        ack: Ack | None = None,
        call_id: str = "",
    ) -> None:
        self._core = core
        self.call_id = call_id or dialog.call_id
        # The caller's ACK; None for who was called.
        self._ack = ack
        self.dialog = dialog
        # Our last description, and what it and the far end's have agreed on; None before that.
        self.local = local
        self.agreed = agreed
        self.authentication = authentication
        # Made when it is first needed, which in many calls is never; until then, the Allow header
        # of the answer is kept for it.
        self._refresh: SessionRefresh | None = None
        self._allow: list[str] = []
        self._unacknowledged: UnacknowledgedAnswer | None = None
        self._waiting_cseq = 0
        self._ending = self._bye_answered = False
        self._tries: Tries | None = None
        self._hang_up_wanted = False
        self._offering = False
        self._q850: int | None = None
        # Only who was called hears that its answer was confirmed, and only of the first one.
        self.is_confirmed = True

    @property
    def is_busy(self) -> bool:
        """Whether an INVITE still waits for its ACK, so that another must not be sent (§14.1)."""
        return self._unacknowledged is not None or (self._ack is not None and self._ack.is_withheld)

    @property
    def refresh(self) -> SessionRefresh:
        """What keeps the session alive."""
        if self._refresh is None:
            self._refresh = SessionRefresh(
                self._core, self, owns_call_id=self._ack is not None, allow=self._allow
            )
        return self._refresh

    @property
    def local_tag(self) -> str:
        return self.dialog.local_tag

    @property
    def named_hosts(self) -> frozenset[str]:
        return self.dialog.named_hosts

    def matches(self, request: Request) -> bool:
        return self.dialog.matches(request)

    def begin(self, response: Response, now: float) -> None:
        """Follow what the 2xx that made the session says about its timer."""
        self._allow = response.lines("allow")
        if "session-expires" in response:
            self.refresh.take_response(response, now)

    # What the user asks for

    def acknowledge(self, now: float) -> None:
        """Send the ACK of the answer, if it was withheld until now."""
        if self._ack is not None:
            self._ack.send(now)

    def hang_up(self, now: float, q850: int | None) -> None:
        """Send BYE; a callee's waits until its 2xx has been acknowledged (§15)."""
        if self._ending or self._hang_up_wanted:
            return
        self._q850 = q850
        if self._unacknowledged is not None and not self.is_confirmed:
            self._hang_up_wanted = True
            return
        self._say_bye(now)

    def expire(self, now: float, q850: int) -> None:
        """End a session that was not refreshed, and report that with `Ending` (RFC 4028 §10)."""
        if not self._ending and not self._hang_up_wanted:
            self._core.events.append(Ending(self.call_id))
            self.hang_up(now, q850)

    def _say_bye(self, now: float) -> None:
        self._ending = True
        if self._refresh is not None:
            self._refresh.stop()
        self.acknowledge(now)
        if self._unacknowledged is not None:
            self._unacknowledged.stop()
            self._unacknowledged = None
        self._tries = Tries()
        self._send_bye(now)

    def answer_invite(
        self,
        transaction: ServerTransaction,
        body: SessionDescription,
        now: float,
        *,
        offering: bool = False,
    ) -> None:
        """Accept an INVITE with 200, repeated until its ACK comes.

        `body` is our answer or, where the INVITE came without an offer, our offer (`offering`).
        """
        self.local = body
        self._offering = offering
        if self._unacknowledged is not None:
            self._unacknowledged.stop()
        headers = [*self._headers(transaction.request, now), SDP_TYPE]
        data = transaction.respond(200, now, headers, body.to_bytes())
        self._waiting_cseq = transaction.request.cseq
        self._unacknowledged = UnacknowledgedAnswer(
            self._core, self, data, transaction.destination, now
        )

    # What the far end asks for

    def receive_request(
        self, request: Request, transaction: ServerTransaction, source: Address, now: float
    ) -> None:
        dialog = self.dialog
        if dialog.remote_cseq is not None and request.cseq < dialog.remote_cseq:
            transaction.respond(500, now, reason="CSeq Out Of Order")
            return
        dialog.remote_cseq = request.cseq
        dialog.received_from(source)
        if request.method == "BYE":
            self._receive_bye(request, transaction, now)
        elif self._ending or request.method == "PRACK":
            transaction.respond(481, now)
        elif request.method in ("INVITE", "UPDATE"):
            self._receive_offer(request, transaction, now)
        elif request.method == "OPTIONS":
            transaction.respond(200, now, [self._contact(), *CAPABILITIES])
        elif request.method == "INFO":
            self._receive_info(request, transaction, now)
        else:
            transaction.respond(405, now, [("Allow", ALLOW)])

    def receive_ack(self, request: Request, now: float) -> None:
        waiting = self._unacknowledged
        if waiting is None or request.cseq != self._waiting_cseq:
            return
        waiting.stop()
        self._unacknowledged = None
        if self._offering:
            self._offering = False
            self.take_answer(request)
        self._report_confirmed()
        if self._hang_up_wanted:
            self._say_bye(now)

    def ack_missing(self, now: float) -> None:
        """Our 2xx was not acknowledged: the session ends with BYE (§13.3.1.4)."""
        self._unacknowledged = None
        self._say_bye(now)

    def _receive_bye(self, request: Request, transaction: ServerTransaction, now: float) -> None:
        self.acknowledge(now)  # a 2xx gets its ACK even where the BYE comes first (§13.2.2.4)
        transaction.respond(200, now)
        self._end("us" if self._ending else "far", q850_cause(request.lines("reason")))

    def _receive_info(self, request: Request, transaction: ServerTransaction, now: float) -> None:
        """Take keyed digits; accept any other INFO that requires nothing of us (RFC 6086 §4.2.2).

        A DTMF body without a readable digit is refused with 400, so that its sender does not take
        the key as received.
        """
        if request.header("info-package"):
            transaction.respond(469, now, [("Recv-Info", "")])
        elif carries_digits(request):
            digits = digits_of(request)
            transaction.respond(200 if digits else 400, now)
            if digits:
                self._core.events.append(KeyedDigits(self.call_id, digits))
        elif unsupported_body(request):
            transaction.respond(415, now, [("Accept", ", ".join(DTMF_TYPES))])
        else:
            transaction.respond(200, now)

    def receive_late_success(self, response: Response, source: Address, now: float) -> None:
        """Take a 2xx to the INVITE of this session whose transaction is over (§13.2.2.4).

        A repeated one is acknowledged again; the dialog of another fork is ended.
        """
        ack = self._ack
        if ack is None or response.cseq != ack.invite_cseq:
            return
        if response.to_tag == self.dialog.remote_tag:
            ack.answer_repeated(now)
        else:
            end_unwanted(self._core, self.dialog.fork(response, source), ack.invite_cseq)

    def end_by_far(self, now: float) -> None:
        """End the session because its BYE came before the 2xx."""
        self.acknowledge(now)
        self._end("far", None)

    def _receive_offer(self, request: Request, transaction: ServerTransaction, now: float) -> None:
        """Answer a re-INVITE or UPDATE (§14.2, RFC 3311)."""
        description = session_description_of(request)
        inviting = self._refresh is not None and self._refresh.inviting
        # Our own offer still waits for its answer, in the response to our re-INVITE or in the ACK
        # of our 2xx, so that a second one must be refused (RFC 3264 §4, RFC 3311 §5.2).
        if (inviting or self._offering) and (request.method == "INVITE" or description):
            transaction.respond(491, now)
            return
        if asks_too_little(request):
            transaction.respond(422, now, [("Min-SE", str(MIN_SE))])
            return
        if request.method == "UPDATE" and not description:
            self.dialog.refresh_target(request)
            transaction.respond(200, now, self._headers(request, now))
            return
        if not description:
            # The far end asks for our offer. Its answer comes with the ACK.
            self.dialog.refresh_target(request)
            self.answer_invite(transaction, self._offer_again(), now, offering=True)
            return
        try:
            _, answer, agreed = answer_later_offer(self.local, self.agreed, description)
        except SdpError:
            transaction.respond(488, now)
            return
        self.dialog.refresh_target(request)
        if request.method == "INVITE":
            self.answer_invite(transaction, answer, now)
        else:
            self.local = answer
            headers = [*self._headers(request, now), SDP_TYPE]
            transaction.respond(200, now, headers, answer.to_bytes())
        self._agree(agreed)

    def _offer_again(self) -> SessionDescription:
        """Our offer in a running call: sendrecv again, whichever side held it (§14.2)."""
        offer = settled(self.local, self.agreed)
        if offer.direction == "sendrecv":
            return offer
        return offer._replace(direction="sendrecv", version=self.local.version + 1)

    def take_answer(self, message: Message) -> None:
        """Take the answer to an offer of ours, which was what had been agreed before."""
        try:
            answer = SessionDescription.parse(
                session_description_of(message), audio_names(self.local.codecs)
            )
            agreed = check_answer(self.local, answer)
        except SdpError:
            return
        self._agree(agreed)

    def _agree(self, agreed: NegotiatedMedia) -> None:
        """Take what a later offer and its answer agree on, and report a change."""
        agreed = with_earlier_events(agreed, self.agreed)
        if agreed != self.agreed:
            self.agreed = agreed
            self._core.events.append(MediaChanged(self.call_id, agreed))

    def _contact(self) -> tuple[str, str]:
        return self._core.contact_by(self.dialog.fallback.transport)

    def _headers(self, request: Request, now: float) -> list[tuple[str, str]]:
        about_us = [self._contact(), ("Allow", ALLOW), self._core.user_agent]
        return about_us + self.refresh.answer_headers(request, now)

    # Our BYE

    def _send_bye(self, now: float) -> None:
        send_bye(self._core, self, self.dialog, now, self._q850, self.authentication)

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        self._bye_answered = True
        if response.code < 200:
            return
        try:
            if is_challenge(response.code) and self.authentication is not None and self._tries:
                cnonce = self._core.new_token()
                if self.authentication.learn(response, cnonce, self._tries):
                    self._send_bye(now)
                    return
        except Exception:
            self._end("us", self._q850)
            raise
        self._end("us", self._q850)

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        self._end("us", self._q850, bye_unanswered=not self._bye_answered)

    def _report_confirmed(self) -> None:
        if not self.is_confirmed:
            self.is_confirmed = True
            self._core.events.append(Confirmed(self.call_id))

    def _end(
        self, by: Literal["far", "us"], q850: int | None, *, bye_unanswered: bool = False
    ) -> None:
        if self._core.calls.get(self.call_id) is not self:
            return
        self._core.remove_call(self)
        self._ending = True
        if self._refresh is not None:
            self._refresh.forget()
        if self._unacknowledged is not None:
            self._unacknowledged.stop()
            self._unacknowledged = None
        ack_lost = self._ack is not None and self._ack.is_lost
        unfollowed = self.dialog.unfollowed
        self._core.events.append(
            Ended(self.call_id, by, q850, bye_unanswered, ack_lost, unfollowed)
        )


def send_bye(
    core: Core,
    user: ClientUser,
    dialog: Dialog,
    now: float,
    q850: int | None,
    authentication: Authentication | None,
) -> None:
    """End a dialog; `user` hears how that is answered."""
    usual = core.user_agent_line
    if q850 is not None:
        usual += f"Reason: {q850_reason(q850)}\r\n"
    headers = authentication.headers("BYE", dialog.request_uri) if authentication else ()
    via = core.new_via(dialog.next_hop.transport)
    request, destination = dialog.next_request("BYE", via, headers, usual=usual)
    ClientTransaction(core, user, request, destination, now)


def end_unwanted(core: Core, dialog: Dialog, invite_cseq: int) -> None:
    """Acknowledge and end a dialog without keeping state; repeated with each repeated 2xx."""
    core.send(*dialog.ack(invite_cseq, core.new_via(dialog.next_hop.transport), ()))
    via = core.new_via(dialog.next_hop.transport)
    request, destination = dialog.next_request("BYE", via, (), usual=core.user_agent_line)
    core.send(request.to_bytes(), destination)
