"""Requests other than INVITE that we send (RFC 3261 §17.1.2), by way of BYE."""

from __future__ import annotations

import pytest

from bitel.sip import Ended
from bitel.sip.message import Request
from tests.support.sip_bench import ANSWER, FAR, Bench, reply


def hung_up() -> tuple[Bench, str, Request]:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER))
    bench.sent()
    bench.events()
    bench.agent.hang_up(call_id, bench.now)
    return bench, call_id, bench.one("BYE").request


def test_timer_e_doubles_up_to_t2_and_timer_f_gives_up() -> None:
    bench, call_id, _ = hung_up()
    bench.advance(31.9)
    assert [sent.at for sent in bench.sent()] == [
        *(0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5)
    ]
    assert bench.events() == []
    bench.advance(0.1)
    assert bench.events() == [Ended(call_id, "us", 16, bye_unanswered=True)]
    bench.run_out()


def test_after_a_provisional_it_is_repeated_every_t2() -> None:
    bench, call_id, bye = hung_up()
    bench.receive(reply(bye, 100))
    bench.advance(31.9)
    assert [sent.at for sent in bench.sent()] == [0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5, 28.5]
    bench.advance(0.2)
    assert bench.events() == [Ended(call_id, "us", 16)]


@pytest.mark.parametrize("code", [200, 404, 408, 481, 500])
def test_any_final_answer_ends_the_call_and_timer_k_the_transaction(code: int) -> None:
    bench, call_id, bye = hung_up()
    bench.receive(reply(bye, code))
    bench.receive(reply(bye, code))
    assert bench.events() == [Ended(call_id, "us", 16)]
    bench.advance(4.9)
    # The INVITE's own (timer M) and this one.
    assert bench.agent.counts().client_transactions == 2
    bench.advance(0.2)
    assert bench.agent.counts().client_transactions == 1
    assert bench.names() == []


def test_a_challenge_without_credentials_ends_the_call() -> None:
    bench, call_id, bye = hung_up()
    bench.receive(reply(bye, 401, headers=('WWW-Authenticate: Digest realm="r", nonce="n"',)))
    assert bench.events() == [Ended(call_id, "us", 16)]


def test_a_transport_error_ends_the_call() -> None:
    bench, call_id, _ = hung_up()
    bench.agent.transport_failed(FAR, bench.now)
    assert bench.events() == [Ended(call_id, "us", 16, bye_unanswered=True)]
    bench.run_out()
