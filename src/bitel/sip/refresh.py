"""Keeps a session alive, or notices that it is not (RFC 4028 §7.4, §10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bitel.sip.ack import Ack
from bitel.sip.authentication import Tries, is_challenge
from bitel.sip.client_transaction import ClientTransaction
from bitel.sip.core import Core
from bitel.sip.grammar import Address, split_list
from bitel.sip.message import Message, Request, Response
from bitel.sip.requests import ALLOW, SDP_TYPE
from bitel.sip.session_timer import (
    MAX_RAISES,
    SHORTEST,
    TIMER,
    Refresher,
    SessionExpires,
    give_up_after,
    knows_timers,
    min_se_of,
    refresh_after,
    session_expires_of,
)
from bitel.sip.timers import Timer, is_due
from bitel.sip.transaction_tables import State

if TYPE_CHECKING:
    from bitel.sip.session import Session

RECOVERY_ON_TIMER_EXPIRY = 102
"""The Q.850 cause of a session that was not refreshed."""
_WAITING = (State.CALLING, State.TRYING, State.PROCEEDING)
_REFRESH, _EXPIRY = "refresh", "expiry"


class SessionRefresh:
    """The session timer of one session, off until a 2xx turns it on.

    Where we are the refresher it sends UPDATE, or a re-INVITE with the same SDP where the far end
    does not allow that. A session that is not refreshed in time, by either side, ends with BYE.
    """

    __slots__ = (
        "_ack",
        "_core",
        "_deadline",
        "_min_se",
        "_ours",
        "_owns_call_id",
        "_pending",
        "_raises",
        "_seconds",
        "_session",
        "_timer",
        "_tries",
        "_with_update",
    )

    def __init__(
        self, core: Core, session: Session, *, owns_call_id: bool, allow: list[str]
    ) -> None:
        self._core = core
        self._session = session
        self._owns_call_id = owns_call_id
        self._seconds = self._min_se = self._raises = 0
        self._ours = False
        self._with_update = _allows_update(allow)
        self._pending: ClientTransaction | None = None
        self._ack: tuple[ClientTransaction, Ack] | None = None
        self._tries = Tries()
        self._timer: Timer | None = None
        self._deadline: Timer | None = None

    # What the 2xx of either side turn on

    def take_response(self, response: Response, now: float) -> None:
        """Follow the 2xx to a request of ours; without Session-Expires nothing expires (§7.2)."""
        self._learn_methods(response)
        granted = session_expires_of(response)
        if granted is None:
            self._stop_timers()
        else:
            self._run(granted.seconds, granted.refresher != "uas", now)

    def answer_headers(self, request: Request, now: float) -> list[tuple[str, str]]:
        """What our 2xx to an INVITE or UPDATE says about the timer, and run it so (§9)."""
        asked = session_expires_of(request)
        self._learn_methods(request)
        if asked is None and not (self._seconds and knows_timers(request)):
            if self._ours and self._seconds:
                self._run(self._seconds, True, now)
            else:
                self._stop_timers()
            return [TIMER]
        refresher: Refresher = "uas" if self._ours else "uac"
        if asked is not None and not knows_timers(request):
            refresher = "uas"
        elif asked is not None and asked.refresher is not None:
            refresher = asked.refresher
        seconds = self._seconds if asked is None else asked.seconds
        self._run(seconds, refresher == "uas", now)
        headers = [TIMER, ("Session-Expires", str(SessionExpires(self._seconds, refresher)))]
        return [*headers, ("Require", "timer")] if refresher == "uac" else headers

    def stop(self) -> None:
        """The session is being ended: nothing is refreshed any more."""
        self._stop_timers()

    def forget(self) -> None:
        """The session has ended: wait for no answer either."""
        self._stop_timers()
        if self._pending is not None and self._pending.state in _WAITING:
            self._pending.abandon()
        self._pending = None

    @property
    def inviting(self) -> bool:
        """Whether a re-INVITE of ours waits for its answer: another one meets 491 (§14.2)."""
        return self._pending is not None and self._pending.request.method == "INVITE"

    def _learn_methods(self, message: Message) -> None:
        if "allow" in message:
            self._with_update = _allows_update(message.lines("allow"))

    # Timers

    def _run(self, seconds: int, ours: bool, now: float) -> None:
        self._stop_timers()
        self._seconds = max(seconds, SHORTEST)
        self._ours = ours
        timers = self._core.timers
        give_up, refresh = give_up_after(self._seconds), refresh_after(self._seconds)
        # The far end has its say in how long a session lasts, but mostly takes what we ask for.
        if self._seconds == self._core.config.session_expires:
            self._deadline = timers.start(now, give_up, self, _EXPIRY)
            self._timer = timers.start(now, refresh, self, _REFRESH) if ours else None
        else:
            self._deadline = timers.start_at(now + give_up, self, _EXPIRY)
            self._timer = timers.start_at(now + refresh, self, _REFRESH) if ours else None

    def _stop_timers(self) -> None:
        self._seconds = 0
        self._core.timers.stop(self._timer)
        self._core.timers.stop(self._deadline)

    def _again_in(self, seconds: float, now: float) -> None:
        if self._seconds:
            self._core.timers.stop(self._timer)
            self._timer = self._core.timers.start_at(now + seconds, self, _REFRESH)

    def timer_fired(self, name: str, now: float) -> None:
        if name == _EXPIRY:
            self._session.expire(now, RECOVERY_ON_TIMER_EXPIRY)
        elif is_due(self._deadline, now):
            return  # after a pause: the session is over, and `_EXPIRY` is next
        elif self._pending is not None or self._session.is_busy:
            self._again_in(self._core.config.t2, now)
        else:
            self._tries = Tries()
            self._raises = 0
            self._send(now)

    # The refresh

    def _send(self, now: float) -> None:
        core, session = self._core, self._session
        method = "UPDATE" if self._with_update else "INVITE"
        headers = [
            core.contact_by(session.dialog.next_hop.transport),
            ("Allow", ALLOW),
            TIMER,
            core.user_agent,
            ("Session-Expires", str(SessionExpires(self._seconds, "uac"))),
        ]
        if self._min_se:
            headers.append(("Min-SE", str(self._min_se)))
        if session.authentication is not None:
            headers += session.authentication.headers(method, session.dialog.request_uri)
        body = b""
        if method == "INVITE":
            headers.append(SDP_TYPE)
            body = session.local.to_bytes()
        request, destination = session.dialog.next_request(
            method, core.new_via(session.dialog.next_hop.transport), tuple(headers), body
        )
        self._pending = ClientTransaction(core, self, request, destination, now)

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        if response.code < 200:
            return
        if transaction is self._pending:
            self._pending = None
            if response.code < 300:
                self._receive_success(transaction, response, now)
            elif self._seconds:
                self._receive_failure(response, now)
        elif self._ack is not None and self._ack[0] is transaction and response.code < 300:
            self._ack[1].answer_repeated(now)

    def _receive_success(
        self, transaction: ClientTransaction, response: Response, now: float
    ) -> None:
        session = self._session
        session.dialog.refresh_target(response)
        if transaction.request.method == "INVITE":
            via = self._core.new_via(session.dialog.next_hop.transport)
            request = transaction.request
            data, destination = session.dialog.ack(request.cseq, via, request.credentials)
            ack = Ack(self._core, request.cseq, data, destination)
            ack.send(now)
            self._ack = (transaction, ack)
            session.take_answer(response)
        if self._seconds:
            self.take_response(response, now)

    def _receive_failure(self, response: Response, now: float) -> None:
        code, authentication = response.code, self._session.authentication
        demanded = min_se_of(response) or 0
        if code in (408, 481):
            self._session.expire(now, RECOVERY_ON_TIMER_EXPIRY)
        elif code == 491:
            self._again_in(self._pause_after_glare(), now)
        elif code == 422 and demanded > self._seconds and self._raises < MAX_RAISES:
            self._raises += 1
            self._min_se = self._seconds = demanded
            self._send(now)
        elif code in (405, 501) and self._with_update:
            self._with_update = False
            self._send(now)
        elif (
            is_challenge(code)
            and authentication is not None
            and authentication.learn(response, self._core.new_token(), self._tries)
        ):
            self._send(now)
        else:
            # Another try may do better; if none does, the deadline ends the session.
            self._again_in(self._seconds / 10, now)

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        if transaction is not self._pending:
            return
        self._pending = None
        if why == "timeout" and self._seconds:
            self._session.expire(now, RECOVERY_ON_TIMER_EXPIRY)
        else:
            self._again_in(self._seconds / 10, now)

    def _pause_after_glare(self) -> float:
        """Seconds, in steps of 10 ms, that differ for the two ends (RFC 3261 §14.1)."""
        steps = (210, 400) if self._owns_call_id else (0, 200)
        return self._core.rng.randint(*steps) / 100


def _allows_update(allow: list[str]) -> bool:
    return any("UPDATE" in split_list(line) for line in allow)
