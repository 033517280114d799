"""The user agent: five verbs for the transport, and those that place and end calls.

    agent.receive_datagram(data, source, now)     a datagram, or a message of a stream, came
    agent.datagrams_to_send()                     what must leave now
    agent.next_timer() / agent.handle_timer(now)  when to come back, and coming back
    agent.next_event()                            what has happened to the calls

No verb blocks, sleeps or looks at a clock. `now` is in seconds, on any clock that does not run
backwards, the same one for all verbs. After each verb, send what is to be sent, take the
events, and look at `next_timer` again.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass

from bitel.sip.config import AgentConfig
from bitel.sip.core import Core
from bitel.sip.events import DeliveryDoubted, Event
from bitel.sip.grammar import Address, HostPort
from bitel.sip.incoming_call import IncomingCall
from bitel.sip.message import BodyLengthError, MessageError, Response, parse, quoted_branch
from bitel.sip.outgoing_call import Invitation, OutgoingCall
from bitel.sip.outgoing_request import OutgoingRequest, RequestUnderWay
from bitel.sip.router import (
    always_taken,
    receive_malformed,
    receive_request,
    receive_response,
)
from bitel.sip.sdp import SessionDescription
from bitel.sip.session import Session
from bitel.sip.source_filter import SourceFilter, SourcePolicy


@dataclass(frozen=True, slots=True)
class AgentCounts:
    """How much is going on. `dialogs` are calls in any phase, early ones included.

    The last six count from the agent's start: retransmissions, messages dropped because too many
    were queued, messages that can't be read, and responses dropped because their Via headers show
    that they are not for us (RFC 3261 §8.1.3.3, §18.1.2), messages from sources that are not
    accepted, and those of them that name a running call.
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

    __slots__ = ("_core",)

    def __init__(
        self,
        config: AgentConfig,
        rng: random.Random | None = None,
        sources: SourcePolicy | None = None,
    ) -> None:
        """`rng` makes tags, branches, Call-IDs and cnonces; the system's by default. `sources`
        decides whose messages are taken; None: everybody's."""
        self._core = Core(config, rng or random.SystemRandom())
        if sources is not None:
            self._core.sources = SourceFilter(self._core, sources)

    @property
    def config(self) -> AgentConfig:
        return self._core.config

    def move(self, local: HostPort) -> None:
        """Say `local` in the Via and Contact of new requests: we are reached there from now on.

        Calls that are under way go on from the address that they know, as long as that lasts.
        """
        self._core.move(local)

    # The five verbs

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take a message. One that is not SIP is counted and dropped.

        A message that makes the agent fail unexpectedly raises; it leaves no transaction, call or
        timer behind, and the agent goes on with the next one.
        """
        core = self._core
        if len(data) <= 4 and not data.strip(b"\r\n\0"):
            return  # a keep-alive (RFC 5626 §3.5.1)
        if core.sources is not None and not core.sources.admits(data, source, now):
            return
        try:
            message = parse(data)
        except MessageError as error:
            core.malformed += 1
            if isinstance(error, BodyLengthError) and always_taken(error.message):
                receive_request(core, error.message, source, now)
            else:
                receive_malformed(core, error, source)
            return
        if isinstance(message, Response):
            receive_response(core, message, source, now)
        else:
            receive_request(core, message, source, now)

    def receive_unframed(self, data: bytes, source: Address, now: float) -> None:
        """Take a message of a stream whose Content-Length is missing or can't be read, so that its
        end is unknown (RFC 3261 §18.3). `data` is what was received of it.

        BYE, CANCEL, ACK and responses are handled, with all data after the head as the body: a
        missing header must not keep a call up or a 2xx unacknowledged. Any other request is
        answered with 400. The caller then closes the connection.
        """
        core = self._core
        if core.sources is not None and not core.sources.admits(data, source, now):
            return
        core.malformed += 1
        try:
            message = parse(data)
        except BodyLengthError as error:
            message = error.message
        except MessageError as error:
            receive_malformed(core, error, source)
            return
        if isinstance(message, Response):
            receive_response(core, message, source, now)
        elif always_taken(message):
            receive_request(core, message, source, now)
        else:
            fault = MessageError("its Content-Length is missing or can't be read", message)
            receive_malformed(core, fault, source)

    def datagrams_to_send(self) -> list[tuple[bytes, Address]]:
        """What must leave now, with its destinations. Each is given out once."""
        waiting, self._core.outbox = self._core.outbox, []
        return waiting

    def taken_back(self) -> list[tuple[bytes, Address]]:
        """What must not leave any more, where it has been given out and still waits somewhere:
        for a connection to be made, say.

        Needed only where messages are kept after `datagrams_to_send`.
        """
        taken_back = list(self._core.taken_back)
        self._core.taken_back.clear()
        return taken_back

    def next_timer(self) -> float | None:
        """When to call `handle_timer`; None while there is nothing to wait for."""
        return self._core.timers.next()

    def handle_timer(self, now: float) -> None:
        """Do what is due by `now`. Coming too early does no harm."""
        self._core.timers.fire(now)

    def next_event(self) -> Event | None:
        """The oldest event not yet taken."""
        events = self._core.events
        return events.popleft() if events else None

    def receive_delivery_error(self, quoted: bytes, destination: Address) -> None:
        """Take an ICMP error about a datagram to `destination` that begins with `quoted`.

        Anyone can send one. So it counts only if it quotes the branch of a request that went there
        and has no response yet, and then only as `DeliveryDoubted`, once for each request.
        """
        branch = quoted_branch(quoted)
        method = quoted.partition(b" ")[0].decode("latin-1")
        transaction = self._core.client_transactions.get((branch, method)) if branch else None
        if transaction is not None and transaction.doubt_delivery(destination):
            self._core.events.append(DeliveryDoubted(transaction.request.call_id, destination))

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

        Requests to that destination which nobody has answered yet fail at once. Those that may
        have been lost with their connection are sent once more, over another.

        `unacknowledged` are the INVITEs sent over the lost connection of which the far end's
        kernel has not acknowledged every byte; None where that is not known. The far end has all
        other INVITEs, so that none of them is sent again: each waits for an answer over another
        connection until Timer B, and fails as `delivered`. `moved` are messages that were held
        back from the lost connection and leave by another: nothing is done about them.
        """
        for transaction in list(self._core.unanswered.get(destination, ())):
            transaction.transport_failed(now, lost=lost, unacknowledged=unacknowledged, moved=moved)

    # Placing calls

    def invite(self, invitation: Invitation, now: float) -> str:
        """Place a call. Returns its Call-ID, the call's handle from here on.

        Raises ValueError where a text of the invitation holds a line break or can't be encoded,
        or where the INVITE would be longer than 65,535 bytes. There is no call then.
        """
        return OutgoingCall(self._core, invitation, now).call_id

    def cancel(self, call_id: str, now: float, *, repeat: bool = True) -> None:
        """Call off a call that is not answered yet; `Failed` follows. Else does nothing.

        CANCEL waits for a first response to the INVITE (§9.1). Until then the INVITE is repeated as
        before, or not any more where `repeat` is False.
        """
        call = self._core.calls.get(call_id)
        if isinstance(call, OutgoingCall):
            call.cancel(now)
            if not repeat:
                call.stop_repeating()

    def give_up(self, call_id: str, now: float) -> bool:
        """Give up a call to which nothing was answered yet: `Failed` follows, by `timeout`.

        False, and nothing is done, once anything was, or the far end is known to have the INVITE of
        a connection that broke: a phone may be ringing. A far end that was merely slow gets CANCEL
        or BYE with its first response.
        """
        call = self._core.calls.get(call_id)
        return isinstance(call, OutgoingCall) and call.give_up(now)

    def stop_repeating_invites(self) -> None:
        """Send no INVITE again to which nothing was answered, and none that still waits to leave.

        For a worker that may have lost its calls to another. The calls go on: an answer is taken,
        and a CANCEL follows its first provisional response. Without an answer they fail by
        `timeout`; nor is a challenge answered by another INVITE.
        """
        for call in list(self._core.calls.values()):
            if isinstance(call, OutgoingCall):
                call.stop_repeating()

    def acknowledge(self, call_id: str, now: float) -> None:
        """Send the ACK that the call's invitation asked to withhold. Else does nothing."""
        call = self._core.calls.get(call_id)
        if isinstance(call, Session):
            call.acknowledge(now)

    def hang_up(self, call_id: str, now: float, q850: int | None = 16) -> None:
        """End a call: BYE, or as `cancel` before the answer. After the end does nothing.

        `q850` goes into the BYE's Reason header.
        """
        call = self._core.calls.get(call_id)
        if call is not None:
            call.hang_up(now, q850)

    # Requests outside any call

    def request(self, request: OutgoingRequest, now: float) -> str:
        """Send OPTIONS, REGISTER or the like. Returns its Call-ID; `RequestDone` follows once.

        Raises ValueError where the method belongs to calls, the CSeq is out of range, or a text
        holds a line break.
        """
        return RequestUnderWay(self._core, request, now).call_id

    # Taking calls. Each does nothing once the call was answered, refused or withdrawn.

    def ring(self, call_id: str, now: float, code: int = 180) -> None:
        """Send a provisional response, 101 to 199."""
        call = self._core.calls.get(call_id)
        if isinstance(call, IncomingCall):
            call.ring(code, now)

    def accept(self, call_id: str, answer: SessionDescription, now: float) -> None:
        """Send 200 with our SDP. `Confirmed` follows with its ACK, `Ended` in any case."""
        call = self._core.calls.get(call_id)
        if isinstance(call, IncomingCall):
            call.accept(answer, now)

    def reject(
        self, call_id: str, code: int, now: float, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Refuse with a status of 300 to 699. No event follows."""
        call = self._core.calls.get(call_id)
        if isinstance(call, IncomingCall):
            call.reject(code, headers, now)

    # Bookkeeping

    def idle(self) -> bool:
        """Whether nothing is left: no call, no transaction, no timer."""
        core = self._core
        return not (
            core.calls or core.client_transactions or core.server_transactions or len(core.timers)
        )

    def counts(self) -> AgentCounts:
        core = self._core
        return AgentCounts(
            dialogs=len(core.calls),
            client_transactions=len(core.client_transactions),
            server_transactions=len(core.server_transactions),
            timers=len(core.timers),
            retransmissions=core.retransmissions,
            dropped=core.dropped,
            malformed=core.malformed,
            misrouted=core.misrouted,
            from_elsewhere=core.from_elsewhere,
            from_elsewhere_for_calls=core.from_elsewhere_for_calls,
        )
