"""Two agents over a link that loses, doubles and delays: every call still ends as it should."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from bitel.sip import Answered, Canceled, Confirmed, Ended, Event, Failed, Incoming
from bitel.sip.grammar import Address
from tests.sip.two_agents import SIDES, World

CALLS = 500


@dataclass(kw_only=True)
class BadLink(World):
    """A link that takes `harm` of the datagrams, doubles as many, and delays as many."""

    harm: float

    def carry(self, side: int, data: bytes, destination: Address) -> None:
        if self.rng.random() < self.harm:
            return
        source = self.agents()[side][1]
        copies = 2 if self.rng.random() < self.harm else 1
        for _ in range(copies):
            late = self.rng.random() < self.harm
            delay = self.rng.uniform(0.2, 1.5) if late else 0.02
            self.later(delay, lambda: self.deliver(SIDES[destination], data, source))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_five_hundred_calls_over_a_bad_link(seed: int) -> None:
    world = BadLink(random.Random(seed), harm=0.1)
    world.place(CALLS, apart=0.01)

    wrong = Counter[str]()
    for call_id, behaviour in world.behaviour.items():
        ours, theirs = world.told(call_id)
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
                not theirs or isinstance(theirs[-1], Ended | Canceled)
            )
        case _:
            # A call that was called off before its INVITE came through is never seen there.
            return failed(ours, 487, "canceled") and [type(e) for e in theirs] in (
                [Incoming, Canceled],
                [],
            )


def failed(events: list[Event], code: int, why: str, q850: int | None = None) -> bool:
    return [
        (event.code, event.why, event.q850) for event in events if isinstance(event, Failed)
    ] == [(code, why, q850)] and len(events) == 1


def test_a_perfect_link_needs_no_retransmission() -> None:
    world = BadLink(random.Random(9), harm=0.0)
    world.place(60, apart=0.01)
    for agent, _ in world.agents():
        assert agent.idle()
        assert agent.counts().retransmissions == 0
