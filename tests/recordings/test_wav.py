"""The WAV that we write, read by the standard library."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.recordings import wav


@given(st.lists(st.integers(-32768, 32767)), st.sampled_from([8000, 16000, 48000]))
def test_others_read_what_we_write(samples: list[int], rate: int) -> None:
    pcm = np.array(samples, dtype=np.int16)
    content = wav.header(len(pcm), rate) + wav.body(pcm)
    assert len(content) == wav.size(len(pcm))
    with wave.open(io.BytesIO(content)) as file:
        assert file.getparams()[:4] == (1, 2, rate, len(pcm))
        assert file.readframes(len(pcm)) == pcm.astype("<i2").tobytes()


def test_to_a_file(tmp_path: Path) -> None:
    wav.write(tmp_path / "a.wav", np.arange(100, dtype=np.int16)[::2])
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.readframes(50) == np.arange(0, 100, 2, dtype="<i2").tobytes()


@pytest.mark.parametrize("samples", [-1, 2**31])
def test_more_than_riff_can_say(samples: int) -> None:
    with pytest.raises(ValueError, match="a WAV holds"):
        wav.header(samples)
