"""The silence around a recording, so that neither its first nor its last syllable is lost.

The path that audio takes opens with the first packets, which phones and carriers often drop; and
what a phone's jitter buffer still holds is lost when the BYE comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bitel.g711 import ALAW_SILENCE, SAMPLE_RATE, ULAW_SILENCE

_SILENCE = {"PCMA": ALAW_SILENCE, "PCMU": ULAW_SILENCE}


def quiet_clips(folder: Path, seconds: float) -> Mapping[str, Path]:
    """Clips of `seconds` of silence by codec, written into `folder`, which is made if need be.

    Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    clips = {}
    for codec, code in _SILENCE.items():
        path = folder / f"{round(seconds * 1000)}ms.{codec.lower()}"
        path.write_bytes(bytes([code]) * round(seconds * SAMPLE_RATE))
        clips[codec] = path
    return clips
