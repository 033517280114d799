"""The transaction layer (RFC 3261 §17): sends, retransmits, matches and times out requests.

`TransactionLayer` owns the timers, the outgoing queue and all transactions of an agent. Each
transaction runs a table of `transaction_tables`, and reports to a `TransactionUser` (§5).
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Literal, Protocol

from bitel.sip.config import AgentConfig, Identity
from bitel.sip.grammar import Address, HostPort, Transport
from bitel.sip.headers import has_same_sent_by, reply_route
from bitel.sip.message import (
    MAX_DATAGRAM,
    Request,
    RequestTemplate,
    Response,
    quoted_branch,
    write_response,
)
from bitel.sip.timers import Timer, Timers, is_due
from bitel.sip.transaction_tables import (
    INVITE_CLIENT,
    INVITE_CLIENT_STREAM,
    INVITE_SERVER,
    INVITE_SERVER_STREAM,
    NON_INVITE_CLIENT,
    NON_INVITE_CLIENT_STREAM,
    NON_INVITE_SERVER,
    NON_INVITE_SERVER_STREAM,
    Action,
    Input,
    State,
    Table,
)

TIMER_D = 32.0
"""Seconds over UDP (§17.1.1.2)."""
MAX_UDP = 1300
"""Bytes of a request that may be sent over UDP with an unknown path MTU (§18.1.1)."""
WITHOUT_TCP = 600.0
"""Seconds for which a destination without TCP is not tried by TCP again."""
MAX_WITHOUT_TCP = 1000
MAGIC_COOKIE = "z9hG4bK"

Failure = Literal["timeout", "transport"]
FAILURE_CODES: dict[Failure, int] = {"timeout": 408, "transport": 503}
"""The status that stands in for a missing final response (§8.1.3.1)."""
ServerKey = tuple[str, str, int | None, str]
MergeKey = tuple[str, str, int]
"""Call-ID, From tag and CSeq of an INVITE, to detect merged requests (§8.2.2.2)."""

# Module globals are faster than Enum attributes in Python 3.11.
_UDP = Transport.UDP
_CALLING, _TRYING, _PROCEEDING = State.CALLING, State.TRYING, State.PROCEEDING
_COMPLETED, _ACCEPTED, _TERMINATED = State.COMPLETED, State.ACCEPTED, State.TERMINATED
_SEND, _RESEND, _DELIVER, _ACK = Action.SEND, Action.RESEND, Action.DELIVER, Action.ACK
_STOP_REPEATING, _STOP_TIMERS = Action.STOP_REPEATING, Action.STOP_TIMERS
_REPORT_TIMEOUT, _REPORT_TRANSPORT = Action.REPORT_TIMEOUT, Action.REPORT_TRANSPORT
_START_A, _START_B, _START_D = Action.START_A, Action.START_B, Action.START_D
_START_E, _START_F, _START_G = Action.START_E, Action.START_F, Action.START_G
_START_I, _START_K = Action.START_I, Action.START_K
_PROVISIONAL, _SUCCESS, _FAILURE = Input.PROVISIONAL, Input.SUCCESS, Input.FAILURE
_UNANSWERED = (_CALLING, _TRYING)
_ON_TIMER = {letter: Input(letter) for letter in "ABDEFGHIJKLM"}
_TIMEOUTS = (Input.TIMER_B, Input.TIMER_F)


class TransactionUser(Protocol):
    """Gets the responses to a request, or its failure (§5)."""

    def receive_response(self, response: Response, now: float) -> None:
        """Take a response to the request."""

    def transaction_failed(self, why: Failure, now: float) -> None:
        """Take note that the request got no final response, and why."""


class NullUser:
    """Ignores all responses: for dialogs ended at once and transactions that are over."""

    def receive_response(self, response: Response, now: float) -> None:
        """Ignore a response."""

    def transaction_failed(self, why: Failure, now: float) -> None:
        """Ignore a failure."""


NULL_USER = NullUser()


class Tokens:
    """Unpredictable digits for tags, branches, Call-IDs and cnonces."""

    POOL = 4096
    """Bytes drawn at a time, because a system call for each token is slow."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._at = 0
        self._digits = ""

    def take(self, digits: int) -> str:
        """Random hexadecimal digits, at most 2 * `POOL`."""
        start, end = self._at, self._at + digits
        if end > len(self._digits):
            self._digits = self._rng.randbytes(self.POOL).hex()
            start, end = 0, digits
        self._at = end
        return self._digits[start:end]


