"""Whose messages an agent takes, what it answers to others, and that a flood of theirs blocks
nothing of a running call."""

from __future__ import annotations

import pytest

from bitel.sip import AgentConfig, Answered, Credentials, Ended, Incoming, MessageDropped
from bitel.sip.grammar import Address
from bitel.sip.message import MAX_VIAS, MessageError, parse
from bitel.sip.source_filter import ANSWER_BURST
from tests.support.sip_bench import (
    ANSWER,
    FAR,
    INVITATION,
    US,
    Bench,
    answered,
    reply,
    request,
    within,
)

STRANGER = Address("198.51.100.66", 5060)
NAMED = Address("198.51.100.7", 5060)


class Trunk:
    """Accepts one host."""

    def __init__(self, host: str = FAR.host, *, is_open: bool = False) -> None:
        self._host = host
        self.is_open = is_open

    def accepts(self, host: str) -> bool:
        return host == self._host


def bench(*, is_open: bool = False, config: AgentConfig | None = None) -> Bench:
    return Bench(config, sources=Trunk(is_open=is_open))


def dropped(made: Bench) -> list[MessageDropped]:
    return [event for event in made.events() if isinstance(event, MessageDropped)]


def codes(made: Bench) -> list[str]:
    """The statuses and methods of what was sent."""
    return [name.split()[0] for name in made.names()]


# Responses


@pytest.mark.parametrize("code", [100, 180, 200, 302, 401, 486, 603])
def test_a_response_of_a_stranger_answers_no_call(code: int) -> None:
    made = bench()
    call_id, invite = made.invite()
    made.receive(reply(invite, code, ANSWER if code == 200 else ""), STRANGER)
    assert made.events() == [MessageDropped(call_id, STRANGER, is_response=True)]
    made.receive(reply(invite, 200, ANSWER), FAR)
    assert [type(event) for event in made.events()] == [Answered]


@pytest.mark.parametrize("realm", ["", "carrier.example"])
def test_a_challenge_of_a_stranger_gets_no_credentials(realm: str) -> None:
    made = bench()
    _, invite = made.invite(INVITATION._replace(credentials=Credentials("us", "secret", realm)))
    challenge = ('WWW-Authenticate: Digest realm="carrier.example", nonce="n"',)
    made.receive(reply(invite, 401, headers=challenge), STRANGER)
    assert made.sent() == []
    made.receive(reply(invite, 401, headers=challenge), FAR)
    assert made.names() == ["ACK", "INVITE"]


def test_a_redirect_target_may_answer_the_invite_that_it_got() -> None:
    made = bench()
    call_id, invite = made.invite(INVITATION._replace(destination=NAMED))
    made.receive(reply(invite, 200, ANSWER), NAMED)
    assert [type(event) for event in made.events()] == [Answered]
    assert call_id == invite.call_id


# Requests within calls


@pytest.mark.parametrize("method", ["BYE", "INFO", "UPDATE", "INVITE", "OPTIONS", "CANCEL", "ACK"])
def test_a_request_of_a_stranger_changes_no_call(method: str) -> None:
    made, call_id, invite = answered(bench=bench())
    made.sent()
    body = ANSWER if method in ("INVITE", "UPDATE") else ""
    made.receive(within(invite, method, 7, body), STRANGER)
    assert made.events() == [MessageDropped(call_id, STRANGER, is_response=False)]
    assert made.sent() == []
    assert made.agent.counts().from_elsewhere_for_calls == 1


@pytest.mark.parametrize(
    "headers",
    [
        (f"Contact: <sip:far@{NAMED.host}>",),
        ("Contact: <sip:far@192.0.2.9>", f"Record-Route: <sip:{NAMED.host};lr>"),
        ("Contact: <sip:far@192.0.2.9>", f"Record-Route: <sip:a.b;lr>, <sip:p@{NAMED.host};lr>"),
    ],
)  # fmt: skip
def test_a_host_that_the_carrier_names_has_a_part_in_the_call(headers: tuple[str, ...]) -> None:
    made, _, invite = answered(*headers, bench=bench())
    made.sent()
    bye = within(invite, "BYE", 7)
    made.receive(bye, NAMED)
    assert [type(event) for event in made.events()] == [Ended]
    assert codes(made) == ["200"]
    made.receive(bye, NAMED)  # its 200 was lost
    assert codes(made) == ["200"]


