"""Runs a client transaction table: sends a request until it is answered or time is up."""

from __future__ import annotations

from collections.abc import Container
from typing import Literal, Protocol

from bitel.sip.core import Core
from bitel.sip.grammar import Address, Transport
from bitel.sip.message import MAX_DATAGRAM, Response
from bitel.sip.requests import RequestTemplate
from bitel.sip.timers import Timer, is_due
from bitel.sip.transaction_tables import (
    INVITE_CLIENT,
    INVITE_CLIENT_STREAM,
    NON_INVITE_CLIENT,
    NON_INVITE_CLIENT_STREAM,
    Action,
    Input,
    State,
    Table,
    stimulus_of,
)

TIMER_D = 32.0
"""Seconds; at least that much over UDP (§17.1.1.2)."""
MAX_UDP = 1300
"""Bytes of a request that may go by UDP, whatever the path carries (§18.1.1)."""

_ON_TIMER = {letter: Input(letter) for letter in "ABDEFKM"}
_REPEATS = ("A", "E")
_NOWHERE = Address("", 0)

# A member of an Enum is slow to look up in its class; a name of the module is not.
_UDP = Transport.UDP
_CALLING, _TRYING, _PROCEEDING = State.CALLING, State.TRYING, State.PROCEEDING
_COMPLETED, _ACCEPTED, _TERMINATED = State.COMPLETED, State.ACCEPTED, State.TERMINATED
_UNANSWERED = (_CALLING, _TRYING)
_TIMEOUTS = (_ON_TIMER["B"], _ON_TIMER["F"])
_START_A, _START_B, _START_D = Action.START_A, Action.START_B, Action.START_D
_START_E, _START_F, _START_K = Action.START_E, Action.START_F, Action.START_K
_TELL, _ACK, _RESEND = Action.TELL, Action.ACK, Action.RESEND
_STOP_REPEATING, _STOP_TIMERS = Action.STOP_REPEATING, Action.STOP_TIMERS
_TELL_TIMEOUT, _TELL_TRANSPORT = Action.TELL_TIMEOUT, Action.TELL_TRANSPORT


class ClientUser(Protocol):
    """Who sent the request, and hears what becomes of it."""

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None: ...

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None: ...


class NullUser:
    """Transaction user that ignores all responses, for dialogs that are ended at once and for
    transactions that are over."""

    __slots__ = ()

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        """It changes nothing."""

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        """The far end will notice by itself."""


NULL_USER = NullUser()