class TransactionLayer:
    """The transactions of an agent by key, and their shared state."""

    def __init__(self, config: AgentConfig, rng: random.Random) -> None:
        self.config = config
        self.identity = Identity(config)
        self.long_wait = config.long_wait
        self.rng = rng
        self.tokens = Tokens(rng)
        self.timers = Timers()
        self.outbox: list[tuple[bytes, Address]] = []
        # Messages that must not be sent any more, if they still wait for a connection.
        self.withdrawn: deque[tuple[bytes, Address]] = deque(maxlen=config.max_queued_datagrams)
        self.clients: dict[tuple[str, str], ClientTransaction] = {}
        self.servers: dict[ServerKey, ServerTransaction] = {}
        # INVITEs outside of dialogs, to detect merged requests (§8.2.2.2).
        self.new_invites: dict[MergeKey, ServerTransaction] = {}
        # By destination, those that a transport error concerns: requests without a response, and
        # over streams also INVITEs without a final response.
        self.unanswered: dict[Address, dict[ClientTransaction, None]] = {}
        # Bytes of the server transactions, and their number by call.
        self.server_bytes = 0
        self.requests_by_call = Counter[str]()
        self.retransmissions = self.dropped = self.misrouted = 0
        # UDP destinations without TCP, and until when that is assumed.
        self.without_tcp: dict[Address, float] = {}

    def move(self, local: HostPort) -> None:
        """Use `local` in Via and Contact of new requests."""
        self.config = replace(self.config, local=local)
        self.identity = Identity(self.config)

    def new_tag(self) -> str:
        """A tag or cnonce of 64 random bits."""
        return self.tokens.take(16)

    def new_call_id(self) -> str:
        """A Call-ID of 128 random bits."""
        return self.tokens.take(32)

    def new_via(self, transport: Transport) -> str:
        """A Via value with a new branch (§8.1.1.7)."""
        return self.identity.via[transport] + self.tokens.take(24)

    def send(self, data: bytes, destination: Address) -> None:
        """Queue a message, or drop it beyond `max_queued_datagrams`."""
        if len(self.outbox) < self.config.max_queued_datagrams:
            self.outbox.append((data, destination))
        else:
            self.dropped += 1

    def resend(self, data: bytes, destination: Address) -> None:
        """Send a message again, counted as a retransmission."""
        self.retransmissions += 1
        self.send(data, destination)

    # Received messages

    def receive_response(self, response: Response, now: float) -> bool:
        """Pass a response to its transaction; False without one.

        A response with several Via values, or another sent-by or Call-ID than the request, is
        dropped and counted (§8.1.3.3, §18.1.2, §8.2.6.2).
        """
        client = self.clients.get((response.branch, response.cseq_method))
        if not response.has_one_via or (client is not None and not client.is_answered_by(response)):
            self.misrouted += 1
        elif client is not None:
            client.receive(response, now)
        else:
            return False
        return True

    def receive_request(self, request: Request, now: float) -> bool:
        """Pass a retransmission, or the ACK of a failure, to its transaction; False without one."""
        if request.method == "ACK":
            invite = self.invite_of(request)
            if invite is None or invite.state is _ACCEPTED:
                return False
            invite.receive_ack(now)
            return True
        known = self.servers.get(server_key(request, request.method))
        if known is not None:
            known.receive_repeated(now)
        return known is not None

    def invite_of(self, request: Request) -> ServerTransaction | None:
        """The INVITE transaction that an ACK or CANCEL belongs to."""
        return self.servers.get(server_key(request, "INVITE"))

    def doubt_delivery(self, quoted: bytes, destination: Address) -> ClientTransaction | None:
        """The request to `destination` without a response that an ICMP error quotes.

        None for a further error about the same request.
        """
        branch = quoted_branch(quoted)
        method = quoted.partition(b" ")[0].decode("latin-1")
        client = self.clients.get((branch, method)) if branch else None
        return client if client is not None and client.doubt_delivery(destination) else None

    def stateless_response(
        self, request: Request, code: int, headers: Iterable[tuple[str, str]] = ()
    ) -> tuple[bytes, Address]:
        """A response without a transaction (§8.2.7), and its destination."""
        top_via, destination = reply_route(request)
        return write_response(request, code, self.new_tag(), headers, top_via=top_via), destination

    # TCP for long requests (§18.1.1)

    def has_tcp(self, destination: Address, now: float) -> bool:
        """Whether to send a request that is too long for UDP by TCP."""
        return self.config.tcp_fallback and self.without_tcp.get(destination, now) <= now

    def assume_no_tcp(self, destination: Address, now: float) -> None:
        """Use no TCP to a destination for `WITHOUT_TCP` seconds, after a connection failure or a
        request without any response."""
        while len(self.without_tcp) >= MAX_WITHOUT_TCP:
            del self.without_tcp[next(iter(self.without_tcp))]
        self.without_tcp[destination] = now + WITHOUT_TCP


