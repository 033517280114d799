"""DTMF tones in audio: all keys at all usual levels, and none in speech, music or noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.g711 import alaw_encode, ulaw_encode
from bitel.recordings.sample import synthesise
from bitel.rtp.sender.dtmf_tones import COLUMNS, PAD, ROWS, ToneDigits
from bitel.rtp.stream_spec import Law

KEYS = "".join(PAD)
Audio = np.ndarray[tuple[int], np.dtype[np.float64]]


def tones(key: str, seconds: float, level: float = 7000.0, twist: float = 1.0) -> Audio:
    row = next(at for at, keys in enumerate(PAD) if key in keys)
    times = np.arange(round(seconds * 8000)) / 8000
    low = np.sin(2 * np.pi * ROWS[row] * times)
    high = np.sin(2 * np.pi * COLUMNS[PAD[row].index(key)] * times) * twist
    return (low + high) * level


def heard(audio: Audio, law: Law = "alaw", packet: int = 160) -> str:
    encode = alaw_encode if law == "alaw" else ulaw_encode
    codes = encode(np.clip(audio, -32768, 32767).astype(np.int16)).tobytes()
    digits = ToneDigits(law)
    for at in range(0, len(codes), packet):
        digits.receive(codes[at : at + packet])
    return digits.text


def silence(seconds: float) -> Audio:
    return np.zeros(round(seconds * 8000))


@settings(deadline=None, max_examples=60)
@given(
    keys=st.text(KEYS, min_size=1, max_size=6),
    on=st.floats(0.07, 0.4),
    off=st.floats(0.07, 0.4),
    level=st.floats(400, 14_000),
    twist=st.floats(0.5, 2.0),
    law=st.sampled_from(["alaw", "ulaw"]),
    packet=st.sampled_from([80, 160, 240, 480]),
    offset=st.integers(0, 400),
    seed=st.integers(0, 1000),
)
def test_keys_are_found(
    keys: str, on: float, off: float, level: float, twist: float, law: Law, packet: int,
    offset: int, seed: int,
) -> None:  # fmt: skip
    parts = [np.zeros(offset)]
    for key in keys:
        parts += [tones(key, on, level, twist), silence(off)]
    audio = np.concatenate(parts)
    # 20 dB below the tones, as Q.24 allows.
    noise = np.random.default_rng(seed).normal(0, level * 0.1, len(audio))
    assert heard(audio + noise, law, packet) == keys


@pytest.mark.parametrize("hertz", [-1.5, 1.5])
def test_tones_may_be_a_little_off(hertz: float) -> None:
    """By 1.5 % and 2 Hz (Q.24)."""
    times = np.arange(1600) / 8000
    for key in KEYS:
        row = next(at for at, keys in enumerate(PAD) if key in keys)
        factor = 1 + hertz / 100
        low, high = ROWS[row] * factor, COLUMNS[PAD[row].index(key)] * factor
        audio = (np.sin(2 * np.pi * low * times) + np.sin(2 * np.pi * high * times)) * 5000
        assert heard(np.concatenate((audio, silence(0.1)))) == key


@pytest.mark.parametrize("seconds", [0.01, 0.02])
def test_very_short_bursts_are_no_key(seconds: float) -> None:
    for key in KEYS:
        assert heard(np.concatenate((silence(0.1), tones(key, seconds), silence(0.1)))) == ""


def test_a_key_that_is_held_counts_once_with_gaps_of_a_packet() -> None:
    held = tones("5", 1.0)
    held[3200:3360] = 0.0  # a packet that the line has lost
    assert heard(held) == "5"


@pytest.mark.parametrize("hertz", [*ROWS, *COLUMNS, 425.0, 2000.0])
def test_one_tone_is_no_key(hertz: float) -> None:
    times = np.arange(8000) / 8000
    assert heard(np.sin(2 * np.pi * hertz * times) * 12_000) == ""


def test_a_tune_and_noise_are_no_keys() -> None:
    tune = synthesise(20.0)[::2].astype(np.float64)
    assert heard(tune) == ""
    noise = np.random.default_rng(1).normal(0, 4000, 160_000)
    assert heard(noise) == ""
    # Voices are buzzes whose pitch moves, through resonances.
    times = np.arange(160_000) / 8000
    phase = 2 * np.pi * np.cumsum(140 + 40 * np.sin(2 * np.pi * 2.3 * times)) / 8000
    voice = sum(np.sin(n * phase) / n for n in range(1, 20))
    assert heard(np.asarray(voice) * 6000) == ""


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=700), max_size=30))
def test_any_bytes_are_read(packets: list[bytes]) -> None:
    digits = ToneDigits("ulaw")
    for each in packets:
        digits.receive(each)
    assert len(digits._kept) < 480
