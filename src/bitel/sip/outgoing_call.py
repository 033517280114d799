"""A call that we place, from its INVITE to the answer (RFC 3261 §13.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitel.sip.ack import Ack
from bitel.sip.authentication import Authentication, is_challenge
from bitel.sip.client_transaction import ClientTransaction
from bitel.sip.core import Core
from bitel.sip.dialog import Dialog
from bitel.sip.digest import Credentials
from bitel.sip.early_dialog import EarlyDialog, rseq_of
from bitel.sip.events import Answered, Failed, Provisional, Why
from bitel.sip.grammar import Address, Transport
from bitel.sip.message import PHRASES, Request, Response, printable
from bitel.sip.reason import q850_cause
from bitel.sip.redirect import redirected_to, retry_after_of
from bitel.sip.requests import ALLOW, SDP_TYPE, ClientRequest, one_line
from bitel.sip.sdp import SdpError, SessionDescription, check_answer
from bitel.sip.server_transaction import ServerTransaction
from bitel.sip.session import Session, StrayBye, send_bye
from bitel.sip.session_timer import MAX_RAISES, min_se_of
from bitel.sip.timers import Timer

UDP = Transport.UDP
MAX_FORKS = 8
"""How many of the phones that a proxy rang at once are dealt with; others are left alone."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """Whom to call, and how.

    `destination` is the next hop, an IP address and port. `offer` is our SDP. `headers` are added
    to the INVITE; a Route among them is followed by its CANCEL and ACK too. `credentials` go to
    `destination` and to the hosts (IP addresses) in `trusted`, and nowhere else. With
    `withhold_ack` the ACK of a usable answer waits for `UserAgent.acknowledge`, or for the BYE.
    """

    request_uri: str
    destination: Address
    from_uri: str
    offer: SessionDescription
    credentials: Credentials | None = None
    trusted: frozenset[str] = frozenset()
    headers: tuple[tuple[str, str], ...] = ()
    display_name: str = ""
    withhold_ack: bool = False


class OutgoingCall:
    """Tells one of `Answered` and `Failed`; an answered call goes on as a `Session`.

    The object outlives that while its transaction lasts, to acknowledge repeated 2xx.
    """

    __slots__ = (
        "_acks",
        "_authentication",
        "_cancel_wanted",
        "_canceled",
        "_core",
        "_cseq",
        "_early",
        "_forget_timer",
        "_from_value",
        "_given_up",
        "_invitation",
        "_last_request",
        "_min_se",
        "_over",
        "_raises",
        "_rang",
        "_routes",
        "_seen_codes",
        "_transaction",
        "call_id",
        "from_tag",
    )

    def __init__(self, core: Core, invitation: Invitation, now: float) -> None:
        for name, value in invitation.headers:
            one_line(name + value)
        self._core = core
        self._invitation = invitation
        self._routes = tuple(v for n, v in invitation.headers if n.lower() == "route")
        self.call_id = f"{core.rng.getrandbits(128):032x}"
        self.from_tag = core.new_token()
        self._from_value = one_line(
            f"{_quoted(invitation.display_name)}<{invitation.from_uri}>;tag={self.from_tag}"
        )
        self._cseq = self._min_se = self._raises = 0
        self._rang = self._cancel_wanted = self._canceled = self._over = self._given_up = False
        self._seen_codes: set[int] = set()
        self._acks: dict[str, Ack] = {}
        self._early: dict[str, EarlyDialog] = {}
        self._forget_timer: Timer | None = None
        self._authentication = (
            Authentication(invitation.credentials) if invitation.credentials else None
        )
        self._last_request: ClientRequest
        self._transaction: ClientTransaction
        one_line(invitation.request_uri)
        core.calls[self.call_id] = self
        self._send_invite(now)

    # What the user asks for

    def cancel(self, now: float) -> None:
        """Call it off. CANCEL waits for a first 1xx (§9.1), and is sent once."""
        if self._over or self._cancel_wanted:
            return
        self._cancel_wanted = True
        if self._seen_codes:
            self._send_cancel(now)

    def give_up(self, now: float) -> bool:
        """Fail as if Timer B had fired, unless anything was answered yet; whether it did.

        The INVITE may have got there all the same. A 1xx that comes late is met with CANCEL, a
        2xx with ACK and BYE.
        """
        if self._over or self._cancel_wanted or self._seen_codes or self._cseq > 1:
            return False
        self._given_up = self._cancel_wanted = True
        self._transaction.stop_repeating()
        self._fail(408, "timeout")
        return True

    def hang_up(self, now: float, q850: int | None) -> None:
        """Before the answer there is only one way to end a call."""
        self.cancel(now)

    # What the far end says

    def receive_request(
        self, request: Request, transaction: ServerTransaction, source: Address, now: float
    ) -> None:
        """Requests in an early dialog: an UPDATE without an offer is harmless, no more is done."""
        if self._over or request.to_tag != self.from_tag or request.method != "UPDATE":
            transaction.respond(481, now)
        elif request.body:
            transaction.respond(491, now)
        else:
            contact = self._core.contact_by(source.transport)
            transaction.respond(200, now, [contact, ("Allow", ALLOW)])

    def receive_ack(self, request: Request, now: float) -> None:
        """Nobody acknowledges anything to a caller before it is in a session."""

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        if transaction.request.method == "CANCEL":
            return
        if response.code < 200:
            if "rseq" in response.headers:
                self._receive_reliable(response, source, now)
            self._receive_provisional(response, now)
        elif response.code < 300:
            self._receive_success(response, source, now)
        elif not self._over:
            self._receive_failure(response, now)
        if self._given_up and response.code >= 200:
            self._core.timers.stop(self._forget_timer)

    def receive_late_success(self, response: Response, source: Address, now: float) -> None:
        """A 2xx after the call was given up: acknowledge it and hang up."""
        if response.from_tag == self.from_tag and response.cseq == self._cseq:
            self._receive_success(response, source, now)

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        # A CANCEL that nobody answers changes nothing: its own wait is running.
        if transaction.request.method == "CANCEL" or (self._over and not self._given_up):
            return
        if self._given_up:
            pass  # told already
        elif self._cancel_wanted:
            self._fail(487, "canceled")
        elif why == "timeout":
            self._fail(408, "timeout")
        else:
            self._fail(503, "transport")
        self._remember(now)

    def timer_fired(self, name: str, now: float) -> None:
        if name == "no answer to CANCEL":
            self._transaction.abandon()
            if not self._over:
                self._fail(487, "canceled")
            self._remember(now)
        else:
            self.forget()

    # Steps

    def _send_invite(self, now: float) -> None:
        invitation, core = self._invitation, self._core
        self._cseq += 1
        headers: tuple[tuple[str, str], ...] = (
            core.contact_by(invitation.destination.transport),
            ("Allow", ALLOW),
            *self._session_timer(),
            core.user_agent,
            SDP_TYPE,
            *(header for header in invitation.headers if header[0].lower() != "route"),
            *self._answers_to_challenges(),
        )
        self._last_request = ClientRequest(
            "INVITE",
            invitation.request_uri,
            core.new_via(invitation.destination.transport),
            self._from_value,
            f"<{invitation.request_uri}>",
            self.call_id,
            self._cseq,
            self._routes,
            headers,
            invitation.offer.to_bytes(),
        )
        self._transaction = ClientTransaction(
            core, self, self._last_request, invitation.destination, now
        )

    def _session_timer(self) -> list[tuple[str, str]]:
        asked = self._core.config.session_expires
        if not asked:
            return [("Supported", "100rel")]
        headers = [
            ("Supported", "100rel, timer"),
            ("Session-Expires", str(max(asked, self._min_se))),
        ]
        return [*headers, ("Min-SE", str(self._min_se))] if self._min_se else headers

    def _answers_to_challenges(self) -> tuple[tuple[str, str], ...]:
        if self._authentication is None:
            return ()
        return self._authentication.headers("INVITE", self._invitation.request_uri)

    def _authentication_in(self, dialog: Dialog) -> Authentication | None:
        """None where the dialog's requests go straight to the callee, who is not to have it."""
        invitation, host = self._invitation, dialog.next_hop.host
        belongs = host == invitation.destination.host or host in invitation.trusted
        return self._authentication if belongs else None

    def _send_cancel(self, now: float) -> None:
        self._canceled = True
        core = self._core
        ClientTransaction(
            core, self, self._transaction.request.cancel(), self._transaction.destination, now
        )
        self._forget_timer = core.timers.start(
            now + core.config.long_wait, self, "no answer to CANCEL"
        )

    def _receive_reliable(self, response: Response, source: Address, now: float) -> None:
        """Acknowledge a response that asks for it, by a PRACK in the dialog that it makes."""
        rseq = rseq_of(response)
        tag = response.to_tag
        if rseq is None or not tag:
            return
        if tag not in self._early and len(self._early) < MAX_FORKS:
            dialog = self._dialog_of(response, source)
            self._early[tag] = EarlyDialog(self._core, dialog, self._authentication_in(dialog))
        if tag in self._early:
            self._early[tag].acknowledge(response, rseq, now)

    def _receive_provisional(self, response: Response, now: float) -> None:
        code = response.code
        if code in self._seen_codes:
            return
        self._seen_codes.add(code)
        self._rang = self._rang or 180 <= code <= 189
        if self._cancel_wanted:
            if not self._canceled:
                self._send_cancel(now)
        elif code > 100:
            answer = _sdp_of(response)
            self._core.events.append(Provisional(self.call_id, code, answer))

    def _receive_success(self, response: Response, source: Address, now: float) -> None:
        known = self._acks.get(response.to_tag)
        if known is not None:
            known.answer_repeated()
            return
        if len(self._acks) >= MAX_FORKS:
            return
        dialog = self._dialog_of(response, source)
        early = self._early.get(response.to_tag)
        if early is not None:
            dialog.local_cseq = early.dialog.local_cseq
        authentication = self._authentication_in(dialog)
        credentials = self._last_request.credentials if authentication else ()
        via = self._core.new_via(dialog.next_hop.transport)
        ack = Ack(self._core, *dialog.ack(self._cseq, via, credentials))
        self._acks[response.to_tag] = ack
        answer = _sdp_of(response)
        if early is not None and not response.body:
            # The answer came before, in a reliable response (RFC 3262 §5).
            answer = early.answer
        if self._over or self._cancel_wanted or not self._is_usable(answer):
            ack.send()
            send_bye(self._core, StrayBye(), dialog, now, None, authentication)
            if not self._over and self._cancel_wanted:
                self._fail(487, "canceled")
            elif not self._over:
                self._fail(488, "media")
        elif answer is not None:
            self._over = True
            if not self._invitation.withhold_ack:
                ack.send()
            session = Session(
                self._core, dialog, self._invitation.offer, answer, authentication, ack
            )
            session.refresh.take_response(response, now)
            self._core.calls[self.call_id] = session
            self._core.events.append(Answered(self.call_id, answer))

    def _dialog_of(self, response: Response, source: Address) -> Dialog:
        wanted = self._invitation.destination
        if wanted.transport is UDP and source.transport is not UDP:
            source = wanted  # only the INVITE was too long for it
        dialog = Dialog.of_caller(self._last_request, response, source)
        # Also where the answer came over a connection of the far end's own.
        dialog.domain = wanted.domain
        return dialog

    def _is_usable(self, answer: SessionDescription | None) -> bool:
        if answer is None:
            return False
        try:
            check_answer(self._invitation.offer, answer)
        except SdpError:
            return False
        return True

    def _raise_session_expires(self, response: Response) -> bool:
        """Take up the Min-SE of a 422 (RFC 4028 §7.3); False where that is of no use."""
        asked = max(self._core.config.session_expires, self._min_se)
        demanded = min_se_of(response)
        if response.code != 422 or not asked or demanded is None or demanded <= asked:
            return False
        self._min_se = demanded
        self._raises += 1
        return self._raises <= MAX_RAISES

    def _receive_failure(self, response: Response, now: float) -> None:
        if self._canceled:
            self._fail(487, "canceled", response)
        elif is_challenge(response.code) and self._authentication is not None:
            if self._cancel_wanted:
                self._fail(487, "canceled", response)
            elif self._authentication.learn(response, self._core.new_token()):
                self._seen_codes.clear()
                self._early.clear()
                self._send_invite(now)
            else:
                self._fail(response.code, "auth", response)
        elif not self._cancel_wanted and self._raise_session_expires(response):
            self._seen_codes.clear()
            self._early.clear()
            self._send_invite(now)
        else:
            self._fail(response.code, "response", response)

    def _fail(self, code: int, why: Why, response: Response | None = None) -> None:
        self._over = True
        self._core.timers.stop(self._forget_timer)
        del self._core.calls[self.call_id]
        cause = q850_cause(response.headers.get("reason", ())) if response else None
        reason = printable(response.reason) if response else PHRASES[code]
        retry_after = retry_after_of(response) if response else None
        contacts = redirected_to(response) if response else ()
        self._core.events.append(
            Failed(self.call_id, code, cause, reason, why, self._rang, retry_after, contacts)
        )

    # A call that was given up may still be answered: it is remembered for a while

    def _remember(self, now: float) -> None:
        core = self._core
        core.remembered[self.call_id] = self
        self._forget_timer = core.timers.start(now + core.config.long_wait, self, "forget")
        if len(core.remembered) > core.config.max_remembered:
            core.remembered[next(iter(core.remembered))].forget()

    def forget(self) -> None:
        """Stop waiting for an answer that comes too late."""
        self._core.timers.stop(self._forget_timer)
        self._core.remembered.pop(self.call_id, None)


def _sdp_of(response: Response) -> SessionDescription | None:
    """The SDP of a response, None where there is none or it can't be read."""
    if not response.body:
        return None
    try:
        return SessionDescription.parse(response.body)
    except SdpError:
        return None


def _quoted(display_name: str) -> str:
    if not display_name:
        return ""
    escaped = display_name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}" '
