"""Two agents over a link that loses, doubles and delays: every call still ends as it should."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from bitel.sip import (
    AgentConfig,
    Answered,
    Confirmed,
    Ended,
    Event,
    Failed,
    Incoming,
    Invitation,
    Provisional,
    UserAgent,
    Withdrawn,
    make_answer,
    make_offer,
)
from bitel.sip.grammar import Address

CALLER = Address("192.0.2.1", 5060)
CALLEE = Address("192.0.2.2", 5060)
BEHAVIOURS = ("far-bye", "our-bye", "busy", "cancel", "reject", "no-word", "race")
CALLS = 500


@dataclass
class World:
    """A clock, two agents, and a link that takes 10 % of the datagrams and harms 10 % more."""

    rng: random.Random
    harm: float
    now: float = 0.0
    sequence: int = 0
    # (when, sequence, what): a datagram under way, or something a party does later
    agenda: list[tuple[float, int, object]] = field(default_factory=list)
    events: dict[str, list[Event]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.caller = UserAgent(AgentConfig(CALLER[:2]), self.rng)
        self.callee = UserAgent(AgentConfig(CALLEE[:2]), self.rng)
        self.behaviour: dict[str, str] = {}

    def later(self, delay: float, what: object) -> None:
        self.sequence += 1
        heapq.heappush(self.agenda, (self.now + delay, self.sequence, what))

    def agents(self) -> list[tuple[UserAgent, Address]]:
        return [(self.caller, CALLER), (self.callee, CALLEE)]

    def settle(self) -> None:
        """Take what the agents have to say, until they are quiet."""
        for agent, address in self.agents():
            while (event := agent.next_event()) is not None:
                self.take(event, agent is self.caller)
            for data, destination in agent.datagrams_to_send():
                if self.rng.random() < self.harm:
                    continue
                copies = 2 if self.rng.random() < self.harm else 1
                for _ in range(copies):
                    late = self.rng.random() < self.harm
                    delay = self.rng.uniform(0.2, 1.5) if late else 0.02
                    self.later(delay, (data, address, destination))

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

    def invite(self, number: int) -> None:
        invitation = Invitation(
            f"sip:{number}@192.0.2.2",
            CALLEE,
            "sip:us@192.0.2.1",
            make_offer(("192.0.2.1", 30000)),
        )
        call_id = self.caller.invite(invitation, self.now)
        behaviour = self.behaviour[call_id] = BEHAVIOURS[number % len(BEHAVIOURS)]
        if behaviour in ("cancel", "no-word"):
            after = self.rng.uniform(0.0, 8.0)
            self.later(after, lambda: self.caller.cancel(call_id, self.now))
        elif behaviour == "race":
            # The callee picks up a second after the INVITE has come.
            after = self.rng.uniform(0.9, 1.2)
            self.later(after, lambda: self.caller.hang_up(call_id, self.now))

    def run(self) -> None:
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
                what = heapq.heappop(self.agenda)[2]
                if callable(what):
                    what()
                else:
                    assert isinstance(what, tuple)
                    data, source, destination = what
                    agent = self.caller if destination == CALLER else self.callee
                    agent.receive_datagram(data, source, self.now)
        raise AssertionError("the agents never came to rest")


def decided(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, Provisional)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_five_hundred_calls_over_a_bad_link(seed: int) -> None:
    world = World(random.Random(seed), harm=0.1)
    for number in range(CALLS):
        world.later(number * 0.01, lambda number=number: world.invite(number))
    world.run()

    wrong = Counter[str]()
    for call_id, behaviour in world.behaviour.items():
        ours = decided(world.events[f"caller {call_id}"])
        theirs = decided(world.events.get(f"callee {call_id}", []))
        if not ends_as_it_should(behaviour, ours, theirs):
            wrong[f"{behaviour}: {ours} / {theirs}"] += 1
    assert not wrong
    assert len(world.behaviour) == CALLS
    for agent, _ in world.agents():
        assert agent.idle(), agent.counts()
        assert agent.counts().malformed == 0
        assert agent.counts().retransmissions > 0


def ends_as_it_should(behaviour: str, ours: list[Event], theirs: list[Event]) -> bool:
    match behaviour:
        case "far-bye" | "our-bye":
            # Who hangs up first depends on whether the ACK came through in time.
            return (
                [type(event) for event in ours] == [Answered, Ended]
                and [type(event) for event in theirs if not isinstance(event, Confirmed)]
                == [Incoming, Ended]
                and isinstance(ours[1], Ended)
                and ours[1].by == ("far" if behaviour == "far-bye" else "us")
            )
        case "busy":
            return failed(ours, 486, "response") and len(theirs) == 1
        case "reject":
            return failed(ours, 404, "response", 1) and len(theirs) == 1
        case "race":
            answered = [type(event) for event in ours] == [Answered, Ended]
            return (answered or failed(ours, 487, "canceled")) and (
                not theirs or isinstance(theirs[-1], Ended | Withdrawn)
            )
        case _:
            # A call that was called off before its INVITE came through is never seen there.
            return failed(ours, 487, "canceled") and [type(e) for e in theirs] in (
                [Incoming, Withdrawn],
                [],
            )


def failed(events: list[Event], code: int, why: str, q850: int | None = None) -> bool:
    return [
        (event.code, event.why, event.q850) for event in events if isinstance(event, Failed)
    ] == [(code, why, q850)] and len(events) == 1


def test_a_perfect_link_needs_no_retransmission() -> None:
    world = World(random.Random(9), harm=0.0)
    for number in range(60):
        world.later(number * 0.01, lambda number=number: world.invite(number))
    world.run()
    for agent, _ in world.agents():
        assert agent.idle()
        assert agent.counts().retransmissions == 0
