"""Reads and writes WAV files (RIFF/WAVE) of 16-bit mono PCM."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Final

import numpy as np

from bitel.g711 import SAMPLE_RATE, Pcm

HEADER_BYTES: Final = 44
_MAX_SAMPLES: Final = (0xFFFFFFFF - HEADER_BYTES) // 2


def header(samples: int, rate: int = SAMPLE_RATE) -> bytes:
    """Return the 44-byte header of a file with `samples` samples at `rate` Hz.

    Raises ValueError above 2,147,483,625 samples, the limit of RIFF.
    """
    if not 0 <= samples <= _MAX_SAMPLES:
        raise ValueError(f"a WAV holds 0 to {_MAX_SAMPLES} samples, not {samples}")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, samples, "NONE", ""))
        file.writeframesraw(b"")
        return buffer.getvalue()  # before `close` corrects the number of samples


def size(samples: int) -> int:
    """Return the size in bytes of a file with `samples` samples."""
    return HEADER_BYTES + samples * 2


def body(pcm: Pcm) -> bytes:
    """Return samples as the bytes behind the header."""
    return pcm.astype("<i2", copy=False).tobytes()


def write(path: Path, pcm: Pcm, rate: int = SAMPLE_RATE) -> None:
    """Write a WAV file to `path`, replacing an existing one."""
    path.write_bytes(header(len(pcm), rate) + body(pcm))


def read(path: Path) -> tuple[Pcm, int]:
    """Return the samples of a WAV file and their rate in Hz.

    Raises OSError, EOFError or wave.Error if it can't be read, ValueError if it does not have 16
    bits per sample.
    """
    with wave.open(str(path), "rb") as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"samples of {8 * file.getsampwidth()} bits")
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return samples, file.getframerate()
