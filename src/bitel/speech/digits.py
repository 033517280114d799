"""A code read out digit by digit: ten clips per voice, and the playlist of a code.

The clips are made once, without silence at their ends and equally loud, so that a call only names
files.
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
"""Samples of 20 ms; clips are whole packets, so that the gaps keep their length."""
GAP_SECONDS: Final = 0.30
"""Silence between two digits; with the clips' own edges 340 to 360 ms."""
PAUSE_SECONDS: Final = 0.96
"""Silence between two repetitions, with the clips' own edges about a second."""

TARGET_DB: Final = -20.0
"""Level of a clip, root mean square of what a telephone carries, in dB of full scale."""
MAX_PEAK: Final = 0.89
"""Highest sample, -1 dB of full scale."""
FLOOR_DB: Final = -35.0
"""How far below its loudest 10 ms a clip still counts as speech."""
MARGIN_SECONDS: Final = 0.02
"""Kept before and after, so that soft onsets stay whole."""

_GAP: Final = "gap"
_PAUSE: Final = "pause"
_SILENCE: Final[dict[Law, int]] = {"PCMA": ALAW_SILENCE, "PCMU": ULAW_SILENCE}
_FULL_SCALE: Final = 32768
_BAND: Final = (200.0, 3400.0)


async def render_set(engine: Engine, options: SpeechOptions, work: Path, into: Path) -> None:
    """Render all ten digits and the silences to clips in the folder `into`.

    All go through one WAV and one decoding, each from a whole second on. `work` is for temporary
    files; both folders must exist. Raises UnavailableError.
    """
    spoken = await render(DIGITS, engine, work, options)
    sheet = work / "digits.wav"
    lengths = await asyncio.to_thread(_lay_out, spoken, sheet)
    decoded = await decode(sheet, work, DecodeLimits())
    await asyncio.to_thread(_cut, decoded, lengths, into)


def playlist(folder: Path, digits: str, law: Law, repeat: int, intro: Path | None) -> list[Path]:
    """Return the clips that read `digits` out `repeat` times, after `intro` if there is one.

    `folder` is what `render_set` filled. A gap goes before and after it all, since the first and
    the last moment of a call may be lost.
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
    """Write the clips to one WAV, each from a whole second on; return their lengths at 8 kHz."""
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
    """Return the whole seconds that a clip takes on the sheet, with some silence behind it."""
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
    """Cut the silence off both ends, fading over the margin that is left.

    Raises ValueError where all of it is silent.
    """
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
    """Return the level within 200 to 3400 Hz, in dB of full scale; -120 at least."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    within = (frequencies >= _BAND[0]) & (frequencies <= _BAND[1])
    # Parseval: a real signal's power is twice that of the positive half of its spectrum.
    power = 2 * spectrum[within].sum() / len(samples) ** 2
    return float(10 * np.log10(max(power, 1e-12)))


def levelled(samples: Samples, rate: int) -> Samples:
    """Bring the clip to `TARGET_DB`, or as near as its peaks allow."""
    gain = 10 ** ((TARGET_DB - level_db(samples, rate)) / 20)
    peak = float(np.abs(samples).max(initial=0))
    result: Samples = samples * min(gain, MAX_PEAK / peak if peak else gain)
    return result
