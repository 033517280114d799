"""The torture messages of RFC 4475 and RFC 5118, each with what this agent makes of it.

The files in `torture/` are the RFCs' own, byte for byte. The agent takes calls and is no registrar:
a REGISTER meets 405 however well or badly it is made, once it can be told to be one.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from bitel.sip import AgentConfig, Answered, Incoming, UserAgent
from bitel.sip.message import Message, MessageError, Request, Response, parse
from tests.support.sip_bench import ANSWER, FAR, US, Bench, reply, request

FILES = Path(__file__).parent / "torture"
RINGS = 100
IGNORED = None

RFC_4475 = {
    # §3.1.1, valid
    "wsinv": 481,  # its To has a tag, of a dialog that is not ours
    "intmeth": 501,
    "esc01": RINGS,
    "escnull": 405,
    "esc02": 501,
    "lwsdisp": 200,
    "longreq": RINGS,
    "dblreq": 405,  # and the second request, after the first one's body, is no more than padding
    "semiuri": 200,
    "transports": 200,
    "mpart01": 405,
    "unreason": IGNORED,
    "noreason": IGNORED,
    # §3.1.2, invalid
    "badinv01": 400,
    "clerr": 400,
    "ncl": 400,
    "scalar02": 400,
    "scalarlg": IGNORED,
    "quotbal": 400,
    "ltgtruri": 400,
    "lwsruri": 400,
    "lwsstart": 400,
    "trws": 200,  # read as if it ended where it should
    "escruri": 400,
    "baddate": RINGS,  # Date says nothing to us
    "regbadct": 405,
    "badaspec": 200,  # read without the spaces
    "baddn": 200,  # display names say nothing to us
    "badvers": IGNORED,  # its Via is of SIP/7.0, so that nobody knows where an answer goes
    "mismatch01": 400,
    "mismatch02": 400,
    "bigcode": IGNORED,
    # §3.2, transactions
    "badbranch": 200,
    # §3.3, what an application makes of it
    "insuf": IGNORED,  # without a Call-ID there is no saying what an answer is about
    "unkscm": 416,
    "novelsc": 416,
    "unksm2": 405,
    "bext01": 420,
    "invut": 415,
    "regaut01": 405,
    "multi01": 400,
    "mcl01": 400,
    "bcast": IGNORED,
    "zeromf": 200,
    "cparam01": 405,
    "cparam02": 405,
    "regescrt": 405,
    "sdp01": 406,
    # §3.4, old ways
    "inv2543": RINGS,
}
RFC_5118 = {
    "ipv6-good": 405,
    "ipv6-bad": 405,
    "port-ambiguous": 405,
    "port-unambiguous": 405,
    "via-received-param-with-delim": 481,
    "via-received-param-no-delim": 200,
    "ipv6-in-sdp": RINGS,
    "mult-ip-in-header": 481,
    "mult-ip-in-sdp": RINGS,
    "ipv4-mapped-ipv6": RINGS,
    "ipv6-bug-abnf-3-colons": 200,
    "ipv6-correct-abnf-2-colons": 200,
}
CASES = [
    *(("rfc4475", name, answer) for name, answer in RFC_4475.items()),
    *(("rfc5118", name, answer) for name, answer in RFC_5118.items()),
]


def read(rfc: str, name: str) -> bytes:
    return (FILES / rfc / f"{name}.dat").read_bytes()


def torture(name: str) -> Message:
    rfc = "rfc4475" if name in RFC_4475 else "rfc5118"
    return parse(read(rfc, name))


def statuses(agent: UserAgent) -> list[int]:
    """The statuses of the answers; their headers repeat what was sent, amiss as it may be."""
    found = [re.match(rb"SIP/2\.0 (\d{3}) ", data) for data, _ in agent.datagrams_to_send()]
    return [int(match[1]) for match in found if match]


def test_every_message_has_its_expectation() -> None:
    assert {path.stem for path in (FILES / "rfc4475").glob("*.dat")} == set(RFC_4475)
    assert {path.stem for path in (FILES / "rfc5118").glob("*.dat")} == set(RFC_5118)
    assert (len(RFC_4475), len(RFC_5118)) == (49, 12)


@pytest.mark.parametrize(("rfc", "name", "answer"), CASES)
def test_what_the_agent_makes_of_it(rfc: str, name: str, answer: int | None) -> None:
    agent = UserAgent(AgentConfig(US))
    agent.receive_datagram(read(rfc, name), FAR, 0.0)
    assert statuses(agent) == ([] if answer is IGNORED else [answer])
    event = agent.next_event()
    if answer == RINGS:
        assert isinstance(event, Incoming)
        agent.reject(event.call_id, 480, 0.0)
        assert statuses(agent) == [480]
    else:
        assert event is None
    while (due := agent.next_timer()) is not None:
        agent.handle_timer(due)
    assert agent.idle(), agent.counts()


@pytest.mark.parametrize(("rfc", "name", "answer"), CASES)
def test_its_repetition_is_no_second_request(rfc: str, name: str, answer: int | None) -> None:
    agent = UserAgent(AgentConfig(US))
    for _ in range(3):
        agent.receive_datagram(read(rfc, name), FAR, 0.0)
    assert statuses(agent) == ([] if answer is IGNORED else [answer] * 3)
    assert agent.counts().server_transactions <= 1
    assert agent.counts().dialogs == (answer == RINGS)


def test_what_is_well_formed_is_read_as_it_is_meant() -> None:
    folded = torture("wsinv")
    assert (folded.from_tag, folded.to_tag, folded.cseq) == ("98asjd8", "1918181833n", 9)
    assert len(folded.values("via")) == 3
    unusual = torture("intmeth")
    assert isinstance(unusual, Request)
    assert unusual.method == "!interesting-Method0123456789_*+`.%indeed'~"
    assert unusual.from_tag == "_token~1'+`*%!-."
    assert unusual.call_id == "intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{"
    phrase = torture("unreason")
    assert isinstance(phrase, Response)
    assert phrase.reason.startswith("= 2**3 * 5**2 но сто девяносто девять")
    assert torture("dblreq").body == b""
    assert torture("mpart01").body.startswith(b"--7a9cbec02ceef655")


def test_the_number_called_is_unescaped() -> None:
    bench = Bench()
    bench.receive(read("rfc4475", "esc01"))
    (event,) = bench.events()
    assert isinstance(event, Incoming)
    assert event.number == "sips:user@example.com"
    assert event.from_user == "I have spaces"


def test_audio_is_found_among_addresses_of_both_kinds() -> None:
    for name, address in (
        ("ipv6-in-sdp", "2001:db8::20"),
        ("mult-ip-in-sdp", "192.0.2.1"),
        ("ipv4-mapped-ipv6", "::ffff:192.0.2.2"),
    ):
        bench = Bench()
        bench.receive(read("rfc5118", name))
        (event,) = bench.events()
        assert isinstance(event, Incoming)
        assert event.offer is not None
        assert ip_address(event.offer.address) == ip_address(address)


def test_a_bare_magic_cookie_tells_no_transactions_apart() -> None:
    bench = Bench()
    bench.receive(read("rfc4475", "badbranch"))
    other = read("rfc4475", "badbranch").replace(b"CSeq: 8 ", b"CSeq: 9 ")
    bench.receive(other)
    assert bench.names() == ["200 OPTIONS", "200 OPTIONS"]
    assert bench.agent.counts().server_transactions == 2
    assert bench.agent.counts().retransmissions == 0


@pytest.mark.parametrize(
    "line", ["SIP/2.0 4294967301 better not break the receiver", "SIP/2.0 99 Low", "SIP/7.0 200 OK"]
)
def test_a_status_that_is_none_leaves_a_call_as_it_is(line: str) -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER).replace("SIP/2.0 200 Phrase", line))
    assert (bench.names(), bench.events()) == ([], [])
    bench.receive(reply(invite, 200, ANSWER, phrase="= 2**3 * 5**2 но сто девяносто девять"))
    assert [type(event) for event in bench.events()] == [Answered]


@pytest.mark.parametrize("accept", ["application/sdp;level=1, text/plain", "application/*", "*/*"])
def test_an_invite_that_takes_sdp_rings(accept: str) -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER, headers=(f"Accept: {accept}",)))
    assert bench.names() == ["100 INVITE"]


def test_a_zero_byte_may_only_stand_escaped_and_never_in_a_call_id() -> None:
    text = request("OPTIONS")
    quoted = text.replace("From: <", 'From: "a\\\0b" <')
    assert parse(quoted.encode()).from_tag == "caller"
    for damaged in (
        text.replace("From: <", 'From: "a\0b" <'),
        text.replace("call-1", "call\\\0"),
    ):
        with pytest.raises(MessageError):
            parse(damaged.encode())
