"""What a failed INVITE says of how far it came: progress, and whether the far end had it."""

from __future__ import annotations

import pytest

from bitel.sip import Answered, Credentials, Failed, OutgoingRequest
from bitel.sip.grammar import Address, Transport
from bitel.sip.message import Request
from bitel.sip.transaction import MAX_UDP
from tests.support.sip_bench import ANSWER, INVITATION, Bench, reply

TCP = Address("192.0.2.9", 5060, Transport.TCP)
TLS = Address("192.0.2.9", 5061, Transport.TLS, "carrier.test")
STREAMS = pytest.mark.parametrize("far", [TCP, TLS], ids=["TCP", "TLS"])
CHALLENGE = ('WWW-Authenticate: Digest realm="r", nonce="n"',)
LONG = INVITATION._replace(headers=(("X-Long", "x" * MAX_UDP),))


def failure(bench: Bench) -> Failed:
    (failed,) = [event for event in bench.events() if isinstance(event, Failed)]
    return failed


def invited(far: Address) -> tuple[Bench, str, Request]:
    bench = Bench()
    call_id, invite = bench.invite(INVITATION._replace(destination=far))
    return bench, call_id, invite


def lose(bench: Bench, far: Address, *, acknowledged: bool) -> None:
    """The connection breaks, all INVITEs acknowledged or none."""

    class Everything:
        def __contains__(self, data: object) -> bool:
            return True

    unacknowledged = () if acknowledged else Everything()
    bench.agent.transport_failed(far, bench.now, lost=True, unacknowledged=unacknowledged)


# Progress


def test_without_a_provisional_there_was_no_progress() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.advance(3)
    bench.receive(reply(invite, 503))
    assert failure(bench).progress_for is None


@pytest.mark.parametrize("code", [180, 183, 189])
def test_ringing_is_no_progress(code: int) -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, code))
    bench.advance(3)
    bench.receive(reply(invite, 503))
    failed = failure(bench)
    assert (failed.progress_for, failed.rang) == (None, True)


@pytest.mark.parametrize("code", [100, 101, 179, 190, 199])
def test_progress_counts_from_the_first_provisional(code: int) -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.advance(1)
    bench.receive(reply(invite, code))
    bench.advance(2)
    bench.receive(reply(invite, code))
    bench.receive(reply(invite, 180))
    bench.receive(reply(invite, 199))
    bench.advance(20)
    bench.receive(reply(invite, 504))
    assert failure(bench).progress_for == pytest.approx(22)


def test_progress_that_comes_after_ringing_counts_from_then() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 180))
    bench.advance(2)
    bench.receive(reply(invite, 199))
    bench.advance(5)
    bench.receive(reply(invite, 503))
    assert failure(bench).progress_for == pytest.approx(5)


def test_an_invite_with_credentials_counts_from_its_own_provisional() -> None:
    bench = Bench()
    _, invite = bench.invite(INVITATION._replace(credentials=Credentials("u", "p")))
    bench.receive(reply(invite, 100))
    bench.advance(6)
    bench.receive(reply(invite, 401, headers=CHALLENGE))
    second = bench.sent()[-1].request
    bench.receive(reply(second, 100))
    bench.advance(1)
    bench.receive(reply(second, 503))
    assert failure(bench).progress_for == pytest.approx(1)


def test_and_from_that_of_the_invite_before_while_it_has_none() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 100))
    bench.advance(1)
    bench.receive(reply(invite, 422, headers=("Min-SE: 3600",)))
    second = bench.sent()[-1].request
    bench.advance(9)
    bench.receive(reply(second, 503))
    assert failure(bench).progress_for == pytest.approx(10)


def test_a_call_that_was_called_off_says_it_too() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 100))
    bench.advance(20)
    bench.agent.cancel(call_id, bench.now)
    bench.run_out()
    failed = failure(bench)
    assert failed.why == "canceled"
    assert failed.progress_for == pytest.approx(52)


# Delivery


@STREAMS
def test_an_invite_that_arrived_is_not_sent_again(far: Address) -> None:
    bench, _, _ = invited(far)
    bench.advance(1)
    lose(bench, far, acknowledged=True)
    assert bench.names() == []
    bench.advance(30.9)
    assert bench.events() == []
    bench.advance(0.1)
    failed = failure(bench)
    assert (failed.code, failed.why, failed.delivered) == (408, "timeout", True)
    bench.run_out()


@STREAMS
def test_its_answer_may_come_over_another_connection(far: Address) -> None:
    bench, _, invite = invited(far)
    lose(bench, far, acknowledged=True)
    bench.advance(10)
    bench.receive(reply(invite, 180), far._replace(port=33333))
    bench.receive(reply(invite, 200, ANSWER), far._replace(port=33333))
    assert isinstance(bench.events()[-1], Answered)


