"""The session timer (RFC 4028): refreshes a session, and ends one that is not refreshed."""

from __future__ import annotations

from typing import Protocol

from bitel.sip.auth import Tries
from bitel.sip.dialog import Ack, Dialog
from bitel.sip.grammar import split_list
from bitel.sip.headers import (
    Refresher,
    SessionExpires,
    min_se_of,
    session_expires_of,
    supports_timer,
)
from bitel.sip.message import ALLOW, SDP_TYPE, Message, Request, RequestTemplate, Response
from bitel.sip.sdp import Negotiation
from bitel.sip.timers import Timer, is_due
from bitel.sip.transaction import ClientTransaction, Failure, TransactionLayer
from bitel.sip.transaction_tables import State

SHORTEST = 10
"""Shortest interval, in seconds, even if the remote grants less."""
MAX_RAISES = 2
"""422 responses with a longer Min-SE that are followed for one request."""
TIMER = ("Supported", "timer")
_WAITING = (State.CALLING, State.TRYING, State.PROCEEDING)
_REFRESH, _EXPIRY = "refresh", "expiry"


def refresh_after(seconds: float) -> float:
    """Seconds until a refresh: half of the interval (RFC 4028 §10)."""
    return seconds / 2


class TimedSession(Protocol):
    """The session of a `SessionTimer`."""

    dialog: Dialog
    media: Negotiation

    @property
    def is_busy(self) -> bool:
        """Whether another INVITE must not be sent yet (§14.1)."""

    def take_answer(self, message: Message) -> None:
        """Apply the answer to the offer of a refresh."""

    def expire(self, now: float) -> None:
        """End the session."""


