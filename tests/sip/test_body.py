"""The session description in a body (RFC 5621), and bodies that must be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.sip.body import MAX_DEPTH, MAX_PARTS, session_description_of, unsupported_body
from bitel.sip.message import Message, parse

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n"
ISUP = (
    b"\x01\x11\x48\n\x00\nc=IN IP4 10.0.0.1\r\n\r\n\nm=audio 1 RTP/AVP 8\r\n--other\r\n\xff\xfe\r"
)
"""Binary, with line breaks and what looks like lines of a description among its bytes."""

AN_SDP = b"Content-Type: application/sdp\r\n\r\n" + SDP
AN_ISUP = b"Content-Type: application/isup;version=itu-t92+\r\n\r\n" + ISUP
A_TEXT = b"Content-Type: text/plain\r\n\r\nc=IN IP4 10.0.0.2\r\nm=audio 2 RTP/AVP 0"
AN_XML = b"Content-Type: application/pidf+xml\r\n\r\n<a>\nc=IN IP4 10.0.0.3\n</a>"


def message(
    body: bytes, content_type: str | None = "application/sdp", *headers: str, status: bool = False
) -> Message:
    first = "SIP/2.0 200 OK" if status else "INVITE sip:a@192.0.2.1 SIP/2.0"
    lines = [
        first,
        "Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKa",
        "From: <sip:a@b>;tag=a",
        "To: <sip:c@d>;tag=c",
        "Call-ID: call",
        "CSeq: 1 INVITE",
        *headers,
        *([f"Content-Type: {content_type}"] if content_type is not None else []),
        f"Content-Length: {len(body)}",
    ]
    return parse("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def multipart(*parts: bytes, boundary: bytes = b"b", line: bytes = b"\r\n") -> bytes:
    delimiter = b"--" + boundary
    return b"".join(delimiter + line + part + line for part in parts) + delimiter + b"--" + line


def with_handling(part: bytes, handling: str) -> bytes:
    return f"Content-Disposition: signal; handling={handling}\r\n".encode() + part


@pytest.mark.parametrize(
    "content_type",
    ["application/sdp", "APPLICATION/SDP", "application/sdp;charset=utf-8", None, ""],
)
@pytest.mark.parametrize("status", [False, True])
def test_a_body_that_is_a_description(content_type: str | None, status: bool) -> None:
    found = message(SDP, content_type, status=status)
    assert session_description_of(found) == SDP
    assert not unsupported_body(found)


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        ("text/plain", ()),
        ("application/isup", ()),
        ("application/sdp", ("Content-Encoding: gzip",)),
        ("application/sdp", ("e: gzip",)),
        ("application/sdp", ("Content-Disposition: early-session",)),
        ("multipart/mixed", ()),
        ("multipart/mixed;boundary=other", ()),
        ("multipart/mixed;boundary=b", ("Content-Encoding: gzip",)),
    ],
)
def test_a_body_that_is_none(content_type: str, headers: tuple[str, ...]) -> None:
    body = multipart(AN_SDP) if content_type.startswith("multipart") else SDP
    assert session_description_of(message(body, content_type, *headers)) == b""
    assert unsupported_body(message(body, content_type, *headers))
    if not any("Disposition" in header for header in headers):
        optional = (*headers, "Content-Disposition: signal;handling=OPTIONAL")
        assert not unsupported_body(message(body, content_type, *optional))


def test_a_body_without_a_type_that_is_no_description_and_no_body_at_all() -> None:
    assert session_description_of(message(b"hello", None)) == b""
    assert unsupported_body(message(b"hello", None))
    assert session_description_of(message(b"", None)) == b""
    assert not unsupported_body(message(b"", "application/isup"))


def test_disposition_session_and_encoding_identity_change_nothing() -> None:
    found = message(
        SDP,
        "application/sdp",
        "Content-Disposition: session;handling=required",
        "Content-Encoding: identity",
    )
    assert session_description_of(found) == SDP
    assert not unsupported_body(found)


@pytest.mark.parametrize("line", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/mixed;boundary=b",
        'Multipart/Mixed; charset=x; boundary="b"',
        "multipart/related;BOUNDARY=b;type=application/sdp",
    ],
)
@pytest.mark.parametrize(
    "parts",
    [
        (AN_SDP,),
        (AN_SDP, AN_ISUP),
        (AN_ISUP, AN_SDP),
        (A_TEXT, AN_ISUP, AN_SDP, AN_XML),
        (with_handling(AN_ISUP, "optional"), AN_SDP),
    ],
    ids=["alone", "first", "after ISUP", "among others", "after optional ISUP"],
)
def test_only_the_description_of_a_multipart_counts(
    parts: tuple[bytes, ...], content_type: str, line: bytes
) -> None:
    found = message(multipart(*parts, line=line), content_type)
    assert session_description_of(found) == SDP
    assert not unsupported_body(found)


def test_preamble_epilogue_and_a_boundary_of_odd_characters() -> None:
    boundary = b"=_(a)+b.c/d:e?f'g h"
    body = b"v=0 is what follows\r\n" + multipart(AN_ISUP, AN_SDP, boundary=boundary) + b"c=x\r\n"
    quoted = f'multipart/mixed;boundary="{boundary.decode()}"'
    assert session_description_of(message(body, quoted)) == SDP


def test_a_line_that_only_begins_like_a_delimiter_is_content() -> None:
    other = b"Content-Type: text/plain\r\n\r\n--bb\r\n--b-\r\nx--b"
    found = message(multipart(other, AN_SDP), "multipart/mixed;boundary=b")
    assert session_description_of(found) == SDP


def test_headers_of_parts_may_be_folded_compact_or_missing() -> None:
    folded = b"X: y\r\nC:\r\n application/sdp\r\nContent-Length: 3\r\n\r\n" + SDP
    assert session_description_of(message(multipart(folded), "multipart/mixed;boundary=b")) == SDP
    bare = b"\r\n" + SDP
    assert session_description_of(message(multipart(bare), "multipart/mixed;boundary=b")) == SDP


@pytest.mark.parametrize(
    ("encoding", "content", "description"),
    [
        ("BINARY", SDP, SDP),
        ("base64", b"dj0w\r\n", b"v=0"),
        ("quoted-printable", b"v=3D0", b"v=0"),
        ("base64", b"x", b""),
        ("x-other", SDP, b""),
    ],
)
def test_transfer_encodings_of_parts(encoding: str, content: bytes, description: bytes) -> None:
    head = f"Content-Type: application/sdp\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    found = message(multipart(head.encode() + content), "multipart/mixed;boundary=b")
    assert session_description_of(found) == description
    assert unsupported_body(found) == (description == b"")


def test_without_the_closing_delimiter_the_last_part_ends_with_the_body() -> None:
    body = multipart(AN_ISUP, AN_SDP).removesuffix(b"\r\n--b--\r\n")
    assert session_description_of(message(body, "multipart/mixed;boundary=b")) == SDP


def test_of_alternatives_the_last_is_taken_and_one_that_can_be_read_is_enough() -> None:
    better = AN_SDP.replace(b"192.0.2.9", b"192.0.2.8")
    kind = "multipart/alternative;boundary=b"
    found = message(multipart(AN_SDP, better, with_handling(AN_XML, "required")), kind)
    assert session_description_of(found) == better.partition(b"\r\n\r\n")[2]
    assert not unsupported_body(found)
    assert unsupported_body(message(multipart(A_TEXT, AN_XML), kind))


def test_the_first_of_several_descriptions_counts_but_not_one_of_early_media() -> None:
    early = b"Content-Disposition: early-session\r\n" + AN_SDP.replace(b"192.0.2.9", b"192.0.2.7")
    later = AN_SDP.replace(b"192.0.2.9", b"192.0.2.8")
    found = message(multipart(early, AN_SDP, later), "multipart/mixed;boundary=b")
    assert session_description_of(found) == SDP


@pytest.mark.parametrize(
    ("parts", "unsupported"),
    [
        ((AN_SDP, with_handling(AN_ISUP, "required")), True),
        ((AN_SDP, with_handling(AN_ISUP, '"required"')), True),
        ((with_handling(AN_ISUP, "optional"),), False),
        ((with_handling(AN_ISUP, "optional"), AN_XML), True),
        ((AN_ISUP,), True),
        ((), True),
    ],
)
def test_which_parts_must_be_understood(parts: tuple[bytes, ...], unsupported: bool) -> None:
    assert unsupported_body(message(multipart(*parts), "multipart/mixed;boundary=b")) is unsupported


def nested(levels: int) -> tuple[bytes, str]:
    body, content_type = SDP, "application/sdp"
    for level in range(levels):
        name = f"level{level}"
        part = f"Content-Type: {content_type}\r\n\r\n".encode() + body
        body = multipart(AN_ISUP, part, boundary=name.encode())
        content_type = f"multipart/mixed;boundary={name}"
    return body, content_type


def test_multiparts_within_each_other_are_read_so_deep_only() -> None:
    assert session_description_of(message(*nested(MAX_DEPTH))) == SDP
    assert session_description_of(message(*nested(MAX_DEPTH + 1))) == b""
    assert unsupported_body(message(*nested(MAX_DEPTH + 1)))


def test_so_many_parts_are_read_only() -> None:
    many = message(multipart(*[A_TEXT] * (MAX_PARTS - 1), AN_SDP), "multipart/mixed;boundary=b")
    assert session_description_of(many) == SDP
    more = message(multipart(*[A_TEXT] * MAX_PARTS, AN_SDP), "multipart/mixed;boundary=b")
    assert session_description_of(more) == b""
    assert unsupported_body(more)
    endless = message(b"--b\r\n" * 12000, "multipart/mixed;boundary=b")
    assert unsupported_body(endless)


@given(st.lists(st.sampled_from([b"--b", b"--b--", b"\r\n", b"\n", b"v=0", b":", AN_SDP, ISUP])))
def test_no_body_is_an_error(pieces: list[bytes]) -> None:
    found = message(b"".join(pieces), "multipart/mixed;boundary=b")
    session_description_of(found)
    unsupported_body(found)
