"""Hostile datagrams against an agent with live calls: it never raises, and it keeps its bounds.

Each example brings calls into every phase, then feeds mutated copies of messages that fit those
calls. Raising is the failure; so is a call that can't be ended any more, or state that grows.
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitel.sip import AgentConfig, UserAgent
from bitel.sip.grammar import Address
from tests.fuzz.sip_scene import SPLICES, Scene, finish
from tests.support.sip_bench import US

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
        agent.receive_datagram(data, Address("198.51.100.1", 1), scene.now)
        scene.now += pause
        agent.handle_timer(scene.now)
        scene.take_all()
        counts = agent.counts()
        assert counts.server_transactions <= 50
        assert counts.dialogs <= 20
        assert counts.timers <= 250
    finish(scene)


@settings(max_examples=300, deadline=2000, database=None)
@given(st.binary(max_size=600), st.builds(Address, st.text(max_size=20), st.integers(0, 65535)))
def test_any_bytes_from_anywhere_never_raise(data: bytes, source: Address) -> None:
    agent = UserAgent(AgentConfig(US))
    agent.receive_datagram(data, source, 0.0)
    agent.datagrams_to_send()
