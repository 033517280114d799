"""Reading and writing messages (RFC 3261 §7; torture cases in the manner of RFC 4475)."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.sip.grammar import (
    GrammarError,
    ip_address_of,
    parse_uri,
    scheme_of,
    split_address,
    split_list,
    tag_of,
    user_of,
)
from bitel.sip.headers import q850_cause
from bitel.sip.message import MessageError, Request, Response, parse, printable, write_response
from tests.support.sip_bench import request


def test_a_tortuous_request() -> None:
    message = parse(
        b"INVITE sip:callee@pbx.example.net;strange SIP/2.0\r\n"
        b"TO :\r\n sip:callee@pbx.example.net ;   tag    = 17a\r\n"
        b'from   : "A \\\\ \\"B\\""       <sip:a@example.net>\r\n  ;\r\n  tag = 98a\r\n'
        b"MaX-fOrWaRdS: 0068\r\n"
        b"i: torture@192.0.2.1\r\n"
        b"cseq: 0009\r\n  INVITE\r\n"
        b"v  : SIP  / 2.0\r\n /UDP\r\n    192.0.2.2;branch=old\r\n"
        b"s :\r\n"
        b"Unheard-Of:   one\r\n two\r\n"
        b"Via  : SIP / 2.0/TCP     proxy.example.net ;\r\n  branch  =   z9hG4bKa  ,\r\n"
        b" SIP  /    2.0   / UDP  192.0.2.3   ; branch=\r\n z9hG4bKb\r\n"
        b'm:"Quoted \\"\\"" <sip:a@example.net> ; extra =\r\n value\r\n'
        b"l: 4\r\n\r\nbodyand more"
    )
    assert isinstance(message, Request)
    assert message.to_tag == "17a"
    assert message.from_tag == "98a"
    assert message.call_id == "torture@192.0.2.1"
    assert (message.cseq, message.cseq_method) == (9, "INVITE")
    assert message.branch == "old"
    assert message.sent_by() == ("192.0.2.2", None)
    assert len(message.values("via")) == 3
    assert message.header("subject") == ""
    assert message.header("unheard-of") == "one two"
    assert message.body == b"body"


def text_of(start: str, *more: str, body: str = "") -> bytes:
    lines = [
        start,
        "Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1",
        "From: <sip:a@b>;tag=1",
        "To: <sip:c@d>",
        "Call-ID: x",
        "CSeq: 1 INVITE",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


@pytest.mark.parametrize(
    ("start", "code", "reason"),
    [
        ("SIP/2.0 200 OK", 200, "OK"),
        ("SIP/2.0 200 ", 200, ""),
        ("SIP/2.0 200", 200, ""),
        ("sip/2.0 486 Busy  Here", 486, "Busy  Here"),
    ],
)
def test_a_reason_phrase_may_be_missing(start: str, code: int, reason: str) -> None:
    message = parse(text_of(start))
    assert isinstance(message, Response)
    assert (message.code, message.reason) == (code, reason)


@pytest.mark.parametrize(
    "start",
    [
        "SIP/2.0 99 x",
        "SIP/2.0 700 x",
        "SIP/2.0 2x0 x",
        "SIP/2.0 1²³ x",
        "SIP/2.0 ٢٠٠ x",
        "INVITE sip:a@b SIP/3.0",
        "INVITE sip:a b SIP/2.0",
        "INVITE SIP/2.0",
        "IN<>VITE sip:a@b SIP/2.0",
        "GET / HTTP/1.1",
        "",
        "x" * 9000 + " sip:a SIP/2.0",
    ],
)
def test_bad_start_lines(start: str) -> None:
    with pytest.raises(MessageError):
        parse(text_of(start))


@pytest.mark.parametrize(
    "header",
    ["no colon", ": no name", "bad name: x", "X: a\0b", "X: " + "y" * 17000, "n" * 1025 + ": x"],
)
def test_bad_header_lines(header: str) -> None:
    with pytest.raises(MessageError):
        parse(text_of("SIP/2.0 200 OK", header))


def test_limits_on_headers_and_size() -> None:
    with pytest.raises(MessageError, match="128 header lines"):
        parse(text_of("SIP/2.0 200 OK", *["X: y"] * 130))
    with pytest.raises(MessageError, match="16384 bytes"):
        parse(text_of("SIP/2.0 200 OK", *["X: " + "y" * 1000] * 20))
    with pytest.raises(MessageError, match="65535"):
        parse(text_of("SIP/2.0 200 OK", body="x" * 66000))


def test_content_length_trims_or_refuses() -> None:
    assert parse(text_of("SIP/2.0 200 OK", body="abc")).body == b"abc"
    assert parse(text_of("SIP/2.0 200 OK", "l: 2", body="abc")).body == b"ab"
    assert parse(text_of("SIP/2.0 200 OK", "l: 0", body="abc")).body == b""
    assert parse(text_of("SIP/2.0 200 OK", "l: ", body="abc")).body == b"abc"
    assert parse(text_of("SIP/2.0 200 OK", *["l: 1"] * 2, body="abc")).body == b"a"
    for lines in (["l: 4"], ["l: -1"], ["l: 1e0"], ["l: 0000001"], ["l: \u0661"], ["l: 1", "l: 2"]):
        with pytest.raises(MessageError, match="Content-Length"):
            parse(text_of("SIP/2.0 200 OK", *lines, body="abc"))


def test_line_feeds_alone_and_stray_returns() -> None:
    message = parse(text_of("SIP/2.0 200 OK", body="abc").replace(b"\r\n", b"\n"))
    assert message.call_id == "x"
    assert message.body == b"abc"
    message = parse(text_of("SIP/2.0 200 OK", "Y: a\rVia: b"))
    assert message.header("y") == "a Via: b"


def test_bytes_that_are_not_utf8_survive_and_can_be_shown() -> None:
    data = text_of("INVITE sip:a@b SIP/2.0").replace(b"<sip:a@b>", b'"\xe9\xff" <sip:a@b>')
    message = parse(data)
    assert isinstance(message, Request)
    answer = write_response(message, 200, "tag", top_via="SIP/2.0/UDP x")
    assert b'From: "\xe9\xff" <sip:a@b>;tag=1\r\n' in answer
    assert b"To: <sip:c@d>;tag=tag\r\n" in answer
    assert printable("\x1b[2J\0 علی") == "\ufffd[2J\ufffd علی"
    assert printable(message.header("from")) == '"\ufffd\ufffd" <sip:a@b>;tag=1'


def test_a_tag_in_a_display_name_is_no_tag() -> None:
    assert tag_of('"x;tag=no" <sip:a@b;tag=no>;tag=yes') == "yes"
    assert tag_of("sip:a@b;tag=yes") == "yes"
    assert tag_of("<sip:a@b;tag=no>") == ""
    for value in ('"x <sip:a@b>', "<sip:a@b"):
        with pytest.raises(GrammarError):
            tag_of(value)


def test_lists_are_split_outside_quotes_and_brackets() -> None:
    assert split_list('"a, \\"b" <sip:x,y@z>;p=1 , <sip:q>,, r ') == [
        '"a, \\"b" <sip:x,y@z>;p=1',
        "<sip:q>",
        "r",
    ]
    assert split_list(" ") == []


@given(st.lists(st.from_regex(r"[a-z]{1,5}(;p=[a-z]{1,4})?", fullmatch=True), max_size=8))
def test_joined_lists_come_apart_again(items: list[str]) -> None:
    assert split_list(", ".join(items)) == items


@pytest.mark.parametrize(
    ("uri", "user"),
    [
        ("sip:+98912@h", "+98912"),
        ("sip:%2b98%20x:pw@h;a=b", "+98 x"),
        ("sip:h", ""),
        ("SIPS:a@h", "a"),
        ("tel:+98-912;phone-context=x", "+98-912"),
        ("sip:*21#@my_host", "*21#"),
        ("", ""),
        ("sip:%zz@h", "%zz"),
    ],
)
def test_the_user_of_a_uri(uri: str, user: str) -> None:
    assert user_of(uri) == user


def test_schemes() -> None:
    assert [scheme_of(uri) for uri in ("SIP:x", "tel:1", "x")] == ["sip", "tel", ""]


@given(st.text(max_size=200))
def test_no_text_makes_the_grammar_raise_anything_else(text: str) -> None:
    user_of(text)
    split_list(text)
    q850_cause([text])
    ip_address_of(text)
    for reader in (split_address, tag_of, parse_uri):
        try:
            reader(text)
        except GrammarError:
            continue


@pytest.mark.parametrize(
    "uri",
    [
        "sip:" + "a.-" * 340 + "!",
        "tel:" + "1" * 1000 + "x",
        "sip:a@" + "a-" * 500,
        "sip:a@h" + ";a" * 500 + " ",
        "sip:a@[" + ":1" * 500 + "!",
        "sip:a@" + "1." * 500 + "!",
    ],
)
def test_hostile_uris_are_read_in_time(uri: str) -> None:
    started = time.perf_counter()
    assert ip_address_of(uri) is None
    assert time.perf_counter() - started < 0.5


def test_hostile_headers_are_read_in_time() -> None:
    values = ['"' * 8000, "<" * 8000, '"\\' * 4000, "," * 8000, ";tag" * 2000, "; " * 4000]
    started = time.perf_counter()
    for value in values:
        for line in (f"From: {value}", f"Via: {value}", f"Contact: {value}", f"X: {' ' * 8000}"):
            try:
                parse(text_of("SIP/2.0 200 OK", line)).values("contact")
            except MessageError:
                continue
    assert time.perf_counter() - started < 2.0


@given(st.binary(max_size=400))
def test_no_bytes_make_the_reader_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        parse(data)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (["Q.850;cause=17"], 17),
        (['q.850 ; text="a;b, c" ; Cause = 34'], 34),
        (["SIP;cause=200, Q.850;cause=0"], 0),
        (["SIP;cause=200", "Q.850;cause=127"], 127),
        (["Q.850;cause=128"], None),
        (["Q.850;cause=-1"], None),
        (["Q.850"], None),
        (["SIP;cause=486"], None),
        ([], None),
    ],
)
def test_the_cause_of_a_reason_header(values: list[str], cause: int | None) -> None:
    assert q850_cause(values) == cause


def test_the_error_of_a_bad_request_carries_what_could_be_read() -> None:
    data = request("INVITE").replace("CSeq: 1 INVITE", "CSeq: 1 BYE").encode()
    with pytest.raises(MessageError) as caught:
        parse(data)
    assert caught.value.request is not None
    assert caught.value.request.header("call-id") == "call-1"


@given(st.text(alphabet='a,"<>\\ ;', max_size=30))
def test_a_list_without_quotes_or_brackets_is_split_as_any_other(text: str) -> None:
    # What stands before and after takes the long way, and must change nothing about the rest.
    plain = text.replace('"', "").replace("<", "")
    assert split_list(f'"q,",{plain}')[1:] == split_list(plain)
