"""Clips of parts: no silence but a chosen pause, and no step where two of them meet."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bitel.g711 import SAMPLE_RATE, alaw_decode, ulaw_decode
from bitel.recordings import wav
from bitel.speech.digits import PACKET
from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary
from bitel.speech.parts import (
    BATCH_CHARS,
    CLAUSE_PAUSE,
    SENTENCE_PAUSE,
    WORD_PAUSE,
    Part,
    batches,
    encode,
    part_of,
    resampled,
)

QUIET = 200
"""Of 32768: -44 dB, where clips begin and end."""


@pytest.mark.parametrize(
    ("text", "is_last", "words", "pause"),
    [
        ("علی", False, "علی,", WORD_PAUSE),
        ("علی", True, "علی.", 0.0),
        ("Ali,", False, "Ali,", CLAUSE_PAUSE),
        ("سلام.", False, "سلام.", SENTENCE_PAUSE),
        ("چطور؟", False, "چطور؟", SENTENCE_PAUSE),
        ("50%", False, "50%", CLAUSE_PAUSE),
        (" ۱۲ ", False, "12,", WORD_PAUSE),
    ],
)
def test_melody_and_pause_follow_the_punctuation(
    text: str, is_last: bool, words: str, pause: float
) -> None:
    assert part_of(text, 100, is_last=is_last) == Part(words, pause)


def test_batches_are_bounded() -> None:
    parts = [Part(f"{number}.", 0.0) for number in range(250)]
    assert [len(batch) for batch in batches(parts)] == [100, 100, 50]
    long = [Part("x" * 1000, number) for number in range(9)]
    assert [len(batch) for batch in batches(long)] == [BATCH_CHARS // 1000] * 2 + [1]
    assert [part for batch in batches(parts) for part in batch] == parts
    assert batches([]) == []


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_resampling_keeps_tones_below_3700_hz_and_removes_those_above_4000(rate: int) -> None:
    time = np.arange(rate) / rate
    envelope = np.sin(np.pi * time) ** 2
    at_8k = resampled(0.5 * envelope * np.sin(2 * np.pi * 1000 * time), rate)
    wanted_time = np.arange(len(at_8k)) / SAMPLE_RATE
    wanted = 0.5 * np.sin(np.pi * wanted_time) ** 2 * np.sin(2 * np.pi * 1000 * wanted_time)
    assert len(at_8k) == SAMPLE_RATE
    assert np.abs(at_8k - wanted).max() < 0.003
    if rate > 10000:
        assert np.abs(resampled(envelope * np.sin(2 * np.pi * 4500 * time), rate)).max() < 0.003


@pytest.mark.parametrize("language", ["fa", "en"])
async def test_parts_meet_in_silence(tmp_path: Path, language: str) -> None:
    """Both laws: each clip is whole packets, begins and ends silent, and has speech soon."""
    library = SpeechLibrary(tmp_path / "speech", SpeechOptions())
    texts = {
        "fa": ["سلام", "سیما", "شما ۱۲۵۰ تومان،", "فرش.", "پست"],
        "en": ["Hello", "Sophie", "you owe 50 dollars,", "thanks.", "stop"],
    }[language]
    parts = [part_of(text, 100, is_last=False) for text in texts]
    async with library.rendered_parts(parts, language) as clips:
        for part, clip in zip(parts, clips, strict=True):
            assert clip.samples % PACKET == 0
            for path, decode in ((clip.alaw, alaw_decode), (clip.ulaw, ulaw_decode)):
                pcm = decode(np.frombuffer(path.read_bytes(), np.uint8)).astype(int)
                assert len(pcm) == clip.samples == round(clip.duration * SAMPLE_RATE)
                loud = np.flatnonzero(np.abs(pcm) > QUIET)
                assert loud[0] < 0.12 * SAMPLE_RATE, "speech begins soon"
                pause = (len(pcm) - loud[-1]) / SAMPLE_RATE
                assert part.pause <= pause < part.pause + 0.14
                assert np.abs(pcm[:4]).max() < 24
                assert np.abs(pcm[-4:]).max() < 24


async def test_joins_have_no_step(tmp_path: Path) -> None:
    """Within a millisecond of a join there is next to silence, so no sample jumps."""
    library = SpeechLibrary(tmp_path / "speech", SpeechOptions())
    parts = [part_of(text, 100, is_last=False) for text in ("سلام", "زیبا", "بدهی شما", "1250")]
    async with library.rendered_parts(parts, "fa") as clips:
        for law, decode in (("alaw", alaw_decode), ("ulaw", ulaw_decode)):
            pcm = [
                decode(np.frombuffer(getattr(clip, law).read_bytes(), np.uint8)).astype(int)
                for clip in clips
            ]
            for before, after in pairwise(pcm):
                around = np.concatenate((before[-8:], after[:8]))
                assert np.abs(around).max() <= QUIET
                assert np.abs(np.diff(around)).max() <= 64


def test_the_fade_removes_a_step_of_the_engine(tmp_path: Path) -> None:
    """An engine that begins and ends at full level gives no click, as it would untrimmed."""
    rate = 22050
    tone = 0.5 * np.cos(2 * np.pi * 440 * np.arange(rate) / rate)
    wav.write(tmp_path / "in.wav", (tone * 32767).astype(np.int16), rate)
    clip = encode(tmp_path / "in.wav", 0.02, tmp_path / "out")
    pcm = alaw_decode(np.frombuffer(clip.alaw.read_bytes(), np.uint8)).astype(int)
    assert abs(pcm[0]) < 24
    assert np.abs(pcm[-160:]).max() < 24
    assert pcm.max() > 15000
