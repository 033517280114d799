"""The sample: loud enough, within the telephone's band, and no part of it like another."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from bitel.recordings.audio_match import match
from bitel.recordings.sample import RATE, synthesise, write_sample


def test_a_wav_of_the_length_asked_for(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample.wav", 1.5)
    with wave.open(str(tmp_path / "sample.wav")) as file:
        assert file.getparams()[:4] == (1, 2, 16000, 24000)


def test_the_same_each_time() -> None:
    assert np.array_equal(synthesise(2.0), synthesise(2.0))


def test_energy_where_the_telephone_has_ears() -> None:
    sample = synthesise(6.0).astype(float)
    power = np.abs(np.fft.rfft(sample)) ** 2
    frequency = np.fft.rfftfreq(len(sample), 1 / RATE)
    assert power[(frequency > 300) & (frequency < 3400)].sum() > 0.95 * power.sum()
    assert 4000 < np.sqrt(np.mean(sample**2)) < 12000
    assert np.abs(sample).max() < 32767


def test_it_sounds_all_the_way() -> None:
    tenths = synthesise(6.0).astype(float).reshape(-1, RATE // 10)
    assert np.sqrt((tenths**2).mean(axis=1)).min() > 1000


def test_any_second_of_it_is_found_where_it_was() -> None:
    sample = synthesise(6.0)[::2]
    for start in range(0, len(sample) - 8000, 1600):
        found = match(sample[start : start + 8000], sample)
        assert found.offset_samples == start


def test_no_stretch_comes_back_later() -> None:
    sample = synthesise(6.0)[::2].astype(float)
    likeness = np.fft.irfft(np.abs(np.fft.rfft(sample, 1 << 17)) ** 2)
    assert np.abs(likeness[400 : len(sample)]).max() < 0.4 * likeness[0]


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_at_all(seconds: float) -> None:
    with pytest.raises(ValueError, match="longer than 0 s"):
        synthesise(seconds)
