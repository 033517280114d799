"""What a refused call says about another try (RFC 3261 §20.33, §8.1.3.4)."""

from __future__ import annotations

import pytest

from bitel.sip import Failed
from tests.support.sip_bench import Bench, reply


def failed(code: int, *headers: str) -> Failed:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, code, headers=headers))
    (event,) = bench.events()
    assert isinstance(event, Failed)
    bench.run_out()
    return event


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("18000;duration=3600", 18000.0),
        ("120 (I'm in a meeting)", 120.0),
        ("0", 0.0),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("5x", None),
        ("99999999999", None),
        ("٣", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert failed(503, f"Retry-After: {value}").retry_after == seconds


def test_without_retry_after_there_is_none() -> None:
    assert failed(503).retry_after is None


def test_the_contacts_of_a_3xx_by_their_q() -> None:
    event = failed(
        302,
        'Contact: "Low, q" <sip:low@192.0.2.7>;q=0.1, <sip:first@192.0.2.7;transport=tcp>',
        "Contact: <sip:middle@192.0.2.7?X=y>;q=0.5;expires=9, <sip:low@192.0.2.7>, <sip:a b@h>, *",
        "Contact: <sip:never-closes",
    )
    assert event.contacts == (
        "sip:first@192.0.2.7;transport=tcp",
        "sip:low@192.0.2.7",
        "sip:middle@192.0.2.7?X=y",
    )


def test_only_a_3xx_redirects_and_only_so_far() -> None:
    assert failed(486, "Contact: <sip:a@192.0.2.7>").contacts == ()
    many = ", ".join(f"<sip:{number}@192.0.2.7>" for number in range(100))
    assert failed(300, f"Contact: {many}").contacts == tuple(
        f"sip:{number}@192.0.2.7" for number in range(10)
    )
