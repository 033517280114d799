"""Session timers (RFC 4028), and the re-INVITEs and UPDATEs that they make us send."""

from __future__ import annotations

import pytest

from bitel.sip import (
    AgentConfig,
    Answered,
    Credentials,
    Ended,
    Ending,
    Failed,
    MediaChanged,
    SessionDescription,
    make_answer,
)
from bitel.sip.grammar import Address
from bitel.sip.message import Request
from tests.support.sip_bench import ANSWER, INVITATION, US, Bench, reply, request, within

CONTACT = "Contact: <sip:far@192.0.2.9>"
UPDATES = "Allow: INVITE, ACK, BYE, UPDATE"


def session_expires(value: str) -> str:
    return f"Session-Expires: {value}"


def answered(*headers: str, credentials: Credentials | None = None) -> tuple[Bench, str, Request]:
    bench = Bench()
    call_id = bench.agent.invite(INVITATION._replace(credentials=credentials), 0.0)
    invite = bench.one("INVITE").request
    bench.receive(reply(invite, 200, ANSWER, headers=(CONTACT, *headers)))
    assert isinstance(bench.events()[0], Answered)
    assert bench.names() == ["ACK"]
    return bench, call_id, invite


def refreshing(*headers: str) -> tuple[Bench, str, Request]:
    """A call whose refresh has just been sent, 900 s after the answer."""
    bench, call_id, _ = answered(session_expires("1800;refresher=uac"), *headers)
    bench.advance(900)
    (sent,) = bench.sent()
    return bench, call_id, sent.request


def ended_by_timer(bench: Bench, call_id: str) -> None:
    bye = bench.sent()[-1].request
    assert (bye.method, bye.header("reason")) == ("BYE", "Q.850;cause=102")
    bench.receive(reply(bye, 200))
    assert bench.events() == [Ending(call_id), Ended(call_id, "us", 102)]
    bench.run_out()


# What the INVITE says


def test_the_invite_asks_for_a_session_timer() -> None:
    _, invite = Bench().invite()
    assert invite.header("session-expires") == "1800"
    assert invite.values("supported") == ["100rel", "timer"]
    assert invite.header("min-se") == ""


def test_it_can_be_left_out() -> None:
    _, invite = Bench(AgentConfig(US, session_expires=0)).invite()
    assert invite.header("session-expires") == ""
    assert invite.values("supported") == ["100rel"]


@pytest.mark.parametrize("seconds", [-1, 1, 89, 86_401])
def test_a_session_has_bounds(seconds: int) -> None:
    with pytest.raises(ValueError, match="session_expires"):
        AgentConfig(US, session_expires=seconds)


def test_a_422_is_met_with_its_min_se() -> None:
    bench = Bench()
    call_id, first = bench.invite()
    bench.receive(reply(first, 422, headers=("Min-SE: 3600",)))
    ack, sent = bench.sent()
    second = sent.request
    assert (ack.name, second.method) == ("ACK", "INVITE")
    assert (second.header("session-expires"), second.header("min-se")) == ("3600", "3600")
    assert (second.call_id, second.from_tag, second.cseq) == (call_id, first.from_tag, 2)
    assert second.body == first.body
    bench.receive(reply(second, 200, ANSWER))
    assert [type(event) for event in bench.events()] == [Answered]


@pytest.mark.parametrize("min_se", ["", "Min-SE: 1800", "Min-SE: 90", "Min-SE: x", "Min-SE: 86401"])
def test_a_422_that_demands_nothing_more_is_a_refusal(min_se: str) -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 422, headers=(min_se or "X: y",)))
    assert bench.names() == ["ACK"]
    (event,) = bench.events()
    assert isinstance(event, Failed)
    assert event.code == 422


def test_a_far_end_that_demands_ever_more_is_left() -> None:
    bench = Bench()
    bench.invite()
    _, invite = bench.invite()
    for step in range(5):
        bench.receive(reply(invite, 422, headers=(f"Min-SE: {2000 + step}",)))
        sent = bench.sent()
        if sent[-1].name == "ACK":
            break
        invite = sent[-1].request
    assert (step, invite.cseq) == (2, 3)
    assert isinstance(bench.events()[-1], Failed)


# We refresh


def test_an_update_at_half_of_the_interval_where_it_is_allowed() -> None:
    bench, _, refresh = refreshing(UPDATES)
    assert bench.now == 900
    assert (refresh.method, refresh.body, refresh.cseq) == ("UPDATE", b"", 2)
    assert refresh.header("session-expires") == "1800;refresher=uac"
    assert refresh.values("supported") == ["timer"]
    assert refresh.header("contact") == "<sip:192.0.2.1:5060>"
    assert (refresh.uri, refresh.to_tag) == ("sip:far@192.0.2.9", "far")
    moved = "Contact: <sip:moved@192.0.2.9>"
    bench.receive(reply(refresh, 200, headers=(moved, session_expires("600;refresher=uac"))))
    bench.advance(299.9)
    assert bench.names() == []
    bench.advance(0.1)
    again = bench.one("UPDATE").request
    assert (again.uri, again.cseq) == ("sip:moved@192.0.2.9", 3)
    assert bench.events() == []


