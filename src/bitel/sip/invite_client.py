"""An outgoing call up to its answer: INVITE, forks, early dialogs (RFC 3261 §13.2).

Each provisional response with a new To tag creates an early dialog (§12.1), which has its own
answer to the offer. Reliable responses are acknowledged by PRACK (RFC 3262), once and in order.
After a reliable answer the remote may change the media by UPDATE (RFC 3311).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from bitel.sip.auth import Authentication, Credentials, Tries, is_challenge
from bitel.sip.body import session_description_of
from bitel.sip.dialog import Ack, Dialog
from bitel.sip.events import Answered, Failed, Provisional, Why
from bitel.sip.grammar import Address, quoted
from bitel.sip.headers import (
    min_se_of,
    names_analytics,
    q850_cause,
    redirected_to,
    retry_after_of,
    rseq_of,
    session_timer_headers,
)
from bitel.sip.invite_dialog import Call, CallTable, InviteDialog
from bitel.sip.message import (
    ALLOW,
    CAPABILITIES,
    PHRASES,
    SDP_TYPE,
    Headers,
    Request,
    RequestTemplate,
    Response,
    lines_of,
    one_line,
    printable,
    split_routes,
)
from bitel.sip.sdp import Negotiation, SdpError, SessionDescription
from bitel.sip.session_timer import MAX_RAISES
from bitel.sip.timers import Timer
from bitel.sip.transaction import (
    FAILURE_CODES,
    NULL_USER,
    ClientTransaction,
    Failure,
    ServerTransaction,
    TransactionLayer,
)

MAX_FORKS = 8
"""Forks of one INVITE with state; the 2xx of a further one gets a stateless ACK and BYE."""


class Invitation(NamedTuple):
    """The parameters of an outgoing call.

    `destination` is the next hop. `offer` is our SDP. `headers` are added to the INVITE; a Route
    among them also applies to its CANCEL and ACK. `credentials` are sent only to `destination` and
    to the IP addresses in `trusted`. With `withhold_ack` the ACK of a usable answer waits for
    `UserAgent.acknowledge` or for the BYE.
    """

    request_uri: str
    destination: Address
    from_uri: str
    offer: SessionDescription
    credentials: Credentials | None = None
    trusted: frozenset[str] = frozenset()
    headers: Headers = ()
    display_name: str = ""
    withhold_ack: bool = False


@lru_cache(maxsize=64)
def _common_lines(
    contact: tuple[str, str], user_agent: tuple[str, str], session_expires: int, min_se: int
) -> str:
    """The header lines that INVITEs share. Cached: it is 4 % of the cost of a call."""
    timer = session_timer_headers(session_expires, min_se)
    return lines_of((contact, ("Allow", ALLOW), user_agent, *timer, SDP_TYPE))


class InviteClient(Call):
    """An unanswered outgoing call. Reports either `Answered` or `Failed`.

    An answered call continues as an `InviteDialog`; `InviteAnswers` handles further 2xx.

    Raises ValueError if a text of the invitation has a line break or can't be encoded.
    """

    def __init__(
        self, layer: TransactionLayer, calls: CallTable, invitation: Invitation, now: float
    ) -> None:
        one_line(invitation.request_uri)
        for name, value in invitation.headers:
            one_line(name + value)
        self._layer = layer
        self._calls = calls
        self._invitation = invitation
        self.call_id = layer.new_call_id()
        self.local_tag = layer.new_tag()
        name = f"{quoted(invitation.display_name)} " if invitation.display_name else ""
        self._from_value = one_line(f"{name}<{invitation.from_uri}>;tag={self.local_tag}")
        self._cseq = self._min_se = self._raises = 0
        self._rang = self._is_over = self._is_given_up = False
        self._cancel_wanted = self._is_canceled = self._is_silenced = False
        # Provisional codes of this INVITE: received, and reported by an event.
        self._seen_codes: tuple[int, ...] = ()
        self._reported_codes: tuple[int, ...] = ()
        # Tags of forks whose BYE came before their 2xx.
        self._bye_from: tuple[str, ...] = ()
        self._progress_since: float | None = None
        self._early: dict[str, EarlyDialog] = {}
        self._answers: InviteAnswers | None = None
        self._cancel_timer: Timer | None = None
        self._tries: Tries = []
        self._authentication = Authentication.of(invitation.credentials, layer.new_tag)
        # Raises if the INVITE can't be serialised; the call is then not registered.
        self._send_invite(now)
        calls.put(self)

    @property
    def named_hosts(self) -> frozenset[str]:
        """See `Call.named_hosts`."""
        named = {self._invitation.destination.host}
        return frozenset(named.union(*(each.dialog.named_hosts for each in self._early.values())))

    def matches(self, request: Request) -> bool:
        """See `Call.matches`."""
        return request.to_tag == self.local_tag

    def _send_invite(self, now: float) -> None:
        invitation, layer = self._invitation, self._layer
        transport = invitation.destination.transport
        routes, others = split_routes(invitation.headers)
        headers = tuple(others)
        if self._authentication is not None:
            headers += self._authentication.headers("INVITE", invitation.request_uri)
        self._cseq += 1
        self._request = RequestTemplate(
            "INVITE",
            invitation.request_uri,
            layer.new_via(transport),
            self._from_value,
            f"<{invitation.request_uri}>",
            self.call_id,
            self._cseq,
            routes,
            headers,
            invitation.offer.to_bytes(),
            _common_lines(
                layer.identity.contact[transport],
                layer.identity.user_agent,
                layer.config.session_expires,
                self._min_se,
            ),
        )
        self._transaction = ClientTransaction(
            layer, self, self._request, invitation.destination, now
        )

    # Called by the user agent

    def cancel(self, now: float) -> None:
        """Send CANCEL once, after the first 1xx (§9.1)."""
        if self._is_over or self._cancel_wanted:
            return
        self._cancel_wanted = True
        if self._seen_codes:
            self._send_cancel(now)

    def give_up(self, now: float) -> bool:
        """Fail as if Timer B had fired, unless there was any response. Returns whether it failed.

        The INVITE may have arrived: a late 1xx is answered by CANCEL, a 2xx by ACK and BYE.
        """
        if self._is_over or self._cancel_wanted or self._seen_codes or self._cseq > 1:
            return False
        if self._transaction.delivered:
            return False
        self._is_given_up = self._cancel_wanted = True
        self._transaction.give_up(now)
        self._fail(408, "timeout", now)
        return True

    def stop_repeating(self) -> None:
        """Send no further INVITE, neither a retransmission nor one with credentials."""
        self._is_silenced = True
        if not self._is_over and not self._seen_codes:
            self._transaction.stop_repeating()

    def hang_up(self, now: float, q850: int | None) -> None:
        """See `Call.hang_up`."""
        self.cancel(now)

    # Requests of the remote

    def receive_request(self, transaction: ServerTransaction, now: float) -> None:
        """Answer a request in the early dialog of its From tag.

        A BYE has overtaken its 2xx: the session ends as soon as that arrives.
        """
        request = transaction.request
        if request.method == "BYE" and len(self._bye_from) < MAX_FORKS:
            self._bye_from += (request.from_tag,)
        early = self._early.get(request.from_tag)
        if self._is_over or early is None:
            transaction.respond(481, now)
        else:
            early.receive_request(transaction, now)

    # Responses

    def receive_response(self, response: Response, now: float) -> None:
        """Take a response to the INVITE."""
        code = response.code
        try:
            if code < 200:
                self._receive_provisional(response, now)
            elif code < 300:
                self._receive_success(response, now)
            elif not self._is_over:
                self._receive_failure(response, now)
        except Exception:
            # The transaction is over: nothing else would end the call.
            if code >= 200 and not self._is_over:
                self._fail(code if code >= 300 else 488, "response", now)
            raise
        if self._is_given_up and code >= 200:
            self._layer.timers.stop(self._cancel_timer)

    def receive_late_response(self, response: Response, now: float) -> None:
        """Process a response after the call was given up.

        A 2xx is acknowledged and its dialog ended. After a 1xx a phone may ring: the transaction is
        resumed to send CANCEL (§9.1), until its final response.
        """
        if not self._is_over:
            return
        if response.code >= 200:
            if response.cseq == self._cseq:
                self._receive_success(response, now)
        elif not self._is_canceled and self._transaction.key == (response.branch, "INVITE"):
            self._calls.forget(self.call_id)
            self._is_given_up = self._cancel_wanted = True
            self._transaction.resume(self)
            self.receive_response(response, now)

    def transaction_failed(self, why: Failure, now: float) -> None:
        """End the call: the INVITE timed out or could not be sent."""
        if self._is_over and not self._is_given_up:
            return
        if not self._is_given_up:  # else already reported
            if self._cancel_wanted:
                self._fail(487, "canceled", now)
            else:
                self._fail(FAILURE_CODES[why], why, now)
        self._calls.keep_given_up(self, now)

    def timer_fired(self, name: str, now: float) -> None:
        """No final response came after our CANCEL (§9.1)."""
        self._transaction.abandon()
        if not self._is_over:
            self._fail(487, "canceled", now)
        self._calls.keep_given_up(self, now)

    def _receive_provisional(self, response: Response, now: float) -> None:
        """Record a 1xx, and report it if it is new or carries the answer.

        The code counts even out of order: the INVITE has arrived, so CANCEL may be sent, and after
        an 18x a phone may ring.
        """
        in_order, answer = self._receive_early(response, now)
        code = response.code
        if code not in self._seen_codes:
            rings = 180 <= code <= 189
            if not rings and all(180 <= seen <= 189 for seen in self._seen_codes):
                self._progress_since = now
            self._seen_codes += (code,)
            self._rang = self._rang or rings
        if self._cancel_wanted:
            if not self._is_canceled:
                self._send_cancel(now)
        elif code > 100 and in_order and (answer or code not in self._reported_codes):
            if code not in self._reported_codes:
                self._reported_codes += (code,)
            self._calls.events.append(Provisional(self.call_id, code, answer))

    def _receive_early(
        self, response: Response, now: float
    ) -> tuple[bool, SessionDescription | None]:
        """Process a provisional response in its early dialog; a reliable one is acknowledged.

        Returns whether it is in order (RFC 3262 §4), and the first answer to our offer.
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
            destination = invitation.destination
            dialog = Dialog.from_uac(self._layer, self._request, response, destination)
            dialog.trust(self._authentication, destination, invitation.trusted)
            early = self._early[tag] = EarlyDialog(self._layer, dialog, invitation.offer)
        if rseq is not None and not early.acknowledge(response, rseq, now):
            return False, None
        is_answer = early.take_answer(response, reliable=rseq is not None)
        return True, early.media.remote if is_answer else None

    def _send_cancel(self, now: float) -> None:
        self._is_canceled = True
        invite, layer = self._transaction, self._layer
        # Without a response to it, `_cancel_timer` ends the call.
        ClientTransaction(layer, NULL_USER, invite.request.cancel(), invite.destination, now)
        self._cancel_timer = layer.timers.start(now, layer.long_wait, self, "no answer to CANCEL")

    def _receive_success(self, response: Response, now: float) -> None:
        answers = self._answers
        if answers is None:
            # The transaction lives on for 32 s, and must not keep this call in memory.
            early = {tag: each.dialog for tag, each in self._early.items() if each.had_requests}
            answers = self._answers = InviteAnswers(
                self._layer, self._request, self._invitation, self._authentication, early
            )
            self._transaction.hand_over(answers, answers.request)
        if self._is_over or self._cancel_wanted:
            answers.refuse(response, now)
            if not self._is_over:
                self._fail(487, "canceled", now)
            return
        taken = answers.take(response, now)
        if taken is None:
            return
        dialog, ack = taken
        media = self._media_of(response)
        if media.remote is None or media.agreed is None:
            answers.hang_up(dialog, ack, now)
            self._fail(488, "media", now)
            return
        self._is_over = True
        if not self._invitation.withhold_ack:
            ack.send(now)
        call = InviteDialog(self._layer, self._calls, dialog, media, ack=ack)
        call.begin(response, now)
        self._calls.put(call)
        self._calls.events.append(Answered(self.call_id, media.remote, media.agreed))
        if response.to_tag in self._bye_from:
            call.end_by_early_bye(now)

    def _media_of(self, response: Response) -> Negotiation:
        """The media of the dialog of a 2xx.

        Without a description in the 2xx, the answer is that of a provisional response with the same
        To tag (RFC 3261 §13.2.1, RFC 3262 §5). After an UPDATE, that of the 2xx is ignored (RFC
        3311 §5.2).
        """
        early = self._early.get(response.to_tag)
        answer = description_in(response)
        if early is not None and (early.is_updated or answer is None):
            return early.media
        return Negotiation(self._invitation.offer, answer)

    def _receive_failure(self, response: Response, now: float) -> None:
        code, authentication = response.code, self._authentication
        is_challenged = authentication is not None and is_challenge(code)
        if self._is_canceled or (self._cancel_wanted and is_challenged and not self._rang):
            self._fail(487, "canceled", now, response)
        # After an 18x another INVITE would ring the phone a second time.
        elif not (self._rang or self._cancel_wanted) and (
            (authentication is not None and authentication.learn(response, self._tries))
            or self._raise_session_expires(response)
        ):
            self._send_another_invite(now)
        else:
            self._fail(code, "auth" if is_challenged else "response", now, response)

    def _raise_session_expires(self, response: Response) -> bool:
        """Adopt the Min-SE of a 422 (RFC 4028 §7.3). Returns whether to send another INVITE."""
        asked = max(self._layer.config.session_expires, self._min_se)
        demanded = min_se_of(response)
        if response.code != 422 or not asked or demanded is None or demanded <= asked:
            return False
        self._min_se = demanded
        self._raises += 1
        return self._raises <= MAX_RAISES

    def _send_another_invite(self, now: float) -> None:
        if self._is_silenced:
            self._fail(408, "timeout", now)
            return
        self._seen_codes = self._reported_codes = ()
        self._early.clear()
        self._send_invite(now)

    def _fail(self, code: int, why: Why, now: float, response: Response | None = None) -> None:
        self._is_over = True
        self._layer.timers.stop(self._cancel_timer)
        self._calls.remove(self)
        since = self._progress_since
        reasons = response.lines("reason") if response else []
        is_by_tcp = self._transaction.by_udp is not None
        self._calls.events.append(
            Failed(
                self.call_id,
                code,
                q850_cause(reasons),
                printable(response.reason) if response else PHRASES[code],
                why,
                self._rang,
                retry_after_of(response) if response else None,
                redirected_to(response) if response else (),
                progress_for=None if since is None else now - since,
                delivered=self._transaction.delivered,
                analytics=names_analytics(reasons),
                udp_untried=response is None and is_by_tcp and not self._seen_codes,
            )
        )


