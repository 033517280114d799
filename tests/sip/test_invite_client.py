"""Placing a call: what leaves, when, and what is told (RFC 3261 §13.2, §17.1.1, RFC 6026)."""

from __future__ import annotations

import pytest
from sipmessage import Message as Oracle

from bitel.sip import AgentConfig, Answered, Ended, Failed, Provisional, check_answer
from bitel.sip.grammar import Address
from tests.support.sip_bench import ANSWER, FAR, INVITATION, US, Bench, reply, within


def test_the_invite_is_a_valid_request_with_our_offer() -> None:
    bench = Bench()
    call_id = bench.agent.invite(INVITATION._replace(display_name='A "b" \\ c'), 0.0)
    sent = bench.one("INVITE")
    assert sent.destination == FAR
    oracle = Oracle.parse(sent.data)
    assert str(oracle.call_id) == call_id
    assert oracle.from_address.name == 'A "b" \\ c'
    assert str(oracle.to_address.uri) == INVITATION.request_uri
    assert oracle.cseq.sequence == 1
    assert oracle.via[0].parameters["branch"].startswith("z9hG4bK")  # type: ignore[union-attr]
    assert oracle.contact[0].uri.host == US[0]
    assert b"m=audio 30000 RTP/AVP 8 0 101\r\n" in oracle.body


def test_an_ipv6_address_of_ours_is_bracketed() -> None:
    bench = Bench(AgentConfig(("2001:db8::1", 5060)))
    _, invite = bench.invite()
    assert invite.header("via").startswith("SIP/2.0/UDP [2001:db8::1]:5060;")
    assert invite.header("contact") == "<sip:[2001:db8::1]:5060>"


def test_timer_a_doubles_and_timer_b_gives_up_after_64_t1() -> None:
    bench = Bench()
    call_id, _ = bench.invite()
    bench.advance(31.9)
    assert [sent.at for sent in bench.sent()] == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert bench.events() == []
    bench.advance(0.1)
    assert bench.events() == [Failed(call_id, 408, None, "Request Timeout", "timeout", False)]
    bench.advance(32)
    assert bench.names() == []
    assert bench.agent.idle()


def test_a_provisional_stops_timers_a_and_b() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 100))
    assert bench.agent.counts().timers == 0
    bench.advance(600)
    assert bench.names() == []
    assert bench.events() == []
    assert not bench.agent.idle()


def test_each_distinct_provisional_is_told_once() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    for code, body in ((100, ""), (180, ""), (180, ""), (183, ANSWER), (180, ""), (183, ANSWER)):
        bench.receive(reply(invite, code, body))
    events = bench.events()
    assert [(e.code, e.answer is None) for e in events if isinstance(e, Provisional)] == [
        (180, True),
        (183, False),
    ]
    assert {event.call_id for event in events} == {call_id}


def test_an_answer_is_acknowledged_and_told() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 180))
    bench.events()
    bench.receive(reply(invite, 200, ANSWER))
    ack = bench.one("ACK")
    assert ack.request.cseq == 1
    assert ack.request.branch != invite.branch
    assert ack.request.to_tag == "far"
    assert ack.request.uri == "sip:far@192.0.2.9:5060"
    (event,) = bench.events()
    assert isinstance(event, Answered)
    assert event.answer.port == 40000
    assert event.agreed == check_answer(INVITATION.offer, event.answer)
    assert event.agreed.remote == ("192.0.2.9", 40000)
    assert event.call_id == call_id


def test_every_repeated_200_is_acknowledged_with_the_very_same_ack() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    answer = reply(invite, 200, ANSWER)
    bench.receive(answer)
    first = bench.one("ACK").data
    bench.advance(1)
    bench.receive(answer)
    assert bench.one("ACK").data == first
    # Also when the call itself is over by now.
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE").request
    bench.receive(reply(bye, 200))
    bench.receive(answer)
    assert bench.one("ACK").data == first
    assert [type(event) for event in bench.events()] == [Answered, Ended]
    bench.run_out()


def test_timer_m_ends_the_wait_for_repeated_200s() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER))
    bench.advance(31.9)
    assert bench.agent.counts().client_transactions == 1
    bench.advance(0.2)
    assert bench.agent.counts().client_transactions == 0
    assert bench.agent.counts().dialogs == 1


def test_a_second_fork_that_answers_is_acknowledged_and_hung_up() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER, tag="one"))
    bench.sent()
    bench.receive(reply(invite, 200, ANSWER, tag="two"))
    ack, bye = bench.sent()
    assert (ack.name, bye.name) == ("ACK", "BYE")
    assert ack.request.to_tag == bye.request.to_tag == "two"
    bench.receive(reply(invite, 200, ANSWER, tag="two"))
    assert bench.one("ACK").data == ack.data
    assert [type(event) for event in bench.events()] == [Answered]


