"""The user agent (RFC 3261), without I/O.

    agent.receive_datagram(data, source, now)     process a received message
    agent.datagrams_to_send()                     messages to send now
    agent.next_timer() / agent.handle_timer(now)  when to call back, and the call
    agent.next_event()                            what happened to the calls

No method blocks, sleeps or reads a clock. `now` is in seconds of one monotonic clock. After each
call, send the messages, take the events, and check `next_timer` again.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass

from bitel.sip.body import session_description_of, unsupported_body
from bitel.sip.config import AgentConfig
from bitel.sip.events import DeliveryDoubted, Event
from bitel.sip.grammar import Address, HostPort, scheme_of
from bitel.sip.headers import MIN_SE, is_interval_too_small
from bitel.sip.invite_client import Invitation, InviteClient
from bitel.sip.invite_dialog import Call, CallTable, InviteDialog
from bitel.sip.invite_server import InviteServer
from bitel.sip.message import (
    ALLOW,
    CAPABILITIES,
    OPTION_TAGS,
    BodyLengthError,
    MessageError,
    Request,
    Response,
    parse,
)
from bitel.sip.request_client import OutgoingRequest, RequestClient
from bitel.sip.sdp import SdpError, SessionDescription
from bitel.sip.source_filter import SourceFilter, SourcePolicy
from bitel.sip.transaction import ServerTransaction, TransactionLayer

SUPPORTED_METHODS = frozenset(ALLOW.split(", "))
OTHER_METHODS = frozenset(("REGISTER", "SUBSCRIBE", "NOTIFY", "PUBLISH", "REFER", "MESSAGE"))
ALWAYS_TAKEN = ("ACK", "BYE", "CANCEL")
"""Not refused for what their dialog or transaction does not need: body, Request-URI, Require."""
MAX_OF_CALL = 16
"""Server transactions that each running call may have beyond the limits."""
RETRY_LATER = ("Retry-After", "5")


@dataclass(frozen=True, slots=True)
class AgentCounts:
    """Current numbers, and counters since the start of the agent."""

    dialogs: int
    """Calls in any phase."""
    client_transactions: int
    server_transactions: int
    timers: int
    retransmissions: int
    dropped: int
    """Messages dropped because too many were queued."""
    malformed: int
    misrouted: int
    """Responses that are not for us by their Via headers (RFC 3261 §8.1.3.3, §18.1.2)."""
    from_elsewhere: int
    """Messages from sources that are not accepted."""
    from_elsewhere_for_calls: int
    """Those of them that name a running call."""


class UserAgent:
    """Places and accepts calls over UDP, TCP and TLS."""

    def __init__(
        self,
        config: AgentConfig,
        rng: random.Random | None = None,
        sources: SourcePolicy | None = None,
    ) -> None:
        """`rng` generates tags, branches, Call-IDs and cnonces; by default that of the system.
        `sources` filters messages by source; None accepts all."""
        self._layer = TransactionLayer(config, rng or random.SystemRandom())
        self._calls = CallTable(self._layer)
        self._filter: SourceFilter | None = None
        if sources is not None:
            self._filter = SourceFilter(self._layer, self._calls, sources)
        self._malformed = 0

    @property
    def config(self) -> AgentConfig:
        """The configuration of this agent."""
        return self._layer.config

    def move(self, local: HostPort) -> None:
        """Use `local` in Via and Contact of new requests."""
        self._layer.move(local)

    # The transport

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Process a message. One that is not SIP is counted and dropped.

        An unexpected exception leaves no transaction, call or timer behind; the agent can process
        further messages.
        """
        if len(data) > 4 or data.strip(b"\r\n\0"):  # else a keep-alive (RFC 5626 §3.5.1)
            self._receive(data, source, now, is_framed=True)

    def receive_unframed(self, data: bytes, source: Address, now: float) -> None:
        """Process a message of a stream without a valid Content-Length (RFC 3261 §18.3).

        BYE, CANCEL, ACK and responses are handled, with all `data` after the head as the body: a
        missing header must not keep a call up or a 2xx unacknowledged. Any other request gets 400.
        The caller then closes the connection.
        """
        self._receive(data, source, now, is_framed=False)

    def _receive(self, data: bytes, source: Address, now: float, *, is_framed: bool) -> None:
        if self._filter is not None and not self._filter.admits(data, source, now):
            return
        is_whole = is_framed
        try:
            message = parse(data, source)
        except BodyLengthError as error:
            message, is_whole = error.message, False
        except MessageError as error:
            self._malformed += 1
            self._receive_malformed(error.request)
            return
        if not is_whole:
            self._malformed += 1
        if isinstance(message, Response):
            if is_whole or not is_framed:
                self._receive_response(message, now)
        elif is_whole or message.method in ALWAYS_TAKEN:
            self._receive_request(message, now)
        else:
            self._receive_malformed(message)

    def datagrams_to_send(self) -> list[tuple[bytes, Address]]:
        """Take the queued messages with their destinations."""
        waiting, self._layer.outbox = self._layer.outbox, []
        return waiting

    def withdrawn_messages(self) -> list[tuple[bytes, Address]]:
        """Take the messages from `datagrams_to_send` that must not be sent any more, if they still
        wait for a connection."""
        withdrawn = list(self._layer.withdrawn)
        self._layer.withdrawn.clear()
        return withdrawn

    def next_timer(self) -> float | None:
        """When to call `handle_timer`; None without timers."""
        return self._layer.timers.next()

    def handle_timer(self, now: float) -> None:
        """Fire the timers that are due by `now`; may be called early."""
        self._layer.timers.fire(now)

    def next_event(self) -> Event | None:
        """Take the oldest event; None without one."""
        events = self._calls.events
        return events.popleft() if events else None

    def receive_delivery_error(self, quoted: bytes, destination: Address) -> None:
        """Process an ICMP error about a datagram to `destination` that begins with `quoted`.

        It may be forged: it counts only if it quotes the branch of a request to `destination`
        without a response, and then only as `DeliveryDoubted`, once for each request.
        """
        doubted = self._layer.doubt_delivery(quoted, destination)
        if doubted is not None:
            self._calls.events.append(DeliveryDoubted(doubted.request.call_id, destination))

    def transport_failed(
        self,
        destination: Address,
        now: float,
        *,
        lost: bool = False,
        unacknowledged: Container[bytes] | None = None,
        moved: Container[bytes] = (),
    ) -> None:
        """Sending to `destination` failed, no connection could be made, or one was `lost`.

        Requests to that destination without a response fail. Those that may have been lost with
        their connection are sent once more, over another.

        `unacknowledged` are the INVITEs of the lost connection that the remote kernel has not fully
        acknowledged; None if unknown. All other INVITEs were delivered and are not sent again: they
        wait for a response until Timer B, and fail as `delivered`. `moved` are messages that were
        held back and are sent over another connection: they are ignored here.
        """
        for transaction in list(self._layer.unanswered.get(destination, ())):
            transaction.transport_failed(now, lost=lost, unacknowledged=unacknowledged, moved=moved)

    # Placing calls

    def invite(self, invitation: Invitation, now: float) -> str:
        """Place a call; returns its Call-ID, the handle of the call.

        Raises ValueError if a text of the invitation has a line break or can't be encoded, or if
        the INVITE is longer than 65,535 bytes.
        """
        return InviteClient(self._layer, self._calls, invitation, now).call_id

    def cancel(self, call_id: str, now: float, *, repeat: bool = True) -> None:
        """Cancel an unanswered outgoing call; `Failed` follows. No effect on other calls.

        CANCEL waits for the first response (§9.1). Until then the INVITE is retransmitted, unless
        `repeat` is False.
        """
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteClient):
            call.cancel(now)
            if not repeat:
                call.stop_repeating()

    def give_up(self, call_id: str, now: float) -> bool:
        """Fail a call without any response as a timeout. Returns whether it failed.

        False once there was a response, or the INVITE is known to be delivered: a phone may ring. A
        late response is answered by CANCEL or BYE.
        """
        call = self._calls.running.get(call_id)
        return isinstance(call, InviteClient) and call.give_up(now)

    def stop_repeating_invites(self) -> None:
        """Send no INVITE again that has no response, and none that is still queued.

        For a worker that may have lost its calls to another. The calls continue: an answer counts,
        but without a response they fail by `timeout`, and challenges are not answered.
        """
        for call in list(self._calls.running.values()):
            if isinstance(call, InviteClient):
                call.stop_repeating()

    def acknowledge(self, call_id: str, now: float) -> None:
        """Send the withheld ACK of a call, if any."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteDialog):
            call.acknowledge(now)

    def hang_up(self, call_id: str, now: float, q850: int | None = 16) -> None:
        """End a call by BYE, or as `cancel` before the answer. No effect after its end.

        `q850` is the cause in the Reason header of the BYE.
        """
        call = self._calls.running.get(call_id)
        if call is not None:
            call.hang_up(now, q850)

    def send_info(self, call_id: str, digit: str, now: float) -> None:
        """Send a DTMF digit (0-9*#ABCD) by INFO in an answered call. No effect in others."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteDialog):
            call.send_info(digit, now)

    def request(self, request: OutgoingRequest, now: float) -> str:
        """Send a request outside of dialogs; returns its Call-ID. One `RequestDone` follows.

        Raises ValueError if the method belongs to calls, the CSeq is out of range, or a text has a
        line break.
        """
        return RequestClient(self._layer, self._calls.events.append, request, now).call_id

    # Incoming calls. These have no effect once the call was answered, refused or canceled.

    def ring(self, call_id: str, now: float, code: int = 180) -> None:
        """Send a provisional response, 101 to 199."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteServer):
            call.ring(code, now)

    def accept(self, call_id: str, answer: SessionDescription, now: float) -> None:
        """Send 200 with our SDP. `Confirmed` follows with the ACK, `Ended` in any case."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteServer):
            call.accept(answer, now)

    def reject(
        self, call_id: str, code: int, now: float, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Refuse a call with a status of 300 to 699. No event follows."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteServer):
            call.reject(code, headers, now)

    # Statistics

    def idle(self) -> bool:
        """Whether there is no call, transaction or timer."""
        layer = self._layer
        return not (self._calls.running or layer.clients or layer.servers or len(layer.timers))

    def counts(self) -> AgentCounts:
        """Return the counters for metrics."""
        layer, sources = self._layer, self._filter
        return AgentCounts(
            dialogs=len(self._calls.running),
            client_transactions=len(layer.clients),
            server_transactions=len(layer.servers),
            timers=len(layer.timers),
            retransmissions=layer.retransmissions,
            dropped=layer.dropped,
            malformed=self._malformed,
            misrouted=layer.misrouted,
            from_elsewhere=sources.dropped if sources else 0,
            from_elsewhere_for_calls=sources.dropped_of_calls if sources else 0,
        )

    # Messages (RFC 3261 §8.1.3, §8.2)

    def _receive_response(self, response: Response, now: float) -> None:
        """Pass a response to its transaction, or a late one to its call."""
        if self._layer.receive_response(response, now):
            return
        if response.cseq_method == "INVITE" and response.code < 300:
            call = self._calls.find(response.call_id)
            if call is not None and call.local_tag == response.from_tag:
                call.receive_late_response(response, now)

    def _receive_malformed(self, request: Request | None) -> None:
        """Answer a request with 400 if it has the mandatory headers; drop everything else."""
        if request is None or request.method == "ACK":
            return
        if not all(request.header(name) for name in ("via", "from", "to", "call-id", "cseq")):
            return
        try:
            self._layer.send(*self._layer.stateless_response(request, 400))
        except MessageError:
            return  # no valid Via, so no address to respond to

    def _receive_request(self, request: Request, now: float) -> None:
        """Process a valid request."""
        if self._layer.receive_request(request, now):
            return
        call = self._calls.call_of(request) if request.to_tag else None
        if request.method == "ACK":
            if call is not None:
                call.receive_ack(request, now)
            return
        if self._exceeds_limits(request, call):
            self._layer.send(*self._layer.stateless_response(request, 503, [RETRY_LATER]))
            return
        call_handle = call.call_id if call is not None else ""
        transaction = ServerTransaction(self._layer, request, call_handle)
        try:
            if request.method == "CANCEL":
                self._receive_cancel(transaction, now)
            elif request.method == "BYE" or not _is_refused(transaction, now):
                self._dispatch(transaction, call, now)
        except Exception:
            transaction.fail(now)
            raise

    def _exceeds_limits(self, request: Request, call: Call | None) -> bool:
        """Whether a request exceeds the limits.

        BYE and CANCEL of a running call never do, its other requests only beyond `MAX_OF_CALL`.
        """
        layer = self._layer
        if request.method == "BYE" and call is not None:
            return False
        if request.method == "CANCEL" and layer.invite_of(request) is not None:
            return False
        if (
            len(layer.servers) >= layer.config.max_server_transactions
            or layer.server_bytes >= layer.config.max_server_bytes
        ):
            return call is None or layer.requests_by_call[call.call_id] >= MAX_OF_CALL
        starts_call = request.method == "INVITE" and not request.to_tag
        return starts_call and self._calls.early_calls >= layer.config.max_early_calls

    def _receive_cancel(self, transaction: ServerTransaction, now: float) -> None:
        invite = self._layer.invite_of(transaction.request)
        if invite is None:
            transaction.respond(481, now)
            return
        transaction.to_tag = invite.to_tag
        transaction.respond(200, now)
        call = self._calls.find_by_tag(invite.request.call_id, invite.to_tag)
        if isinstance(call, InviteServer):
            call.receive_cancel(invite, now)

    def _dispatch(self, transaction: ServerTransaction, call: Call | None, now: float) -> None:
        request = transaction.request
        if call is not None:
            call.receive_request(transaction, now)
        elif request.to_tag or request.method not in ("OPTIONS", "INVITE"):
            transaction.respond(481, now)
        elif request.method == "OPTIONS":
            transaction.respond(200, now, [*CAPABILITIES, self._layer.identity.user_agent])
        else:
            self._receive_invite(transaction, now)

    def _receive_invite(self, transaction: ServerTransaction, now: float) -> None:
        """Accept a new call, unless it is our own INVITE that was routed back to us."""
        request = transaction.request
        call = self._calls.running.get(request.call_id)
        if call is not None and call.local_tag == request.from_tag:
            transaction.respond(482, now)
            return
        description = session_description_of(request)
        if is_interval_too_small(request):
            transaction.respond(422, now, [("Min-SE", str(MIN_SE))])
            return
        try:
            offer = SessionDescription.parse(description) if description else None
        except SdpError:
            transaction.respond(488, now)
            return
        InviteServer(self._layer, self._calls, transaction, offer, now)


def _is_refused(transaction: ServerTransaction, now: float) -> bool:
    """Refuse an unsupported request, in the order of §8.2.1 to §8.2.3; returns whether it was."""
    request = transaction.request
    if request.method in OTHER_METHODS:
        transaction.respond(405, now, [("Allow", ALLOW)])
    elif request.method not in SUPPORTED_METHODS:
        transaction.respond(501, now, [("Allow", ALLOW)])
    elif scheme_of(request.uri) not in ("sip", "sips", "tel"):
        transaction.respond(416, now)
    elif "?" in request.uri.rpartition("@")[2]:
        transaction.respond(400, now, reason="Headers In Request-URI")
    elif transaction.is_merged:
        transaction.respond(482, now)
    elif unknown := [tag for tag in request.values("require") if tag.lower() not in OPTION_TAGS]:
        transaction.respond(420, now, [("Unsupported", ", ".join(unknown))])
    elif request.method not in ("INFO", "PRACK") and unsupported_body(request):
        transaction.respond(415, now, [("Accept", "application/sdp")])
    elif request.method == "INVITE" and not _accepts_sdp(request):
        transaction.respond(406, now)
    else:
        return False
    return True


def _accepts_sdp(request: Request) -> bool:
    """Whether the sender accepts SDP in the answer (§20.1)."""
    if "accept" not in request:
        return True
    kinds = {value.partition(";")[0].strip().lower() for value in request.values("accept")}
    return not kinds.isdisjoint(("application/sdp", "application/*", "*/*"))
