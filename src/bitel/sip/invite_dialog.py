"""Calls of a user agent: their table, and the dialog of an answered call.

`InviteDialog` handles re-INVITE, UPDATE, INFO and BYE of an outgoing or incoming call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from bitel.sip.auth import Tries
from bitel.sip.body import (
    DTMF_TYPES,
    RELAY,
    carries_digits,
    digits_of,
    session_description_of,
    unsupported_body,
)
from bitel.sip.dialog import Ack, Dialog
from bitel.sip.events import By, Confirmed, Ended, Ending, Event, KeyedDigits, MediaChanged
from bitel.sip.grammar import Address
from bitel.sip.headers import MIN_SE, is_interval_too_small, q850_cause
from bitel.sip.message import ALLOW, CAPABILITIES, SDP_TYPE, Message, Request, Response
from bitel.sip.sdp import NegotiatedMedia, Negotiation, SdpError
from bitel.sip.session_timer import SessionTimer
from bitel.sip.timers import Timer
from bitel.sip.transaction import NULL_USER, Failure, ServerTransaction, TransactionLayer


class Call(ABC):
    """A phase of a call: `InviteClient`, `InviteServer` or `InviteDialog`.

    `call_id` is the handle in methods and events of the agent: the Call-ID, with a suffix if
    another call with that Call-ID was running. `local_tag` is our tag in its dialogs.
    """

    call_id: str
    local_tag: str

    @property
    @abstractmethod
    def named_hosts(self) -> frozenset[str]:
        """Further IP addresses from which messages of the call are accepted."""

    @abstractmethod
    def matches(self, request: Request) -> bool:
        """Whether a request with this Call-ID is within the dialog (§12.2.2)."""

    @abstractmethod
    def receive_request(self, transaction: ServerTransaction, now: float) -> None:
        """Answer a request for which `matches` is true."""

    def receive_ack(self, request: Request, now: float) -> None:  # noqa: B027
        """Process the ACK of our 2xx."""

    def receive_late_response(self, response: Response, now: float) -> None:  # noqa: B027
        """Process a 1xx or 2xx to our INVITE after the end of its transaction (§13.2.2.4)."""

    @abstractmethod
    def hang_up(self, now: float, q850: int | None) -> None:
        """End the call."""


class CallTable:
    """Calls by handle, and the queue of events.

    `given_up` are unanswered calls that are kept for 64*T1, for a late response.
    """

    def __init__(self, layer: TransactionLayer) -> None:
        self._layer = layer
        self.events: deque[Event] = deque()
        self.running: dict[str, Call] = {}
        self.given_up: dict[str, tuple[Call, Timer]] = {}
        self.early_calls = 0
        """The number of unanswered incoming calls."""
        self.on_removed: Callable[[Call], None] | None = None
        # The handles that differ from the Call-ID, by Call-ID and local tag.
        self._handles: dict[tuple[str, str], str] = {}

    def find(self, call_id: str) -> Call | None:
        """A running or given-up call."""
        if call_id in self.given_up:
            return self.given_up[call_id][0]
        return self.running.get(call_id)

    def call_of(self, request: Request) -> Call | None:
        """The call whose dialog a request belongs to, by Call-ID and tags (§12.2.2)."""
        call = self.find_by_tag(request.call_id, request.to_tag)
        return call if call is not None and call.matches(request) else None

    def find_by_tag(self, call_id: str, local_tag: str) -> Call | None:
        """The running call with this Call-ID and our tag."""
        for handle in (call_id, self._handles.get((call_id, local_tag), "")):
            call = self.running.get(handle)
            if call is not None and call.local_tag == local_tag:
                return call
        return None

    def new_handle(self, call_id: str, local_tag: str) -> str:
        """The handle of a new incoming call: its Call-ID, with a suffix if that is in use."""
        if call_id not in self.running:
            return call_id
        handle = f"{call_id};{local_tag}"
        self._handles[call_id, local_tag] = handle
        return handle

    def put(self, call: Call) -> None:
        """Add a call, or replace it by its next phase."""
        self.running[call.call_id] = call

    def remove(self, call: Call) -> None:
        """Remove a call that is over."""
        if self.on_removed is not None:
            self.on_removed(call)
        del self.running[call.call_id]
        if self._handles and call.call_id.endswith(f";{call.local_tag}"):
            call_id = call.call_id.removesuffix(f";{call.local_tag}")
            self._handles.pop((call_id, call.local_tag), None)

    def keep_given_up(self, call: Call, now: float) -> None:
        """Keep a call for a late response; the oldest is dropped beyond `max_remembered`."""
        timer = self._layer.timers.start(now, self._layer.long_wait, self, call.call_id)
        self.given_up[call.call_id] = call, timer
        if len(self.given_up) > self._layer.config.max_remembered:
            self.forget(next(iter(self.given_up)))

    def forget(self, call_id: str) -> None:
        """Drop a given-up call."""
        self._layer.timers.stop(self.given_up.pop(call_id)[1])

    def timer_fired(self, name: str, now: float) -> None:
        """Forget a call that was given up."""
        del self.given_up[name]


RECOVERY_ON_TIMER_EXPIRY = 102
"""The Q.850 cause of a session that was not refreshed."""


class InviteDialog(Call):
    """An answered call, from its 2xx to the end of its BYE. Reports `Ended` exactly once."""

    def __init__(
        self,
        layer: TransactionLayer,
        calls: CallTable,
        dialog: Dialog,
        media: Negotiation,
        *,
        ack: Ack | None = None,
        call_id: str = "",
    ) -> None:
        """`ack` is that of our INVITE; None if we are the callee."""
        self._layer = layer
        self._calls = calls
        self._ack = ack
        self.call_id = call_id or dialog.call_id
        self.dialog = dialog
        self.local_tag = dialog.local_tag
        self.media = media
        # Created when first needed; until then the Allow header of the answer is kept for it.
        self._timer: SessionTimer | None = None
        self._allow: list[str] = []
        self._unacknowledged: RepeatedSuccess | None = None
        self._invite_cseq = 0
        self._is_offering = False
        """Whether our 2xx carries an offer, which the ACK answers."""
        # `Confirmed` is reported by a callee, once.
        self._is_confirmed = ack is not None
        self._hang_up_wanted = self._is_ending = self._bye_answered = False
        self._q850: int | None = None
        self._tries: Tries = []

    @property
    def is_busy(self) -> bool:
        """Whether an INVITE is unacknowledged, so that another must not be sent (§14.1)."""
        return self._unacknowledged is not None or (self._ack is not None and self._ack.is_withheld)

    @property
    def session_timer(self) -> SessionTimer:
        """The session timer (RFC 4028), made on first use."""
        if self._timer is None:
            self._timer = SessionTimer(
                self._layer, self, owns_call_id=self._ack is not None, allow=self._allow
            )
        return self._timer

    @property
    def named_hosts(self) -> frozenset[str]:
        """See `Call.named_hosts`."""
        return self.dialog.named_hosts

    def matches(self, request: Request) -> bool:
        """See `Call.matches`."""
        return self.dialog.matches(request)

    def begin(self, response: Response, now: float) -> None:
        """Start the session timer as the 2xx that established the session says."""
        self._allow = response.lines("allow")
        if "session-expires" in response:
            self.session_timer.take_response(response, now)

    # Called by the user agent

    def acknowledge(self, now: float) -> None:
        """Send the ACK if it was withheld."""
        if self._ack is not None:
            self._ack.send(now)

    def hang_up(self, now: float, q850: int | None) -> None:
        """Send BYE; a callee waits for the ACK of its 2xx (§15)."""
        if self._is_ending or self._hang_up_wanted:
            return
        self._q850 = q850
        if self._unacknowledged is not None and not self._is_confirmed:
            self._hang_up_wanted = True
        else:
            self._send_bye(now)

    def expire(self, now: float) -> None:
        """End a session that was not refreshed, and report that with `Ending` (RFC 4028 §10)."""
        if not self._is_ending and not self._hang_up_wanted:
            self._calls.events.append(Ending(self.call_id))
            self.hang_up(now, RECOVERY_ON_TIMER_EXPIRY)

    def answer_invite(
        self, transaction: ServerTransaction, now: float, *, offering: bool = False
    ) -> None:
        """Accept an INVITE with 200 and our description, retransmitted until the ACK.

        `offering`: the INVITE had no offer, so our description is one.
        """
        self._is_offering = offering
        self._stop_repeating()
        headers = [*self._headers(transaction.request, now), SDP_TYPE]
        data = transaction.respond(200, now, headers, self.media.local.to_bytes())
        self._invite_cseq = transaction.request.cseq
        self._unacknowledged = RepeatedSuccess(
            self._layer, self._ack_missing, data, transaction.destination, now
        )

    def _ack_missing(self, now: float) -> None:
        """Our 2xx was not acknowledged: the session ends with BYE (§13.3.1.4)."""
        self._unacknowledged = None
        self._send_bye(now)

    def _stop_repeating(self) -> None:
        if self._unacknowledged is not None:
            self._unacknowledged.stop()
            self._unacknowledged = None

    # Requests of the remote

    def receive_request(self, transaction: ServerTransaction, now: float) -> None:
        """See `Call.receive_request`."""
        if not self.dialog.accepts(transaction, now):
            return
        request = transaction.request
        if request.method == "BYE":
            self.acknowledge(now)  # every 2xx is acknowledged, even after a BYE (§13.2.2.4)
            transaction.respond(200, now)
            self._end("us" if self._is_ending else "far", q850_cause(request.lines("reason")))
        elif self._is_ending or request.method == "PRACK":
            transaction.respond(481, now)
        elif request.method in ("INVITE", "UPDATE"):
            self._receive_offer(transaction, now)
        elif request.method == "OPTIONS":
            transaction.respond(200, now, [self.dialog.contact, *CAPABILITIES])
        elif request.method == "INFO":
            self._receive_info(transaction, now)
        else:
            transaction.respond(405, now, [("Allow", ALLOW)])

    def receive_ack(self, request: Request, now: float) -> None:
        """See `Call.receive_ack`."""
        if self._unacknowledged is None or request.cseq != self._invite_cseq:
            return
        self._stop_repeating()
        if self._is_offering:
            self._is_offering = False
            self.take_answer(request)
        if not self._is_confirmed:
            self._is_confirmed = True
            self._calls.events.append(Confirmed(self.call_id))
        if self._hang_up_wanted:
            self._send_bye(now)

    def _receive_info(self, transaction: ServerTransaction, now: float) -> None:
        """Report DTMF digits; accept any INFO without further requirements (RFC 6086 §4.2.2).

        A DTMF body without a readable digit gets 400, so that the sender knows that it was lost.
        """
        request = transaction.request
        if request.header("info-package"):
            transaction.respond(469, now, [("Recv-Info", "")])
        elif carries_digits(request):
            digits = digits_of(request)
            transaction.respond(200 if digits else 400, now)
            if digits:
                self._calls.events.append(KeyedDigits(self.call_id, digits))
        elif unsupported_body(request):
            transaction.respond(415, now, [("Accept", ", ".join(DTMF_TYPES))])
        else:
            transaction.respond(200, now)

    def receive_late_response(self, response: Response, now: float) -> None:
        """Acknowledge a retransmitted 2xx; end the dialog of another fork."""
        ack = self._ack
        if ack is None or response.code < 200 or response.cseq != ack.invite_cseq:
            return
        if response.to_tag == self.dialog.remote_tag:
            ack.answer_repeated(now)
        else:
            self.dialog.fork(response).end_statelessly(ack.invite_cseq)

    def end_by_early_bye(self, now: float) -> None:
        """End the session: its BYE came before the 2xx."""
        self.acknowledge(now)
        self._end("far", None)

    # Offer and answer

    def _receive_offer(self, transaction: ServerTransaction, now: float) -> None:
        """Answer a re-INVITE or UPDATE (§14.2, RFC 3311)."""
        request = transaction.request
        description = session_description_of(request)
        is_invite = request.method == "INVITE"
        is_inviting = self._timer is not None and self._timer.is_inviting
        # Our own offer is pending, in our re-INVITE or in our 2xx (RFC 3264 §4, RFC 3311 §5.2).
        if (is_inviting or self._is_offering) and (is_invite or description):
            transaction.respond(491, now)
            return
        if is_interval_too_small(request):
            transaction.respond(422, now, [("Min-SE", str(MIN_SE))])
            return
        agreed = self.media.agreed
        try:
            if description:
                self.media.answer(description)
        except SdpError:
            transaction.respond(488, now)
            return
        self.dialog.refresh_target(request)
        if is_invite and not description:
            # The remote requests an offer, and answers it in the ACK.
            self.media.offer_again()
            self.answer_invite(transaction, now, offering=True)
        elif is_invite:
            self.answer_invite(transaction, now)
        elif description:
            headers = [*self._headers(request, now), SDP_TYPE]
            transaction.respond(200, now, headers, self.media.local.to_bytes())
        else:
            transaction.respond(200, now, self._headers(request, now))
        self._report_change(agreed)

    def take_answer(self, message: Message) -> None:
        """Apply the answer to our offer; an unusable one is ignored."""
        agreed = self.media.agreed
        self.media.take_answer(session_description_of(message))
        self._report_change(agreed)

    def _report_change(self, before: NegotiatedMedia | None) -> None:
        agreed = self.media.agreed
        if agreed is not None and agreed != before:
            self._calls.events.append(MediaChanged(self.call_id, agreed))

    def _headers(self, request: Request, now: float) -> list[tuple[str, str]]:
        return self.dialog.response_headers + self.session_timer.answer_headers(request, now)

    def send_info(self, digit: str, now: float) -> None:
        """Send a digit by INFO; whether it is accepted does not matter."""
        if not self._is_ending:
            headers = (self.dialog.user_agent, ("Content-Type", RELAY))
            body = f"Signal={digit}\r\nDuration=160\r\n".encode()
            self.dialog.send_request(NULL_USER, "INFO", now, headers, body)

    # Our BYE

    def _send_bye(self, now: float) -> None:
        self._is_ending = True
        if self._timer is not None:
            self._timer.stop()
        self.acknowledge(now)
        self._stop_repeating()
        self.dialog.send_bye(self, now, self._q850)

    def receive_response(self, response: Response, now: float) -> None:
        """Take a response to the BYE."""
        self._bye_answered = True
        if response.code < 200:
            return
        try:
            if self.dialog.can_answer(response, self._tries):
                self.dialog.send_bye(self, now, self._q850)
                return
        except Exception:
            self._end("us", self._q850)
            raise
        self._end("us", self._q850)

    def transaction_failed(self, why: Failure, now: float) -> None:
        """End the call: the BYE timed out or could not be sent."""
        self._end("us", self._q850, bye_unanswered=not self._bye_answered)

    def _end(self, by: By, q850: int | None, *, bye_unanswered: bool = False) -> None:
        if self._calls.running.get(self.call_id) is not self:
            return
        self._calls.remove(self)
        self._is_ending = True
        if self._timer is not None:
            self._timer.end()
        self._stop_repeating()
        ack_lost = self._ack is not None and self._ack.is_lost
        unfollowed = self.dialog.unfollowed
        self._calls.events.append(
            Ended(self.call_id, by, q850, bye_unanswered, ack_lost, unfollowed)
        )


class RepeatedSuccess:
    """Retransmits a 2xx to INVITE until its ACK (§13.3.1.4): after T1, doubling up to T2.

    Calls `ack_missing` after 64*T1 without an ACK.
    """

    def __init__(
        self,
        layer: TransactionLayer,
        ack_missing: Callable[[float], None],
        data: bytes,
        destination: Address,
        now: float,
    ) -> None:
        self._layer = layer
        self._ack_missing = ack_missing
        self._data = data
        self._destination = destination
        self._interval = layer.config.t1
        self._deadline = now + layer.long_wait
        self._timer: Timer | None = layer.timers.start(now, self._interval, self, "repeat 2xx")

    def stop(self) -> None:
        """Repeat the 2xx no more."""
        self._layer.timers.stop(self._timer)

    def timer_fired(self, name: str, now: float) -> None:
        """Repeat the 2xx, or give up after 64*T1."""
        if now >= self._deadline:
            self._timer = None
            self._ack_missing(now)
            return
        self._layer.resend(self._data, self._destination)
        self._interval = min(self._interval * 2, self._layer.config.t2)
        timers = self._layer.timers
        if now + self._interval < self._deadline:
            self._timer = timers.start(now, self._interval, self, name)
        else:
            self._timer = timers.start_at(self._deadline, self, name)
