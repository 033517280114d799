"""Two agents, a clock and the calls between them; what the link does to a message is the test's."""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from bitel.sip import (
    AgentConfig,
    Answered,
    Confirmed,
    Event,
    Incoming,
    Invitation,
    Provisional,
    UserAgent,
    make_answer,
    make_offer,
)
from bitel.sip.grammar import Address

CALLER = Address("192.0.2.1", 5060)
CALLEE = Address("192.0.2.2", 5060)
SIDES = {CALLER: 0, CALLEE: 1}
BEHAVIOURS = ("far-bye", "our-bye", "busy", "cancel", "reject", "no-word", "race")
"""What becomes of calls, in turns."""


@dataclass
class World(ABC):
    """Two agents, of which the first, side 0, calls the second, side 1."""

    rng: random.Random
    now: float = 0.0
    sequence: int = 0
    # (when, sequence, what): a message that arrives, or something a party does later
    agenda: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    events: dict[str, list[Event]] = field(default_factory=dict)
    behaviour: dict[str, str] = field(default_factory=dict)
    """What becomes of each call, by its id."""

    def __post_init__(self) -> None:
        self.caller = UserAgent(AgentConfig(CALLER[:2]), self.rng)
        self.callee = UserAgent(AgentConfig(CALLEE[:2]), self.rng)

    @abstractmethod
    def carry(self, side: int, data: bytes, destination: Address) -> None:
        """Take what that side sends; it arrives as often and as late as the link has it."""

    def later(self, delay: float, what: Callable[[], object]) -> None:
        self.sequence += 1
        heapq.heappush(self.agenda, (self.now + delay, self.sequence, what))

    def agents(self) -> list[tuple[UserAgent, Address]]:
        return [(self.caller, CALLER), (self.callee, CALLEE)]

    def deliver(self, side: int, data: bytes, source: Address) -> None:
        self.agents()[side][0].receive_datagram(data, source, self.now)

    def settle(self) -> None:
        """Take what the agents have to say, until they are quiet."""
        for side, (agent, _) in enumerate(self.agents()):
            while (event := agent.next_event()) is not None:
                self.take(event, agent is self.caller)
            for data, destination in agent.datagrams_to_send():
                self.carry(side, data, destination)

    def take(self, event: Event, at_caller: bool) -> None:
        side = "caller" if at_caller else "callee"
        self.events.setdefault(f"{side} {event.call_id}", []).append(event)
        behaviour = self.behaviour[event.call_id]
        if isinstance(event, Incoming):
            self.answer(event, behaviour)
        elif isinstance(event, Answered) and behaviour == "our-bye":
            self.later(3.0, lambda: self.caller.hang_up(event.call_id, self.now))
        elif isinstance(event, Confirmed) and behaviour == "far-bye":
            self.later(2.0, lambda: self.callee.hang_up(event.call_id, self.now))

    def answer(self, event: Incoming, behaviour: str) -> None:
        call_id, callee = event.call_id, self.callee
        assert event.offer is not None
        answer = make_answer(event.offer, ("192.0.2.2", 40000))
        if behaviour == "busy":
            callee.reject(call_id, 486, self.now)
        elif behaviour == "reject":
            callee.reject(call_id, 404, self.now, [("Reason", "Q.850;cause=1")])
        elif behaviour != "no-word":
            callee.ring(call_id, self.now)
        if behaviour in ("far-bye", "our-bye", "race"):
            self.later(1.0, lambda: callee.accept(call_id, answer, self.now))

    def invitation(self, number: int) -> Invitation:
        return Invitation(
            f"sip:{number}@192.0.2.2",
            CALLEE,
            "sip:us@192.0.2.1",
            make_offer(("192.0.2.1", 30000)),
        )

    def invite(self, number: int) -> str:
        """Begin a call; its id."""
        call_id = self.caller.invite(self.invitation(number), self.now)
        behaviour = self.behaviour[call_id] = BEHAVIOURS[number % len(BEHAVIOURS)]
        if behaviour in ("cancel", "no-word"):
            after = self.rng.uniform(0.0, 8.0)
            self.later(after, lambda: self.caller.cancel(call_id, self.now))
        elif behaviour == "race":
            # The callee picks up a second after the INVITE has come.
            after = self.rng.uniform(0.9, 1.2)
            self.later(after, lambda: self.caller.hang_up(call_id, self.now))
        return call_id

    def place(self, count: int, apart: float) -> None:
        """Make so many calls, each `apart` seconds after the last, and let all come to an end."""
        for number in range(count):
            self.later(number * apart, partial(self.invite, number))
        self.run()

    def run(self) -> None:
        """Go on until the agents rest, and nothing is under way."""
        for _ in range(1_000_000):
            self.settle()
            dues = [agent.next_timer() for agent, _ in self.agents()]
            times = [due for due in dues if due is not None]
            times += [self.agenda[0][0]] if self.agenda else []
            if not times:
                return
            self.now = max(self.now, min(times))
            for agent, _ in self.agents():
                agent.handle_timer(self.now)
            while self.agenda and self.agenda[0][0] <= self.now:
                heapq.heappop(self.agenda)[2]()
        raise AssertionError("the agents never came to rest")

    def told(self, call_id: str) -> tuple[list[Event], list[Event]]:
        """What the caller and the callee were told of a call, besides what was provisional."""
        return (
            _decided(self.events[f"caller {call_id}"]),
            _decided(self.events.get(f"callee {call_id}", [])),
        )


def _decided(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, Provisional)]