def input_of(code: int) -> Input:
    """The input for a response with this status."""
    if code < 200:
        return _PROVISIONAL
    return _SUCCESS if code < 300 else _FAILURE


class _Transaction:
    """State, last message and the two timers of a transaction."""

    _table: Table
    state: State

    def __init__(self, layer: TransactionLayer) -> None:
        self._layer = layer
        self._data = b""
        self._repeating: Timer | None = None
        self._waiting: Timer | None = None
        self._interval = layer.config.t1

    def _start(self, timer: Action, now: float) -> None:
        """Start a timer; A, E and G at growing intervals."""
        timers, config = self._layer.timers, self._layer.config
        if timer in (_START_A, _START_E, _START_G):
            self._interval *= 2
            if timer is _START_E and self.state is _PROCEEDING:
                self._interval = config.t2
            elif timer is not _START_A:
                self._interval = min(self._interval, config.t2)
            self._repeating = timers.start(now, self._interval, self, timer)
            return
        wait = self._layer.long_wait
        if timer is _START_K or timer is _START_I:
            wait = config.t4
        elif timer is _START_D:
            wait = TIMER_D
        timers.stop(self._waiting)
        self._waiting = timers.start(now, wait, self, timer)

    def timer_fired(self, name: str, now: float) -> None:
        if name in "AEG" and is_due(self._waiting, now):
            return  # after a pause of the process: timer B, F or H is next
        self._step(_ON_TIMER[name], now)

    def _step(self, event: Input, now: float) -> None:
        raise NotImplementedError  # each kind of transaction has its own

    def _stop_timers(self) -> None:
        self._layer.timers.stop(self._repeating)
        self._layer.timers.stop(self._waiting)