def test_a_re_invite_with_the_same_sdp_where_it_is_not() -> None:
    bench, call_id, refresh = refreshing("Allow: INVITE, ACK, BYE")
    assert refresh.method == "INVITE"
    assert SessionDescription.parse(refresh.body) == INVITATION.offer
    ok = reply(refresh, 200, ANSWER, headers=(CONTACT, session_expires("1800;refresher=uac")))
    bench.receive(ok)
    ack = bench.one("ACK")
    assert (ack.request.cseq, ack.request.to_tag) == (refresh.cseq, "far")
    assert ack.request.branch != refresh.branch
    bench.receive(ok)
    assert bench.one("ACK").data == ack.data
    assert bench.events() == []
    bench.advance(900)
    assert bench.names() == ["INVITE"]
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE").request
    bench.receive(reply(bye, 200))
    bench.run_out()


def test_an_answer_that_moves_the_media_is_told() -> None:
    bench, call_id, refresh = refreshing()
    moved = ANSWER.replace("40000", "42000").replace("sendrecv", "inactive")
    bench.receive(reply(refresh, 200, moved))
    (change,) = bench.events()
    assert isinstance(change, MediaChanged)
    assert (change.call_id, change.agreed.remote[1], change.agreed.direction) == (
        call_id,
        42000,
        "inactive",
    )


@pytest.mark.parametrize("body", ["", "nonsense"])
def test_an_answer_that_cannot_be_read_leaves_the_media_as_it_is(body: str) -> None:
    bench, _, refresh = refreshing()
    bench.receive(reply(refresh, 200, body))
    assert bench.names() == ["ACK"]
    assert bench.events() == []


def test_a_far_end_may_turn_the_timer_off() -> None:
    bench, _, refresh = refreshing(UPDATES)
    bench.receive(reply(refresh, 200))
    bench.advance(10_000)
    assert bench.names() == []
    assert bench.agent.counts().timers == 0


def test_without_session_expires_in_the_answer_there_is_no_timer() -> None:
    bench, _, _ = answered()
    bench.advance(100_000)
    assert bench.names() == []
    assert bench.agent.counts().dialogs == 1


@pytest.mark.parametrize("value", ["", "x", "-1", "12345678901"])
def test_a_timer_that_cannot_be_read_is_none(value: str) -> None:
    bench, _, _ = answered(session_expires(value))
    bench.advance(100_000)
    assert bench.names() == []


def test_an_interval_that_is_too_short_is_held_to_what_we_can_bear() -> None:
    bench, _, _ = answered(session_expires("1;refresher=uac"), UPDATES)
    bench.advance(4.9)
    assert bench.names() == []
    bench.advance(0.1)
    assert bench.names() == ["UPDATE"]


@pytest.mark.parametrize("code", [408, 481])
@pytest.mark.parametrize("allow", [UPDATES, "Allow: BYE"])
def test_a_far_end_that_knows_nothing_of_the_call_ends_it(code: int, allow: str) -> None:
    bench, call_id, refresh = refreshing(allow)
    bench.receive(reply(refresh, code))
    ended_by_timer(bench, call_id)


@pytest.mark.parametrize("allow", [UPDATES, "Allow: BYE"])
def test_a_refresh_that_nobody_answers_ends_the_call(allow: str) -> None:
    bench, call_id, _ = refreshing(allow)
    bench.advance(31.9)
    assert "BYE" not in bench.names()
    bench.advance(0.2)
    ended_by_timer(bench, call_id)


def test_a_refresh_that_only_rings_ends_with_the_session() -> None:
    bench, call_id, refresh = refreshing("Allow: BYE")
    bench.receive(reply(refresh, 180))
    bench.advance(867.9)
    assert bench.names() == []
    bench.advance(0.2)
    assert bench.now == pytest.approx(1768.1)
    ended_by_timer(bench, call_id)


def test_a_422_raises_the_interval() -> None:
    bench, _, refresh = refreshing(UPDATES)
    bench.receive(reply(refresh, 422, headers=("Min-SE: 4000",)))
    again = bench.one("UPDATE").request
    assert again.header("session-expires") == "4000;refresher=uac"
    assert again.header("min-se") == "4000"
    for min_se in (4001, 4002):
        bench.receive(reply(again, 422, headers=(f"Min-SE: {min_se}",)))
        again = next((sent.request for sent in bench.sent()), again)
    assert again.header("min-se") == "4001"
    assert bench.agent.counts().dialogs == 1


