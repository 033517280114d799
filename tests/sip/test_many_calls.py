"""Ten thousand calls one after the other, a thousand at once: afterwards nothing is left."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bitel.sip import (
    AgentConfig,
    AgentCounts,
    Answered,
    Ended,
    Event,
    Failed,
    Incoming,
    Invitation,
    UserAgent,
    make_answer,
    make_offer,
)
from tests.sip.two_agents import CALLEE, CALLER

OFFER = make_offer(("192.0.2.1", 30000))
INVITATION = Invitation("sip:1@192.0.2.2", CALLEE, "sip:us@192.0.2.1", OFFER)
NOTHING = AgentCounts(
    dialogs=0,
    client_transactions=0,
    server_transactions=0,
    timers=0,
    retransmissions=0,
    dropped=0,
    malformed=0,
    misrouted=0,
    from_elsewhere=0,
    from_elsewhere_for_calls=0,
)


class Line:
    """Two agents and a perfect link. The number called says what the callee does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.caller = UserAgent(AgentConfig(CALLER[:2]), random.Random(1))
        self.callee = UserAgent(AgentConfig(CALLEE[:2]), random.Random(2))
        self.ends = Counter[str]()
        self.answered: list[str] = []

    def call(self, number: str) -> str:
        invitation = INVITATION._replace(request_uri=f"sip:{number}@192.0.2.2")
        return self.caller.invite(invitation, self.now)

    def deliver(self) -> None:
        """Carry datagrams and take events until both sides are quiet."""
        busy = True
        while busy:
            busy = False
            for agent, address in ((self.caller, CALLER), (self.callee, CALLEE)):
                for data, destination in agent.datagrams_to_send():
                    other = self.caller if destination == CALLER else self.callee
                    other.receive_datagram(data, address, self.now)
                    busy = True
                while (event := agent.next_event()) is not None:
                    self.take(event, agent)
                    busy = True

    def take(self, event: Event, agent: UserAgent) -> None:
        if isinstance(event, Incoming):
            self.meet(event)
        elif agent is self.caller:
            if isinstance(event, Answered):
                self.answered.append(event.call_id)
            elif isinstance(event, Ended):
                self.ends[f"ended by {event.by}"] += 1
            elif isinstance(event, Failed):
                self.ends[f"failed {event.code}"] += 1

    def meet(self, event: Incoming) -> None:
        assert event.offer is not None
        if event.number == "busy":
            self.callee.reject(event.call_id, 486, self.now)
            return
        self.callee.ring(event.call_id, self.now)
        if event.number == "answers":
            answer = make_answer(event.offer, ("192.0.2.2", 40000))
            self.callee.accept(event.call_id, answer, self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.caller.handle_timer(self.now)
        self.callee.handle_timer(self.now)
        self.deliver()

    def assert_nothing_is_left(self) -> None:
        self.advance(33)
        self.advance(33)
        for agent in (self.caller, self.callee):
            layer, calls = agent._layer, agent._calls
            assert agent.idle()
            assert agent.counts() == NOTHING
            assert (calls.given_up, layer.unanswered, calls.early_calls) == ({}, {}, 0)
            assert agent.next_timer() is None
            assert layer.timers._heap == []
            assert all(end.after is end for end in layer.timers._lanes.values())


@pytest.mark.parametrize("behaviour", ["answers", "busy", "rings"])
def test_one_call_leaves_nothing(behaviour: str) -> None:
    line = Line()
    call_id = line.call(behaviour)
    line.deliver()
    line.caller.hang_up(call_id, line.now)
    line.deliver()
    assert line.ends.total() == 1
    line.assert_nothing_is_left()


def test_ten_thousand_calls_one_after_the_other() -> None:
    line = Line()
    for number in range(10_000):
        behaviour = ("answers", "answers", "busy", "rings")[number % 4]
        call_id = line.call(behaviour)
        line.deliver()
        line.advance(0.5)
        if number % 8 == 0:
            line.callee.hang_up(call_id, line.now)
        else:
            line.caller.hang_up(call_id, line.now)
        line.deliver()
        line.advance(0.5)
        assert line.caller.counts().dialogs == line.callee.counts().dialogs == 0
        # Transactions stay for 64·T1, so for no more than the calls of that time.
        assert line.caller.counts().client_transactions <= 80
    assert line.ends == {
        "ended by us": 3750,
        "ended by far": 1250,
        "failed 486": 2500,
        "failed 487": 2500,
    }
    line.assert_nothing_is_left()


def test_a_thousand_calls_at_once() -> None:
    line = Line()
    for _ in range(1000):
        line.call("answers")
    line.deliver()
    assert len(set(line.answered)) == 1000
    assert line.caller.counts().dialogs == line.callee.counts().dialogs == 1000
    # Long enough for each session to be refreshed twice (RFC 4028).
    for _ in range(40):
        line.advance(50)
    assert line.caller.counts().dialogs == 1000
    for call_id in line.answered:
        line.caller.hang_up(call_id, line.now)
    line.deliver()
    assert line.ends == {"ended by us": 1000}
    line.assert_nothing_is_left()
