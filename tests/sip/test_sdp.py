"""Session descriptions and the offer/answer rules (RFC 8866, RFC 3264)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.sip import NoCommonCodec, SdpError, SessionDescription, check_answer
from bitel.sip.sdp import (
    Codec,
    Direction,
    Negotiation,
    is_host_name,
    make_answer,
    make_offer,
)

OFFER = make_offer(("192.0.2.1", 30000), session_id=5)


def sdp(*media: str, session: str = "c=IN IP4 192.0.2.9\r\n") -> SessionDescription:
    text = "v=0\r\no=- 3 4 IN IP4 192.0.2.9\r\ns=-\r\n" + session + "t=0 0\r\n"
    return SessionDescription.parse((text + "\r\n".join(media) + "\r\n").encode())


def test_our_offer_as_text() -> None:
    assert str(OFFER) == (
        "v=0\r\no=- 5 5 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n"
        "m=audio 30000 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n"
        "a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na=sendrecv\r\n"
    )


def test_an_offer_in_another_order_and_over_ipv6() -> None:
    offer = make_offer(("2001:db8::1", 30000), ("PCMU",))
    assert "c=IN IP6 2001:db8::1\r\n" in str(offer)
    assert [codec.payload_type for codec in offer.codecs] == [0, 101]
    with pytest.raises(ValueError, match="G729"):
        make_offer(("192.0.2.1", 1), ("G729",))
    with pytest.raises(ValueError, match="codec"):
        make_offer(("192.0.2.1", 1), ())


@given(
    st.ip_addresses().filter(lambda a: not a.is_multicast and not a.is_unspecified),
    st.integers(0, 65535),
    st.permutations(["PCMA", "PCMU"]),
    st.integers(0, 2**63),
)
def test_what_we_write_we_read(
    address: object, port: int, codecs: list[str], session_id: int
) -> None:
    offer = make_offer((str(address), port), codecs, session_id)
    assert SessionDescription.parse(offer.to_bytes()) == offer


def test_static_payload_types_need_no_rtpmap() -> None:
    agreed = check_answer(OFFER, sdp("m=audio 4000 RTP/AVP 0"))
    assert (agreed.codec_name, agreed.payload_type) == ("PCMU", 0)
    assert agreed.event_types == (101,)
    assert agreed.remote == ("192.0.2.9", 4000)
    assert agreed.ptime == 20


def test_a_dynamic_payload_type_may_be_pcma() -> None:
    answer = sdp(
        "m=audio 4000 RTP/AVP 96 97", "a=rtpmap:96 pcma/8000/1", "a=rtpmap:97 TELEPHONE-EVENT/8000"
    )
    agreed = check_answer(OFFER, answer)
    assert (agreed.codec_name, agreed.payload_type, agreed.event_types) == ("PCMA", 96, (101, 97))


@pytest.mark.parametrize(
    "media",
    [
        ["m=audio 0 RTP/AVP 8"],
        ["m=audio 4000 RTP/AVP 18"],
        ["m=audio 4000 RTP/AVP 101", "a=rtpmap:101 telephone-event/8000"],
        ["m=audio 4000 RTP/AVP 8", "a=rtpmap:8 G722/8000"],
        ["m=audio 4000 RTP/AVP 96", "a=rtpmap:96 PCMA/16000"],
        ["m=audio 4000 RTP/AVP"],
    ],
)
def test_an_answer_without_a_codec_of_ours(media: list[str]) -> None:
    with pytest.raises(NoCommonCodec):
        check_answer(OFFER, sdp(*media))


def test_an_answer_may_only_choose_from_the_offer() -> None:
    with pytest.raises(NoCommonCodec, match="PCMU"):
        check_answer(make_offer(("192.0.2.1", 1), ("PCMA",)), sdp("m=audio 4000 RTP/AVP 0"))


@pytest.mark.parametrize(
    ("lines", "direction"),
    [
        ([], "sendrecv"),
        (["a=sendonly"], "recvonly"),
        (["a=recvonly"], "sendonly"),
        (["a=inactive"], "inactive"),
        (["c=IN IP4 0.0.0.0"], "inactive"),
    ],
)
def test_our_direction_mirrors_theirs(lines: list[str], direction: Direction) -> None:
    assert check_answer(OFFER, sdp("m=audio 4000 RTP/AVP 8", *lines)).direction == direction


def test_what_stands_at_the_media_line_comes_before_the_session() -> None:
    answer = sdp(
        "m=audio 4000 RTP/AVP 8",
        "c=IN IP4 192.0.2.77/127",
        "a=sendrecv",
        "a=ptime:30",
        "m=video 5000 RTP/AVP 31",
        "c=IN IP4 192.0.2.88",
        "a=inactive",
        session="c=IN IP4 192.0.2.9\r\na=inactive\r\n",
    )
    assert (answer.address, answer.direction, answer.ptime) == ("192.0.2.77", "sendrecv", 30)
    assert sdp("m=audio 1 RTP/AVP 8", session="c=IN IP4 192.0.2.9\r\na=sendonly\r\n").direction == (
        "sendonly"
    )


def test_an_answer_lists_every_media_line_again() -> None:
    offer = sdp(
        "m=video 5000 RTP/AVP 31",
        "m=audio 4000 RTP/AVP 0 8 96",
        "a=rtpmap:96 telephone-event/8000",
        "a=ptime:40",
        "m=audio 4002 RTP/AVP 8",
        "m=application 9 UDP/BFCP *",
    )
    answer = make_answer(offer, ("192.0.2.1", 30000), ("PCMA", "PCMU"))
    media = [line for line in str(answer).split("\r\n") if line.startswith("m=")]
    assert media == [
        "m=video 0 RTP/AVP 31",
        "m=audio 30000 RTP/AVP 0 96",
        "m=audio 0 RTP/AVP 8",
        "m=application 0 UDP/BFCP *",
    ]
    assert answer.ptime == 40
    agreed = check_answer(offer, SessionDescription.parse(answer.to_bytes()))
    assert (agreed.codec_name, agreed.event_types) == ("PCMU", (96,))


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([], 20),
        (["a=ptime:30"], 30),
        (["a=ptime:60", "a=maxptime:40"], 40),
        (["a=maxptime:60", "a=ptime:20"], 20),
        (["a=maxptime:10"], 10),
        (["a=maxptime:25"], 20),
        (["a=ptime:30", "a=maxptime:29"], 20),
        (["a=maxptime:5"], 10),
        (["a=ptime:25"], 20),
        (["a=ptime:5"], 10),
        (["a=ptime:120"], 60),
        (["a=ptime:30", "a=maxptime:0"], 30),
        (["a=ptime:30", "a=maxptime:x"], 30),
    ],
)
def test_packets_are_as_long_as_wanted_and_no_longer_than_allowed(
    lines: list[str], wanted: int
) -> None:
    media = ["m=audio 4000 RTP/AVP 8", *lines]
    assert check_answer(OFFER, sdp(*media)).ptime == wanted
    assert make_answer(sdp(*media), ("192.0.2.1", 30000)).ptime == wanted


def test_a_limit_for_the_session_holds_for_its_audio() -> None:
    session = "c=IN IP4 192.0.2.9\r\na=maxptime:10\r\n"
    assert check_answer(OFFER, sdp("m=audio 1 RTP/AVP 8", session=session)).ptime == 10


@pytest.mark.parametrize(
    "session", ["", "c=IN IP4 239.0.0.1\r\n", "c=IN IP4 not_a_host\r\n", "c=nonsense\r\n"]
)
def test_the_address_of_the_audio_is_judged_after_it_has_replaced_the_sessions(
    session: str,
) -> None:
    assert sdp("m=audio 1 RTP/AVP 8", "c=IN IP4 192.0.2.8", session=session).address == "192.0.2.8"
    with pytest.raises(SdpError):
        sdp("m=audio 1 RTP/AVP 8", session=session)
    with pytest.raises(SdpError):
        sdp("m=audio 1 RTP/AVP 8", "c=IN IP4 239.0.0.1", session="c=IN IP4 192.0.2.9\r\n")


LABEL = "a" * 63


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("media.example.net", "media.example.net"),
        ("MEDIA-1.Example.NET.", "media-1.example.net"),
        ("media.example.net/127", "media.example.net"),
        ("localhost", "localhost"),
        ("1and1.example", "1and1.example"),
        (f"{LABEL}.{LABEL}.{LABEL}.{'a' * 61}", f"{LABEL}.{LABEL}.{LABEL}.{'a' * 61}"),
    ],
)
@pytest.mark.parametrize("level", ["session", "media"])
def test_an_address_may_be_a_host_name(written: str, address: str, level: str) -> None:
    line = f"c=IN IP4 {written}"
    if level == "session":
        found = sdp("m=audio 1 RTP/AVP 8", session=f"{line}\r\n")
    else:
        found = sdp("m=audio 1 RTP/AVP 8", line)
    assert found.address == address
    assert is_host_name(found.address)
    assert check_answer(OFFER, found).remote == (address, 1)
    assert not is_host_name("192.0.2.9")
    assert not is_host_name("2001:db8::1")


@pytest.mark.parametrize(
    "written",
    [
        "host_name.example",
        "-a.example",
        "a-.example",
        "a..example",
        ".example",
        ".",
        "1.2.3.4.5",
        "192.0.2.256",
        "fe80::1%eth0",
        "höst.example",
        f"{'a' * 64}.example",
        f"{LABEL}.{LABEL}.{LABEL}.{'a' * 62}",
        "a." * 20000 + "example",
    ],
)
def test_what_is_no_host_name_is_refused(written: str) -> None:
    with pytest.raises(SdpError):
        sdp("m=audio 1 RTP/AVP 8", f"c=IN IP4 {written}")


def test_no_answer_to_an_offer_without_our_codecs() -> None:
    for media in ("m=audio 4000 RTP/AVP 18", "m=audio 0 RTP/AVP 8"):
        with pytest.raises(NoCommonCodec):
            make_answer(sdp(media), ("192.0.2.1", 30000))


def test_the_version_goes_up_only_when_the_answer_differs() -> None:
    offer = sdp("m=audio 4000 RTP/AVP 8")
    first = make_answer(offer, ("192.0.2.1", 30000))
    assert Negotiation(first).answer(offer.to_bytes()) == first
    hold = sdp("m=audio 4000 RTP/AVP 8", "a=sendonly")
    held = Negotiation(first).answer(hold.to_bytes())
    assert (held.direction, held.version) == ("recvonly", first.version + 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "v="),
        (b"v=0\r\n", "no audio"),
        (b"v=0\r\nm=audio 1 RTP/AVP 8\r\n", "no address"),
        (b"v=0\r\nc=IN IP4 1.2.3.444\r\nm=audio 1 RTP/AVP 8\r\n", "IP address"),
        (b"v=0\r\nc=IN IP4 239.0.0.1\r\nm=audio 1 RTP/AVP 8\r\n", "unicast"),
        (b"v=0\r\nc=IN IP4 1.1.1.1\r\nm=audio 65536 RTP/AVP 8\r\n", "port"),
        (b"v=0\r\nc=IN IP4 1.1.1.1\r\nm=audio -1 RTP/AVP 8\r\n", "port"),
        (b"v=0\r\nc=IN IP4 1.1.1.1\r\nm=audio 1\r\n", "media line"),
        (b"v=0\r\nc=IN IP4 1.1.1.1\r\nm=audio 1 RTP/SAVP 8\r\n", "no audio"),
        (b"v=0\r\n" + b"m=video 1 RTP/AVP 8\r\n" * 101, "100 media lines"),
        (b"v=0\r\n" + b"x" * 70000, "65536 bytes"),
    ],
)
def test_bad_descriptions_are_named(text: bytes, what: str) -> None:
    with pytest.raises(SdpError, match=what):
        SessionDescription.parse(text)


def test_the_number_of_event_types_is_limited() -> None:
    lines = [f"a=rtpmap:{number} telephone-event/8000" for number in range(96, 128)]
    numbers = " ".join(str(number) for number in range(96, 128))
    agreed = check_answer(OFFER, sdp(f"m=audio 1 RTP/AVP 8 {numbers}", *lines))
    assert agreed.event_types == (101, 96, 97, 98, 99, 100, 102, 103)


def test_the_number_of_codecs_is_limited() -> None:
    many = " ".join(str(n % 128) for n in range(20000))
    assert len(sdp(f"m=audio 1 RTP/AVP {many}").codecs) <= 128


def test_line_feeds_alone_and_unknown_lines_are_read() -> None:
    found = SessionDescription.parse(
        b"v=0\no=x\nz=?\nb=AS:64\nc=IN IP4 1.2.3.4\n"
        b"m=audio 4000/2 RTP/AVP 8 x\na=ptime:x\na=rtcp:1\n"
    )
    assert (found.address, found.port, found.codecs) == ("1.2.3.4", 4000, (Codec(8, "PCMA"),))


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["v=0", "c=IN IP4 1.2.3.4", "m=audio 4000 RTP/AVP 8 101", "a=ptime:"]),
            st.builds("{}={}".format, st.sampled_from("vocmabtz"), st.text(max_size=40)),
        ),
        max_size=20,
    )
)
def test_whatever_is_read_can_be_written_and_read_again(lines: list[str]) -> None:
    try:
        found = SessionDescription.parse("\r\n".join(lines).encode("utf-8", "replace"))
    except SdpError:
        return
    again = SessionDescription.parse(found.to_bytes())
    assert (again.address, again.port, again.ptime) == (found.address, found.port, found.ptime)