def test_only_so_many_forks_are_dealt_with() -> None:
    bench = Bench()
    _, invite = bench.invite()
    for number in range(50):
        bench.receive(reply(invite, 200, ANSWER, tag=f"fork-{number}"))
    names = bench.names()
    assert names == ["ACK", *["ACK", "BYE"] * 49]
    # Seven with state that repeats itself, the others without.
    assert bench.agent.counts().client_transactions == 1 + 7


@pytest.mark.parametrize("code", [302, 404, 486, 500, 603])
def test_a_failure_is_acknowledged_within_the_transaction(code: int) -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 180))
    busy = reply(invite, code, headers=("Reason: SIP;cause=1, Q.850;cause=17;text=x",))
    bench.receive(busy)
    ack = bench.one("ACK")
    assert ack.request.branch == invite.branch
    assert ack.request.header("via") == invite.header("via")
    assert ack.request.uri == invite.uri
    assert ack.request.to_tag == "far"
    assert ack.request.cseq == 1
    assert bench.events()[1:] == [Failed(call_id, code, 17, "Phrase", "response", True)]
    bench.advance(2)
    bench.receive(busy)
    assert bench.one("ACK").data == ack.data
    assert bench.events() == []
    # Timer D
    bench.advance(29.9)
    assert not bench.agent.idle()
    bench.advance(0.2)
    assert bench.agent.idle()


@pytest.mark.parametrize("body", ["", "nonsense", ANSWER.replace("40000", "0")])
def test_an_answer_without_usable_sdp_is_acknowledged_and_hung_up(body: str) -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 200, body))
    assert bench.names() == ["ACK", "BYE"]
    assert bench.events() == [Failed(call_id, 488, None, "Not Acceptable Here", "media", False)]
    bench.run_out()
    assert bench.events() == []


def test_a_transport_error_fails_a_call_that_nobody_has_answered() -> None:
    bench = Bench()
    call_id, _ = bench.invite()
    bench.agent.transport_failed(Address("192.0.2.77", 5060), 0.0)
    assert bench.events() == []
    bench.agent.transport_failed(FAR, 0.0)
    assert bench.events() == [Failed(call_id, 503, None, "Service Unavailable", "transport", False)]


def test_a_transport_error_says_nothing_about_a_call_that_rings() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 180))
    bench.events()
    bench.agent.transport_failed(FAR, 0.0)
    assert bench.events() == []


def test_an_answer_after_timer_b_is_acknowledged_and_hung_up() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.advance(40)
    bench.events()
    bench.sent()
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK", "BYE"]
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK"]
    assert bench.events() == []
    bench.run_out()
    bench.sent()
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == []


def test_calls_that_were_given_up_are_forgotten_beyond_a_number() -> None:
    bench = Bench(AgentConfig(US, max_remembered=3))
    for _ in range(10):
        bench.invite()
    bench.advance(32)
    assert bench.agent.counts().timers == 3
    bench.run_out()


def test_responses_of_nobody_are_dropped() -> None:
    bench = Bench()
    _, invite = bench.invite()
    answer = reply(invite, 200, ANSWER)
    bench.receive(answer.replace(invite.branch, "z9hG4bKother"))
    bench.receive(answer.replace("1 INVITE", "1 BYE"))
    assert bench.names() == []
    assert bench.events() == []


def test_hang_up_after_the_answer_sends_bye_with_the_cause() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER))
    bench.sent()
    bench.agent.hang_up(call_id, bench.now, q850=31)
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE").request
    assert bye.cseq == 2
    assert bye.header("reason") == "Q.850;cause=31"
    assert [type(event) for event in bench.events()] == [Answered]
    bench.receive(reply(bye, 200))
    assert bench.events() == [Ended(call_id, "us", 31)]
    bench.run_out()


def test_a_far_bye_ends_the_call_with_its_cause() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER))
    bench.sent()
    bye = within(invite, "BYE", 1, headers=("Reason: Q.850 ;cause=16",))
    bench.receive(bye)
    assert bench.one("200 BYE").response.to_tag == invite.from_tag
    assert bench.events()[1:] == [Ended(call_id, "far", 16)]
    bench.receive(bye)
    assert bench.names() == ["200 BYE"]
    assert bench.events() == []
    bench.agent.hang_up(call_id, bench.now)
    assert bench.names() == []
    bench.run_out()


def test_byes_that_cross_end_the_call_once_and_by_us() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER))
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.sent()[-1].request
    bench.receive(within(invite, "BYE", 1))
    bench.receive(reply(bye, 481))
    assert [event for event in bench.events() if isinstance(event, Ended)] == [
        Ended(call_id, "us", None)
    ]
    bench.run_out()


def test_text_that_would_break_a_header_is_refused() -> None:
    bench = Bench()
    for invitation in (
        INVITATION._replace(request_uri="sip:a\r\nX: y@h"),
        INVITATION._replace(from_uri="sip:a\n@h"),
        INVITATION._replace(display_name="a\rb"),
        INVITATION._replace(headers=(("X", "a\r\nb"),)),
    ):
        with pytest.raises(ValueError, match="line break"):
            bench.agent.invite(invitation, 0.0)
    assert bench.names() == []
    assert bench.agent.idle()