class ClientTransaction(_Transaction):
    """A client transaction; the constructor sends the request.

    A request that is too long for UDP is sent by TCP, and by UDP with a new branch if no connection
    can be made. Once it was written to a connection it is not sent by UDP too, because an INVITE
    might ring a phone twice: without a response it fails, and later requests are sent by UDP.

    Raises ValueError for a request longer than 65,535 bytes, or that can't be encoded.
    """

    def __init__(
        self,
        layer: TransactionLayer,
        user: TransactionUser,
        request: RequestTemplate,
        destination: Address,
        now: float,
    ) -> None:
        super().__init__(layer)
        self._user = user
        self.by_udp: Address | None = None
        """The UDP destination of a request that is sent by TCP for its length."""
        self._resent = self._silenced = self._doubted = False
        self.delivered = False
        """Whether the connection was lost after the INVITE was delivered."""
        data = request.to_bytes()
        if len(data) > MAX_DATAGRAM:
            raise ValueError(f"a request of {len(data)} bytes is longer than {MAX_DATAGRAM}")
        is_long = len(data) > MAX_UDP and destination.transport is _UDP
        if is_long and layer.has_tcp(destination, now):
            self.by_udp = destination
            destination = destination._replace(transport=Transport.TCP)
            request = request._replace(via=request.via.replace("/UDP ", "/TCP ", 1))
            data = request.to_bytes()
        self._begin(request, data, destination, now)

    def _begin(
        self, request: RequestTemplate, data: bytes, destination: Address, now: float
    ) -> None:
        layer = self._layer
        self.request = request
        self._data = data
        self.destination = destination
        self.key = (request.via.rpartition("=")[2], request.method)
        layer.clients[self.key] = self
        layer.unanswered.setdefault(destination, {})[self] = None
        layer.send(data, destination)
        is_stream = destination.transport is not _UDP
        if request.method == "INVITE":
            self._table = INVITE_CLIENT_STREAM if is_stream else INVITE_CLIENT
            self.state = _CALLING
            repeat, limit = _START_A, _START_B
        else:
            self._table = NON_INVITE_CLIENT_STREAM if is_stream else NON_INVITE_CLIENT
            self.state = _TRYING
            repeat, limit = _START_E, _START_F
        self._interval = layer.config.t1
        if not is_stream:
            self._repeating = layer.timers.start(now, self._interval, self, repeat)
        self._waiting = layer.timers.start(now, layer.long_wait, self, limit)

    def is_answered_by(self, response: Response) -> bool:
        """Whether a response with our branch also has the Call-ID and sent-by of the request."""
        return response.call_id == self.request.call_id and has_same_sent_by(
            self.request.via, response.header("via"), self.destination.transport
        )

    def receive(self, response: Response, now: float) -> None:
        """Process a response of this transaction."""
        if self.by_udp is not None:
            self._layer.without_tcp.pop(self.by_udp, None)
        self._step(input_of(response.code), now, response)

    def transport_failed(
        self,
        now: float,
        *,
        lost: bool = False,
        unacknowledged: Container[bytes] | None = None,
        moved: Container[bytes] = (),
    ) -> None:
        """The request could not be sent, or may have been `lost` with its connection.

        Parameters are those of `UserAgent.transport_failed`.
        """
        if self.delivered or (lost and self._data in moved):
            return
        is_invite = self.request.method == "INVITE"
        if is_invite and self.state is _PROCEEDING:
            self.delivered = lost
            return
        if is_invite and lost and unacknowledged is not None:
            # The INVITE was delivered, and may be answered over another connection (§18.2.2).
            # Another INVITE could ring a phone twice: not every server matches it by branch.
            self.delivered = self._data not in unacknowledged
            if self.delivered:
                return
        if lost and not self._resent and not self._silenced:
            # If it has arrived, the server recognises the branch.
            self._resent = True
            self._layer.resend(self._data, self.destination)
            return
        by_udp = self.by_udp
        if by_udp is not None and (self._resent or not lost):
            self._layer.assume_no_tcp(by_udp, now)
            # If it has arrived by TCP, the new branch makes it another request.
            if not self._resent and not self._silenced:
                self.by_udp = None
                self._enter(_TERMINATED)
                request = self.request._replace(via=self._layer.new_via(_UDP))
                self._begin(request, request.to_bytes(), by_udp, now)
                return
        self._step(Input.TRANSPORT_FAILED, now)

    def doubt_delivery(self, destination: Address) -> bool:
        """Whether this is the first ICMP error about an unanswered request to `destination`."""
        is_waiting = self.state in _UNANSWERED and destination == self.destination
        if self._doubted or not is_waiting:
            return False
        self._doubted = True
        return True

    def stop_repeating(self) -> None:
        """Stop retransmissions, but keep waiting for a response."""
        self._silenced = True
        self._layer.timers.stop(self._repeating)
        self._layer.withdrawn.append((self._data, self.destination))

    def give_up(self, now: float) -> None:
        """Stop retransmissions of a request that is considered lost."""
        self.stop_repeating()
        if self.by_udp is not None:
            self._layer.assume_no_tcp(self.by_udp, now)

    def resume(self, user: TransactionUser) -> None:
        """Accept responses to an INVITE again that was given up."""
        self._user = user
        self.state = _PROCEEDING
        self._layer.clients[self.key] = self
        if self._is_invite_by_stream:
            self._layer.unanswered.setdefault(self.destination, {})[self] = None

    def abandon(self) -> None:
        """Terminate without a report to the user."""
        self._enter(_TERMINATED)
        self._release()

    def hand_over(self, user: TransactionUser, request: RequestTemplate) -> None:
        """Pass further responses to `user`, and keep the smaller `request`."""
        self._user = user
        self.request = request

    def _step(self, event: Input, now: float, response: Response | None = None) -> None:
        found = self._table.get((self.state, event))
        if found is None:
            return
        state, actions = found
        before = self.state
        if self.by_udp is not None and event in _TIMEOUTS and before in _UNANSWERED:
            self._layer.assume_no_tcp(self.by_udp, now)
        if state is not before:
            self._enter(state)
        try:
            self._act(actions, now, response)
        finally:  # also if the user raises
            if state is not before:
                self._release()

    def _act(self, actions: tuple[Action, ...], now: float, response: Response | None) -> None:
        for action in actions:
            if action is _DELIVER:
                if response is not None:
                    self._user.receive_response(response, now)
            elif action is _ACK:
                if response is not None:
                    ack = self.request.ack_failure(response.header("to"))
                    self._layer.send(ack.to_bytes(), self.destination)
            elif action is _RESEND:
                self._layer.resend(self._data, self.destination)
            elif action is _STOP_REPEATING:
                self._layer.timers.stop(self._repeating)
            elif action is _STOP_TIMERS:
                self._stop_timers()
            elif action is _REPORT_TIMEOUT:
                self._user.transaction_failed("timeout", now)
            elif action is _REPORT_TRANSPORT:
                self._user.transaction_failed("transport", now)
            else:
                self._start(action, now)

    def _enter(self, state: State) -> None:
        before = self.state
        if before in _UNANSWERED:
            # An INVITE in Proceeding still needs to know if its connection breaks.
            if state is not _PROCEEDING or not self._is_invite_by_stream:
                self._forget_unanswered()
        elif before is _PROCEEDING and self._is_invite_by_stream:
            self._forget_unanswered()
        self.state = state
        if state is _TERMINATED:
            self._stop_timers()
            self._layer.clients.pop(self.key, None)

    def _release(self) -> None:
        """Keep only what retransmitted responses need, for up to 32 s.

        Completed passes no responses to the user; dropping that breaks a reference cycle.
        """
        state = self.state
        if state is _PROCEEDING:
            return
        if state is not _ACCEPTED:
            self._user = NULL_USER
        if state is not _TERMINATED:
            self._data = b""
            self._repeating = None
        if state is _COMPLETED and self.request.body:
            self.request = self.request.bare()

    @property
    def _is_invite_by_stream(self) -> bool:
        return self._table is INVITE_CLIENT_STREAM

    def _forget_unanswered(self) -> None:
        waiting = self._layer.unanswered[self.destination]
        del waiting[self]
        if not waiting:
            del self._layer.unanswered[self.destination]


