"""A call that we place, from its INVITE to the answer (RFC 3261 §13.2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from bitel.sip.answers import MAX_FORKS, Answers, belongs, dialog_of
from bitel.sip.authentication import Authentication, Tries, is_challenge
from bitel.sip.client_transaction import ClientTransaction
from bitel.sip.core import Core
from bitel.sip.digest import Credentials
from bitel.sip.early_dialog import EarlyDialog, description_in, rseq_of
from bitel.sip.events import Answered, Failed, Provisional, Why
from bitel.sip.grammar import Address
from bitel.sip.message import PHRASES, Request, Response, printable
from bitel.sip.reason import names_analytics, q850_cause
from bitel.sip.redirect import redirected_to, retry_after_of
from bitel.sip.requests import SDP_TYPE_LINE, RequestTemplate, one_line
from bitel.sip.sdp import NegotiatedMedia, SessionDescription, agreement
from bitel.sip.server_transaction import ServerTransaction
from bitel.sip.session import Session
from bitel.sip.session_timer import MAX_RAISES, min_se_of, timer_lines
from bitel.sip.timers import Timer


class Invitation(NamedTuple):
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

    What follows on its INVITE after that is left to `Answers`.
    """

    __slots__ = (
        "_answers",
        "_authentication",
        "_bye_from",
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
        "_own_headers",
        "_progress_since",
        "_raises",
        "_rang",
        "_reported_codes",
        "_routes",
        "_seen_codes",
        "_silenced",
        "_transaction",
        "_tries",
        "call_id",
        "from_tag",
    )

    def __init__(self, core: Core, invitation: Invitation, now: float) -> None:
        one_line(invitation.request_uri)
        for name, value in invitation.headers:
            one_line(name + value)
        self._core = core
        self._invitation = invitation
        self._routes = tuple([v for n, v in invitation.headers if n.lower() == "route"])
        self.call_id = core.new_call_id()
        self.from_tag = core.new_token()
        self._own_headers = invitation.headers
        if self._routes:
            self._own_headers = tuple(
                [header for header in invitation.headers if header[0].lower() != "route"]
            )
        self._from_value = one_line(
            f"{_quoted(invitation.display_name)}<{invitation.from_uri}>;tag={self.from_tag}"
        )
        self._cseq = self._min_se = self._raises = 0
        self._rang = self._cancel_wanted = self._canceled = self._over = self._given_up = False
        self._silenced = False
        # All provisional codes of this INVITE, and those that were reported by an event.
        self._seen_codes: tuple[int, ...] = ()
        self._reported_codes: tuple[int, ...] = ()
        # The tags of phones whose BYE came before their 2xx.
        self._bye_from: tuple[str, ...] = ()
        self._tries = Tries()
        self._progress_since: float | None = None
        self._answers: Answers | None = None
        self._early: dict[str, EarlyDialog] = {}
        self._forget_timer: Timer | None = None
        self._authentication = (
            Authentication(invitation.credentials) if invitation.credentials else None
        )
        self._last_request: RequestTemplate
        self._transaction: ClientTransaction
        # Raises if the INVITE can't be serialised; the call is then not registered.
        self._send_invite(now)
        core.calls[self.call_id] = self

    @property
    def local_tag(self) -> str:
        return self.from_tag

    @property
    def named_hosts(self) -> frozenset[str]:
        named = {self._invitation.destination.host}
        return frozenset(named.union(*(each.dialog.named_hosts for each in self._early.values())))

    def matches(self, request: Request) -> bool:
        return request.to_tag == self.from_tag

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
        if self._transaction.delivered:
            return False
        self._given_up = self._cancel_wanted = True
        self._transaction.give_up(now)
        self._fail(408, "timeout", now)
        return True

    def stop_repeating(self) -> None:
        """Send no INVITE any more, neither again nor with credentials; do wait for an answer."""
        self._silenced = True
        if not self._over and not self._seen_codes:
            self._transaction.stop_repeating()

    def hang_up(self, now: float, q850: int | None) -> None:
        """Before the answer there is only one way to end a call."""
        self.cancel(now)

    # What the far end says

    def receive_request(
        self, request: Request, transaction: ServerTransaction, source: Address, now: float
    ) -> None:
        """Answer a request in the early dialog that its From tag names.

        A BYE of the callee has overtaken its 2xx: the session ends as soon as that arrives.
        """
        if request.method == "BYE" and len(self._bye_from) < MAX_FORKS:
            self._bye_from += (request.from_tag,)
        early = self._early.get(request.from_tag)
        if self._over or early is None:
            transaction.respond(481, now)
        else:
            early.receive_request(request, transaction, source, now)

    def receive_ack(self, request: Request, now: float) -> None:
        """Ignore it: before the answer a caller gets no ACK."""

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        if transaction.request.method == "CANCEL":
            return
        try:
            self._take_response(response, source, now)
        except Exception:
            # The transaction is over, so that nothing else would end the call.
            if response.code >= 200 and not self._over:
                self._fail(response.code if response.code >= 300 else 488, "response", now)
            raise
        if self._given_up and response.code >= 200:
            self._core.timers.stop(self._forget_timer)

    def _take_response(self, response: Response, source: Address, now: float) -> None:
        if response.code < 200:
            in_turn, answer = self._receive_early(response, source, now)
            self._receive_provisional(response, answer, now, in_turn=in_turn)
        elif response.code < 300:
            self._receive_success(response, source, now)
        elif not self._over:
            self._receive_failure(response, now)

    def receive_late_success(self, response: Response, source: Address, now: float) -> None:
        """A 2xx after the call was given up: acknowledge it and hang up."""
        if response.from_tag == self.from_tag and response.cseq == self._cseq:
            self._receive_success(response, source, now)

    def receive_late_provisional(self, response: Response, source: Address, now: float) -> None:
        """A 1xx after the call was given up: a phone may ring, and is stopped by a CANCEL (§9.1).

        The INVITE's transaction continues for that, until its final response.
        """
        transaction = self._transaction
        if self._canceled or response.from_tag != self.from_tag:
            return
        if transaction.key != (response.branch, "INVITE"):
            return
        self.forget()
        self._given_up = self._cancel_wanted = True
        transaction.resume(self)
        self.receive_response(transaction, response, source, now)

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        # A CANCEL without a response changes nothing: its own timer is running.
        if transaction.request.method == "CANCEL" or (self._over and not self._given_up):
            return
        if self._given_up:
            pass  # reported already
        elif self._cancel_wanted:
            self._fail(487, "canceled", now)
        elif why == "timeout":
            self._fail(408, "timeout", now)
        else:
            self._fail(503, "transport", now)
        self._remember(now)

    def timer_fired(self, name: str, now: float) -> None:
        if name == "no answer to CANCEL":
            self._transaction.abandon()
            if not self._over:
                self._fail(487, "canceled", now)
            self._remember(now)
        else:
            self.forget()

    # Steps

    def _send_invite(self, now: float) -> None:
        invitation, core = self._invitation, self._core
        self._cseq += 1
        transport = invitation.destination.transport
        self._last_request = RequestTemplate(
            "INVITE",
            invitation.request_uri,
            core.new_via(transport),
            self._from_value,
            f"<{invitation.request_uri}>",
            self.call_id,
            self._cseq,
            self._routes,
            self._own_headers + self._answers_to_challenges(),
            invitation.offer.to_bytes(),
            core.lines_about_us(transport)
            + timer_lines(core.config.session_expires, self._min_se)
            + SDP_TYPE_LINE,
        )
        self._transaction = ClientTransaction(
            core, self, self._last_request, invitation.destination, now
        )

    def _answers_to_challenges(self) -> tuple[tuple[str, str], ...]:
        if self._authentication is None:
            return ()
        return self._authentication.headers("INVITE", self._invitation.request_uri)

    def _send_cancel(self, now: float) -> None:
        self._canceled = True
        core = self._core
        ClientTransaction(
            core, self, self._transaction.request.cancel(), self._transaction.destination, now
        )
        self._forget_timer = core.timers.start(
            now, core.config.long_wait, self, "no answer to CANCEL"
        )

    def _receive_early(
        self, response: Response, source: Address, now: float
    ) -> tuple[bool, SessionDescription | None]:
        """Take a provisional response in the early dialog that it makes or belongs to.

        A reliable one is acknowledged by PRACK. Returns whether it is in order (a repeated or early
        one is ignored: RFC 3262 §4), and the answer to our offer if it is the first to carry one.
        """
        if response.code == 100:
            return True, None
        rseq = rseq_of(response) if "rseq" in response else None
        tag = response.to_tag
        if rseq is not None and not tag:
            return True, None
        early = self._early.get(tag)
        if early is None:
            if len(self._early) >= MAX_FORKS:
                return True, None
            invitation = self._invitation
            dialog = dialog_of(
                self._core, self._last_request, invitation.destination, response, source
            )
            proves = belongs(dialog, invitation.destination, invitation.trusted)
            early = self._early[tag] = EarlyDialog(
                self._core, dialog, self._authentication if proves else None, invitation.offer
            )
        if rseq is not None and not early.acknowledge(response, rseq, now):
            return False, None
        is_answer = early.take_answer(response, reliable=rseq is not None)
        return True, early.answer if is_answer else None

    def _receive_provisional(
        self, response: Response, answer: SessionDescription | None, now: float, *, in_turn: bool
    ) -> None:
        """Note a 1xx, and report it if it is new or carries the answer.

        Of one out of order only the code counts: the INVITE has arrived, so that CANCEL may be
        sent, and after an 18x a phone may be ringing.
        """
        code = response.code
        if code not in self._seen_codes:
            rings = 180 <= code <= 189
            if not rings and all(180 <= seen <= 189 for seen in self._seen_codes):
                self._progress_since = now
            self._seen_codes += (code,)
            self._rang = self._rang or rings
        if self._cancel_wanted:
            if not self._canceled:
                self._send_cancel(now)
        elif code > 100 and in_turn and (answer or code not in self._reported_codes):
            if code not in self._reported_codes:
                self._reported_codes += (code,)
            self._core.events.append(Provisional(self.call_id, code, answer))

    def _receive_success(self, response: Response, source: Address, now: float) -> None:
        answers = self._answers or self._begin_answers()
        if self._over or self._cancel_wanted:
            answers.refuse(response, source, now)
            if not self._over:
                self._fail(487, "canceled", now)
            return
        taken = answers.take(response, source, now)
        if taken is None:
            return
        local, answer, agreed = self._media_of(response)
        if answer is None or agreed is None:
            answers.hang_up(taken, now)
            self._fail(488, "media", now)
            return
        self._over = True
        dialog, ack, authentication = taken
        if not self._invitation.withhold_ack:
            ack.send(now)
        session = Session(self._core, dialog, local, agreed, authentication, ack)
        session.begin(response, now)
        self._core.calls[self.call_id] = session
        self._core.events.append(Answered(self.call_id, answer, agreed))
        if response.to_tag in self._bye_from:
            session.end_by_far(now)

    def _begin_answers(self) -> Answers:
        """From the first 2xx on, the transaction holds nothing of this call, its offer and all."""
        invitation = self._invitation
        self._answers = Answers(
            self._core,
            self._last_request,
            invitation.destination,
            invitation.trusted,
            self._authentication,
            {tag: early for tag, early in self._early.items() if early.had_requests},
        )
        self._transaction.hand_over(self._answers, self._answers.request)
        return self._answers

    def _media_of(
        self, response: Response
    ) -> tuple[SessionDescription, SessionDescription | None, NegotiatedMedia | None]:
        """Our description, the far end's, and what they agree on, in the dialog of a 2xx.

        If the 2xx has none, the answer is that of an earlier provisional response with the same To
        tag (RFC 3261 §13.2.1, RFC 3262 §5). After an UPDATE, that of the 2xx is ignored (RFC 3311
        §5.2).
        """
        early = self._early.get(response.to_tag)
        if early is not None and early.is_updated:
            return early.local, early.answer, early.agreed
        offer, answer = self._invitation.offer, description_in(response)
        if answer is None and early is not None:
            return offer, early.answer, early.agreed
        return offer, answer, agreement(offer, answer)

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
            self._fail(487, "canceled", now, response)
        elif self._rang:
            # The phone has rung: even a corrected INVITE would ring it a second time.
            asked = self._authentication is not None and is_challenge(response.code)
            self._fail(response.code, "auth" if asked else "response", now, response)
        elif is_challenge(response.code) and self._authentication is not None:
            if self._cancel_wanted:
                self._fail(487, "canceled", now, response)
            elif self._authentication.learn(response, self._core.new_token(), self._tries):
                self._send_another_invite(now)
            else:
                self._fail(response.code, "auth", now, response)
        elif not self._cancel_wanted and self._raise_session_expires(response):
            self._send_another_invite(now)
        else:
            self._fail(response.code, "response", now, response)

    def _send_another_invite(self, now: float) -> None:
        if self._silenced:
            self._fail(408, "timeout", now)
            return
        self._seen_codes = self._reported_codes = ()
        self._early.clear()
        self._send_invite(now)

    def _fail(self, code: int, why: Why, now: float, response: Response | None = None) -> None:
        self._over = True
        self._core.timers.stop(self._forget_timer)
        self._core.remove_call(self)
        cause = q850_cause(response.lines("reason")) if response else None
        reason = printable(response.reason) if response else PHRASES[code]
        retry_after = retry_after_of(response) if response else None
        contacts = redirected_to(response) if response else ()
        since = self._progress_since
        analytics = response is not None and names_analytics(response.lines("reason"))
        self._core.events.append(
            Failed(
                self.call_id,
                code,
                cause,
                reason,
                why,
                self._rang,
                retry_after,
                contacts,
                progress_for=None if since is None else now - since,
                delivered=self._transaction.delivered,
                analytics=analytics,
                udp_untried=response is None
                and not self._seen_codes
                and self._transaction.udp_untried,
            )
        )

    # A call that was given up may still be answered: it is remembered for a while

    def _remember(self, now: float) -> None:
        core = self._core
        core.remembered[self.call_id] = self
        self._forget_timer = core.timers.start(now, core.config.long_wait, self, "forget")
        if len(core.remembered) > core.config.max_remembered:
            core.remembered[next(iter(core.remembered))].forget()

    def forget(self) -> None:
        """Stop waiting for an answer that comes too late."""
        self._core.timers.stop(self._forget_timer)
        self._core.remembered.pop(self.call_id, None)


def _quoted(display_name: str) -> str:
    if not display_name:
        return ""
    escaped = display_name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}" '
