"""Which description is the answer, and what later offers change (RFC 3261, 3264, 3311)."""

from __future__ import annotations

import pytest

from bitel.sip import (
    AgentConfig,
    Answered,
    Credentials,
    Failed,
    MediaChanged,
    Provisional,
    SessionDescription,
    make_answer,
    make_offer,
)
from bitel.sip.grammar import Address
from bitel.sip.invite_client import MAX_FORKS
from bitel.sip.message import Request
from bitel.sip.sdp import MAX_EVENT_TYPES, NegotiatedMedia
from tests.support.sip_bench import (
    ANSWER,
    INVITATION,
    OFFER,
    US,
    Bench,
    answered,
    reliable,
    reply,
    request,
    within,
)

MOVED = ANSWER.replace("m=audio 40000", "m=audio 40002")
UNUSABLE = ANSWER.replace("RTP/AVP 8 101", "RTP/AVP 18")
ISUP = (
    "Content-Type: application/isup;version=itu-t92+\r\n"
    "Content-Disposition: signal;handling=optional\r\n\r\n"
    "\x01\n\x00v=0\nc=IN IP4 10.0.0.1\nm=audio 9 RTP/AVP 8\nc=IN IP4 10.0.0.1\na=inactive\n\x00"
)
"""Binary, with what looks like lines of a description in it."""
IN_MULTIPART = (
    f"--b\r\n{ISUP}\r\n--b\r\nContent-Type: application/sdp\r\n\r\n{ANSWER}"
    f"\r\n--b\r\n{ISUP}\r\n--b--\r\n"
)


def multipart(message: str) -> str:
    return message.replace(
        "Content-Type: application/sdp", "Content-Type: multipart/mixed;boundary=b", 1
    )


def ringing() -> tuple[Bench, str, Request]:
    bench = Bench()
    call_id, invite = bench.invite()
    return bench, call_id, invite


def media(bench: Bench) -> NegotiatedMedia:
    """What the only `Answered` or `MediaChanged` since the last time agreed on."""
    (event,) = [e for e in bench.events() if not isinstance(e, Provisional)]
    assert isinstance(event, Answered | MediaChanged), event
    return event.agreed


def description(bench: Bench, name: str) -> SessionDescription:
    return SessionDescription.parse(bench.one(name).response.body)


# The answer to the offer of the INVITE


@pytest.mark.parametrize("code", [180, 183])
@pytest.mark.parametrize("tag", ["far", ""], ids=["tag", "no tag"])
def test_an_unreliable_response_may_bring_the_answer_and_the_2xx_none(code: int, tag: str) -> None:
    bench, _, invite = ringing()
    bare, early = reply(invite, 200), reply(invite, code, ANSWER)
    if not tag:
        bare, early = bare.replace(";tag=far", ""), early.replace(";tag=far", "")
    bench.receive(early)
    bench.receive(bare)
    assert bench.names() == ["ACK"]
    provisional, event = bench.events()
    assert isinstance(provisional, Provisional)
    assert isinstance(event, Answered)
    assert event.agreed.remote == ("192.0.2.9", 40000)


def test_of_several_early_descriptions_the_first_that_can_be_used_counts() -> None:
    bench, _, invite = ringing()
    for code, body in ((180, ""), (183, "v=1"), (183, UNUSABLE), (183, ANSWER), (183, MOVED)):
        bench.receive(reply(invite, code, body))
    provisionals = bench.events()
    assert [type(event) for event in provisionals] == [Provisional] * 3
    assert [e.answer is not None for e in provisionals if isinstance(e, Provisional)] == [
        False,
        False,
        True,
    ]
    bench.receive(reply(invite, 200))
    assert media(bench).remote == ("192.0.2.9", 40000)


def test_the_2xx_may_bring_a_description_of_its_own() -> None:
    bench, _, invite = ringing()
    bench.receive(reply(invite, 183, ANSWER))
    bench.receive(reply(invite, 200, MOVED))
    assert media(bench).remote == ("192.0.2.9", 40002)


