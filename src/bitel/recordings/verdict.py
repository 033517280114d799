"""What a worker found, as its exit status; the only thing it says to its parent."""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    """Exit statuses of the decode worker; 1 and 2 are left to the interpreter's own failures."""

    DECODED = 0
    CUT_SHORT = 3
    """Decoded, and the file ends before it should."""
    NOT_MEDIA = 10
    NO_AUDIO_STREAM = 11
    NO_DECODER = 12
    DAMAGED = 13
    NO_SAMPLES = 14
    SILENT = 15
    TOO_LONG = 20
    OUT_OF_MEMORY = 21
    NO_ROOM = 22


class SpeechVerdict(IntEnum):
    """Exit statuses of the speech worker, apart from those of Piper, which takes its place."""

    SPOKEN = 0
    NO_ENGINE = 30
    NO_VOICE = 31
    ENGINE_FAILED = 32
    TOO_LONG = 33
    OUT_OF_MEMORY = 34


ALAW_NAME = "recording.alaw"
ULAW_NAME = "recording.ulaw"