class SessionTimer:
    """The session timer of one session, started by a 2xx.

    As the refresher it sends UPDATE, or a re-INVITE with the same SDP if the remote does not allow
    UPDATE. A session that neither side refreshes in time ends with BYE.
    """

    def __init__(
        self,
        layer: TransactionLayer,
        session: TimedSession,
        *,
        owns_call_id: bool,
        allow: list[str],
    ) -> None:
        self._layer = layer
        self._session = session
        self._owns_call_id = owns_call_id
        self._seconds = self._min_se = self._raises = 0
        self._is_refresher = False
        self._with_update = _allows_update(allow)
        self._pending: ClientTransaction | None = None
        self._ack: tuple[str, Ack] | None = None
        """Branch and ACK of our last re-INVITE."""
        self._tries: Tries = []
        self._timer: Timer | None = None
        self._deadline: Timer | None = None

    # Negotiation

    def take_response(self, response: Response, now: float) -> None:
        """Start the timer by the 2xx to our request, or stop it without Session-Expires (§7.2)."""
        self._learn_methods(response)
        granted = session_expires_of(response)
        if granted is None:
            self.stop()
        else:
            self._run(granted.seconds, now, is_refresher=granted.refresher != "uas")

    def answer_headers(self, request: Request, now: float) -> list[tuple[str, str]]:
        """The timer headers of our 2xx to an INVITE or UPDATE; starts the timer (§9)."""
        asked = session_expires_of(request)
        self._learn_methods(request)
        if asked is None and not (self._seconds and supports_timer(request)):
            if self._is_refresher and self._seconds:
                self._run(self._seconds, now, is_refresher=True)
            else:
                self.stop()
            return [TIMER]
        refresher: Refresher = "uas" if self._is_refresher else "uac"
        if asked is not None and not supports_timer(request):
            refresher = "uas"
        elif asked is not None and asked.refresher is not None:
            refresher = asked.refresher
        seconds = self._seconds if asked is None else asked.seconds
        self._run(seconds, now, is_refresher=refresher == "uas")
        headers = [TIMER, ("Session-Expires", str(SessionExpires(self._seconds, refresher)))]
        return [*headers, ("Require", "timer")] if refresher == "uac" else headers

    def stop(self) -> None:
        """Stop refresh and expiry."""
        self._seconds = 0
        self._layer.timers.stop(self._timer)
        self._layer.timers.stop(self._deadline)

    def end(self) -> None:
        """Stop, and ignore pending responses: the session has ended."""
        self.stop()
        if self._pending is not None and self._pending.state in _WAITING:
            self._pending.abandon()
        self._pending = None

    @property
    def is_inviting(self) -> bool:
        """Whether our re-INVITE is pending, so that another gets 491 (§14.2)."""
        return self._pending is not None and self._pending.request.method == "INVITE"

    def _learn_methods(self, message: Message) -> None:
        if "allow" in message:
            self._with_update = _allows_update(message.lines("allow"))

    # Timers

    def _run(self, seconds: int, now: float, *, is_refresher: bool) -> None:
        """Refresh after half of the interval, expire min(32, a third) before its end (§10)."""
        self.stop()
        self._seconds = max(seconds, SHORTEST)
        self._is_refresher = is_refresher
        timers = self._layer.timers
        refresh = refresh_after(self._seconds)
        give_up = self._seconds - min(32.0, self._seconds / 3)
        # The remote decides the interval, but usually grants ours: only that gets a timer lane.
        if self._seconds == self._layer.config.session_expires:
            self._deadline = timers.start(now, give_up, self, _EXPIRY)
            self._timer = timers.start(now, refresh, self, _REFRESH) if is_refresher else None
        else:
            self._deadline = timers.start_at(now + give_up, self, _EXPIRY)
            self._timer = timers.start_at(now + refresh, self, _REFRESH) if is_refresher else None

    def _refresh_in(self, seconds: float, now: float) -> None:
        if self._seconds:
            self._layer.timers.stop(self._timer)
            self._timer = self._layer.timers.start_at(now + seconds, self, _REFRESH)

    def timer_fired(self, name: str, now: float) -> None:
        """Refresh the session, or end it when it has expired."""
        if name == _EXPIRY:
            self._session.expire(now)
        elif is_due(self._deadline, now):
            return  # after a pause of the process: `_EXPIRY` is next
        elif self._pending is not None or self._session.is_busy:
            self._refresh_in(self._layer.config.t2, now)
        else:
            self._tries = []
            self._raises = 0
            self._refresh(now)

    # The refresh

    def _refresh(self, now: float) -> None:
        identity, session = self._layer.identity, self._session
        headers = [
            identity.contact[session.dialog.next_hop.transport],
            ("Allow", ALLOW),
            TIMER,
            identity.user_agent,
            ("Session-Expires", str(SessionExpires(self._seconds, "uac"))),
        ]
        if self._min_se:
            headers.append(("Min-SE", str(self._min_se)))
        method, body = "UPDATE", b""
        if not self._with_update:
            method, body = "INVITE", session.media.local.to_bytes()
            headers.append(SDP_TYPE)
        self._pending = session.dialog.send_request(self, method, now, tuple(headers), body)

    def receive_response(self, response: Response, now: float) -> None:
        """Take a response to a refresh."""
        if response.code < 200:
            return
        pending = self._pending
        if pending is not None and pending.key[0] == response.branch:
            self._pending = None
            if response.code < 300:
                self._receive_success(pending.request, response, now)
            elif self._seconds:
                self._receive_failure(response, now)
        elif self._ack is not None and self._ack[0] == response.branch:
            self._ack[1].answer_repeated(now)

    def _receive_success(self, request: RequestTemplate, response: Response, now: float) -> None:
        session = self._session
        session.dialog.refresh_target(response)
        if request.method == "INVITE":
            ack = session.dialog.ack(request)
            ack.send(now)
            self._ack = (response.branch, ack)
            session.take_answer(response)
        if self._seconds:
            self.take_response(response, now)

    def _receive_failure(self, response: Response, now: float) -> None:
        code = response.code
        demanded = min_se_of(response) or 0
        if code in (408, 481):
            self._session.expire(now)
        elif code == 491:
            # Seconds in steps of 10 ms; the ranges of the two sides differ (RFC 3261 §14.1).
            steps = (210, 400) if self._owns_call_id else (0, 200)
            self._refresh_in(self._layer.rng.randint(*steps) / 100, now)
        elif code == 422 and demanded > self._seconds and self._raises < MAX_RAISES:
            self._raises += 1
            self._min_se = self._seconds = demanded
            self._refresh(now)
        elif code in (405, 501) and self._with_update:
            self._with_update = False
            self._refresh(now)
        elif self._session.dialog.can_answer(response, self._tries):
            self._refresh(now)
        else:
            # Retry; the deadline ends the session.
            self._refresh_in(self._seconds / 10, now)

    def transaction_failed(self, why: Failure, now: float) -> None:
        """End the session after a timeout (§10); otherwise try again later."""
        self._pending = None
        if why == "timeout" and self._seconds:
            self._session.expire(now)
        else:
            self._refresh_in(self._seconds / 10, now)


def _allows_update(allow: list[str]) -> bool:
    return any("UPDATE" in split_list(line) for line in allow)