@pytest.mark.parametrize("body", ["v=1", "\x01 isup"])
def test_a_body_of_the_2xx_that_is_no_description_leaves_the_early_answer(body: str) -> None:
    bench, _, invite = ringing()
    bench.receive(reply(invite, 183, ANSWER))
    bench.receive(
        reply(invite, 200, body).replace("Content-Type: application/sdp", "c: application/isup")
    )
    assert media(bench).remote == ("192.0.2.9", 40000)


def test_the_reliable_answer_takes_the_place_of_an_unreliable_one() -> None:
    bench, _, invite = ringing()
    bench.receive(reply(invite, 183, ANSWER))
    bench.receive(reliable(invite, 183, 1, MOVED))
    bench.receive(reliable(invite, 183, 2, ANSWER))
    bench.receive(reply(invite, 200))
    assert media(bench).remote == ("192.0.2.9", 40002)


def test_each_fork_has_its_own_answer() -> None:
    bench, _, invite = ringing()
    bench.receive(reply(invite, 183, ANSWER, tag="one"))
    bench.receive(reply(invite, 183, MOVED, tag="two"))
    bench.receive(reply(invite, 200, tag="two"))
    assert media(bench).remote == ("192.0.2.9", 40002)


def test_without_an_answer_of_its_own_tag_a_2xx_is_hung_up_on() -> None:
    bench, _, invite = ringing()
    bench.receive(reply(invite, 183, ANSWER, tag="one"))
    bench.receive(reply(invite, 200, tag="two"))
    assert bench.names() == ["ACK", "BYE"]
    assert isinstance(bench.events()[-1], Failed)


def test_so_many_forks_are_remembered_only() -> None:
    bench, _, invite = ringing()
    for number in range(1000):
        bench.receive(reply(invite, 183, ANSWER, tag=f"fork{number}"))
    answers = [e for e in bench.events() if isinstance(e, Provisional) and e.answer]
    assert len(answers) == MAX_FORKS
    bench.receive(reply(invite, 200, tag=f"fork{MAX_FORKS - 1}"))
    assert media(bench).remote == ("192.0.2.9", 40000)


def test_an_early_answer_to_an_invite_without_credentials_is_not_that_to_the_next() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(credentials=Credentials("u", "p")), 0.0)
    first = bench.one("INVITE").request
    bench.receive(reply(first, 183, ANSWER))
    challenge = 'WWW-Authenticate: Digest realm="r", nonce="n"'
    bench.receive(reply(first, 401, headers=(challenge,)))
    second = bench.sent()[-1].request
    bench.receive(reply(second, 200))
    assert isinstance(bench.events()[-1], Failed)


# Bodies of several parts


@pytest.mark.parametrize("code", [183, 200])
def test_the_answer_may_be_one_part_of_several(code: int) -> None:
    bench, _, invite = ringing()
    bench.receive(multipart(reply(invite, code, IN_MULTIPART)))
    if code == 183:
        bench.receive(reply(invite, 200))
    assert media(bench).remote == ("192.0.2.9", 40000)


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_a_later_offer_may_be_one_part_of_several(method: str) -> None:
    bench, _, invite = answered()
    bench.sent()
    body = IN_MULTIPART.replace("m=audio 40000", "m=audio 40002")
    bench.receive(multipart(within(invite, method, 1, body)))
    assert description(bench, f"200 {method}").port == 30000
    assert media(bench).remote == ("192.0.2.9", 40002)


def test_the_answer_in_an_ack_may_be_one_part_of_several() -> None:
    bench, _, invite = answered()
    bench.receive(within(invite, "INVITE", 1))
    body = IN_MULTIPART.replace("m=audio 40000", "m=audio 40002")
    bench.receive(multipart(within(invite, "ACK", 1, body)))
    assert media(bench).remote == ("192.0.2.9", 40002)


def test_a_part_that_must_be_understood_and_is_not_is_415() -> None:
    bench, _, invite = answered()
    bench.sent()
    body = IN_MULTIPART.replace("handling=optional", "handling=required")
    bench.receive(multipart(within(invite, "INVITE", 1, body)))
    assert bench.names() == ["415 INVITE"]


