"""Resource limits of the worker processes, and their exit statuses.

The workers import this before their memory is limited, so it must import little.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

MEBIBYTE: Final = 1024 * 1024
NICENESS: Final = 10
"""Workers have a lower priority than calls."""


class DecodeLimits(NamedTuple):
    """Limits of a process that decodes one recording.

    `max_seconds`: longest recording accepted, in seconds of audio.
    `cpu_seconds`: CPU time including the start of the interpreter.
    `memory_bytes`: address space; Python, NumPy and FFmpeg map about 200 MiB at their start.
    `wall_seconds`: from the start of the process to its end.
    """

    max_seconds: float = 600.0
    cpu_seconds: int = 30
    memory_bytes: int = 1024 * MEBIBYTE
    wall_seconds: float = 60.0


class SpeechLimits(NamedTuple):
    """Limits of a process that speaks one text; units as in `DecodeLimits`.

    espeak-ng needs 50 MiB of address space, Piper more than ten times that.
    """

    max_seconds: float = 600.0
    cpu_seconds: int = 30
    memory_bytes: int = 2048 * MEBIBYTE
    wall_seconds: float = 60.0


class Verdict(IntEnum):
    """Exit statuses of the workers; 1 and 2 are failures of the interpreter or of Piper."""

    DONE = 0
    CUT_SHORT = 3
    """Decoded, but the file is truncated."""
    NOT_MEDIA = 10
    NO_AUDIO_STREAM = 11
    NO_DECODER = 12
    DAMAGED = 13
    NO_SAMPLES = 14
    SILENT = 15
    NO_ROOM = 22
    NO_ENGINE = 30
    NO_VOICE = 31
    ENGINE_FAILED = 32
    TOO_LONG = 33
    OUT_OF_MEMORY = 34


def confine(cpu_seconds: str, memory_bytes: str, wall_seconds: str, *, file_bytes: int) -> None:
    """Limit this process permanently, also after exec, and its children.

    The first three are command-line arguments, from `DecodeLimits` or `SpeechLimits`. After
    `cpu_seconds` the process gets SIGXCPU. `file_bytes`: largest file that it may write.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    # Ends the process if its parent has died.
    signal.setitimer(signal.ITIMER_REAL, float(wall_seconds) + 1)
    os.nice(NICENESS)


def rewind(descriptors: Sequence[int]) -> None:
    """Empty the output files, which a killed worker may have begun to write."""
    for descriptor in descriptors:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
