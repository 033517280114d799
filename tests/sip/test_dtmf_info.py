"""Digits keyed by INFO, the legacy use of RFC 6086 §1, in the formats of devices."""

from __future__ import annotations

import pytest

from bitel.sip import KeyedDigits
from bitel.sip.message import Request
from tests.support.sip_bench import Bench, answered, with_content_type, within

RELAY, PLAIN = "application/dtmf-relay", "application/dtmf"
NORTEL = "application/vnd.nortelnetworks.digits"


def info(invite: Request, body: str, content_type: str, *headers: str, cseq: int = 1) -> str:
    return with_content_type(within(invite, "INFO", cseq, body), content_type, *headers)


@pytest.mark.parametrize(
    ("content_type", "body", "digits"),
    [
        (RELAY, "Signal=5\r\nDuration=160\r\n", "5"),
        (RELAY, "Signal= 5\nDuration= 250", "5"),
        (RELAY, "signal = 0\r\n", "0"),
        (RELAY, "Duration=100\r\nSignal=*\r\n", "*"),
        (RELAY, "Signal=#\r\n", "#"),
        (RELAY, "Signal=10\r\nDuration=160", "*"),
        (RELAY, "Signal=11\r\nDuration=160", "#"),
        (RELAY, "Signal=a\r\nDuration=160", "A"),
        (RELAY, "Signal=15", "D"),
        ("Application/DTMF-Relay; charset=utf-8", "Signal=7\r\n", "7"),
        (PLAIN, "5", "5"),
        (PLAIN, "5\r\n", "5"),
        (PLAIN, "10", "*"),
        (PLAIN, "11\n", "#"),
        (PLAIN, "Signal=9\r\nDuration=160\r\n", "9"),
        (NORTEL, "p=Digit-Collection\r\ny=Digits\r\n\r\nd=5\r\n", "5"),
        (NORTEL, "p=Digit-Collection\ny=Digits\ns=success\nu=12345\ni=87654\nd=12*#\n", "12*#"),
        (NORTEL, "p=Digit-Collection\r\ny=Digits\r\nd=Digits=3\r\n", "3"),
        (NORTEL, "d=10", "10"),
    ],
)
def test_a_digit_is_told(content_type: str, body: str, digits: str) -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(info(invite, body, content_type))
    assert bench.names() == ["200 INFO"]
    assert bench.events() == [KeyedDigits(invite.call_id, digits)]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (RELAY, "Duration=160"),
        (RELAY, "Signal=16"),
        (RELAY, "Signal=x"),
        (RELAY, "Signal=5\r\n" + "x" * 1024),
        (PLAIN, "hello"),
        (PLAIN, "\u0661"),
        (NORTEL, "d=" + "1" * 33),
        (NORTEL, "y=Digits\r\n"),
    ],
)
def test_a_body_without_a_digit_is_refused(content_type: str, body: str) -> None:
    bench, _, invite = answered()
    bench.sent()
    text = info(invite, body, content_type)
    bench.receive(text.replace(f"Content-Length: {len(body)}", f"l: {len(body.encode())}"))
    assert bench.names() == ["400 INFO"]
    assert bench.events() == []


def test_a_repeated_info_counts_once_and_one_out_of_order_not_at_all() -> None:
    bench, _, invite = answered()
    bench.sent()
    keyed = info(invite, "Signal=5", RELAY, cseq=4)
    bench.receive(keyed)
    bench.receive(keyed)
    assert bench.names() == ["200 INFO", "200 INFO"]
    bench.receive(info(invite, "Signal=6", RELAY, cseq=3))
    assert bench.names() == ["500 INFO"]
    assert bench.events() == [KeyedDigits(invite.call_id, "5")]


def test_other_infos() -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(within(invite, "INFO", 1))
    bench.receive(
        info(invite, "x", "text/plain", "Content-Disposition: x;handling=optional", cseq=2)
    )
    assert bench.names() == ["200 INFO", "200 INFO"]
    bench.receive(info(invite, "x", "application/broadsoft", cseq=3))
    refused = bench.one("415 INFO").response
    assert RELAY in refused.values("accept")
    bench.receive(info(invite, "Signal=5", RELAY, "Info-Package: foo", cseq=4))
    assert bench.names() == ["469 INFO"]
    assert bench.events() == []


def test_outside_a_session_there_is_no_info() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(info(invite, "Signal=5", RELAY))
    assert bench.names() == ["481 INFO"]
    assert bench.events() == []