def test_a_new_call_may_offer_in_one_part_of_several() -> None:
    bench = Bench()
    bench.receive(multipart(request("INVITE", body=IN_MULTIPART)))
    (incoming,) = bench.events()
    assert getattr(incoming, "offer").port == 40000  # noqa: B009


# Later offers


def two_lines(first: str, second: str) -> str:
    """A description with two audio lines: port, protocol and payload types of each."""
    head, _, rest = ANSWER.partition("m=audio")
    below = rest.partition("\r\n")[2]
    return f"{head}m=audio {first}\r\n{below}m=audio {second}\r\n{below}"


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
@pytest.mark.parametrize(
    ("first", "second", "used", "ports"),
    [
        ("0 RTP/AVP 8 101", "40002 RTP/AVP 8 101", 40002, [0, 30000]),
        ("40004 RTP/SAVP 8 101", "40002 RTP/AVP 8 101", 40002, [0, 30000]),
        ("40004 RTP/AVP 18", "40002 RTP/AVP 8", 40002, [0, 30000]),
        ("40004 RTP/AVP 101", "40002 RTP/AVP 8", 40002, [0, 30000]),
        ("40004 RTP/AVP 0 101", "40002 RTP/AVP 8 101", 40002, [0, 30000]),
        ("40004 RTP/AVP 8 101", "40002 RTP/AVP 8 101", 40004, [30000, 0]),
        ("40004 RTP/AVP 8 101", "0 RTP/AVP 8 101", 40004, [30000, 0]),
        ("99999 RTP/AVP 8 101", "40002 RTP/AVP 8 101", 40002, [0, 30000]),
    ],
)
def test_of_several_audio_lines_the_first_that_can_be_used_is(
    method: str, first: str, second: str, used: int, ports: list[int]
) -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(within(invite, method, 1, two_lines(first, second)))
    body = bench.one(f"200 {method}").response.body.decode()
    lines = [line.split() for line in body.split("\r\n") if line.startswith("m=audio")]
    assert [int(line[1]) for line in lines] == ports
    assert [line[2] for line in lines] == [first.split()[1], second.split()[1]]
    assert media(bench).remote == ("192.0.2.9", used)


def test_the_audio_may_change_from_line_to_line() -> None:
    bench, _, invite = answered()
    for cseq, first, second, used in (
        (1, "40004 RTP/AVP 8", "0 RTP/AVP 8", 40004),
        (2, "0 RTP/AVP 8", "40002 RTP/AVP 8", 40002),
        (3, "40004 RTP/AVP 8", "0 RTP/AVP 8", 40004),
    ):
        bench.receive(within(invite, "INVITE", cseq, two_lines(first, second)))
        bench.receive(within(invite, "ACK", cseq))
        changes = [e for e in bench.events() if isinstance(e, MediaChanged)]
        assert [change.agreed.remote[1] for change in changes] == [used]


def test_a_codec_that_is_renumbered_is_followed() -> None:
    bench, _, invite = answered()
    bench.sent()
    renamed = ANSWER.replace("RTP/AVP 8", "RTP/AVP 98").replace("rtpmap:8", "rtpmap:98")
    bench.receive(within(invite, "INVITE", 1, renamed))
    answer = description(bench, "200 INVITE")
    assert [codec.payload_type for codec in answer.codecs] == [98, 101]
    agreed = media(bench)
    assert (agreed.codec_name, agreed.payload_type) == ("PCMA", 98)


def test_earlier_numbers_of_telephone_events_stay_acceptable() -> None:
    bench, _, invite = answered()
    numbers = [101]
    for cseq, number in enumerate([97, 100, 101, *range(110, 120)], start=1):
        bench.receive(within(invite, "UPDATE", cseq, ANSWER.replace("101", str(number))))
        numbers = [*(each for each in numbers if each != number), number][-MAX_EVENT_TYPES:]
        assert media(bench).event_types == tuple(numbers)


def test_a_number_that_comes_to_mean_audio_is_no_event_any_more() -> None:
    bench, _, invite = answered()
    swapped = ANSWER.replace("8 101", "101 97").replace("rtpmap:101 tele", "rtpmap:97 tele")
    swapped = swapped.replace("rtpmap:8 ", "rtpmap:101 ").replace("fmtp:101", "fmtp:97")
    bench.receive(within(invite, "UPDATE", 1, swapped))
    agreed = media(bench)
    assert (agreed.payload_type, agreed.event_types) == (101, (97,))


