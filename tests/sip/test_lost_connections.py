"""What a connection that breaks may do to a call: never ring twice, never leave anybody behind."""

from __future__ import annotations

import pytest

from bitel.sip import Answered, Ended, Failed
from bitel.sip.grammar import Address, Transport
from bitel.sip.transaction import MAX_UDP
from tests.support.sip_bench import ANSWER, FAR, INVITATION, Bench, reply, within

TCP = Address("192.0.2.9", 5060, Transport.TCP)
TLS = Address("192.0.2.9", 5061, Transport.TLS, "carrier.test")
LONG = INVITATION._replace(headers=(("X-Long", "x" * MAX_UDP),))


@pytest.mark.parametrize("again", [True, False])
def test_what_may_have_arrived_by_tcp_does_not_go_by_udp_too(again: bool) -> None:
    bench = Bench()
    bench.agent.invite(LONG, 0.0)
    bench.agent.transport_failed(TCP, 0.0, lost=True)
    assert [sent.destination for sent in bench.sent()] == [TCP, TCP]
    # The second connection is lost as well, or can't be had.
    bench.agent.transport_failed(TCP, 0.0, lost=again)
    assert bench.names() == [], "under a branch of its own it might ring another time"
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert failed.why == "transport"
    # The next call is not to suffer the same.
    bench.agent.invite(LONG, bench.now)
    assert bench.one("INVITE").destination == FAR


def test_who_answers_after_the_connection_was_lost_for_good_is_hung_up() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(destination=TCP), 0.0)
    invite = bench.one("INVITE").request
    for lost in (True, False):
        bench.agent.transport_failed(TCP, 0.0, lost=lost)
    bench.sent()
    bench.advance(5)
    bench.receive(reply(invite, 200, ANSWER, headers=()), TCP._replace(port=33333))
    assert bench.names() == ["ACK", "BYE"]
    bench.run_out()


def test_a_long_call_that_was_given_up_leaves_tcp_alone_the_next_time() -> None:
    bench = Bench()
    call_id = bench.agent.invite(LONG, 0.0)
    bench.sent()
    bench.advance(4)
    assert bench.agent.give_up(call_id, bench.now)
    # Later than that it turns out that there is no TCP: packets to it are dropped.
    bench.agent.transport_failed(TCP, 5.0)
    assert bench.names() == []
    bench.agent.invite(LONG, 6.0)
    assert bench.one("INVITE").destination == FAR


def test_a_call_that_was_given_up_is_taken_back_where_it_has_not_left_yet() -> None:
    bench = Bench()
    call_id = bench.agent.invite(INVITATION._replace(destination=TCP), 0.0)
    invite = bench.one("INVITE")
    assert bench.agent.withdrawn_messages() == []
    assert bench.agent.give_up(call_id, 4.0)
    assert bench.agent.withdrawn_messages() == [(invite.data, TCP)]
    assert bench.agent.withdrawn_messages() == []


def test_what_follows_a_long_invite_goes_by_udp_again() -> None:
    # The Contact may be another machine than the one that took the INVITE, and have no TCP.
    bench = Bench()
    bench.agent.invite(LONG, 0.0)
    invite = bench.one("INVITE").request
    contact = "Contact: <sip:far@192.0.2.77:5070>"
    bench.receive(reply(invite, 200, ANSWER, headers=(contact,)), TCP)
    ack = bench.one("ACK")
    assert ack.destination == Address("192.0.2.77", 5070)
    assert ack.request.header("via").startswith("SIP/2.0/UDP ")


def test_a_name_in_the_contact_of_a_long_call_means_whom_we_called_by_udp() -> None:
    bench = Bench()
    bench.agent.invite(LONG, 0.0)
    invite = bench.one("INVITE").request
    named = reply(invite, 200, ANSWER, headers=("Contact: <sip:far@sbc.test>",))
    bench.receive(named, TCP._replace(port=33333))
    assert bench.one("ACK").destination == FAR


@pytest.mark.parametrize("answered_by", [TLS, Address("192.0.2.9", 33333, Transport.TLS)])
def test_whom_we_hang_up_on_must_bear_the_name_of_whom_we_called(answered_by: Address) -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(destination=TLS), 0.0)
    invite = bench.one("INVITE").request
    contact = "Contact: <sip:far@192.0.2.9:5061;transport=tls>"
    bench.receive(reply(invite, 200, ANSWER, headers=(contact,)), answered_by)
    assert bench.one("ACK").destination == TLS
    assert isinstance(bench.events()[-1], Answered)
    # The far end asks over a connection that it has opened itself; that changes nothing.
    bench.receive(within(invite, "OPTIONS", 1), Address("192.0.2.9", 44444, Transport.TLS))
    bench.one("200 OPTIONS")
    bench.agent.hang_up(invite.call_id, bench.now)
    bye = bench.one("BYE")
    assert bye.destination == TLS
    bench.receive(reply(bye.request, 200), TLS)
    assert bench.events() == [Ended(invite.call_id, "us", 16)]


def test_a_bye_for_which_there_is_no_connection_ends_the_call_all_the_same() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(destination=TCP), 0.0)
    invite = bench.one("INVITE").request
    bench.receive(reply(invite, 200, ANSWER, headers=()), TCP)
    bench.agent.hang_up(invite.call_id, bench.now)
    assert bench.names() == ["ACK", "BYE"]
    bench.agent.transport_failed(TCP, bench.now)
    assert bench.events()[-1] == Ended(invite.call_id, "us", 16, bye_unanswered=True)
    bench.run_out()


def test_a_cancel_for_which_there_is_no_connection_ends_the_call_in_time() -> None:
    bench = Bench()
    call_id = bench.agent.invite(INVITATION._replace(destination=TCP), 0.0)
    invite = bench.one("INVITE").request
    bench.receive(reply(invite, 180), TCP)
    bench.agent.transport_failed(TCP, bench.now, lost=True)
    bench.agent.cancel(call_id, bench.now)
    bench.one("CANCEL")
    bench.agent.transport_failed(TCP, bench.now)
    bench.advance(32)
    failed = bench.events()[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.why) == (487, "canceled")
    bench.run_out()
