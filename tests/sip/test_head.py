"""Header lines told apart: what is usually written takes a short way, which leads to the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitel.sip.grammar import ip_address_of, tag_of
from bitel.sip.message import MAX_HEADERS, MessageError, parse, split_head

NAMES = st.sampled_from(
    ["Via", "v", "From", "f", "To", "t", "Call-ID", "i", "CSeq", "Contact", "m", "X-One", "x-one"]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            "SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1",
            "SIP/2.0/UDP 192.0.2.9 ; Branch = z9hG4bK2;branch=3",
            "SIP/2.0/UDP 192.0.2.9;rport, SIP/2.0/TCP 192.0.2.8;branch=z9hG4bK4",
            "<sip:a@b>;tag=1",
            '"x>;tag=0" <sip:a@b>;tag=1',
            "1 INVITE",
            "x",
        ]
    ),
    st.text(alphabet='aB1:;,=<>" \t.', max_size=20),
)
START = "SIP/2.0 200 OK"
USUAL = [
    ("Via", "SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1"),
    ("From", "<sip:a@b>;tag=1"),
    ("To", "<sip:c@d>;tag=2"),
    ("Call-ID", "x"),
    ("CSeq", "1 INVITE"),
]


def read(text: str) -> object:
    """All that is read of a message, or that it can't be."""
    try:
        message = parse(text.encode())
    except MessageError:
        return None
    return (
        message.headers,
        (message.call_id, message.cseq, message.cseq_method, message.branch),
        (message.from_tag, message.to_tag, message.sent_by(), message.body),
    )


@given(st.permutations(USUAL), st.lists(st.tuples(NAMES, VALUES), max_size=4), st.integers(0, 5))
def test_however_the_lines_end_the_same_is_read(
    usual: list[tuple[str, str]], more: list[tuple[str, str]], left_out: int
) -> None:
    lines = [START, *(f"{name}: {value}" for name, value in [*usual[left_out:], *usual, *more])]
    short = "\r\n".join(lines) + "\r\n\r\nbody"
    for long in (
        "\n".join(lines) + "\n\nbody",
        short.replace("\r\n", "\r\n\n", 1),
        short.replace("\r\n", "\r\nX-Two: \r\n\t\r\n", 1),
    ):
        expected = read(long)
        if isinstance(expected, tuple):
            expected[0].pop("x-two", None)
        assert read(short) == expected


def told_apart(text: str) -> object:
    try:
        first, layout, values = split_head(text)
    except MessageError:
        return None
    lines = {name: [values[place].strip() for place in at] for name, at in layout.places.items()}
    return first.strip(), lines


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["\r\n", "\r", "\n", "\0", "\\\0", "\r\n ", "\n\t", "\u2028", "\x85"]),
            st.sampled_from(["A: 1", "\r\nA: 2", "\r\nb:3", "\r\nB :", "A", ":", " ", "\udcff"]),
        ),
        max_size=6,
    )
)
@example(["\r", "A"])
@example(["\n", "A:"])
@example(["\r\nA: 1", "\r", "A: 1"])
@example(["\r\nA: 1", "\r\n ", "A"])
def test_breaks_that_end_no_line_lead_to_what_the_long_way_reads(pieces: list[str]) -> None:
    text = "".join(["S", *pieces])
    long = told_apart(text + "\r\nX-Folded: 1\r\n 2")
    if isinstance(long, tuple):
        del long[1]["x-folded"]
    assert told_apart(text) == long


def test_each_line_is_told_from_the_others_by_name_and_place() -> None:
    first, layout, values = split_head("START\r\nv: 1\r\nX-A : 2\r\nVIA:3\r\nx-a:")
    assert first == "START"
    assert layout.places == {"via": (0, 2), "x-a": (1, 3)}
    assert [value.strip() for value in values] == ["1", "2", "3", ""]
    assert layout.essentials is None


@pytest.mark.parametrize(
    "head",
    [
        "S\r\nno colon\r\nA: 1",
        "S\r\n: no name",
        "S\r\nbad name: 1",
        "S\r\nA: 1\r\nB: \0",
        "S" + "\r\nA: 1" * (MAX_HEADERS + 1),
        "S" + "\nA: 1" * (MAX_HEADERS + 1),
    ],
)
def test_lines_that_are_none_are_refused(head: str) -> None:
    with pytest.raises(MessageError):
        split_head(head)


def branch_of(via: str) -> str:
    lines = [START, *(f"{name}: {value}" for name, value in USUAL[1:]), f"Via: {via}"]
    return parse("\r\n".join([*lines, "", ""]).encode()).branch


@pytest.mark.parametrize(
    ("first", "value", "found"),
    [
        (tag_of, "<sip:a@b>;tag=1", "1"),
        (tag_of, "A <sip:a@b>;tag=1", "1"),
        (tag_of, "<sip:a@b>;tag=x>;tag=1", "x>"),
        (tag_of, '"<" <sip:a@b>;tag=1', "1"),
        (tag_of, '"<sip:a@b>;tag=1" <sip:c@d>;x>;tag=2', "2"),
        (tag_of, "<sip:a@b>;x=y;tag=1", "1"),
        (tag_of, "<sip:a@b>;tag=1-2", "1-2"),
        (tag_of, "<sip:a@b;tag=1>", ""),
        (tag_of, "sip:a@b>;tag=1", "1"),
        (branch_of, "SIP/2.0/UDP h;branch=z9hG4bK1", "z9hG4bK1"),
        (branch_of, "SIP/2.0/UDP h;rport;branch=z9hG4bK1;received=192.0.2.1", "z9hG4bK1"),
        (branch_of, "SIP/2.0/UDP h;BRANCH=z9hG4bK1;branch=z9hG4bK2", "z9hG4bK1"),
        (branch_of, "SIP/2.0/UDP h; branch = z9hG4bK1;branch=z9hG4bK2", "z9hG4bK1"),
        (
            branch_of,
            "SIP/2.0/UDP h;branch=z9hG4bK-1.2, SIP/2.0/UDP g;branch=z9hG4bK2",
            "z9hG4bK-1.2",
        ),
        (branch_of, "SIP/2.0/UDP h, SIP/2.0/UDP g;branch=z9hG4bK2", ""),
        (branch_of, "SIP/2.0/UDP h", ""),
        (branch_of, "SIP/2.0/UDP h;branch=", ""),
        (branch_of, "SIP/2.0/UDP branch.example;branch=z9hG4bK1", "z9hG4bK1"),
    ],
)
def test_the_first_tag_behind_an_address_and_the_first_branch_of_the_top_via_count(
    first: Callable[[str], str], value: str, found: str
) -> None:
    assert first(value) == found


@pytest.mark.parametrize("user", ["1", "+98912", "a.b-c_d"])
@pytest.mark.parametrize(
    "rest", ["192.0.2.9", "192.0.2.9:5070", "[2001:db8::1]:1;transport=tcp", "name", "192.0.2.9:0"]
)
def test_where_a_uri_points_does_not_depend_on_its_user(user: str, rest: str) -> None:
    assert ip_address_of(f"sip:{user}@{rest}") == ip_address_of(f"sip:{rest}")


@pytest.mark.parametrize(
    "uri", ["sip:a@b@192.0.2.9", "sip:@192.0.2.9", "sip:a b@192.0.2.9", "sips:a@192.0.2.9@b"]
)
def test_a_user_that_is_none_leads_nowhere(uri: str) -> None:
    assert ip_address_of(uri) is None
