"""Two agents over connections that break, and can't be had at times: nobody is rung twice."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import pytest

from bitel.sip import Answered, Canceled, Ended, Event, Failed, Incoming, Invitation
from bitel.sip.grammar import Address, Transport
from bitel.sip.headers import response_route
from bitel.sip.message import Request, parse
from bitel.sip.transaction import MAX_UDP
from tests.sip.two_agents import SIDES, World

Way = Literal["tcp", "long", "both"]
TCP = Transport.TCP
CALLS = 300
PAUSE = 0.1
"""Seconds for which nobody is tried who has just refused."""
UNSEEN = (0.0, 0.001, 0.02, 0.5)
"""Seconds until the two ends notice that their connection is there no more."""


@dataclass
class Connection:
    """`ends` says by which address each agent, 0 the caller, knows the other."""

    ends: tuple[Address, Address]
    broken: bool = False


@dataclass
class BrokenWorld(World):
    """`breaks`: how likely a message is to break its connection, which takes what is under way.

    `refuses`: how likely a connection is not to be had; `harm`: how likely a datagram is lost.
    """

    harm: float = 0.0
    breaks: float = 0.0
    refuses: float = 0.0
    way: Way = "tcp"
    broken: int = 0
    known: tuple[dict[Address, Connection], dict[Address, Connection]] = field(
        default_factory=lambda: ({}, {})
    )
    waiting: dict[tuple[int, Address], list[bytes]] = field(default_factory=dict)
    paused_until: dict[tuple[int, Address], float] = field(default_factory=dict)
    port: int = 20000
    arrived: dict[str, set[str]] = field(default_factory=dict)
    """The branches of the INVITEs that reached the callee, by call."""

    def carry(self, side: int, data: bytes, destination: Address) -> None:
        if destination.transport is TCP:
            self.by_stream(side, data, destination)
        elif self.rng.random() >= self.harm:
            source = self.agents()[side][1]
            self.later(0.02, lambda: self.deliver(SIDES[destination], data, source))

    def deliver(self, side: int, data: bytes, source: Address) -> None:
        message = parse(data)
        if isinstance(message, Request) and message.method == "INVITE":
            self.arrived.setdefault(message.call_id, set()).add(message.branch)
        super().deliver(side, data, source)

    def by_stream(self, side: int, data: bytes, destination: Address) -> None:
        connection = self.known[side].get(destination)
        if connection is None and data.startswith(b"SIP/2.0 "):
            route = response_route(data, destination)
            assert route is not None
            destination, connection = route, self.known[side].get(route)
        if connection is not None:
            self.send_over(connection, side, data)
        elif self.paused_until.get((side, destination), 0.0) > self.now:
            self.agents()[side][0].transport_failed(destination, self.now)
        elif (side, destination) in self.waiting:
            self.waiting[side, destination].append(data)
        else:
            self.waiting[side, destination] = [data]
            self.later(0.05, lambda: self.connected(side, destination))

    def connected(self, side: int, destination: Address) -> None:
        waiting = self.waiting.pop((side, destination))
        if self.rng.random() < self.refuses:
            self.paused_until[side, destination] = self.now + PAUSE
            self.agents()[side][0].transport_failed(destination, self.now)
            return
        connection = self.connect(side, destination)
        for data in waiting:
            self.send_over(connection, side, data)

    def send_over(self, connection: Connection, side: int, data: bytes) -> None:
        if self.rng.random() < self.breaks:
            # It may be the last message that arrives, or the first that does not.
            if self.rng.random() < 0.5:
                self.later(0.02, lambda: self.arrive(connection, side, data, even_broken=True))
            self.break_up(connection)
        else:
            self.later(0.02, lambda: self.arrive(connection, side, data))

    def connect(self, side: int, destination: Address) -> Connection:
        self.port += 1
        from_there = self.agents()[side][1]._replace(port=self.port, transport=TCP)
        ends = (destination, from_there) if side == 0 else (from_there, destination)
        connection = Connection(ends)
        for each in (0, 1):
            self.known[each][ends[each]] = connection
        return connection

    def break_up(self, connection: Connection) -> None:
        connection.broken = True
        self.broken += 1
        for side in (0, 1):
            self.later(self.rng.choice(UNSEEN), partial(self.notice, connection, side))

    def notice(self, connection: Connection, side: int) -> None:
        there = connection.ends[side]
        if self.known[side].get(there) is connection:
            del self.known[side][there]
            self.agents()[side][0].transport_failed(there, self.now, lost=True)

    def arrive(
        self, connection: Connection, side: int, data: bytes, even_broken: bool = False
    ) -> None:
        other = 1 - side
        if not connection.broken or even_broken:
            self.deliver(other, data, connection.ends[other])

    def invitation(self, number: int) -> Invitation:
        usual = super().invitation(number)
        if self.way == "long" or (self.way == "both" and number % 2):
            return usual._replace(headers=(("X-Long", "x" * MAX_UDP),))
        return usual._replace(destination=usual.destination._replace(transport=TCP))

    def invite(self, number: int) -> str:
        self.caller._layer.without_tcp.clear()  # else one refusal spares all others the trouble
        call_id = super().invite(number)
        if self.behaviour[call_id] not in ("cancel", "no-word", "race"):
            # A dialer gives up who says nothing, and rings nobody for ever.
            self.later(0.3, lambda: self.caller.give_up(call_id, self.now))
            self.later(60.0, lambda: self.caller.hang_up(call_id, self.now))
        return call_id


def judge(ours: list[Event], theirs: list[Event]) -> str:
    """What is wrong with a call, as both ends saw it; "" where nothing is."""
    kinds = [type(event) for event in ours]
    if kinds not in ([Failed], [Answered, Ended]):
        return f"the caller was told {kinds}"
    seen = [type(event) for event in theirs]
    if seen.count(Incoming) > 1:
        return "the callee was rung more than once"
    if seen.count(Ended) + seen.count(Canceled) > 1:
        return f"the callee was told {seen}"
    return ""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", ["tcp", "long", "both"])
def test_whatever_breaks_every_call_ends_once_and_nothing_is_left(way: Way, seed: int) -> None:
    world = BrokenWorld(random.Random(seed), harm=0.05, breaks=0.04, refuses=0.2, way=way)
    world.place(CALLS, apart=0.05)
    assert world.broken > 20
    wrong = Counter[str]()
    for call_id in world.behaviour:
        if fault := judge(*world.told(call_id)):
            wrong[f"{world.behaviour[call_id]}: {fault}"] += 1
    assert not wrong
    assert {len(branches) for branches in world.arrived.values()} == {1}
    for agent, _ in world.agents():
        assert agent.idle(), agent.counts()
        layer, calls = agent._layer, agent._calls
        left = (layer.unanswered, calls.given_up, calls.early_calls, layer.outbox)
        assert not any(left), left
