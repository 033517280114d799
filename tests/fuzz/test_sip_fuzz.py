"""Hostile datagrams against an agent with live calls: it never raises, and it keeps its bounds.

Each example brings calls into every phase, then feeds mutated copies of messages that fit those
calls. Raising is the failure; so is a call that can't be ended any more, or state that grows.
"""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitel.sip import (
    AgentConfig,
    Credentials,
    Incoming,
    Invitation,
    SessionDescription,
    UserAgent,
    make_answer,
    make_offer,
)
from bitel.sip.grammar import Address
from bitel.sip.message import Request, parse
from tests.sip.far_end import ANSWER, FAR, US, reply, request, within

SPLICES = [
    *(b"\r\n", b"\0", b"\r", b"\n ", b":", b";", b",", b'"', b"<", b">", b"\\", b"=", b" "),
    *(b"\xff\xfe", b"%", b"sip:", b"[", b"]", b"@", b"tag=", b";lr", b"-1", b"4294967296"),
    *("١".encode(), b"a" * 3000, b"Require: x\r\n", b"Via: SIP/2.0/UDP h\r\n", b"t: x\r\n"),
    *(b"INVITE", b"ACK", b"BYE", b"CANCEL", b"UPDATE", b"OPTIONS", b"SIP/2.0 200 OK"),
    *(b"Reason: Q.850;cause=999\r\n", b"m=audio 0 RTP/AVP 8\r\n", b"c=IN IP4 0.0.0.0\r\n"),
]

Mutation = tuple[int, int, int, bytes]
mutations = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 2000),
        st.integers(0, 40),
        st.one_of(st.sampled_from(SPLICES), st.binary(max_size=8)),
    ),
    max_size=4,
)


def mutate(data: bytes, changes: list[Mutation]) -> bytes:
    for kind, where, size, splice in changes:
        at = where % (len(data) + 1)
        match kind:
            case 0:
                data = data[:at] + splice + data[at:]
            case 1:
                data = data[:at] + splice + data[at + size :]
            case 2:
                data = data[:at] + data[at + size :]
            case _:
                data = data[:at] + data[at : at + size] * 2 + data[at + size :]
    return data


class Scene:
    """An agent with calls in every phase, and the messages that could come to them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.agent = UserAgent(
            AgentConfig(US, max_server_transactions=50, max_early_calls=10), random.Random(5)
        )
        self.messages: list[bytes] = []
        self.invite(answered=False)
        self.invite(answered=True)
        ended = self.invite(answered=True)
        self.agent.hang_up(ended.call_id, 0.0)
        bye = self.last_request()
        self.add(reply(bye, 401, headers=('WWW-Authenticate: Digest realm="r", nonce="n"',)))
        self.add(reply(bye, 200))
        canceled = self.invite(answered=False)
        self.give(reply(canceled, 180))
        self.agent.cancel(canceled.call_id, 0.0)
        self.add(reply(self.last_request(), 200))
        self.add(reply(canceled, 487))
        self.callee()

    def give(self, text: str) -> None:
        self.agent.receive_datagram(text.encode(), FAR, self.now)

    def add(self, text: str) -> None:
        self.messages.append(text.encode())

    def last_request(self) -> Request:
        message = parse(self.agent.datagrams_to_send()[-1][0])
        assert isinstance(message, Request)
        return message

    def invite(self, *, answered: bool) -> Request:
        self.agent.invite(
            Invitation(
                "sip:1@192.0.2.9",
                FAR,
                "sip:us@192.0.2.1",
                make_offer(("192.0.2.1", 30000)),
                Credentials("u", "p"),
            ),
            self.now,
        )
        invite = self.last_request()
        routes = ("Contact: <sip:far@192.0.2.9>", "Record-Route: <sip:192.0.2.9;lr>, <sip:p>")
        if answered:
            self.give(reply(invite, 200, ANSWER, headers=routes))
        self.add(reply(invite, 183, ANSWER))
        self.add(reply(invite, 200, ANSWER, headers=routes))
        self.add(reply(invite, 486, headers=("Reason: Q.850;cause=17",)))
        challenge = 'Proxy-Authenticate: Digest realm="r", nonce="n", qop="auth,auth-int"'
        self.add(reply(invite, 407, headers=(challenge,)))
        for number, method in enumerate(("INVITE", "UPDATE", "ACK", "OPTIONS", "BYE")):
            self.add(within(invite, method, number + 1, ANSWER))
        return invite

    def callee(self) -> None:
        offer = SessionDescription.parse(ANSWER.encode())
        for number in range(3):
            branch, call_id = f"z9hG4bK{number}", f"call-{number}"
            text = request("INVITE", body=ANSWER, branch=branch, call_id=call_id)
            self.give(text)
            self.add(text)
            self.add(request("CANCEL", branch=branch, call_id=call_id))
            self.add(request("ACK", branch=branch, call_id=call_id))
        self.agent.accept("call-1", make_answer(offer, ("192.0.2.1", 40000)), 0.0)
        self.agent.reject("call-2", 486, 0.0)
        for method in ("OPTIONS", "REGISTER", "BYE"):
            self.add(request(method))

    def take_all(self) -> None:
        self.agent.datagrams_to_send()
        while (event := self.agent.next_event()) is not None:
            if isinstance(event, Incoming):
                hash(event)


@settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), mutations, st.floats(0, 5)), max_size=25),
)
def test_mutated_messages_never_raise_and_every_call_still_ends(
    plan: list[tuple[int, list[Mutation], float]],
) -> None:
    scene = Scene()
    agent = scene.agent
    for which, changes, pause in plan:
        data = mutate(scene.messages[which % len(scene.messages)], changes)
        agent.receive_datagram(data, ("198.51.100.1", 1), scene.now)
        scene.now += pause
        agent.handle_timer(scene.now)
        scene.take_all()
        counts = agent.counts()
        assert counts.server_transactions <= 50
        assert counts.dialogs <= 20
        assert counts.timers <= 250
    finish(scene)


@settings(max_examples=300, deadline=2000, database=None)
@given(st.binary(max_size=600), st.tuples(st.text(max_size=20), st.integers(0, 65535)))
def test_any_bytes_from_anywhere_never_raise(data: bytes, source: Address) -> None:
    agent = UserAgent(AgentConfig(US))
    agent.receive_datagram(data, source, 0.0)
    agent.datagrams_to_send()


def finish(scene: Scene) -> None:
    """Hang everything up; with nobody answering, all of it must end by its timers."""
    agent = scene.agent
    for call_id in list(agent._core.calls):
        agent.hang_up(call_id, scene.now)
    for _ in range(5000):
        due = agent.next_timer()
        if due is None:
            break
        scene.now = max(scene.now, due)
        agent.handle_timer(scene.now)
        scene.take_all()
        # A call of ours that waits for a first 1xx to cancel is ended by timer B.
        for call_id in list(agent._core.calls):
            agent.hang_up(call_id, scene.now)
    assert agent.idle(), agent.counts()
