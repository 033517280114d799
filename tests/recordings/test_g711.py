"""The G.711 tables against the tables that ITU-T printed."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bitel.g711 import (
    ALAW_SILENCE,
    ULAW_SILENCE,
    alaw_decode,
    alaw_encode,
    ulaw_decode,
    ulaw_encode,
)

EVERY_SAMPLE = np.arange(-32768, 32768).astype(np.int16)
EVERY_CODE = np.arange(256, dtype=np.uint8)
LOW = EVERY_CODE[:128]
HIGH = EVERY_CODE[128:]

# G.711 Table 1a: the decision values that begin each A-law segment, where 4096 is full scale.
ALAW_SEGMENTS = [0, 32, 64, 128, 256, 512, 1024, 2048, 4096]
# G.711 Table 2a: the same for µ-law, where 8159 is the virtual last one.
ULAW_SEGMENTS = [31, 95, 223, 479, 991, 2015, 4063, 8159]


def alaw_decision_values() -> np.ndarray:
    """x0 to x128 of Table 1a, as 16-bit magnitudes."""
    values = [0.0]
    for low, high in itertools.pairwise(ALAW_SEGMENTS):
        values += [low + (high - low) * n / 16 for n in range(1, 17)]
    return np.array(values) * 8


def ulaw_decision_values() -> np.ndarray:
    """x0 to x128 of Table 2a, as 16-bit magnitudes."""
    values = [0.0] + [float(value) for value in range(1, 32, 2)]
    for low, high in itertools.pairwise(ULAW_SEGMENTS):
        values += [low + (high - low) * n / 16 for n in range(1, 17)]
    return np.array(values) * 4


def interval(decisions: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    return np.minimum(np.searchsorted(decisions, magnitude, side="right") - 1, 127)


def magnitude_of(pcm: np.ndarray) -> np.ndarray:
    wide = pcm.astype(np.int32)
    return np.where(wide < 0, ~wide, wide)


def test_alaw_encodes_by_the_decision_values_of_table_1a() -> None:
    line = alaw_encode(EVERY_SAMPLE) ^ 0x55
    assert np.array_equal(line & 0x7F, interval(alaw_decision_values(), magnitude_of(EVERY_SAMPLE)))
    assert np.array_equal(line >= 0x80, EVERY_SAMPLE >= 0)


def test_ulaw_encodes_by_the_decision_values_of_table_2a() -> None:
    line = ulaw_encode(EVERY_SAMPLE) ^ 0xFF
    assert np.array_equal(line & 0x7F, interval(ulaw_decision_values(), magnitude_of(EVERY_SAMPLE)))
    assert np.array_equal(line < 0x80, EVERY_SAMPLE >= 0)


def test_alaw_decodes_to_the_middle_of_each_interval() -> None:
    x = alaw_decision_values()
    middle = (x[:-1] + x[1:]) / 2
    positive = alaw_decode(HIGH ^ np.uint8(0x55))
    negative = alaw_decode(LOW ^ np.uint8(0x55))
    assert np.array_equal(positive, middle)
    assert np.array_equal(negative, -middle)


def test_ulaw_decodes_to_the_middle_of_each_interval_and_to_zero() -> None:
    x = ulaw_decision_values()
    middle = (x[:-1] + x[1:]) / 2
    middle[0] = 0
    positive = ulaw_decode(LOW ^ np.uint8(0xFF))
    negative = ulaw_decode(HIGH ^ np.uint8(0xFF))
    assert np.array_equal(positive, middle)
    assert np.array_equal(negative, -middle)


def test_the_milliwatt_of_table_5_and_6_is_a_sine_of_1_khz() -> None:
    alaw = np.frombuffer(bytes.fromhex("3421 2134 b4a1 a1b4"), dtype=np.uint8)
    ulaw = np.frombuffer(bytes.fromhex("1e0b 0b1e 9e8b 8b9e"), dtype=np.uint8)
    sine = np.sin((np.arange(8) + 0.5) * np.pi / 4)
    for heard in (alaw_decode(alaw), ulaw_decode(ulaw)):
        assert abs(np.corrcoef(heard, -sine)[0, 1]) > 0.999
    assert np.array_equal(alaw_encode(alaw_decode(alaw)), alaw)
    assert np.array_equal(ulaw_encode(ulaw_decode(ulaw)), ulaw)


def test_silence() -> None:
    zero = np.zeros(1, dtype=np.int16)
    assert alaw_encode(zero)[0] == ALAW_SILENCE
    assert ulaw_encode(zero)[0] == ULAW_SILENCE
    assert ulaw_decode(np.array([ULAW_SILENCE], dtype=np.uint8))[0] == 0


def test_every_code_survives_a_round_trip() -> None:
    assert np.array_equal(alaw_encode(alaw_decode(EVERY_CODE)), EVERY_CODE)
    again = ulaw_encode(ulaw_decode(EVERY_CODE))
    # µ-law has two zeros; a linear sample can't tell them apart.
    assert np.array_equal(again[EVERY_CODE != 0x7F], EVERY_CODE[EVERY_CODE != 0x7F])
    assert again[0x7F] == ULAW_SILENCE


@given(st.lists(st.integers(-32768, 32767), min_size=1))
def test_a_louder_sample_never_decodes_quieter(samples: list[int]) -> None:
    rising = np.array(sorted(samples), dtype=np.int16)
    assert np.all(np.diff(alaw_decode(alaw_encode(rising)).astype(np.int32)) >= 0)
    assert np.all(np.diff(ulaw_decode(ulaw_encode(rising)).astype(np.int32)) >= 0)
