"""Parts of texts: clips that are played one after the other without a click or a wrong pause.

The silence that an engine puts around a part is cut off, its ends are faded, and a pause is added
as its own punctuation asks. So to play a text is only to play its parts in order. Clips are whole
packets of 20 ms: a sender would fill up the last one with silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from bitel.domain.templates import ends_sentence_or_clause
from bitel.g711 import SAMPLE_RATE, Pcm, alaw_encode, ulaw_encode
from bitel.recordings import wav
from bitel.recordings.decode import Decoded
from bitel.speech.digits import PACKET, Samples, trimmed
from bitel.speech.spoken_text import plain

SENTENCE_PAUSE: Final = 0.36
"""Seconds after the end of a sentence."""
CLAUSE_PAUSE: Final = 0.16
"""Seconds after other punctuation."""
WORD_PAUSE: Final = 0.02
"""Seconds after a part without punctuation, besides the margins of both clips."""

BATCH_PARTS: Final = 100
BATCH_CHARS: Final = 4000
"""Most parts, and characters in all of them, of one run of an engine: to start it takes as long as
30 names. The characters take a second of its 30 s of processor time."""

_SENTENCE_ENDS: Final = ".!?؟…。"
_FULL_SCALE: Final = 32768
_PASS: Final = 3700.0
_STOP: Final = 4000.0
"""Hz between which the resampler fades out."""
_PACKETS_PER_SECOND: Final = SAMPLE_RATE // PACKET


class Part(NamedTuple):
    """What an engine is given, and the seconds of silence that follow."""

    words: str
    pause: float


def part_of(text: str, max_chars: int, *, is_last: bool) -> Part:
    """How a part of a text is spoken, which is one of several unless it `is_last`.

    Without punctuation of its own it has the melody of a clause, or the last one that of a
    sentence. Raises as `plain` does.
    """
    words = plain(text, max_chars)
    written = text.rstrip()
    if is_last:
        return Part(words, 0.0)
    if not ends_sentence_or_clause(written):
        # `plain` has ended it as a sentence.
        return Part(words.removesuffix(".") + ",", WORD_PAUSE)
    pause = SENTENCE_PAUSE if words[-1] in _SENTENCE_ENDS else CLAUSE_PAUSE
    return Part(words, pause)


def batches(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts in their order, as much at once as an engine is given."""
    made: list[list[Part]] = []
    chars = 0
    for part in parts:
        if not made or len(made[-1]) == BATCH_PARTS or chars + len(part.words) > BATCH_CHARS:
            made.append([])
            chars = 0
        made[-1].append(part)
        chars += len(part.words)
    return made


def encode(spoken: Path, pause: float, into: Path) -> Decoded:
    """Make the clip of a part, in both laws, from the WAV of an engine.

    `into` is a path without suffix. Raises OSError, and ValueError for a silent WAV.
    """
    pcm, rate = wav.read(spoken)
    speech = resampled(trimmed(pcm / _FULL_SCALE, rate), rate)
    silence = np.zeros(_whole_packets(pause), np.int16)
    clip: Pcm = np.concatenate([_as_pcm(speech), silence])
    alaw, ulaw = into.with_suffix(".alaw"), into.with_suffix(".ulaw")
    alaw.write_bytes(alaw_encode(clip).tobytes())
    ulaw.write_bytes(ulaw_encode(clip).tobytes())
    return Decoded(alaw, ulaw, len(clip) / SAMPLE_RATE, len(clip))


def resampled(samples: Samples, rate: int) -> Samples:
    """A clip at 8000 Hz, filled up with silence to whole packets.

    It must be faded at both ends, as the Fourier transform takes it for periodic.
    """
    # The fewest packets whose length is a whole number of samples at both rates.
    unit = _PACKETS_PER_SECOND // math.gcd(rate, _PACKETS_PER_SECOND)
    units = -(-len(samples) * _PACKETS_PER_SECOND // (rate * unit))
    packets = _smooth(units) * unit
    length = packets * rate // _PACKETS_PER_SECOND
    spectrum = np.fft.rfft(np.pad(samples, (0, length - len(samples))))
    frequencies = np.arange(len(spectrum)) * rate / length
    fade = np.clip((_STOP - frequencies) / (_STOP - _PASS), 0, 1)
    at_8k: Samples = np.fft.irfft(spectrum * np.sin(fade * np.pi / 2) ** 2, packets * PACKET)
    return at_8k[: units * unit * PACKET] * (packets * PACKET / length)


def _smooth(number: int) -> int:
    """The next number whose only prime factors are 2, 3 and 5: transforms of it are fast."""
    while True:
        rest = number
        for factor in (2, 3, 5):
            while rest % factor == 0 and rest > 1:
                rest //= factor
        if rest <= 1:
            return number
        number += 1


def _as_pcm(samples: Samples) -> Pcm:
    scaled = np.clip(np.round(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
    pcm: Pcm = scaled.astype(np.int16)
    return pcm


def _whole_packets(seconds: float) -> int:
    return round(seconds * _PACKETS_PER_SECOND) * PACKET