@pytest.mark.parametrize(("ptime", "maxptime", "ours"), [(20, 10, 10), (40, 30, 30), (40, 60, 40)])
def test_a_later_offer_may_limit_the_length_of_packets(
    ptime: int, maxptime: int, ours: int
) -> None:
    bench, _, invite = answered()
    bench.sent()
    limited = f"{ANSWER}a=ptime:{ptime}\r\na=maxptime:{maxptime}\r\n"
    bench.receive(within(invite, "INVITE", 1, limited))
    assert description(bench, "200 INVITE").ptime == ours
    assert media(bench).ptime == ours


def test_a_host_name_is_handed_on_as_it_is() -> None:
    named = ANSWER.replace("c=IN IP4 192.0.2.9", "c=IN IP4 Media.Example.NET.")
    bench, _, invite = ringing()
    bench.receive(reply(invite, 183, named))
    (provisional,) = bench.events()
    assert isinstance(provisional, Provisional)
    assert provisional.answer is not None
    assert provisional.answer.address == "media.example.net"
    bench.receive(reply(invite, 200))
    assert media(bench).remote == ("media.example.net", 40000)
    bench.receive(within(invite, "UPDATE", 1, named.replace("Media", "other")))
    assert media(bench).remote == ("other.example.net", 40000)


# The origin line (RFC 8866 §5.2, RFC 3264 §8)


def test_each_session_has_an_id_of_its_own() -> None:
    offers = [make_offer(("192.0.2.1", 30000)) for _ in range(100)]
    theirs = SessionDescription.parse(ANSWER.encode())
    answers = [make_answer(theirs, ("192.0.2.1", 30000)) for _ in range(100)]
    ids = {each.session_id for each in offers + answers}
    assert len(ids) == 200
    assert all(each.version == each.session_id < 2**62 - 1 for each in offers + answers)


def test_the_version_is_that_of_the_last_description_and_counts_its_changes() -> None:
    bench, _, invite = answered()
    bench.sent()
    held = ANSWER.replace("sendrecv", "sendonly")
    versions = []
    for cseq, (method, body) in enumerate(
        [
            ("INVITE", ANSWER),  # one codec instead of two
            ("INVITE", ANSWER),
            ("UPDATE", MOVED),  # ours stays as it is
            ("UPDATE", held),
            ("UPDATE", UNUSABLE),
            ("INVITE", held),
            ("INVITE", ""),  # our offer: both ways again
            ("UPDATE", ANSWER),
            ("INVITE", ANSWER + "a=ptime:40\r\n"),
        ],
        start=1,
    ):
        bench.receive(within(invite, method, cseq, body))
        response = bench.sent()[-1].response
        if response.code == 200:
            found = SessionDescription.parse(response.body)
            assert found.session_id == OFFER.session_id
            versions.append(found.version - OFFER.version)
        if method == "INVITE":
            bench.receive(within(invite, "ACK", cseq, "" if body else ANSWER))
    assert versions == [1, 1, 1, 2, 2, 3, 3, 4]


def test_a_refresh_repeats_the_last_description_with_its_version() -> None:
    bench = Bench(AgentConfig(US, session_expires=90))
    _, invite = bench.invite()
    headers = (
        "Contact: <sip:far@192.0.2.9>",
        "Session-Expires: 90;refresher=uac",
        "Allow: INVITE, ACK, BYE",
    )
    bench.receive(reply(invite, 200, ANSWER, headers=headers))
    bench.receive(within(invite, "UPDATE", 1, ANSWER.replace("sendrecv", "inactive")))
    last = bench.sent()[-1].response.body
    bench.advance(45.1)
    assert bench.one("INVITE").request.body == last


# UPDATE and other requests in an early dialog (RFC 3311 §5.2)