class InviteAnswers:
    """Transaction user of an answered INVITE: acknowledges each 2xx (RFC 3261 §13.2.2.4).

    For 64*T1 after the answer it acknowledges retransmissions, and ends the dialogs of other forks.
    """

    def __init__(
        self,
        layer: TransactionLayer,
        request: RequestTemplate,
        invitation: Invitation,
        authentication: Authentication | None,
        early: dict[str, Dialog],
    ) -> None:
        """`early` are the early dialogs in which requests were sent, by remote tag."""
        self._layer = layer
        self.request = request.bare()._replace(headers=request.credentials)
        self._destination = invitation.destination
        self._trusted = invitation.trusted
        self._authentication = authentication
        self._early = early or None
        self._acks: tuple[tuple[str, Ack], ...] = ()

    def take(self, response: Response, now: float) -> tuple[Dialog, Ack] | None:
        """The dialog that a 2xx creates, and its unsent ACK.

        None for a retransmission, which is acknowledged, and beyond `MAX_FORKS`.
        """
        for tag, ack in self._acks:
            if tag == response.to_tag:
                ack.answer_repeated(now)
                return None
        dialog = Dialog.from_uac(self._layer, self.request, response, self._destination)
        if len(self._acks) >= MAX_FORKS:
            dialog.end_statelessly(self.request.cseq)
            return None
        early = self._early.get(response.to_tag) if self._early else None
        if early is not None:
            dialog.local_cseq, dialog.remote_cseq = early.local_cseq, early.remote_cseq
        dialog.trust(self._authentication, self._destination, self._trusted)
        ack = dialog.ack(self.request)
        self._acks += ((response.to_tag, ack),)
        return dialog, ack

    def refuse(self, response: Response, now: float) -> None:
        """Acknowledge a 2xx and end its dialog."""
        taken = self.take(response, now)
        if taken is not None:
            self.hang_up(*taken, now)

    def hang_up(self, dialog: Dialog, ack: Ack, now: float) -> None:
        """Send ACK and BYE."""
        ack.send(now)
        dialog.send_bye(NULL_USER, now)

    def receive_response(self, response: Response, now: float) -> None:
        """A further 2xx, in the Accepted state (RFC 6026)."""
        self.refuse(response, now)

    def transaction_failed(self, why: Failure, now: float) -> None:
        """Never called: an answered INVITE can't fail."""


