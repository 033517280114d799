"""Damages SIP messages: at any byte, and line by line, where parsers are more easily misled."""

from __future__ import annotations

import random
from collections.abc import Sequence

NUMBERS = (b"0", b"-1", b"1", b"2147483647", b"4294967296", b"9" * 40, b"1e9", b" ", b"\xd9\xa3")


def mutated(
    rng: random.Random, messages: Sequence[bytes], splices: Sequence[bytes], most: int = 3
) -> bytes:
    """One of `messages` with up to `most` changes, none in a quarter of all cases."""
    data = rng.choice(messages)
    for _ in range(rng.randint(0, most)):
        data = _CHANGES[rng.randrange(len(_CHANGES))](rng, data, messages, splices)
    return data


def _splice(
    rng: random.Random, data: bytes, messages: Sequence[bytes], splices: Sequence[bytes]
) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(splices) + data[at + rng.choice((0, 0, 1, 5, 20)) :]


def _flip(
    rng: random.Random, data: bytes, messages: Sequence[bytes], splices: Sequence[bytes]
) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _cut(
    rng: random.Random, data: bytes, messages: Sequence[bytes], splices: Sequence[bytes]
) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.randint(0, 60) :]


def _double(
    rng: random.Random, data: bytes, messages: Sequence[bytes], splices: Sequence[bytes]
) -> bytes:
    at, size = rng.randint(0, len(data)), rng.randint(1, 200)
    return data[:at] + data[at : at + size] * rng.choice((2, 3, 30)) + data[at + size :]


def _change_lines(
    rng: random.Random, data: bytes, messages: Sequence[bytes], splices: Sequence[bytes]
) -> bytes:
    """Leave a line out, repeat it, move it, or take one from another message."""
    lines = data.split(b"\r\n")
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines.insert(rng.randrange(len(lines)), lines.pop(at))
        case _:
            lines[at] = rng.choice(rng.choice(messages).split(b"\r\n"))
    return b"\r\n".join(lines)


def _change_number(
    rng: random.Random, data: bytes, messages: Sequence[bytes], splices: Sequence[bytes]
) -> bytes:
    """Put another number in the place of one."""
    start = rng.randint(0, len(data))
    digits = b"0123456789"
    while start < len(data) and data[start : start + 1] not in digits:
        start += 1
    end = start
    while end < len(data) and data[end : end + 1] in digits:
        end += 1
    return data[:start] + rng.choice(NUMBERS) + data[end:]


_CHANGES = (_splice, _flip, _cut, _double, _change_lines, _change_lines, _change_number)