def with_early_answer() -> tuple[Bench, str, Request]:
    """A call with a complete offer/answer exchange before its 2xx."""
    bench, call_id, invite = ringing()
    bench.receive(reliable(invite, 183, 1, ANSWER))
    bench.receive(reply(bench.one("PRACK").request, 200))
    bench.events()
    return bench, call_id, invite


@pytest.mark.parametrize("repeated", ["", ANSWER], ids=["bare 2xx", "2xx with the first answer"])
def test_an_update_before_the_answer_moves_the_media(repeated: str) -> None:
    bench, _, invite = with_early_answer()
    bench.receive(within(invite, "UPDATE", 1, MOVED.replace("sendrecv", "sendonly")))
    ok = bench.one("200 UPDATE").response
    assert ok.header("contact")
    assert "UPDATE" in ok.values("allow")
    answer = SessionDescription.parse(ok.body)
    assert (answer.port, answer.direction, answer.version) == (30000, "recvonly", OFFER.version + 1)
    assert bench.events() == []
    bench.receive(reply(invite, 200, repeated))
    agreed = media(bench)
    assert (agreed.remote, agreed.direction) == (("192.0.2.9", 40002), "recvonly")
    bench.sent()
    bench.receive(within(invite, "INVITE", 2, MOVED.replace("sendrecv", "sendonly")))
    assert description(bench, "200 INVITE").version == answer.version, "nothing has changed"
    bench.receive(within(invite, "UPDATE", 3, MOVED))
    assert description(bench, "200 UPDATE").version == answer.version + 1


def test_updates_before_the_answer_follow_one_another() -> None:
    bench, _, invite = with_early_answer()
    bench.receive(within(invite, "UPDATE", 1, MOVED))
    renamed = MOVED.replace("101", "97")
    bench.receive(within(invite, "UPDATE", 2, renamed.replace("192.0.2.9", "192.0.2.8")))
    assert bench.names() == ["200 UPDATE", "200 UPDATE"]
    bench.receive(reply(invite, 200))
    agreed = media(bench)
    assert (agreed.remote, agreed.event_types) == (("192.0.2.8", 40002), (101, 97))


@pytest.mark.parametrize("early", [(180, ""), (183, ANSWER)], ids=["no answer", "unreliable"])
def test_an_update_while_our_offer_waits_for_its_answer_is_491(early: tuple[int, str]) -> None:
    bench, _, invite = ringing()
    bench.receive(reply(invite, *early))
    bench.receive(within(invite, "UPDATE", 1, MOVED))
    bench.receive(reliable(invite, 182, 1))
    bench.receive(within(invite, "UPDATE", 2, MOVED))
    assert bench.names() == ["491 UPDATE", "PRACK", "491 UPDATE"]
    bench.receive(reply(invite, 200, ANSWER))
    assert media(bench).remote == ("192.0.2.9", 40000)


@pytest.mark.parametrize("body", [UNUSABLE, "v=1", ANSWER.replace("m=audio 40000", "m=audio 0")])
def test_an_early_update_that_cannot_be_met_is_488_and_the_media_stays(body: str) -> None:
    bench, _, invite = with_early_answer()
    moved = ("Contact: <sip:moved@192.0.2.8:5062>",)
    bench.receive(within(invite, "UPDATE", 1, body, headers=moved))
    assert bench.names() == ["488 UPDATE"]
    bench.receive(reply(invite, 200))
    assert media(bench).remote == ("192.0.2.9", 40000)


def test_an_update_of_an_unknown_dialog_is_481() -> None:
    bench, _, invite = with_early_answer()
    bench.receive(within(invite, "UPDATE", 1, MOVED).replace("tag=far", "tag=other"))
    bench.receive(within(invite, "UPDATE", 2, MOVED).replace(invite.from_tag, "not-ours"))
    assert bench.names() == ["481 UPDATE", "481 UPDATE"]
    bench.receive(reply(invite, 200))
    assert media(bench).remote == ("192.0.2.9", 40000)


def test_each_early_dialog_has_its_own_media() -> None:
    bench, _, invite = with_early_answer()
    bench.receive(reliable(invite, 183, 1, ANSWER, tag="two"))
    bench.receive(within(invite, "UPDATE", 1, MOVED))
    bench.receive(reply(invite, 200, tag="two"))
    assert media(bench).remote == ("192.0.2.9", 40000)


