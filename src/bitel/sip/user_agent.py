"""The user agent: takes messages and timers from the transport, places and ends calls.

    agent.receive_datagram(data, source, now)     a datagram, or a message of a stream, came
    agent.datagrams_to_send()                     what must leave now
    agent.next_timer() / agent.handle_timer(now)  when to come back, and coming back
    agent.next_event()                            what has happened to the calls

No method blocks, sleeps or looks at a clock. `now` is in seconds, on any clock that does not run
backwards, the same one for all methods. After each call, send what is to be sent, take the events,
and look at `next_timer` again.
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
"""Requests of one call that are taken although there are too many in all."""
RETRY_LATER = ("Retry-After", "5")


@dataclass(frozen=True, slots=True)
class AgentCounts:
    """How much is going on. `dialogs` are calls in any phase, early ones included.

    The last six count from the agent's start: retransmissions, messages dropped because too many
    were queued, unreadable messages, responses whose Via shows that they are not for us (RFC 3261
    §8.1.3.3, §18.1.2), messages from sources that are not accepted, and those of them that name a
    running call.
    """

    dialogs: int
    client_transactions: int
    server_transactions: int
    timers: int
    retransmissions: int
    dropped: int
    malformed: int
    misrouted: int
    from_elsewhere: int
    from_elsewhere_for_calls: int


class UserAgent:
    """Places and takes calls over UDP, TCP and TLS (RFC 3261), without I/O."""

    def __init__(
        self,
        config: AgentConfig,
        rng: random.Random | None = None,
        sources: SourcePolicy | None = None,
    ) -> None:
        """`rng` makes tags, branches, Call-IDs and cnonces; the system's by default. `sources`
        decides whose messages are taken; None: everybody's."""
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
        """Say `local` in the Via and Contact of new requests: we are reached there from now on.

        Calls that are under way go on from the address that they know, as long as that lasts.
        """
        self._layer.move(local)

    # The transport

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take a message. One that is not SIP is counted and dropped.

        A message that makes the agent fail unexpectedly raises; it leaves no transaction, call or
        timer behind, and the agent goes on with the next one.
        """
        if len(data) > 4 or data.strip(b"\r\n\0"):  # else a keep-alive (RFC 5626 §3.5.1)
            self._receive(data, source, now, is_framed=True)

    def receive_unframed(self, data: bytes, source: Address, now: float) -> None:
        """Take a message of a stream whose Content-Length is missing or can't be read, so that its
        end is unknown (RFC 3261 §18.3). `data` is what was received of it.

        BYE, CANCEL, ACK and responses are handled, with all data after the head as the body, so
        that no call stays up and no 2xx unacknowledged. Any other request is answered with 400. The
        caller then closes the connection.
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
        """What must leave now, with its destinations. Each is given out once."""
        waiting, self._layer.outbox = self._layer.outbox, []
        return waiting

    def taken_back(self) -> list[tuple[bytes, Address]]:
        """Messages from `datagrams_to_send` that must not leave any more, if they still wait
        somewhere: for a connection to be made, say."""
        withdrawn = list(self._layer.withdrawn)
        self._layer.withdrawn.clear()
        return withdrawn

    def next_timer(self) -> float | None:
        """When to call `handle_timer`; None while there is nothing to wait for."""
        return self._layer.timers.next()

    def handle_timer(self, now: float) -> None:
        """Do what is due by `now`. Coming too early does no harm."""
        self._layer.timers.fire(now)

    def next_event(self) -> Event | None:
        """The oldest event not yet taken."""
        events = self._calls.events
        return events.popleft() if events else None

    def receive_delivery_error(self, quoted: bytes, destination: Address) -> None:
        """Take an ICMP error about a datagram to `destination` that begins with `quoted`.

        Anyone can send one. So it counts only if it quotes the branch of a request that went there
        and has no response yet, and then only as `DeliveryDoubted`, once for each request.
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
        """This machine can't send to `destination`, a connection there could not be had, or one
        that stood was `lost`.

        Requests to that destination that have no response yet fail at once. Those that may have
        been lost with their connection are sent once more, over another.

        `unacknowledged` are the INVITEs sent over the lost connection of which the far end's
        kernel has not acknowledged every byte; None if unknown. The far end has all other INVITEs:
        they are not sent again, but wait for an answer over another connection until Timer B, and
        fail as `delivered`. `moved` are messages that leave by another connection anyway.
        """
        for transaction in list(self._layer.unanswered.get(destination, ())):
            transaction.transport_failed(now, lost=lost, unacknowledged=unacknowledged, moved=moved)

    # Placing calls

    def invite(self, invitation: Invitation, now: float) -> str:
        """Place a call. Returns its Call-ID, the call's handle from here on.

        Raises ValueError where a text of the invitation holds a line break or can't be encoded,
        or where the INVITE would be longer than 65,535 bytes. There is no call then.
        """
        return InviteClient(self._layer, self._calls, invitation, now).call_id

    def cancel(self, call_id: str, now: float, *, repeat: bool = True) -> None:
        """Cancel a call that is not answered yet; `Failed` follows. Else does nothing.

        CANCEL waits for a first response to the INVITE (§9.1). Until then the INVITE is repeated as
        before, or not any more where `repeat` is False.
        """
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteClient):
            call.cancel(now)
            if not repeat:
                call.stop_repeating()

    def give_up(self, call_id: str, now: float) -> bool:
        """Give up a call to which nothing was answered yet: `Failed` follows, by `timeout`.

        False, and nothing is done, if anything was, or the far end is known to have the INVITE, so
        that a phone may ring. A far end that was merely slow gets CANCEL or BYE later.
        """
        call = self._calls.running.get(call_id)
        return isinstance(call, InviteClient) and call.give_up(now)

    def stop_repeating_invites(self) -> None:
        """Send no INVITE again to which nothing was answered, and none that still waits to leave.

        For a worker that may have lost its calls to another. An answer is still taken, but a
        challenge is not answered by another INVITE. Without an answer calls fail by `timeout`.
        """
        for call in list(self._calls.running.values()):
            if isinstance(call, InviteClient):
                call.stop_repeating()

    def acknowledge(self, call_id: str, now: float) -> None:
        """Send the ACK that the call's invitation asked to withhold. Else does nothing."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteDialog):
            call.acknowledge(now)

    def hang_up(self, call_id: str, now: float, q850: int | None = 16) -> None:
        """End a call: BYE, or as `cancel` before the answer. After the end does nothing.

        `q850` goes into the BYE's Reason header.
        """
        call = self._calls.running.get(call_id)
        if call is not None:
            call.hang_up(now, q850)

    def request(self, request: OutgoingRequest, now: float) -> str:
        """Send OPTIONS, REGISTER or the like. Returns its Call-ID; `RequestDone` follows once.

        Raises ValueError where the method belongs to calls, the CSeq is out of range, or a text
        holds a line break.
        """
        return RequestClient(self._layer, self._calls.events.append, request, now).call_id

    # Taking calls. Each does nothing once the call was answered, refused or canceled.

    def ring(self, call_id: str, now: float, code: int = 180) -> None:
        """Send a provisional response, 101 to 199."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteServer):
            call.ring(code, now)

    def accept(self, call_id: str, answer: SessionDescription, now: float) -> None:
        """Send 200 with our SDP. `Confirmed` follows with its ACK, `Ended` in any case."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteServer):
            call.accept(answer, now)

    def reject(
        self, call_id: str, code: int, now: float, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Refuse with a status of 300 to 699. No event follows."""
        call = self._calls.running.get(call_id)
        if isinstance(call, InviteServer):
            call.reject(code, headers, now)

    # Bookkeeping

    def idle(self) -> bool:
        """Whether nothing is left: no call, no transaction, no timer."""
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
        """Pass a response to its transaction, or a late one to an INVITE to its call."""
        if self._layer.receive_response(response, now):
            return
        if response.cseq_method == "INVITE" and response.code < 300:
            call = self._calls.find(response.call_id)
            if call is not None and call.local_tag == response.from_tag:
                call.receive_late_response(response, now)

    def _receive_malformed(self, request: Request | None) -> None:
        """Answer what can be identified as a request with 400; drop everything else."""
        if request is None or request.method == "ACK":
            return
        # Without these there is no telling which request a 400 would be about.
        if not all(request.header(name) for name in ("via", "from", "to", "call-id", "cseq")):
            return
        try:
            self._layer.send(*self._layer.stateless_response(request, 400))
        except MessageError:
            # Without a readable Via there is no address to respond to.
            return

    def _receive_request(self, request: Request, now: float) -> None:
        """Take a request that has all that a request must have."""
        if self._layer.receive_request(request, now):
            return
        call = self._calls.call_of(request) if request.to_tag else None
        if request.method == "ACK":
            if call is not None:
                call.receive_ack(request, now)
            return
        if self._is_one_too_many(request, call):
            self._layer.send(*self._layer.stateless_response(request, 503, [RETRY_LATER]))
            return
        of_call = call.call_id if call is not None else ""
        transaction = ServerTransaction(self._layer, request, of_call)
        try:
            if request.method == "CANCEL":
                self._receive_cancel(transaction, now)
            elif request.method == "BYE" or not _is_refused(transaction, now):
                self._dispatch(transaction, call, now)
        except Exception:
            transaction.fail(now)
            raise

    def _is_one_too_many(self, request: Request, call: Call | None) -> bool:
        """Whether a request exceeds the limits.

        BYE and CANCEL of a running call never do, and its other requests only where it has several.
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
            return call is None or layer.requests_of_calls[call.call_id] >= MAX_OF_CALL
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
        """Take a new call, unless it is one of ours that was routed back to us."""
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
    """Answer what can't be served, in the order of §8.2.1 to §8.2.3."""
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
    """Whether the sender can read our answer (§20.1)."""
    if "accept" not in request:
        return True
    kinds = {value.partition(";")[0].strip().lower() for value in request.values("accept")}
    return not kinds.isdisjoint(("application/sdp", "application/*", "*/*"))