def test_a_host_has_no_part_in_another_call() -> None:
    made, _, _ = answered(f"Contact: <sip:far@{NAMED.host}>", bench=bench())
    made.sent()
    _, _, other = answered(bench=made)
    made.sent()
    made.receive(within(other, "BYE", 7), NAMED)
    assert len(dropped(made)) == 1


def test_a_call_id_that_seems_to_be_one_call_s_opens_no_other() -> None:
    """A named host writes the Call-ID of its call where only a careless reader takes it as one."""
    made, _, own = answered(f"Contact: <sip:far@{NAMED.host}>", bench=bench())
    made.sent()
    _, _, other = answered(bench=made)
    made.sent()
    bye = within(other, "BYE", 7).replace("\r\nCall-ID:", "\r\nSubject: x\n\ti:y\r\nCall-ID:")
    for forged in (
        bye.replace("SIP/2.0\r\n", f"SIP/2.0\r\nCall-ID: {own.call_id}\r\n", 1),
        bye.replace("SIP/2.0\r\n", f"SIP/2.0\r\nX: y\r\n i: {own.call_id}\r\n", 1),
        f"{bye}\r\nCall-ID: {own.call_id}\r\n",
    ):
        made.receive(forged, NAMED)
        assert not [event for event in made.events() if isinstance(event, Ended)]
    assert made.sent() == []


def test_a_response_with_the_call_id_of_another_call_is_not_for_us() -> None:
    """A host with a part in one call answers no request of another, even if it has seen that."""
    made, _, own = answered(f"Contact: <sip:far@{NAMED.host}>", bench=bench())
    made.sent()
    _, other = made.invite()
    forged = reply(other, 486).replace(other.call_id, own.call_id)
    for source in (NAMED, FAR):
        made.receive(forged, source)
        assert made.events() == []
    assert made.agent.counts().misrouted == 2
    made.receive(reply(other, 200, ANSWER), FAR)
    assert [type(event) for event in made.events()] == [Answered]


def test_an_open_agent_takes_messages_of_calls_from_anywhere() -> None:
    made, _, invite = answered(bench=bench(is_open=True))
    made.sent()
    made.receive(within(invite, "BYE", 7), STRANGER)
    assert [type(event) for event in made.events()] == [Ended]


# Requests outside of calls


@pytest.mark.parametrize("method", ["OPTIONS", "INVITE", "REGISTER", "BYE", "CANCEL"])
def test_a_request_of_a_stranger_gets_no_answer(method: str) -> None:
    made = bench()
    made.receive(request(method, "sip:1@192.0.2.1"), STRANGER)
    assert (made.sent(), made.events()) == ([], [])
    assert made.agent.counts().server_transactions == 0
    assert made.agent.counts().from_elsewhere == 1


@pytest.mark.parametrize(
    ("method", "code"),
    [("OPTIONS", "200"), ("INVITE", "480"), ("REGISTER", "405"), ("BYE", "481"), ("ACK", None)],
)
def test_an_open_agent_answers_once_and_keeps_nothing(method: str, code: str | None) -> None:
    made = bench(is_open=True)
    data = request(method, "sip:1@192.0.2.1", headers=("Subject: " + "x" * 200,))
    made.receive(data, STRANGER)
    sent = made.sent()
    assert [each.name.split()[0] for each in sent] == ([code] if code else [])
    assert all(len(each.data) <= len(data) for each in sent)
    assert made.events() == []
    assert made.agent.idle()


