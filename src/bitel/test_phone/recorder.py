"""Recordings of what the phone heard: one WAV a call, written in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import re
import wave
from pathlib import Path
from typing import Final

from bitel.g711 import SAMPLE_RATE, Pcm
from bitel.test_phone.rtp_sinks import RecordingEar

_MAX_NAME: Final = 80
"""Characters of a file name that come from the number, and from the Call-ID."""

_BYTES_PER_SAMPLE: Final = 2


class Recorder:
    """Writes recordings into `folder`, which it makes when it is missing. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    async def save(self, number: str, call_id: str, ear: RecordingEar) -> Path:
        """Write what a closed ear heard; the path of the WAV, 8 kHz mono 16 bit."""
        path = self._folder / recording_name(number, call_id)
        await asyncio.to_thread(_write, path, ear)
        return path


def recording_name(number: str, call_id: str) -> str:
    """The file name for a call: the number as it arrived, and the Call-ID made safe.

    Both are a stranger's words. Only letters, digits, `+`, `-`, `.` and `_` are kept; where
    something else was replaced, a hash tells apart what would otherwise look alike.
    """
    return f"{_safe(number)}_{_safe(call_id)}.wav"


def _safe(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9+._-]|^\.", "-", text[:_MAX_NAME])
    if plain == text:
        return plain
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{plain}-{digest[:8]}"


def _write(path: Path, ear: RecordingEar) -> None:
    pcm: Pcm = ear.heard()
    # Under another name first, so that whoever watches the folder finds whole files only.
    unfinished = path.with_suffix(".part")
    with wave.open(str(unfinished), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(_BYTES_PER_SAMPLE)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
    unfinished.rename(path)
