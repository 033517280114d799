"""An incoming call up to our final response (RFC 3261 §13.3)."""

from __future__ import annotations

from collections.abc import Sequence

from bitel.sip.body import session_description_of
from bitel.sip.dialog import Dialog
from bitel.sip.events import Canceled, Incoming
from bitel.sip.grammar import GrammarError, split_address, user_of
from bitel.sip.invite_dialog import Call, CallTable, InviteDialog
from bitel.sip.message import ALLOW, CAPABILITIES, Request, one_line, printable
from bitel.sip.sdp import Negotiation, SessionDescription
from bitel.sip.transaction import ServerTransaction, TransactionLayer

LONGEST_RETRY_AFTER = 10
"""Longest Retry-After, in seconds, of the 500 to an offer before our answer (§14.2)."""


class InviteServer(Call):
    """An unanswered incoming call; reports `Incoming`, and continues as an `InviteDialog`."""

    def __init__(
        self,
        layer: TransactionLayer,
        calls: CallTable,
        transaction: ServerTransaction,
        offer: SessionDescription | None,
        now: float,
    ) -> None:
        request = transaction.request
        self._layer = layer
        self._calls = calls
        self._transaction = transaction
        self.local_tag = transaction.to_tag
        self._offer = offer
        self._latest = request
        """The request of the caller with the highest CSeq."""
        number, from_user = printable(user_of(request.uri)), printable(_from_user(request))
        headers = request.printable_headers
        # Everything that may raise is above: from here on the call is registered.
        transaction.respond(100, now)
        self.call_id = calls.new_handle(request.call_id, transaction.to_tag)
        self._timer = layer.timers.start(now, layer.config.early_limit, self, "left too long")
        calls.put(self)
        calls.early_calls += 1
        calls.events.append(
            Incoming(self.call_id, number, from_user, offer, transaction.request.source, headers)
        )

    @property
    def named_hosts(self) -> frozenset[str]:
        """See `Call.named_hosts`."""
        return frozenset({self._transaction.request.source.host})

    def matches(self, request: Request) -> bool:
        """See `Call.matches`."""
        remote_tag = self._transaction.request.from_tag
        return request.to_tag == self.local_tag and request.from_tag == remote_tag

    @property
    def _contact(self) -> tuple[str, str]:
        return self._layer.identity.contact[self._transaction.request.source.transport]

    # Called by the user agent

    def ring(self, code: int, now: float) -> None:
        """Send a provisional response, 101 to 199."""
        if not 101 <= code <= 199:
            raise ValueError(f"{code} is not a provisional status: use 101 to 199")
        if "100rel" in [tag.lower() for tag in self._transaction.request.values("require")]:
            return  # only reliable responses are allowed (RFC 3262 §3), and ours are not
        self._transaction.respond(code, now, [self._contact])

    def accept(self, answer: SessionDescription, now: float) -> None:
        """Send 200 with our SDP; the call continues as an `InviteDialog`."""
        transaction = self._transaction
        dialog = Dialog.from_uas(self._layer, transaction.request, transaction.to_tag)
        dialog.remote_cseq = self._latest.cseq
        dialog.refresh_target(self._latest)
        media = Negotiation(answer, self._offer)
        call = InviteDialog(self._layer, self._calls, dialog, media, call_id=self.call_id)
        call.answer_invite(transaction, now, offering=self._offer is None)
        self._stop_waiting()
        self._calls.put(call)

    def reject(self, code: int, headers: Sequence[tuple[str, str]], now: float) -> None:
        """Send a failure, 300 to 699. Raises ValueError for another code or a line break."""
        if not 300 <= code <= 699:
            raise ValueError(f"{code} does not refuse a call: use 300 to 699")
        checked = [(one_line(name), one_line(value)) for name, value in headers]
        self._end()
        self._transaction.respond(code, now, checked)

    def hang_up(self, now: float, q850: int | None) -> None:
        """See `Call.hang_up`."""
        self.reject(480, (), now)

    # Requests of the remote

    def receive_cancel(self, invite: ServerTransaction, now: float) -> None:
        """End the call if `invite`, which was canceled, is the one that created it (§9.2)."""
        if invite is self._transaction:
            self._cancel(487, now)

    def receive_request(self, transaction: ServerTransaction, now: float) -> None:
        """Answer a request in the early dialog; BYE ends the call (§15.1.1).

        While the INVITE is pending, a second INVITE or offer gets 500 with Retry-After (§14.2, RFC
        3311 §5.2).
        """
        request = transaction.request
        if request.method not in ("BYE", "INVITE", "OPTIONS", "UPDATE"):
            transaction.respond(481, now)
        elif request.method == "BYE":
            transaction.respond(200, now)
            self._cancel(487, now)
        elif request.cseq < self._latest.cseq:
            transaction.respond(500, now, reason="CSeq Out Of Order")
        elif request.method == "INVITE" or session_description_of(request):
            pause = self._layer.rng.randint(0, LONGEST_RETRY_AFTER)
            transaction.respond(500, now, [("Retry-After", str(pause))])
        elif request.method == "OPTIONS":
            transaction.respond(200, now, [self._contact, *CAPABILITIES])
        else:
            self._latest = request
            transaction.respond(200, now, [self._contact, ("Allow", ALLOW)])

    def timer_fired(self, name: str, now: float) -> None:
        """`early_limit` is over; the caller may be gone without CANCEL."""
        self._cancel(480, now)

    def _cancel(self, code: int, now: float) -> None:
        self._end()
        self._transaction.respond(code, now)
        self._calls.events.append(Canceled(self.call_id))

    def _end(self) -> None:
        self._stop_waiting()
        self._calls.remove(self)

    def _stop_waiting(self) -> None:
        self._layer.timers.stop(self._timer)
        self._calls.early_calls -= 1


def _from_user(request: Request) -> str:
    try:
        return user_of(split_address(request.header("from"))[0])
    except GrammarError:
        return ""