@pytest.mark.parametrize("lost", [True, False])
def test_what_becomes_of_later_connections_does_not_concern_it(lost: bool) -> None:
    bench, _, _ = invited(TCP)
    lose(bench, TCP, acknowledged=True)
    if lost:
        lose(bench, TCP, acknowledged=False)
    else:
        bench.agent.transport_failed(TCP, bench.now)
    assert (bench.names(), bench.events()) == ([], [])
    bench.run_out()
    failed = failure(bench)
    assert (failed.why, failed.delivered) == ("timeout", True)


@STREAMS
def test_an_invite_that_did_not_arrive_is_sent_once_more(far: Address) -> None:
    bench, _, _ = invited(far)
    lose(bench, far, acknowledged=False)
    assert bench.names() == ["INVITE"]
    lose(bench, far, acknowledged=False)
    assert bench.names() == []
    failed = failure(bench)
    assert (failed.why, failed.delivered) == ("transport", False)


def test_one_that_arrived_the_second_time_waits_for_its_answer() -> None:
    bench, _, _ = invited(TCP)
    lose(bench, TCP, acknowledged=False)
    bench.one("INVITE")
    lose(bench, TCP, acknowledged=True)
    bench.run_out()
    failed = failure(bench)
    assert (failed.why, failed.delivered) == ("timeout", True)


def test_without_a_connection_nothing_was_delivered() -> None:
    bench, _, _ = invited(TCP)
    bench.agent.transport_failed(TCP, bench.now)
    failed = failure(bench)
    assert (failed.why, failed.delivered) == ("transport", False)


@pytest.mark.parametrize("code", [100, 180])
@pytest.mark.parametrize("acknowledged", [True, False])
def test_who_has_answered_anything_had_it(code: int, acknowledged: bool) -> None:
    bench, _, invite = invited(TCP)
    bench.receive(reply(invite, code), TCP)
    lose(bench, TCP, acknowledged=acknowledged)
    bench.receive(reply(invite, 503), TCP._replace(port=33333))
    failed = failure(bench)
    assert (failed.code, failed.why, failed.delivered) == (503, "response", True)
    bench.run_out()
    assert not bench.agent._layer.unanswered


def test_a_refused_connection_is_not_the_one_that_the_invite_went_by() -> None:
    bench, _, invite = invited(TCP)
    bench.receive(reply(invite, 100), TCP)
    bench.agent.transport_failed(TCP, bench.now)
    bench.receive(reply(invite, 503), TCP)
    assert not failure(bench).delivered


def test_a_connection_that_holds_delivers_nothing_that_needs_saying() -> None:
    bench, _, invite = invited(TCP)
    bench.receive(reply(invite, 100), TCP)
    bench.receive(reply(invite, 503), TCP)
    assert not failure(bench).delivered


def test_a_long_invite_that_arrived_goes_neither_by_udp_nor_again() -> None:
    bench = Bench()
    bench.agent.invite(LONG, 0.0)
    bench.one("INVITE")
    lose(bench, TCP, acknowledged=True)
    assert bench.names() == []
    bench.run_out()
    assert bench.names() == []
    assert failure(bench).delivered


def test_who_has_the_invite_is_not_given_up_early() -> None:
    bench, call_id, _ = invited(TCP)
    lose(bench, TCP, acknowledged=True)
    assert not bench.agent.give_up(call_id, bench.now)
    assert bench.events() == []


def test_a_call_called_off_that_had_arrived_ends_by_timer_b() -> None:
    bench, call_id, _ = invited(TCP)
    bench.agent.cancel(call_id, bench.now)
    lose(bench, TCP, acknowledged=True)
    assert bench.names() == []
    bench.advance(32)
    failed = failure(bench)
    assert (failed.why, failed.delivered) == ("canceled", True)


def test_what_was_held_back_from_the_connection_is_left_alone() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(destination=TCP), 0.0)
    held = bench.one("INVITE").data
    bench.agent.transport_failed(TCP, 0.0, lost=True, unacknowledged=(held,), moved=(held,))
    assert (bench.names(), bench.events()) == ([], [])
    # It is on its way over another; should that break, it may be sent once more.
    lose(bench, TCP, acknowledged=False)
    assert bench.names() == ["INVITE"]


def test_other_requests_are_sent_once_more_as_ever() -> None:
    bench = Bench()
    request = OutgoingRequest("OPTIONS", "sip:192.0.2.9", TCP, "sip:a@b", "sip:192.0.2.9")
    bench.agent.request(request, 0.0)
    bench.one("OPTIONS")
    lose(bench, TCP, acknowledged=True)
    assert bench.names() == ["OPTIONS"]
