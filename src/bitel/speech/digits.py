"""Spoken digits: renders ten clips per voice, and makes the playlist of a code.

The clips are trimmed and have equal loudness. They are rendered once per voice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bitel.g711 import ALAW_SILENCE, SAMPLE_RATE, ULAW_SILENCE
from bitel.recordings import wav
from bitel.recordings.decode import Decoded, decode
from bitel.recordings.limits import DecodeLimits
from bitel.recordings.storage import SUFFIXES, Law
from bitel.speech.engines import Engine, SpeechOptions, render

Samples = NDArray[np.float64]
"""Samples of full scale 1."""

DIGITS: Final = "0123456789"
PACKET: Final = SAMPLE_RATE // 50
"""Samples of 20 ms. Clips consist of whole packets, so that padding does not lengthen the gaps."""
GAP_SECONDS: Final = 0.30
"""Silence between digits; 340 to 360 ms with the margins of the clips."""
PAUSE_SECONDS: Final = 0.96
"""Silence between repetitions; about 1 s with the margins of the clips."""

TARGET_DB: Final = -20.0
"""RMS level of a clip within the telephone band, in dB of full scale."""
MAX_PEAK: Final = 0.89
"""Highest sample: -1 dB of full scale."""
FLOOR_DB: Final = -35.0
"""Level relative to a clip's loudest 10 ms from which audio is speech."""
MARGIN_SECONDS: Final = 0.02
"""Margin before and after speech, to keep soft onsets."""

_GAP: Final = "gap"
_PAUSE: Final = "pause"
_SILENCE: Final[dict[Law, int]] = {"PCMA": ALAW_SILENCE, "PCMU": ULAW_SILENCE}
_FULL_SCALE: Final = 32768
_BAND: Final = (200.0, 3400.0)


async def render_set(engine: Engine, options: SpeechOptions, work: Path, into: Path) -> None:
    """Render all ten digits and the silences to clips in the folder `into`.

    All are decoded as one WAV, in which each begins at a whole second. `work` is for temporary
    files; both folders must exist. Raises UnavailableError.
    """
    spoken = await render(DIGITS, engine, work, options)
    sheet = work / "digits.wav"
    lengths = await asyncio.to_thread(_lay_out, spoken, sheet)
    decoded = await decode(sheet, work, DecodeLimits())
    await asyncio.to_thread(_cut, decoded, lengths, into)


def playlist(folder: Path, digits: str, law: Law, repeat: int, intro: Path | None) -> list[Path]:
    """Return the clips that speak `digits` `repeat` times, after `intro` if given.

    `folder` was filled by `render_set`. There is a gap at the begin and the end, because the first
    and last moments of a call may be lost.
    """
    gap, pause = _clip(folder, _GAP, law), _clip(folder, _PAUSE, law)
    clips = [] if intro is None else [intro]
    for repetition in range(repeat):
        for place, digit in enumerate(digits):
            clips += [pause if repetition and not place else gap, _clip(folder, digit, law)]
    return [*clips, gap]


def _clip(folder: Path, name: str, law: Law) -> Path:
    return folder / (name + SUFFIXES[law])


def _lay_out(spoken: Sequence[Path], sheet: Path) -> list[int]:
    """Write the clips to one WAV, each at a whole second; return their lengths at 8 kHz."""
    rows: list[Samples] = []
    lengths: list[int] = []
    for path in spoken:
        pcm, rate = wav.read(path)
        clip = levelled(trimmed(pcm / _FULL_SCALE, rate), rate)
        lengths.append(_whole_packets(len(clip) / rate))
        rows.append(np.pad(clip, (0, _seconds(lengths[-1]) * rate - len(clip))))
    wav.write(sheet, np.round(np.concatenate(rows) * _FULL_SCALE).astype(np.int16), rate)
    return lengths


def _whole_packets(seconds: float) -> int:
    return -(-round(seconds * SAMPLE_RATE) // PACKET) * PACKET


def _seconds(length: int) -> int:
    """Return the seconds of a clip in the common WAV, including silence behind it."""
    return length // SAMPLE_RATE + 1


def _cut(decoded: Decoded, lengths: Sequence[int], into: Path) -> None:
    files: dict[Law, Path] = {"PCMA": decoded.alaw, "PCMU": decoded.ulaw}
    for law, path in files.items():
        codes = path.read_bytes()
        start = 0
        for digit, length in zip(DIGITS, lengths, strict=True):
            _clip(into, digit, law).write_bytes(codes[start : start + length])
            start += _seconds(length) * SAMPLE_RATE
        for name, seconds in ((_GAP, GAP_SECONDS), (_PAUSE, PAUSE_SECONDS)):
            silence = bytes([_SILENCE[law]]) * _whole_packets(seconds)
            _clip(into, name, law).write_bytes(silence)


def trimmed(samples: Samples, rate: int) -> Samples:
    """Remove silence at both ends except a faded margin. Raises ValueError if all is silent."""
    frame = rate // 100
    rows = -(-len(samples) // frame)
    padded = np.pad(samples, (0, rows * frame - len(samples))).reshape(rows, frame)
    power = np.mean(padded**2, axis=1) if rows else np.zeros(1)
    if not power.max() > 0:
        raise ValueError("a silent clip has no speech to be trimmed to")
    speech = np.flatnonzero(power > power.max() * 10 ** (FLOOR_DB / 10))
    margin = round(rate * MARGIN_SECONDS)
    start = max(0, int(speech[0]) * frame - margin)
    end = min(len(samples), (int(speech[-1]) + 1) * frame + margin)
    kept = samples[start:end].copy()
    fade = np.linspace(0, 1, min(margin, len(kept) // 2))
    kept[: len(fade)] *= fade
    kept[len(kept) - len(fade) :] *= fade[::-1]
    return kept


def level_db(samples: Samples, rate: int) -> float:
    """Return the level within 200 to 3400 Hz in dB of full scale, at least -120."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    within = (frequencies >= _BAND[0]) & (frequencies <= _BAND[1])
    # Parseval's theorem, with the positive half of the spectrum counted twice.
    power = 2 * spectrum[within].sum() / len(samples) ** 2
    return float(10 * np.log10(max(power, 1e-12)))


def levelled(samples: Samples, rate: int) -> Samples:
    """Amplify the clip to `TARGET_DB`, or as far as `MAX_PEAK` allows."""
    gain = 10 ** ((TARGET_DB - level_db(samples, rate)) / 20)
    peak = float(np.abs(samples).max(initial=0))
    result: Samples = samples * min(gain, MAX_PEAK / peak if peak else gain)
    return result