def test_a_cseq_lower_than_the_last_is_500_and_so_it_is_after_the_answer() -> None:
    bench, _, invite = with_early_answer()
    bench.receive(within(invite, "OPTIONS", 5))
    bench.receive(within(invite, "UPDATE", 4, MOVED))
    assert bench.names() == ["200 OPTIONS", "500 UPDATE"]
    bench.receive(reply(invite, 200))
    bench.sent()
    bench.receive(within(invite, "UPDATE", 3, MOVED))
    assert bench.names() == ["500 UPDATE"]
    assert media(bench).remote == ("192.0.2.9", 40000)


@pytest.mark.parametrize("body", ["", MOVED])
def test_an_early_update_moves_the_target_of_requests(body: str) -> None:
    bench, _, invite = with_early_answer()
    bench.receive(within(invite, "UPDATE", 1, body, headers=("Contact: <sip:x@192.0.2.8:5062>",)))
    assert bench.names() == ["200 UPDATE"]
    bench.receive(reliable(invite, 180, 2))
    prack = bench.one("PRACK")
    assert (prack.request.uri, prack.destination) == (
        "sip:x@192.0.2.8:5062",
        Address("192.0.2.8", 5062),
    )


def test_options_before_and_after_the_answer() -> None:
    bench, _, invite = ringing()
    bench.receive(reply(invite, 180))
    bench.receive(within(invite, "OPTIONS", 1))
    early = bench.one("200 OPTIONS").response
    bench.receive(reply(invite, 200, ANSWER))
    bench.sent()
    bench.receive(within(invite, "OPTIONS", 2))
    for response in (early, bench.one("200 OPTIONS").response):
        assert {"INVITE", "UPDATE", "PRACK"} <= set(response.values("allow"))
        assert response.header("accept") == "application/sdp"
        assert response.values("supported") == ["100rel", "timer"]
        assert response.header("contact")


def test_what_else_a_callee_asks_for_before_its_answer() -> None:
    bench, _, invite = with_early_answer()
    bench.receive(within(invite, "INVITE", 1, MOVED))
    bench.receive(within(invite, "PRACK", 2))
    assert bench.names() == ["491 INVITE", "481 PRACK"]


# Offers that cross


@pytest.mark.parametrize(("method", "body"), [("UPDATE", MOVED), ("INVITE", MOVED), ("INVITE", "")])
def test_an_offer_while_that_of_our_200_waits_for_its_answer_is_491(method: str, body: str) -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(within(invite, "INVITE", 1))
    offer = description(bench, "200 INVITE")
    bench.receive(within(invite, method, 2, body))
    assert bench.names() == [f"491 {method}"]
    bench.receive(within(invite, "UPDATE", 3))
    assert bench.names() == ["200 UPDATE"], "without an offer nothing crosses"
    bench.receive(within(invite, "ACK", 1, MOVED))
    assert media(bench).remote == ("192.0.2.9", 40002)
    bench.receive(within(invite, "UPDATE", 4, ANSWER))
    assert description(bench, "200 UPDATE").version == offer.version
    assert media(bench).remote == ("192.0.2.9", 40000)


def test_an_offer_may_follow_once_the_ack_has_come_without_an_answer() -> None:
    bench, _, invite = answered()
    bench.receive(within(invite, "INVITE", 1))
    bench.receive(within(invite, "ACK", 1))
    bench.sent()
    bench.receive(within(invite, "UPDATE", 2, MOVED))
    assert bench.names() == ["200 UPDATE"]


def test_a_second_re_invite_is_answered_where_only_the_ack_of_the_first_is_missing() -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(within(invite, "INVITE", 1, ANSWER))
    bench.receive(within(invite, "INVITE", 2, MOVED))
    assert bench.names() == ["200 INVITE", "200 INVITE"]
    bench.receive(within(invite, "ACK", 2))
    bench.advance(40)
    assert bench.names() == []
    assert media(bench).remote == ("192.0.2.9", 40002)


