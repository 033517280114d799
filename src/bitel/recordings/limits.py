"""How much a recording that a stranger sent may cost us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MEBIBYTE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What the worker process that decodes one recording may use.

    `max_seconds`: the longest recording accepted, in seconds of audio.
    `cpu_seconds`: processor time, whole seconds, start of the interpreter included.
    `memory_bytes`: address space, which is what the kernel can limit. Python, NumPy and FFmpeg
    map about 200 MiB before the first byte is read.
    `wall_seconds`: from the start of the process to its end.
    """

    max_seconds: float = 600.0
    cpu_seconds: int = 30
    memory_bytes: int = 1024 * MEBIBYTE
    wall_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class SpeechLimits:
    """What the worker process that speaks one text may use; units as in `DecodeLimits`.

    `max_seconds` is the longest speech. espeak-ng gets by with 50 MiB of address space; Piper's
    neural voices map ten times that and more.
    """

    max_seconds: float = 600.0
    cpu_seconds: int = 30
    memory_bytes: int = 2048 * MEBIBYTE
    wall_seconds: float = 60.0
