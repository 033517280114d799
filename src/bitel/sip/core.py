"""What all parts of an agent share: its identity, clocks, queues and tables."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from bitel.sip.config import AgentConfig
from bitel.sip.events import Event
from bitel.sip.grammar import Address, HostPort, Transport
from bitel.sip.requests import ALLOW
from bitel.sip.timers import Timers
from bitel.sip.tokens import Tokens

if TYPE_CHECKING:
    from bitel.sip.client_transaction import ClientTransaction
    from bitel.sip.message import Request
    from bitel.sip.outgoing_call import OutgoingCall
    from bitel.sip.server_transaction import MergeKey, ServerKey, ServerTransaction
    from bitel.sip.source_filter import SourceFilter


WITHOUT_TCP = 600.0
"""Seconds for which a destination is not tried by TCP, after that could not be had."""
MAX_WITHOUT_TCP = 1000


class Call(Protocol):
    """A call in one of its phases: placed, incoming, or a session that was answered."""

    call_id: str
    """The call's handle in the agent's methods and events: its Call-ID, with a suffix where another
    call with the same Call-ID was running."""

    @property
    def local_tag(self) -> str:
        """Our tag in its dialogs."""

    @property
    def named_hosts(self) -> frozenset[str]:
        """The IP addresses that messages of the call may come from beside the carrier's."""

    def matches(self, request: Request) -> bool:
        """Whether a request with this Call-ID is within the dialog (§12.2.2)."""

    def receive_request(
        self, request: Request, transaction: ServerTransaction, source: Address, now: float
    ) -> None:
        """Answer a request within the call, one for which `matches` is true."""

    def receive_ack(self, request: Request, now: float) -> None:
        """Take the ACK of a 2xx."""

    def hang_up(self, now: float, q850: int | None) -> None:
        """End the call, whatever its phase."""


