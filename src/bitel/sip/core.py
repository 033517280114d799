"""What all parts of an agent share: its identity, clocks, queues and tables."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Protocol

from bitel.sip.config import AgentConfig
from bitel.sip.events import Event
from bitel.sip.grammar import Address
from bitel.sip.timers import Timers

if TYPE_CHECKING:
    from bitel.sip.client_transaction import ClientTransaction
    from bitel.sip.message import Request
    from bitel.sip.outgoing_call import OutgoingCall
    from bitel.sip.server_transaction import ServerKey, ServerTransaction


class Call(Protocol):
    """A call in one of its phases: placed, incoming, or a session that was answered."""

    def receive_request(
        self, request: Request, transaction: ServerTransaction, source: Address, now: float
    ) -> None:
        """Answer a request that came within the call (its To has a tag)."""

    def receive_ack(self, request: Request, now: float) -> None:
        """Take the ACK of a 2xx."""

    def hang_up(self, now: float, q850: int | None) -> None:
        """End the call, whatever its phase."""


class Core:
    """No rules live here: transactions and calls find each other through it."""

    __slots__ = (
        "calls",
        "client_transactions",
        "config",
        "contact",
        "dropped",
        "early_calls",
        "events",
        "malformed",
        "outbox",
        "remembered",
        "retransmissions",
        "rng",
        "server_transactions",
        "timers",
        "unanswered",
        "user_agent",
        "via",
    )

    def __init__(self, config: AgentConfig, rng: random.Random) -> None:
        self.config = config
        self.rng = rng
        self.timers = Timers()
        self.outbox: deque[tuple[bytes, Address]] = deque()
        self.events: deque[Event] = deque()
        self.calls: dict[str, Call] = {}
        self.client_transactions: dict[tuple[str, str], ClientTransaction] = {}
        self.server_transactions: dict[ServerKey, ServerTransaction] = {}
        # By destination, those that an ICMP error from there would end.
        self.unanswered: dict[Address, dict[ClientTransaction, None]] = {}
        # Calls that were given up, kept for an answer that comes too late, oldest first.
        self.remembered: dict[str, OutgoingCall] = {}
        self.early_calls = self.retransmissions = self.dropped = self.malformed = 0
        self.via = f"SIP/2.0/UDP {config.sent_by};rport;branch=z9hG4bK"
        self.contact = ("Contact", f"<sip:{config.sent_by}>")
        self.user_agent = ("User-Agent", config.user_agent)

    def send(self, data: bytes, destination: Address) -> None:
        if len(self.outbox) < self.config.max_queued_datagrams:
            self.outbox.append((data, destination))
        else:
            self.dropped += 1

    def new_token(self) -> str:
        """64 random bits: a tag, a cnonce."""
        return f"{self.rng.getrandbits(64):016x}"

    def new_via(self) -> str:
        """A Via value with a branch of its own (§8.1.1.7)."""
        return f"{self.via}{self.rng.getrandbits(96):024x}"
