"""A call that comes to us, from its INVITE to our final answer (RFC 3261 §13.3)."""

from __future__ import annotations

from collections.abc import Sequence

from bitel.sip.body import session_description_of
from bitel.sip.core import Core
from bitel.sip.dialog import Dialog
from bitel.sip.events import Canceled, Incoming
from bitel.sip.grammar import Address, GrammarError, split_address, user_of
from bitel.sip.message import Request, printable
from bitel.sip.requests import ALLOW, CAPABILITIES, one_line
from bitel.sip.sdp import SessionDescription, agreement
from bitel.sip.server_transaction import ServerTransaction
from bitel.sip.session import Session

LONGEST_RETRY_AFTER = 10
"""Seconds: the longest Retry-After of the 500 to an offer before our answer (§14.2: 0 to 10)."""


class IncomingCall:
    """Tells `Incoming`; an accepted call goes on as a `Session`."""

    __slots__ = ("_core", "_latest", "_offer", "_timer", "_transaction", "call_id")

    def __init__(
        self,
        core: Core,
        transaction: ServerTransaction,
        offer: SessionDescription | None,
        now: float,
    ) -> None:
        request = transaction.request
        self._core = core
        self._transaction = transaction
        self._offer = offer
        self._latest = request
        """The caller's request in the early dialog with the highest CSeq."""
        number, from_user = printable(user_of(request.uri)), printable(_from_user(request))
        headers = tuple((n, printable(v)) for n, values in request.headers.items() for v in values)
        # Whatever may raise is above: from here on there is a call.
        transaction.respond(100, now)
        self.call_id = core.new_handle(request.call_id, transaction.to_tag)
        self._timer = core.timers.start(now, core.config.early_limit, self, "left too long")
        core.calls[self.call_id] = self
        core.early_calls += 1
        transaction.user = self
        core.events.append(
            Incoming(self.call_id, number, from_user, offer, transaction.source, headers)
        )

    @property
    def local_tag(self) -> str:
        return self._transaction.to_tag

    @property
    def named_hosts(self) -> frozenset[str]:
        return frozenset({self._transaction.source.host})

    def matches(self, request: Request) -> bool:
        return (request.to_tag, request.from_tag) == (
            self._transaction.to_tag,
            self._transaction.request.from_tag,
        )

    # What the user asks for

    def ring(self, code: int, now: float) -> None:
        """Send a provisional response, 101 to 199."""
        if not 101 <= code <= 199:
            raise ValueError(f"{code} is not a provisional status: use 101 to 199")
        if "100rel" in [tag.lower() for tag in self._transaction.request.values("require")]:
            return  # it would have to be reliable (RFC 3262 §3), and ours are not
        self._transaction.respond(
            code, now, [self._core.contact_by(self._transaction.source.transport)]
        )

    def accept(self, answer: SessionDescription, now: float) -> None:
        """Send 200 with our SDP, and become a session."""
        dialog = Dialog.of_callee(
            self._transaction.request,
            self._transaction.to_tag,
            self._transaction.source,
            self._core.config.send_to_source,
            self._core.config.follow_private,
        )
        dialog.remote_cseq = self._latest.cseq
        dialog.refresh_target(self._latest)
        agreed = agreement(answer, self._offer)
        session = Session(self._core, dialog, answer, agreed, call_id=self.call_id)
        session.is_confirmed = False
        session.answer_invite(self._transaction, answer, now, offering=self._offer is None)
        self._stop_waiting()
        self._core.calls[self.call_id] = session

    def reject(self, code: int, headers: Sequence[tuple[str, str]], now: float) -> None:
        """Send a final failure, 300 to 699."""
        if not 300 <= code <= 699:
            raise ValueError(f"{code} does not refuse a call: use 300 to 699")
        checked = [(one_line(name), one_line(value)) for name, value in headers]
        self._leave()
        self._transaction.respond(code, now, checked)

    def hang_up(self, now: float, q850: int | None) -> None:
        """Not to have answered is all there is to end."""
        self.reject(480, (), now)

    # What the far end asks for

    def withdraw(self, now: float) -> None:
        """A CANCEL came: the INVITE ends with 487 (§9.2)."""
        self._leave()
        self._transaction.respond(487, now)
        self._core.events.append(Canceled(self.call_id))

    def receive_request(
        self, request: Request, transaction: ServerTransaction, source: Address, now: float
    ) -> None:
        """Answer a request in the early dialog, which BYE ends (§15.1.1).

        As the INVITE is pending, a second INVITE or offer is refused with 500 and Retry-After
        (§14.2, RFC 3311 §5.2).
        """
        if request.method not in ("BYE", "INVITE", "OPTIONS", "UPDATE"):
            transaction.respond(481, now)
        elif request.method == "BYE":
            transaction.respond(200, now)
            self.withdraw(now)
        elif request.cseq < self._latest.cseq:
            transaction.respond(500, now, reason="CSeq Out Of Order")
        elif request.method == "INVITE" or session_description_of(request):
            pause = self._core.rng.randint(0, LONGEST_RETRY_AFTER)
            transaction.respond(500, now, [("Retry-After", str(pause))])
        else:
            contact = self._core.contact_by(self._transaction.source.transport)
            about_us = CAPABILITIES if request.method == "OPTIONS" else [("Allow", ALLOW)]
            if request.method == "UPDATE":
                self._latest = request
            transaction.respond(200, now, [contact, *about_us])

    def receive_ack(self, request: Request, now: float) -> None:
        """There is nothing to acknowledge before the answer."""

    def timer_fired(self, name: str, now: float) -> None:
        """Neither side has decided: the caller may have gone without a word."""
        self._leave()
        self._transaction.respond(480, now)
        self._core.events.append(Canceled(self.call_id))

    def _leave(self) -> None:
        self._stop_waiting()
        self._core.remove_call(self)

    def _stop_waiting(self) -> None:
        self._core.timers.stop(self._timer)
        self._core.early_calls -= 1
        self._transaction.user = None


def _from_user(request: Request) -> str:
    try:
        return user_of(split_address(request.header("from"))[0])
    except GrammarError:
        return ""