def test_an_open_agent_answers_no_source_without_limit() -> None:
    made = bench(is_open=True)
    for number in range(1000):
        data = request("OPTIONS", "sip:192.0.2.1", branch=f"z9hG4bK{number}", call_id=f"c{number}")
        made.receive(data + " " * 400, STRANGER._replace(port=1 + number))
    assert len(made.sent()) == ANSWER_BURST
    network = "2001:db8:0:1:{}::1"
    for number in range(1, 100):
        made.receive(data + " " * 400, Address(network.format(number), 5060))
    assert len(made.sent()) == ANSWER_BURST


def test_no_answer_is_longer_than_the_request() -> None:
    made = bench(is_open=True)
    via = "SIP/2.0/UDP h;rport" + ",SIP/2.0/UDP h" * (MAX_VIAS - 1)
    short = request("OPTIONS", "sip:1@192.0.2.1", via="SIP/2.0/UDP h;rport", headers=())
    for data in (request("OPTIONS", "sip:1@192.0.2.1", via=via), short):
        made.receive(data, STRANGER)
        assert all(len(each.data) <= len(data) for each in made.sent())


# Floods


def test_a_via_with_more_values_than_any_way_has_proxies_is_refused() -> None:
    fits = "SIP/2.0/UDP h" + ",SIP/2.0/UDP h" * (MAX_VIAS - 1)
    parse(request("OPTIONS", "sip:1@192.0.2.1", via=fits).encode())
    for via in (f"{fits},SIP/2.0/UDP h", "SIP/2.0/UDP h" + "," * 7000):
        with pytest.raises(MessageError, match="Via values"):
            parse(request("OPTIONS", "sip:1@192.0.2.1", via=via).encode())
        made = Bench()
        made.receive(request("OPTIONS", "sip:1@192.0.2.1", via=via))
        assert made.sent() == [], "an answer would repeat them all"


def test_a_flood_of_strangers_blocks_no_request_of_a_call() -> None:
    config = AgentConfig(US, max_server_transactions=100)
    for made in (Bench(config), bench(config=config)):
        _, _, invite = answered(bench=made)
        made.sent()
        for number in range(500):
            flood = request("OPTIONS", "sip:192.0.2.1", branch=f"z9hG4bK{number}", cseq=number + 1)
            made.receive(flood, STRANGER)
        made.sent()
        for cseq, method in enumerate(("INFO", "UPDATE", "OPTIONS", "BYE"), start=7):
            made.receive(within(invite, method, cseq))
            assert codes(made) == ["200"], method


def test_one_call_has_no_more_than_its_share_of_a_full_table() -> None:
    made = Bench(AgentConfig(US, max_server_transactions=10))
    _, _, invite = answered(bench=made)
    made.sent()
    for cseq in range(7, 107):
        made.receive(within(invite, "OPTIONS", cseq))
    names = codes(made)
    assert names.count("200") == 16
    assert names.count("503") == 84
    made.receive(within(invite, "BYE", 200))
    assert codes(made) == ["200"]


def test_the_bytes_of_the_table_are_bounded() -> None:
    made = Bench(AgentConfig(US, max_server_bytes=100_000))
    padding = ("Subject: " + "x" * 10_000,)
    for number in range(50):
        data = request("OPTIONS", "sip:192.0.2.1", branch=f"z9hG4bK{number}", headers=padding)
        made.receive(data)
    assert made.agent.counts().server_transactions <= 6
    made.run_out()
    made.receive(request("OPTIONS", "sip:192.0.2.1", branch="z9hG4bKlater", headers=padding))
    assert "200" in codes(made)


def test_a_call_may_come_from_the_trunk_and_not_from_a_stranger() -> None:
    made = bench()
    invite = request("INVITE", "sip:1@192.0.2.1", ANSWER)
    made.receive(invite, STRANGER)
    assert (made.events(), made.sent()) == ([], [])
    made.receive(invite, FAR)
    assert [type(event) for event in made.events()] == [Incoming]
    assert codes(made) == ["100"]