def test_a_challenge_to_a_refresh_is_answered() -> None:
    bench, _, _ = answered(session_expires("1800;refresher=uac"), credentials=Credentials("u", "p"))
    bench.advance(900)
    refresh = bench.one("INVITE").request
    challenge = 'Proxy-Authenticate: Digest realm="r", nonce="n", qop="auth"'
    bench.receive(reply(refresh, 407, headers=(challenge,)))
    ack, sent = bench.sent()
    assert ack.name == "ACK"
    assert sent.request.header("proxy-authorization").startswith("Digest ")
    bench.receive(reply(sent.request, 200, ANSWER))
    ack = bench.one("ACK")
    assert ack.request.header("proxy-authorization") == sent.request.header("proxy-authorization")


@pytest.mark.parametrize("code", [405, 501])
def test_an_update_that_is_not_served_becomes_a_re_invite(code: int) -> None:
    bench, _, refresh = refreshing(UPDATES)
    bench.receive(reply(refresh, code))
    assert bench.names() == ["INVITE"]


def test_after_491_it_is_tried_again_in_two_to_four_seconds() -> None:
    waits = set()
    for seed in range(8):
        bench = Bench(seed=seed)
        _, invite = bench.invite()
        headers = (CONTACT, session_expires("1800;refresher=uac"))
        bench.receive(reply(invite, 200, ANSWER, headers=headers))
        bench.sent()
        bench.advance(900)
        bench.receive(reply(bench.one("INVITE").request, 491))
        assert bench.names() == ["ACK"]
        bench.advance(5)
        again = [sent for sent in bench.sent() if sent.request.cseq == 3]
        waits.add(again[0].at - 900)
    assert all(2.1 <= wait <= 4.0 for wait in waits)
    assert len(waits) > 3


def test_another_refusal_is_tried_again_until_the_session_is_over() -> None:
    bench, call_id, refresh = refreshing(UPDATES)
    for _ in range(10):
        bench.receive(reply(refresh, 500))
        assert bench.names() == []
        bench.advance(180)
        first, *_ = bench.sent()
        refresh = first.request
        if first.name == "BYE":
            assert first.at == pytest.approx(1800 - 32)
            bench.receive(reply(refresh, 200))
            break
    assert bench.events() == [Ending(call_id), Ended(call_id, "us", 102, bye_unanswered=True)]
    bench.run_out()


def test_a_transport_error_is_tried_again() -> None:
    bench, _, refresh = refreshing(UPDATES)
    bench.agent.transport_failed(Address("192.0.2.9", 5060), bench.now)
    bench.advance(180)
    assert bench.one("UPDATE").request.cseq == refresh.cseq + 1


def test_a_re_invite_that_crosses_ours_meets_491() -> None:
    bench, _, refresh = refreshing()
    # It names the dialog as the INVITE did.
    bench.receive(within(refresh, "INVITE", 1, ANSWER))
    bench.receive(within(refresh, "UPDATE", 2, ANSWER))
    bench.receive(within(refresh, "UPDATE", 3))
    assert bench.names() == ["491 INVITE", "491 UPDATE", "200 UPDATE"]
    bench.receive(reply(refresh, 200, ANSWER))
    bench.receive(within(refresh, "INVITE", 4, ANSWER))
    assert bench.names() == ["ACK", "200 INVITE"]


def test_we_do_not_re_invite_while_an_invite_waits_for_its_ack() -> None:
    bench, _, invite = answered(session_expires("1800;refresher=uac"))
    bench.advance(899)
    bench.receive(within(invite, "INVITE", 1, ANSWER, headers=(CONTACT, "Supported: timer")))
    bench.sent()
    bench.receive(within(invite, "ACK", 1))
    bench.advance(899)
    bench.receive(within(invite, "INVITE", 2, ANSWER, headers=(CONTACT, "Supported: timer")))
    assert bench.one("200 INVITE").response.header("session-expires") == "1800;refresher=uas"


def test_a_withheld_ack_is_waited_for() -> None:
    bench = Bench()
    call_id = bench.agent.invite(INVITATION._replace(withhold_ack=True), 0.0)
    invite = bench.one("INVITE").request
    headers = (CONTACT, session_expires("10;refresher=uac"))
    bench.receive(reply(invite, 200, ANSWER, headers=headers))
    bench.advance(5.5)
    assert bench.names() == []
    bench.agent.acknowledge(call_id, bench.now)
    assert bench.names() == ["ACK"]
    bench.advance(4)
    assert "BYE" in bench.names()


def test_nothing_is_refreshed_after_the_end() -> None:
    bench, call_id, refresh = refreshing("Allow: BYE")
    bench.receive(reply(refresh, 100))
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE").request
    bench.receive(reply(bye, 200))
    assert bench.events() == [Ended(call_id, "us", 16)]
    bench.receive(reply(refresh, 200, ANSWER))
    assert bench.names() == []
    bench.run_out()