class ClientTransaction:
    """One request of ours. Making it sends the request.

    One that is too long for UDP goes by TCP, and by UDP after all where there is no TCP. It then
    has a branch of its own, which its user need not know about. A request that was written to a
    TCP connection and gets no response is not sent by UDP too, because an INVITE might ring a phone
    twice: it fails, and later requests go by UDP.
    """

    __slots__ = (
        "_by_udp",
        "_core",
        "_data",
        "_delivered",
        "_doubted",
        "_interval",
        "_repeating",
        "_resent",
        "_silenced",
        "_table",
        "_user",
        "_waiting",
        "destination",
        "key",
        "request",
        "state",
    )

    def __init__(
        self,
        core: Core,
        user: ClientUser,
        request: RequestTemplate,
        destination: Address,
        now: float,
    ) -> None:
        self._core = core
        self._user = user
        self._repeating: Timer | None = None
        self._waiting: Timer | None = None
        self._by_udp: Address | None = None
        self._resent = self._silenced = self._delivered = self._doubted = False
        self._table: Table
        self.request: RequestTemplate
        self.destination: Address
        data = request.to_bytes()
        if len(data) > MAX_DATAGRAM:
            raise ValueError(f"a request of {len(data)} bytes is longer than {MAX_DATAGRAM}")
        if len(data) > MAX_UDP and destination.transport is _UDP and core.has_tcp(destination, now):
            self._by_udp = destination
            destination = destination._replace(transport=Transport.TCP)
            request = request._replace(via=request.via.replace("/UDP ", "/TCP ", 1))
            data = request.to_bytes()
        self._begin(request, data, destination, now)

    def _begin(
        self, request: RequestTemplate, data: bytes, destination: Address, now: float
    ) -> None:
        core = self._core
        self.request = request
        self._data = data
        self.destination = destination
        branch = request.via.rpartition("=")[2]
        self.key = (branch, request.method)
        core.client_transactions[self.key] = self
        waiting = core.unanswered.get(destination)
        if waiting is None:
            waiting = core.unanswered[destination] = {}
        waiting[self] = None
        core.send(data, destination)
        is_stream = destination.transport is not _UDP
        if request.method == "INVITE":
            self._table = INVITE_CLIENT_STREAM if is_stream else INVITE_CLIENT
            self.state = _CALLING
            repeat, limit = _START_A, _START_B
        else:
            self._table = NON_INVITE_CLIENT_STREAM if is_stream else NON_INVITE_CLIENT
            self.state = _TRYING
            repeat, limit = _START_E, _START_F
        self._interval = core.config.t1
        if not is_stream:
            self._repeating = core.timers.start(now, self._interval, self, repeat)
        self._waiting = core.timers.start(now, core.long_wait, self, limit)

    def receive(self, response: Response, source: Address, now: float) -> None:
        """Take a response that names this transaction."""
        if self._by_udp is not None:
            self._core.found_tcp(self._by_udp)
        self._step(stimulus_of(response.code), now, response, source)

    def timer_fired(self, name: str, now: float) -> None:
        if name in _REPEATS and is_due(self._waiting, now):
            return  # after a pause: timer B or F is next, and nothing is sent for what is over
        self._step(_ON_TIMER[name], now)

    @property
    def delivered(self) -> bool:
        """Whether this INVITE's connection was lost after the far end had it."""
        return self._delivered

    @property
    def udp_untried(self) -> bool:
        """Whether a request to a UDP destination was sent by TCP alone."""
        return self._by_udp is not None

    def transport_failed(
        self,
        now: float,
        *,
        lost: bool = False,
        unacknowledged: Container[bytes] | None = None,
        moved: Container[bytes] = (),
    ) -> None:
        """The request could not be delivered, or was perhaps `lost` with its connection.

        The other arguments are those of `UserAgent.transport_failed`.
        """
        if self._delivered or (lost and self._data in moved):
            return
        if self.state is _PROCEEDING and self.request.method == "INVITE":
            self._delivered = lost
            return
        if lost and self.request.method == "INVITE" and unacknowledged is not None:
            # The far end has it, and may answer over a connection of its own (§18.2.2). Another
            # INVITE could make a phone ring twice: not every far end knows it by its branch.
            self._delivered = self._data not in unacknowledged
            if self._delivered:
                return
        if lost and not self._resent and not self._silenced:
            # Should it have arrived all the same, it is known there by its branch.
            self._resent = True
            self._core.retransmissions += 1
            self._core.send(self._data, self.destination)
            return
        if self._by_udp is not None and (self._resent or not lost):
            self._core.miss_tcp(self._by_udp, now)
            # Should it have arrived by TCP, it would be another request under its new branch.
            if not self._resent and not self._silenced:
                self._go_by_udp(self._by_udp, now)
                return
        self._step(Input.TRANSPORT_FAILED, now)

    def _go_by_udp(self, destination: Address, now: float) -> None:
        core = self._core
        self._by_udp = None
        self._enter(_TERMINATED)
        request = self.request._replace(via=core.new_via(_UDP))
        self._begin(request, request.to_bytes(), destination, now)

    def doubt_delivery(self, destination: Address) -> bool:
        """Whether this is the first doubt about a request to `destination` with no response yet."""
        is_first = not self._doubted and self.state in _UNANSWERED
        if not is_first or destination != self.destination:
            return False
        self._doubted = True
        return True

    def stop_repeating(self) -> None:
        """Send the request no more, but go on waiting for what answers it."""
        self._silenced = True
        self._core.timers.stop(self._repeating)
        self._core.taken_back.append((self._data, self.destination))

    def give_up(self, now: float) -> None:
        """As `stop_repeating`, for a request that got no response and is considered lost."""
        self.stop_repeating()
        if self._by_udp is not None:
            self._core.miss_tcp(self._by_udp, now)

    def resume(self, user: ClientUser) -> None:
        """Take answers to this INVITE again: a far end that seemed silent was merely slow."""
        core = self._core
        self._user = user
        self.state = _PROCEEDING
        core.client_transactions[self.key] = self
        if self._is_invite_by_stream:
            core.unanswered.setdefault(self.destination, {})[self] = None

    def abandon(self) -> None:
        """Forget the request without telling its user."""
        self._enter(_TERMINATED)
        self._let_go()

    def hand_over(self, user: ClientUser, request: RequestTemplate) -> None:
        """Have `user` hear the answers still to come, with what is left of the request."""
        self._user = user
        self.request = request

    def _step(
        self,
        stimulus: Input,
        now: float,
        response: Response | None = None,
        source: Address = _NOWHERE,
    ) -> None:
        found = self._table.get((self.state, stimulus))
        if found is None:
            return
        state, actions = found
        before = self.state
        if self._by_udp is not None and stimulus in _TIMEOUTS and before in _UNANSWERED:
            self._core.miss_tcp(self._by_udp, now)
        if state is not before:
            self._enter(state)
        try:
            self._act(actions, now, response, source)
        finally:  # also where the user fails
            if state is not before:
                self._let_go()

    def _act(
        self,
        actions: tuple[Action, ...],
        now: float,
        response: Response | None,
        source: Address,
    ) -> None:
        for action in actions:
            if action is _TELL:
                if response is not None:
                    self._user.receive_response(self, response, source, now)
            elif action is _ACK:
                if response is not None:
                    self._acknowledge(response)
            elif action is _RESEND:
                self._core.retransmissions += 1
                self._core.send(self._data, self.destination)
            elif action is _STOP_REPEATING:
                self._core.timers.stop(self._repeating)
            elif action is _STOP_TIMERS:
                self._stop_timers()
            elif action is _TELL_TIMEOUT:
                self._user.transaction_failed(self, "timeout", now)
            elif action is _TELL_TRANSPORT:
                self._user.transaction_failed(self, "transport", now)
            else:
                self._start(action, now)

    def _enter(self, state: State) -> None:
        before = self.state
        if before is _CALLING or before is _TRYING:
            # Of an INVITE in Proceeding it is still of interest whether its connection breaks.
            if state is not _PROCEEDING or not self._is_invite_by_stream:
                self._forget_unanswered()
        elif before is _PROCEEDING and self._is_invite_by_stream:
            self._forget_unanswered()
        self.state = state
        if state is _TERMINATED:
            self._stop_timers()
            self._core.client_transactions.pop(self.key, None)

    def _let_go(self) -> None:
        """Once it is answered, keep only what its repeated answers need: thousands stay for long.

        In Completed no further response is passed to the user. A user and a transaction that
        referred to each other would be freed by the garbage collector only.
        """
        if self.state is _ACCEPTED:
            self._data = b""
            self._repeating = None
        elif self.state is _COMPLETED:
            self._data = b""
            self._repeating = None
            self._user = NULL_USER
            if self.request.body:
                self.request = self.request.bare()
        elif self.state is _TERMINATED:
            self._user = NULL_USER

    @property
    def _is_invite_by_stream(self) -> bool:
        return self._table is INVITE_CLIENT_STREAM

    def _forget_unanswered(self) -> None:
        waiting = self._core.unanswered[self.destination]
        del waiting[self]
        if not waiting:
            del self._core.unanswered[self.destination]

    def _acknowledge(self, response: Response) -> None:
        ack = self.request.ack_failure(response.header("to"))
        self._core.send(ack.to_bytes(), self.destination)

    def _stop_timers(self) -> None:
        self._core.timers.stop(self._repeating)
        self._core.timers.stop(self._waiting)

    def _start(self, action: Action, now: float) -> None:
        timers, config = self._core.timers, self._core.config
        if action is _START_A:
            self._interval *= 2
            self._repeating = timers.start(now, self._interval, self, action)
        elif action is _START_E:
            proceeding = self.state is _PROCEEDING
            self._interval = config.t2 if proceeding else min(self._interval * 2, config.t2)
            self._repeating = timers.start(now, self._interval, self, action)
        else:
            wait = self._core.long_wait
            if action is _START_K:
                wait = config.t4
            elif action is _START_D:
                wait = TIMER_D
            timers.stop(self._waiting)
            self._waiting = timers.start(now, wait, self, action)