MAX_RELIABLE = 32
"""Reliable responses of a fork that are acknowledged: each PRACK may be sent 11 times."""


class EarlyDialog:
    """An early dialog: its answer, and the requests in both directions."""

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
        """Whether either side has sent a request, so that a CSeq has advanced."""
        return self._count > 0 or self.dialog.remote_cseq is not None

    def take_answer(self, response: Response, *, reliable: bool) -> bool:
        """Take the description of a response as the answer; returns whether it was taken.

        The first usable one counts (RFC 3261 §13.2.1). That of the first reliable response replaces
        those of unreliable ones, which are a preview (RFC 3262 §5).
        """
        if self._is_complete or (self.media.agreed is not None and not reliable):
            return False
        media = Negotiation(self.media.local, description_in(response))
        if media.agreed is None:
            return False
        self.media, self._is_complete = media, reliable
        return True

    def acknowledge(self, response: Response, rseq: int, now: float) -> bool:
        """Send PRACK if the response is the first or the next in order (RFC 3262 §4).

        Returns whether it is; any other must be ignored, and will be retransmitted if need be.
        """
        if self._count >= MAX_RELIABLE or (self._last_rseq and rseq != self._last_rseq + 1):
            return False
        self._count += 1
        self._last_rseq = rseq
        rack = ("RAck", f"{rseq} {response.cseq} INVITE")
        _Prack(self.dialog, (rack, self._layer.identity.user_agent)).send(now)
        return True

    def receive_request(self, transaction: ServerTransaction, now: float) -> None:
        """Answer UPDATE and OPTIONS; refuse other requests."""
        method = transaction.request.method
        if method == "INVITE":
            # Our own INVITE is in progress (RFC 3261 §14.2).
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
        headers = self.dialog.response_headers
        description = session_description_of(request)
        if not description:
            self.dialog.refresh_target(request)
            transaction.respond(200, now, headers)
            return
        if not self._is_complete:
            # The offer of our INVITE is pending (RFC 3311 §5.2).
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
    """The PRACK of one response; sent again with credentials after a challenge."""

    def __init__(self, dialog: Dialog, headers: Headers) -> None:
        self._dialog = dialog
        self._headers = headers
        self._tries: Tries = []

    def send(self, now: float) -> None:
        self._dialog.send_request(self, "PRACK", now, self._headers)

    def receive_response(self, response: Response, now: float) -> None:
        """Answer a challenge; ignore any other response."""
        if self._dialog.can_answer(response, self._tries):
            self.send(now)

    def transaction_failed(self, why: Failure, now: float) -> None:
        """Ignored: without PRACK the remote fails the INVITE (RFC 3262 §3)."""


def description_in(response: Response) -> SessionDescription | None:
    """The session description of a response; None if missing or invalid."""
    data = session_description_of(response)
    if not data:
        return None
    try:
        return SessionDescription.parse(data)
    except SdpError:
        return None