def server_key(request: Request, method: str) -> ServerKey:
    """The key of a server transaction (§17.2.3); `method` is "INVITE" for an ACK.

    Without the magic cookie the branch is not unique, and the rules of RFC 2543 apply.
    """
    host, port = request.sent_by()
    if request.branch.startswith(MAGIC_COOKIE) and request.branch != MAGIC_COOKIE:
        return (request.branch, host, port, method)
    old = f"{request.call_id}\n{request.cseq}\n{request.from_tag}\n{request.header('via')}"
    return (old, host, port, method)


class ServerTransaction(_Transaction):
    """A server transaction.

    `call_handle` is the handle of the call of the request, "" for none; `to_tag` the tag of all
    responses.
    """

    def __init__(self, layer: TransactionLayer, request: Request, call_handle: str = "") -> None:
        super().__init__(layer)
        self._key = server_key(request, request.method)
        self._call_handle = call_handle
        self._size = 2 * request.size  # the request, and a response with mostly the same headers
        self._interval /= 2
        self._top_via, self.destination = reply_route(request)
        self.request = request
        self.to_tag = request.to_tag or layer.new_tag()
        is_stream = request.source.transport is not _UDP
        if request.method == "INVITE":
            self._table = INVITE_SERVER_STREAM if is_stream else INVITE_SERVER
            self.state = _PROCEEDING
        else:
            self._table = NON_INVITE_SERVER_STREAM if is_stream else NON_INVITE_SERVER
            self.state = _TRYING
        layer.servers[self._key] = self
        layer.server_bytes += self._size
        if call_handle:
            layer.requests_by_call[call_handle] += 1
        self._merge_key: MergeKey | None = None
        # Only INVITEs: other merged requests are harmless, and a peer that sends the same OPTIONS
        # again must not get 482.
        if request.method == "INVITE" and not request.to_tag:
            self._merge_key = (request.call_id, request.from_tag, request.cseq)
            layer.new_invites.setdefault(self._merge_key, self)

    @property
    def is_merged(self) -> bool:
        """Whether the same INVITE, received by another path, is in progress (§8.2.2.2)."""
        key = self._merge_key
        return key is not None and self._layer.new_invites.get(key) is not self

    def respond(
        self,
        code: int,
        now: float,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        reason: str = "",
    ) -> bytes:
        """Send a response; returns its bytes, because the user retransmits a 2xx to INVITE."""
        request = self.request
        if code == 100 and "timestamp" in request:
            headers = [*headers, ("Timestamp", request.header("timestamp"))]  # §8.2.6.1
        tag = self.to_tag if code > 100 else ""
        self._data = write_response(
            request, code, tag, headers, body, top_via=self._top_via, reason=reason
        )
        if code >= 200:
            # Retransmissions need no body.
            request.body = b""
        self._step(input_of(code), now)
        return self._data

    def receive_repeated(self, now: float) -> None:
        """Process a retransmission of the request."""
        self._step(Input.REQUEST, now)

    def receive_ack(self, now: float) -> None:
        """Process the ACK of a failure."""
        self._step(Input.ACK, now)

    def fail(self, now: float) -> None:
        """Send 500 after an exception, unless a final response was sent."""
        if self.state in (_TRYING, _PROCEEDING):
            self.respond(500, now)

    def _step(self, event: Input, now: float) -> None:
        found = self._table.get((self.state, event))
        if found is None:
            return
        self.state, actions = found
        for action in actions:
            if action is _SEND:
                self._layer.send(self._data, self.destination)
            elif action is _RESEND:
                if self._data:
                    self._layer.resend(self._data, self.destination)
            elif action is _STOP_REPEATING:
                self._layer.timers.stop(self._repeating)
            else:
                self._start(action, now)
        if self.state is _TERMINATED:
            self._end()

    def _end(self) -> None:
        layer = self._layer
        self._stop_timers()
        if layer.servers.pop(self._key, None) is not None:
            layer.server_bytes -= self._size
            if self._call_handle:
                layer.requests_by_call[self._call_handle] -= 1
                if not layer.requests_by_call[self._call_handle]:
                    del layer.requests_by_call[self._call_handle]
        if self._merge_key is not None and not self.is_merged:
            del layer.new_invites[self._merge_key]
