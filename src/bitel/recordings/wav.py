"""The one WAV that we write: 16-bit PCM, mono (RIFF/WAVE, Microsoft 1991; little-endian)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np

from bitel.g711 import SAMPLE_RATE, Pcm

HEADER_BYTES: Final = 44
_HEADER: Final = struct.Struct("<4sI4s4sIHHIIHH4sI")
_PCM: Final = 1
_CHANNELS: Final = 1
_BITS: Final = 16
_FRAME: Final = _CHANNELS * _BITS // 8
_MAX_SAMPLES: Final = (0xFFFFFFFF - HEADER_BYTES) // _FRAME


def header(samples: int, rate: int = SAMPLE_RATE) -> bytes:
    """Return the 44 bytes that go before `samples` samples at `rate` Hz.

    Raises ValueError above 2,147,483,625 samples, which is all that RIFF's sizes can say.
    """
    if not 0 <= samples <= _MAX_SAMPLES:
        raise ValueError(f"a WAV holds 0 to {_MAX_SAMPLES} samples, not {samples}")
    data = samples * _FRAME
    return _HEADER.pack(
        b"RIFF",
        HEADER_BYTES - 8 + data,
        b"WAVE",
        b"fmt ",
        16,
        _PCM,
        _CHANNELS,
        rate,
        rate * _FRAME,
        _FRAME,
        _BITS,
        b"data",
        data,
    )


def size(samples: int) -> int:
    """Return the bytes of a whole WAV with `samples` samples."""
    return HEADER_BYTES + samples * _FRAME


def body(pcm: Pcm) -> bytes:
    """Return samples as the bytes that follow the header."""
    return pcm.astype("<i2", copy=False).tobytes()


def write(path: Path, pcm: Pcm, rate: int = SAMPLE_RATE) -> None:
    """Write a whole WAV to `path`, over what is there."""
    path.write_bytes(header(len(pcm), rate) + body(np.ascontiguousarray(pcm)))
