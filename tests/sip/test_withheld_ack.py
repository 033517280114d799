"""An ACK that waits until the answer is safe with its user (RFC 3261 §13.2.2.4)."""

from __future__ import annotations

from bitel.sip import Answered, Ended
from tests.support.sip_bench import ANSWER, INVITATION, Bench, reply


def answered() -> tuple[Bench, str, str]:
    bench = Bench()
    call_id = bench.agent.invite(INVITATION._replace(withhold_ack=True), 0.0)
    invite = bench.one("INVITE").request
    ok = reply(invite, 200, ANSWER)
    bench.receive(ok)
    assert [type(event) for event in bench.events()] == [Answered]
    return bench, call_id, ok


def test_neither_the_answer_nor_its_repetition_draws_it_out() -> None:
    bench, _, ok = answered()
    bench.receive(ok)
    assert bench.names() == []


def test_it_leaves_once_when_told_and_again_for_each_repeated_answer() -> None:
    bench, call_id, ok = answered()
    bench.agent.acknowledge(call_id, bench.now)
    first = bench.one("ACK")
    bench.agent.acknowledge(call_id, bench.now)
    assert bench.names() == []
    bench.receive(ok)
    assert bench.one("ACK").data == first.data


def test_hanging_up_sends_it_before_the_bye() -> None:
    bench, call_id, _ = answered()
    bench.agent.hang_up(call_id, 0.0)
    assert bench.names() == ["ACK", "BYE"]


def test_a_second_fork_is_acknowledged_at_once_and_ended() -> None:
    bench, _, ok = answered()
    bench.receive(ok.replace(";tag=far", ";tag=other"))
    assert bench.names() == ["ACK", "BYE"]


def test_acknowledging_a_call_that_is_over_does_nothing() -> None:
    bench, call_id, _ = answered()
    bench.agent.hang_up(call_id, 0.0)
    bench.names()
    bench.advance(40)
    assert [type(event) for event in bench.events()] == [Ended]
    bench.names()
    bench.agent.acknowledge(call_id, bench.now)
    assert bench.names() == []