# The far end refreshes


def test_a_far_end_that_does_not_refresh_is_hung_up_on() -> None:
    bench, call_id, _ = answered(session_expires("1800;refresher=uas"))
    bench.advance(1767.9)
    assert bench.names() == []
    bench.advance(0.1)
    ended_by_timer(bench, call_id)


def test_a_short_session_is_ended_a_third_before() -> None:
    bench, call_id, _ = answered(session_expires("90;refresher=uas"))
    bench.advance(59.9)
    assert bench.names() == []
    bench.advance(0.1)
    ended_by_timer(bench, call_id)


@pytest.mark.parametrize(("method", "body"), [("UPDATE", ""), ("INVITE", ANSWER), ("INVITE", "")])
def test_a_far_end_that_refreshes_keeps_the_call(method: str, body: str) -> None:
    bench, _, invite = answered(session_expires("1800;refresher=uas"))
    for number in (1, 2, 3):
        bench.advance(1700)
        headers = (CONTACT, "Supported: timer", session_expires("1800;refresher=uac"))
        bench.receive(within(invite, method, number, body, headers=headers))
        ok = bench.one(f"200 {method}").response
        assert ok.header("session-expires") == "1800;refresher=uac"
        assert ok.values("require") == ["timer"]
        bench.receive(within(invite, "ACK", number))
    assert bench.events() == []
    bench.advance(1768)
    assert bench.names() == ["BYE"]


def test_a_request_that_asks_for_too_little_is_422() -> None:
    bench, _, invite = answered(session_expires("1800;refresher=uas"))
    headers = (CONTACT, "Supported: timer", session_expires("89"))
    bench.receive(within(invite, "UPDATE", 1, headers=headers))
    assert bench.one("422 UPDATE").response.header("min-se") == "90"
    bench.receive(request("INVITE", body=ANSWER, headers=headers))
    assert bench.one("422 INVITE").response.header("min-se") == "90"
    assert bench.events() == []


def test_a_refresh_without_timers_turns_them_off() -> None:
    bench, _, invite = answered(session_expires("1800;refresher=uas"))
    bench.receive(within(invite, "UPDATE", 1))
    assert bench.one("200 UPDATE").response.header("session-expires") == ""
    bench.advance(10_000)
    assert bench.names() == []


def test_the_refresher_may_change() -> None:
    bench, _, invite = answered(session_expires("1800;refresher=uac"), UPDATES)
    headers = (CONTACT, "Supported: timer", session_expires("1800;refresher=uac"))
    bench.receive(within(invite, "UPDATE", 1, headers=headers))
    bench.sent()
    bench.advance(1700)
    assert bench.names() == []
    headers = (CONTACT, "Supported: timer", session_expires("1800;refresher=uas"))
    bench.receive(within(invite, "UPDATE", 2, headers=headers))
    assert bench.one("200 UPDATE").response.values("require") == []
    bench.advance(900)
    assert bench.names() == ["UPDATE"]


def test_who_is_called_has_a_timer_too() -> None:
    bench = Bench()
    headers = ("Contact: <sip:caller@192.0.2.9>", "Require: timer", session_expires("600"))
    bench.receive(request("INVITE", body=ANSWER, headers=headers))
    bench.sent()
    bench.events()
    offer = SessionDescription.parse(ANSWER.encode())
    bench.agent.accept("call-1", make_answer(offer, ("192.0.2.1", 40000)), 0.0)
    ok = bench.one("200 INVITE").response
    assert ok.header("session-expires") == "600;refresher=uac"
    assert (ok.values("require"), ok.values("supported")) == (["timer"], ["timer"])
    ack = request("ACK", to_tag=ok.to_tag, branch="z9hG4bKack")
    bench.receive(ack)
    bench.events()
    bench.advance(600 - 32)
    ended_by_timer(bench, "call-1")


def test_a_proxys_timer_makes_who_is_called_refresh() -> None:
    bench = Bench()
    headers = ("Contact: <sip:caller@192.0.2.9>", session_expires("600"))
    bench.receive(request("INVITE", body=ANSWER, headers=headers))
    offer = SessionDescription.parse(ANSWER.encode())
    bench.agent.accept("call-1", make_answer(offer, ("192.0.2.1", 40000)), 0.0)
    ok = bench.sent()[-1].response
    assert ok.header("session-expires") == "600;refresher=uas"
    assert ok.values("require") == []
    bench.receive(request("ACK", to_tag=ok.to_tag, branch="z9hG4bKack"))
    bench.advance(300)
    refresh = bench.one("INVITE").request
    assert (refresh.cseq, refresh.to_tag, refresh.from_tag) == (1, "caller", ok.to_tag)
