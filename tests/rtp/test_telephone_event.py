from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.telephone_event import KEYS, MAX_DIGITS, Digits

Packet = tuple[int, bytes]  # timestamp, payload


def block(code: int, duration: int, *, end: bool = False) -> bytes:
    return struct.pack("!BBH", code, 0x80 * end | 10, duration)


def keyed(text: str, start: int = 1000) -> list[list[Packet]]:
    """Each digit as a phone sends it: five updates of 20 ms, then its end three times."""
    presses = []
    for i, key in enumerate(text):
        timestamp, code = (start + 4000 * i) % 2**32, KEYS.index(key)
        updates = [(timestamp, block(code, 160 * n)) for n in range(1, 6)]
        presses.append([*updates, *[(timestamp, block(code, 960, end=True))] * 3])
    return presses


def read(packets: list[Packet]) -> str:
    digits = Digits()
    for timestamp, payload in packets:
        digits.receive(1, timestamp, payload)
    return digits.text


@settings(deadline=None)
@given(st.text(KEYS, max_size=40), st.integers(0, 2**32 - 1), st.data())
def test_digits_are_read_once_whatever_is_lost_or_doubled(
    text: str, start: int, data: st.DataObject
) -> None:
    packets = []
    for press in keyed(text, start):
        arrived = data.draw(st.lists(st.sampled_from(press), min_size=1, max_size=12))
        packets += arrived  # in any order, doubled, and its end perhaps lost
    assert read(packets) == text


def test_a_late_end_of_the_digit_before_is_no_digit() -> None:
    one, two = keyed("55")
    assert read([*one[:5], *two[:3], *one[5:], *two[3:]]) == "55"


def test_a_key_held_for_long_is_one_digit() -> None:
    segments = [((2**32 - 70000 + 0xFFFF * i) % 2**32, block(7, 0xFFFF)) for i in range(4)]
    assert read(segments) == "7"
    last = (segments[-1][0], block(7, 0xFFFF, end=True))
    assert read([*segments, last, ((last[0] + 0xFFFF) % 2**32, block(7, 160))]) == "77"


def test_several_events_in_one_packet() -> None:
    both = block(1, 800, end=True) + block(2, 800)
    assert read([(100, both), (900, block(2, 960, end=True))]) == "12"


def test_another_source_begins_anew() -> None:
    digits = Digits()
    digits.receive(1, 100, block(4, 160))
    digits.receive(2, 100, block(4, 160))
    assert digits.text == "44"


@pytest.mark.parametrize("code", [16, 36, 255])
def test_other_events_are_no_digits(code: int) -> None:
    assert read([(0, block(code, 160))]) == ""


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=2000)), max_size=60))
def test_hostile_payloads_are_bounded(packets: list[Packet]) -> None:
    assert set(read(packets)) <= set(KEYS)


def test_what_is_kept_is_bounded() -> None:
    digits = Digits()
    for i in range(5000):
        digits.receive(i, 1000 * i, block(i % 16, 100) * 500)
    assert len(digits.text) == MAX_DIGITS
    assert len(digits._events) <= 16