def test_an_incoming_call_without_an_offer_takes_the_answer_from_its_ack() -> None:
    bench = Bench()
    bench.receive(request("INVITE"))
    bench.agent.accept("call-1", make_offer(("192.0.2.1", 30000)), bench.now)
    ok = bench.sent()[-1].response
    theirs = {"call_id": "call-1", "to_tag": ok.to_tag, "from_tag": "caller"}
    bench.events()
    update = request("UPDATE", body=MOVED, cseq=2, branch="z9hG4bKu", **theirs)  # type: ignore[arg-type]
    bench.receive(update)
    assert bench.names() == ["491 UPDATE"]
    bench.receive(request("ACK", body=ANSWER, branch="z9hG4bKa", **theirs))  # type: ignore[arg-type]
    changes = [e for e in bench.events() if isinstance(e, MediaChanged)]
    assert [change.agreed.remote for change in changes] == [("192.0.2.9", 40000)]


def test_requests_of_a_caller_that_waits_for_our_answer() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER, cseq=5))
    bench.agent.ring("call-1", bench.now)
    to_tag = bench.sent()[-1].response.to_tag

    def ask(method: str, cseq: int, body: str = "", host: str = "192.0.2.9") -> None:
        contact = (f"Contact: <sip:caller@{host}>",)
        branch = f"z9hG4bK{method}{cseq}"
        bench.receive(
            request(method, body=body, cseq=cseq, to_tag=to_tag, branch=branch, headers=contact)
        )

    for method in ("UPDATE", "INVITE"):
        ask(method, 6, MOVED)
        refused = bench.one(f"500 {method}").response
        assert 0 <= int(refused.header("retry-after")) <= 10
    ask("OPTIONS", 7)
    assert bench.one("200 OPTIONS").response.header("accept")
    ask("UPDATE", 8, host="192.0.2.8")
    ask("UPDATE", 4, host="192.0.2.7")
    assert bench.names() == ["200 UPDATE", "500 UPDATE"]
    theirs = SessionDescription.parse(ANSWER.encode())
    bench.agent.accept("call-1", make_answer(theirs, ("192.0.2.1", 30000)), bench.now)
    bench.receive(
        request("ACK", cseq=5, to_tag=to_tag, branch="z9hG4bKack", headers=("Contact: <sip:x@y>",))
    )
    ask("UPDATE", 7, MOVED)
    bench.agent.hang_up("call-1", bench.now)
    ok, late, bye = bench.sent()
    assert (ok.name, late.name) == ("200 INVITE", "500 UPDATE")
    assert bye.destination == Address("192.0.2.8", 5060)


# Require: 100rel


@pytest.mark.parametrize("method", ["INVITE", "UPDATE", "OPTIONS"])
def test_what_we_support_may_be_required(method: str) -> None:
    bench, _, invite = answered()
    bench.sent()
    headers = ("Contact: <sip:far@192.0.2.9>", "Require: 100REL, timer")
    body = "" if method == "OPTIONS" else ANSWER
    bench.receive(within(invite, method, 1, body, headers=headers))
    assert bench.names() == [f"200 {method}"]


def test_a_caller_that_requires_reliable_responses_gets_no_unreliable_one() -> None:
    bench = Bench()
    headers = ("Contact: <sip:caller@192.0.2.9>", "Require: 100rel")
    bench.receive(request("INVITE", body=ANSWER, headers=headers))
    bench.agent.ring("call-1", bench.now)
    assert bench.names() == ["100 INVITE"]
    offer = SessionDescription.parse(ANSWER.encode())
    bench.agent.accept("call-1", make_answer(offer, ("192.0.2.1", 30000)), bench.now)
    assert bench.names() == ["200 INVITE"]


def test_the_address_of_the_audio_line_takes_the_place_of_one_that_is_of_no_use() -> None:
    answer = ANSWER.replace("c=IN IP4 192.0.2.9", "c=IN IP4 239.0.0.1").replace(
        "a=sendrecv", "c=IN IP6 2001:db8::9\r\na=sendrecv"
    )
    bench, _, invite = ringing()
    bench.receive(reply(invite, 200, answer))
    assert media(bench).remote == ("2001:db8::9", 40000)
