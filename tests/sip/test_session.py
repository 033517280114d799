"""Requests within an answered call that we placed: dialog state, re-INVITE, UPDATE, routing."""

from __future__ import annotations

import pytest

from bitel.sip import Ended, MediaChanged, SessionDescription
from bitel.sip.grammar import Address
from tests.support.sip_bench import ANSWER, Bench, answered, reply, within


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("sendrecv", "sendrecv"),
        ("sendonly", "recvonly"),
        ("recvonly", "sendonly"),
        ("inactive", "inactive"),
    ],
)
@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_a_later_offer_is_answered_from_the_session(method: str, theirs: str, ours: str) -> None:
    bench, call_id, invite = answered()
    bench.sent()
    bench.receive(within(invite, method, 1, ANSWER.replace("sendrecv", theirs)))
    ok = bench.one(f"200 {method}").response
    answer = SessionDescription.parse(ok.body)
    assert (answer.address, answer.port, answer.direction) == ("192.0.2.1", 30000, ours)
    assert [codec.name for codec in answer.codecs] == ["PCMA", "telephone-event"]
    assert (answer.session_id, answer.version) == (7, 8)
    changes = bench.events()
    if theirs == "sendrecv":
        assert changes == []
    else:
        (change,) = changes
        assert isinstance(change, MediaChanged)
        assert (change.call_id, change.agreed.direction) == (call_id, ours)


def test_a_re_invite_is_answered_until_its_ack() -> None:
    bench, _, invite = answered()
    bench.sent()
    moved = ANSWER.replace("40000", "41000")
    bench.receive(within(invite, "INVITE", 1, moved))
    bench.advance(1)
    assert bench.names() == ["200 INVITE", "200 INVITE"]
    (change,) = bench.events()
    assert isinstance(change, MediaChanged)
    assert change.agreed.remote[1] == 41000
    bench.receive(within(invite, "ACK", 1))
    bench.advance(10)
    assert bench.names() == []
    assert bench.events() == []


def test_a_re_invite_that_nobody_acknowledges_ends_the_call() -> None:
    bench, call_id, invite = answered()
    bench.receive(within(invite, "INVITE", 1, ANSWER))
    bench.sent()
    bench.advance(32.1)
    assert bench.sent()[-1].name == "BYE"
    bench.advance(32.1)
    assert bench.events() == [Ended(call_id, "us", None, bye_unanswered=True)]


def test_we_may_hang_up_while_a_re_invite_waits_for_its_ack() -> None:
    bench, call_id, invite = answered()
    bench.receive(within(invite, "INVITE", 1, ANSWER))
    bench.sent()
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE").request
    bench.receive(reply(bye, 200))
    assert bench.events() == [Ended(call_id, "us", 16)]
    bench.run_out()


def test_a_re_invite_without_an_offer_gets_ours() -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(within(invite, "INVITE", 1))
    offer = SessionDescription.parse(bench.one("200 INVITE").response.body)
    assert offer.port == 30000
    assert [codec.name for codec in offer.codecs] == ["PCMA", "telephone-event"]
    assert (offer.direction, offer.session_id, offer.version) == ("sendrecv", 7, 8)


@pytest.mark.parametrize("held", [False, True])
def test_the_answer_to_an_offer_that_was_asked_for_comes_with_the_ack(held: bool) -> None:
    bench, _, invite = answered()
    bench.sent()
    if held:
        bench.receive(within(invite, "UPDATE", 1, ANSWER.replace("a=sendrecv", "a=inactive")))
    bench.sent()
    bench.events()
    bench.receive(within(invite, "INVITE", 2))
    offer = SessionDescription.parse(bench.one("200 INVITE").response.body)
    assert offer.direction == "sendrecv", "whoever asks may resume with it"
    moved = ANSWER.replace("m=audio 40000", "m=audio 40002").replace("=sendrecv", "=recvonly")
    bench.receive(within(invite, "ACK", 2, moved))
    (changed,) = bench.events()
    assert isinstance(changed, MediaChanged)
    assert (changed.agreed.remote[1], changed.agreed.direction) == (40002, "sendonly")
    bench.receive(within(invite, "ACK", 2, ANSWER))  # once
    assert bench.events() == []


def test_a_later_offer_that_cannot_be_met_is_488_and_the_call_goes_on() -> None:
    bench, _, invite = answered()
    bench.sent()
    g729 = ANSWER.replace("RTP/AVP 8 101", "RTP/AVP 18")
    bench.receive(within(invite, "INVITE", 1, g729))
    assert bench.names() == ["488 INVITE"]
    bench.receive(within(invite, "UPDATE", 2, "nonsense"))
    assert bench.names() == ["488 UPDATE"]
    assert bench.events() == []
    assert bench.agent.counts().dialogs == 1


@pytest.mark.parametrize(
    ("method", "body"), [("INVITE", ANSWER), ("INVITE", ""), ("UPDATE", ANSWER)]
)
def test_a_later_offer_moves_the_target(method: str, body: str) -> None:
    bench, call_id, invite = answered()
    moved = ("Contact: <sip:moved@192.0.2.8:5062>",)
    bench.receive(within(invite, method, 1, body, headers=moved))
    bench.sent()
    bench.agent.hang_up(call_id, bench.now)
    assert bench.one("BYE").destination == Address("192.0.2.8", 5062)