class Core:
    """No rules live here: transactions and calls find each other through it."""

    __slots__ = (
        "_about_us",
        "_contacts",
        "_handles",
        "_vias",
        "calls",
        "client_transactions",
        "config",
        "dropped",
        "early_calls",
        "events",
        "from_elsewhere",
        "from_elsewhere_for_calls",
        "invites_under_way",
        "long_wait",
        "malformed",
        "misrouted",
        "outbox",
        "remembered",
        "requests_of_calls",
        "retransmissions",
        "rng",
        "server_bytes",
        "server_transactions",
        "sources",
        "taken_back",
        "timers",
        "tokens",
        "unanswered",
        "user_agent",
        "user_agent_line",
        "without_tcp",
    )

    def __init__(self, config: AgentConfig, rng: random.Random) -> None:
        self.config = config
        self.long_wait = config.long_wait
        self.rng = rng
        self.tokens = Tokens(rng)
        self.timers = Timers()
        self.outbox: list[tuple[bytes, Address]] = []
        # Messages that are not to leave any more, should they still wait for a connection.
        self.taken_back: deque[tuple[bytes, Address]] = deque(maxlen=config.max_queued_datagrams)
        self.events: deque[Event] = deque()
        # By their handles.
        self.calls: dict[str, Call] = {}
        # The handles that differ from the Call-ID, by Call-ID and local tag.
        self._handles: dict[tuple[str, str], str] = {}
        self.client_transactions: dict[tuple[str, str], ClientTransaction] = {}
        self.server_transactions: dict[ServerKey, ServerTransaction] = {}
        # Those of INVITEs outside a dialog, to detect merged requests (§8.2.2.2).
        self.invites_under_way: dict[MergeKey, ServerTransaction] = {}
        # By destination, those that a lost connection or an error there concerns: requests
        # without an answer, and over streams also INVITEs with no final one.
        self.unanswered: dict[Address, dict[ClientTransaction, None]] = {}
        # Calls that were given up, kept for an answer that comes too late, oldest first.
        self.remembered: dict[str, OutgoingCall] = {}
        self.early_calls = self.retransmissions = 0
        self.dropped = self.malformed = self.misrouted = 0
        self.from_elsewhere = self.from_elsewhere_for_calls = 0
        # Of the server transactions: their bytes, and how many each call has.
        self.server_bytes = 0
        self.requests_of_calls = Counter[str]()
        self.sources: SourceFilter | None = None
        """Decides whose messages are taken; None: everybody's."""
        self.user_agent = ("User-Agent", config.user_agent)
        self.user_agent_line = f"User-Agent: {config.user_agent}\r\n"
        # Destinations by UDP that have no TCP, and until when that is taken to be so.
        self.without_tcp: dict[Address, float] = {}
        self._vias: dict[Transport, str]
        self._contacts: dict[Transport, tuple[str, str]]
        self._about_us: dict[Transport, str]
        self.move(config.local)

    def move(self, local: HostPort) -> None:
        """Have Via and Contact say `local` from now on."""
        config = self.config = replace(self.config, local=local)
        self._vias = {each: _via(each, config.sent_by_for(each)) for each in Transport}
        self._contacts = {each: _contact(each, config.sent_by_for(each)) for each in Transport}
        self._about_us = {
            each: f"Contact: {contact}\r\nAllow: {ALLOW}\r\n{self.user_agent_line}"
            for each, (_, contact) in self._contacts.items()
        }

    def call_of(self, request: Request) -> Call | None:
        """The call whose dialog a request belongs to, by Call-ID and tags (§12.2.2)."""
        call = self.calls.get(request.call_id)
        if call is None or not call.matches(request):
            handle = self._handles.get((request.call_id, request.to_tag))
            call = None if handle is None else self.calls.get(handle)
        return call if call is not None and call.matches(request) else None

    def new_handle(self, call_id: str, local_tag: str) -> str:
        """The handle of a new incoming call: its Call-ID, unless a running call has that."""
        if call_id not in self.calls:
            return call_id
        handle = f"{call_id};{local_tag}"
        self._handles[call_id, local_tag] = handle
        return handle

    def remove_call(self, call: Call) -> None:
        """Forget a call that is over."""
        if self.sources is not None:
            self.sources.note_end(call)
        del self.calls[call.call_id]
        if self._handles and call.call_id.endswith(f";{call.local_tag}"):
            call_id = call.call_id.removesuffix(f";{call.local_tag}")
            self._handles.pop((call_id, call.local_tag), None)

    def send(self, data: bytes, destination: Address) -> None:
        if len(self.outbox) < self.config.max_queued_datagrams:
            self.outbox.append((data, destination))
        else:
            self.dropped += 1

    def new_token(self) -> str:
        """64 random bits: a tag, a cnonce."""
        return self.tokens.take(16)

    def new_call_id(self) -> str:
        """128 random bits."""
        return self.tokens.take(32)

    def new_via(self, transport: Transport) -> str:
        """A Via value with a branch of its own (§8.1.1.7)."""
        return self._vias[transport] + self.tokens.take(24)

    def contact_by(self, transport: Transport) -> tuple[str, str]:
        """The Contact header of a call that goes by a transport."""
        return self._contacts[transport]

    def lines_about_us(self, transport: Transport) -> str:
        """Contact, Allow and User-Agent of a call that goes by a transport, as header lines."""
        return self._about_us[transport]

    def has_tcp(self, destination: Address, now: float) -> bool:
        """Whether a request that is too long for UDP is sent to a destination by TCP."""
        return self.config.tcp_fallback and self.without_tcp.get(destination, now) <= now

    def miss_tcp(self, destination: Address, now: float) -> None:
        """Use no TCP to a destination for `WITHOUT_TCP` seconds: no connection could be made, or a
        request over one got no response at all."""
        while len(self.without_tcp) >= MAX_WITHOUT_TCP:
            del self.without_tcp[next(iter(self.without_tcp))]
        self.without_tcp[destination] = now + WITHOUT_TCP

    def found_tcp(self, destination: Address) -> None:
        """Use TCP to a destination again: a response came over it."""
        self.without_tcp.pop(destination, None)


def _via(transport: Transport, sent_by: str) -> str:
    # Where we do not listen, requests to us can only take the connection that there is (RFC 5923).
    alias = ";alias" if transport is Transport.TLS else ""
    return f"SIP/2.0/{transport} {sent_by};rport{alias};branch=z9hG4bK"


def _contact(transport: Transport, sent_by: str) -> tuple[str, str]:
    way = "" if transport is Transport.UDP else f";transport={transport.lower()}"
    return ("Contact", f"<sip:{sent_by}{way}>")