def test_an_update_without_a_body_moves_the_target_only() -> None:
    bench, call_id, invite = answered()
    bench.sent()
    bench.receive(within(invite, "UPDATE", 1, headers=("Contact: <sip:moved@192.0.2.8:5062>",)))
    ok = bench.one("200 UPDATE").response
    assert (ok.body, ok.header("content-type")) == (b"", "")
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE")
    assert bye.request.uri == "sip:moved@192.0.2.8:5062"
    assert bye.destination == Address("192.0.2.8", 5062)


def test_a_cseq_lower_than_the_last_is_500() -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(within(invite, "OPTIONS", 5))
    bench.receive(within(invite, "BYE", 4))
    assert bench.names() == ["200 OPTIONS", "500 BYE"]
    assert bench.agent.counts().dialogs == 1


def test_a_request_of_another_dialog_is_481() -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(within(invite, "BYE", 1).replace("tag=far", "tag=other"))
    assert bench.names() == ["481 BYE"]
    bench.receive(within(invite, "BYE", 2).replace(invite.call_id, "other"))
    assert bench.names() == ["481 BYE"]
    assert bench.events() == []


def test_a_request_after_our_bye_is_481() -> None:
    bench, call_id, invite = answered()
    bench.agent.hang_up(call_id, bench.now)
    bench.sent()
    bench.receive(within(invite, "INVITE", 1, ANSWER))
    assert bench.names() == ["481 INVITE"]


def test_requests_in_an_early_dialog() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 180))
    bench.receive(within(invite, "UPDATE", 1))
    bench.receive(within(invite, "UPDATE", 2, ANSWER))
    bench.receive(within(invite, "BYE", 3))
    assert bench.names() == ["200 UPDATE", "491 UPDATE", "481 BYE"]


def test_the_route_set_is_the_record_route_reversed() -> None:
    bench, call_id, _ = answered(
        "Record-Route: <sip:192.0.2.31:5070;lr>, <sip:192.0.2.32;lr>",
        "Record-Route: <sip:192.0.2.33;transport=udp;lr=on;ftag=x>",
        "Contact: <sip:far@10.0.0.9:5080;x=y>;expires=60",
    )
    bench.agent.hang_up(call_id, bench.now)
    for sent in bench.sent():
        assert sent.destination == Address("192.0.2.33", 5060)
        assert sent.request.uri == "sip:far@10.0.0.9:5080;x=y"
        assert sent.request.values("route") == [
            "<sip:192.0.2.33;transport=udp;lr=on;ftag=x>",
            "<sip:192.0.2.32;lr>",
            "<sip:192.0.2.31:5070;lr>",
        ]


def test_a_strict_router_gets_its_own_uri() -> None:
    bench, _, _ = answered(
        "Record-Route: <sip:192.0.2.31;lr>",
        "Record-Route: <sip:192.0.2.33:5099>",
        "Contact: <sip:far@10.0.0.9>",
    )
    ack = bench.one("ACK")
    assert ack.destination == Address("192.0.2.33", 5099)
    assert ack.request.uri == "sip:192.0.2.33:5099"
    assert ack.request.values("route") == ["<sip:192.0.2.31;lr>", "<sip:far@10.0.0.9>"]


@pytest.mark.parametrize("route", ["<sip:" + "x" * 2000 + ">", "<sip:a b>", "<sip:never-closes"])
def test_a_route_that_cannot_be_read_is_followed_as_far_as_can_be(route: str) -> None:
    bench, _, invite = answered(f"Record-Route: {route}", source=Address("198.51.100.1", 5066))
    ack = bench.one("ACK")
    assert ack.destination == Address("198.51.100.1", 5066)
    assert ack.request.uri == invite.uri
    assert ack.request.values("route") == [route]


@pytest.mark.parametrize(
    ("contact", "destination"),
    [
        ("<sip:far@192.0.2.44:5071>", Address("192.0.2.44", 5071)),
        ("sip:far@192.0.2.44;expires=1", Address("192.0.2.44", 5060)),
        ('"Far, End" <sip:far@192.0.2.44>', Address("192.0.2.44", 5060)),
        ("<sip:far@[2001:db8::9]:5062>", Address("2001:db8::9", 5062)),
        ("<SIP:far@192.0.2.44>", Address("192.0.2.44", 5060)),
        # Names take DNS, and what can't be read says nothing: where the answer came from.
        ("<sip:far@pbx.example.net>", Address("198.51.100.1", 5066)),
        ("<sip:far@my_host>", Address("198.51.100.1", 5066)),
        ("<sip:far@192.0.2.44:99999>", Address("198.51.100.1", 5066)),
        ("<sip:far@192.0.2.44:0>", Address("198.51.100.1", 5066)),
        ("<sip:far@239.1.1.1>", Address("198.51.100.1", 5066)),
        ("<sip:far@192.0.2.9;self=1>", Address("192.0.2.9", 5060)),
    ],
)
def test_where_an_ack_goes(contact: str, destination: Address) -> None:
    bench, _, _ = answered(f"Contact: {contact}", source=Address("198.51.100.1", 5066))
    ack = bench.one("ACK")
    assert ack.destination == destination
    assert ack.request.uri in contact
    assert ">" not in ack.request.uri


@pytest.mark.parametrize("contact", ["", "Contact: *", "Contact: <sip:a b@h>", "Contact: <sip:x"])
def test_without_a_usable_contact_the_request_uri_stands(contact: str) -> None:
    bench, _, invite = answered(contact or "X: y", source=Address("198.51.100.1", 5066))
    ack = bench.one("ACK")
    assert ack.request.uri == invite.uri
    assert ack.destination == Address("192.0.2.9", 5060)
