"""A code read out: each digit told from every other, in order and as far apart as meant."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from bitel.errors import InvalidRequestError
from bitel.g711 import Codes, Pcm, alaw_decode, ulaw_decode
from bitel.recordings.decode import decode
from bitel.recordings.limits import DecodeLimits
from bitel.recordings.storage import Law
from bitel.speech.digits import level_db, levelled, trimmed
from bitel.speech.engines import SpeechOptions, engine_for, render
from bitel.speech.library import SpeechLibrary
from tests.speech.recogniser import RATE, Signal, distance, name, pieces

DIGITS = "0123456789"
OPTIONS = SpeechOptions()
DECODERS: dict[Law, Callable[[Codes], Pcm]] = {"PCMA": alaw_decode, "PCMU": ulaw_decode}

# Each test takes both languages, and what they share is rendered once for all.
pytestmark = pytest.mark.parametrize("language", ["fa", "en"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speech")


def heard(clips: Sequence[Path], law: Law = "PCMA") -> Signal:
    """What a telephone makes of a playlist, of full scale 1."""
    codes = np.concatenate([np.fromfile(clip, dtype=np.uint8) for clip in clips])
    return DECODERS[law](codes) / 32768


def playlist(
    folder: Path,
    text: str,
    language: str,
    law: Law = "PCMA",
    repeat: int = 2,
    intro: Path | None = None,
) -> list[Path]:
    library = SpeechLibrary(folder, OPTIONS)
    return asyncio.run(library.digit_clips(text, language, law, repeat, intro))


def clip(folder: Path, digit: str, language: str, law: Law = "PCMA") -> Signal:
    return heard([playlist(folder, digit, language, law, 1)[1]], law)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Signal]]:
    """Each digit as its voice says it, cut by ear: by another way than the clips are made."""

    async def spoken(language: str) -> dict[str, Signal]:
        into = tmp_path_factory.mktemp("templates")
        paths = await render(DIGITS, engine_for(language, OPTIONS), into, OPTIONS)
        with wave.open(str(into / "all.wav"), "wb") as joined:
            for path in paths:
                with wave.open(str(path), "rb") as one:
                    if path == paths[0]:
                        joined.setparams(one.getparams())
                    joined.writeframes(one.readframes(one.getnframes()) + bytes(one.getframerate()))
        decoded = await decode(into / "all.wav", into, DecodeLimits())
        words = [piece.samples for piece in pieces(heard([decoded.alaw]))]
        return dict(zip(DIGITS, words, strict=True))

    return {language: asyncio.run(spoken(language)) for language in ("fa", "en")}


def test_no_digit_sounds_like_another(folder: Path, language: str) -> None:
    clips = {digit: clip(folder, digit, language) for digit in DIGITS}
    same = max(distance(clips[digit], clip(folder, digit, language, "PCMU")) for digit in DIGITS)
    others = min(distance(clips[one], clips[other]) for one, other in combinations(DIGITS, 2))
    assert others > 3 * same


@pytest.mark.parametrize("law", ["PCMA", "PCMU"])
def test_a_code_is_understood(
    folder: Path, templates: dict[str, dict[str, Signal]], language: str, law: Law
) -> None:
    # Somewhere else, on a noisy line, at another level: only the words stay the same.
    line = np.random.default_rng(1).normal(0, 0.001, 37) / 2
    audio = np.concatenate([line, heard(playlist(folder, "4071", language, law, 2), law) * 0.6])
    audio += np.random.default_rng(2).normal(0, 0.001, len(audio))
    found = pieces(audio)
    words = [name(piece.samples, templates[language]) for piece in found]
    assert words == list("40714071")
    gaps = [later.start - earlier.end for earlier, later in pairwise(found)]
    assert 0.9 < gaps[3] < 1.2
    assert all(0.28 < gap < 0.46 for gap in gaps[:3] + gaps[4:])
    assert found[0].start > 0.25
    assert len(audio) / RATE - found[-1].end > 0.25


def test_every_digit_is_understood(
    folder: Path, templates: dict[str, dict[str, Signal]], language: str
) -> None:
    found = pieces(heard(playlist(folder, "9876543210", language, repeat=1)))
    assert [name(piece.samples, templates[language]) for piece in found] == list("9876543210")


def test_a_swapped_digit_is_noticed(
    folder: Path, templates: dict[str, dict[str, Signal]], language: str
) -> None:
    """The ear itself: it must be able to say no."""
    clips = playlist(folder, "17", language, repeat=1)
    swapped = [clips[0], clips[3], clips[2], clips[1], clips[4]]
    words = [name(piece.samples, templates[language]) for piece in pieces(heard(swapped))]
    assert words == ["7", "1"]


def test_all_digits_are_equally_loud_and_none_is_clipped(folder: Path, language: str) -> None:
    for law in DECODERS:
        clips = [clip(folder, digit, language, law) for digit in DIGITS]
        levels = [level_db(samples, RATE) for samples in clips]
        assert max(levels) - min(levels) < 1.5
        assert np.mean(levels) == pytest.approx(-20, abs=1)
        assert max(float(np.abs(samples).max()) for samples in clips) < 0.95


def test_a_clip_begins_and_ends_with_its_word(folder: Path, language: str) -> None:
    for digit in DIGITS:
        samples = clip(folder, digit, language)
        assert len(samples) % 160 == 0
        assert 0.15 < len(samples) / RATE < 1.0
        loud = np.flatnonzero(np.abs(samples) > 10 ** (-45 / 20))
        assert loud[0] < 0.045 * RATE
        assert len(samples) - loud[-1] < 0.075 * RATE


def test_the_intro_comes_first_and_once(folder: Path, language: str, tmp_path: Path) -> None:
    intro = tmp_path / "intro.alaw"
    intro.write_bytes(bytes([0x2A, 0xAA]) * 4000)
    clips = playlist(folder, "40", language, repeat=3, intro=intro)
    assert clips[0] == intro
    assert clips.count(intro) == 1
    assert clips[1:] == playlist(folder, "40", language, repeat=3)


@pytest.mark.parametrize("text", ["۴۰۷۱", "٤٠٧١", "４０７１", "4۰٧1"])
def test_digits_of_other_scripts(folder: Path, language: str, text: str) -> None:
    assert playlist(folder, text, language) == playlist(folder, "4071", language)


@pytest.mark.parametrize(
    "text", ["", " ", "12a", "1 2", "-1", "½", "²", "Ⅷ", "1" * 11, "1\n", "\ud800"]
)
def test_what_is_no_code(folder: Path, language: str, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^text must be 1 to 10 digits"):
        playlist(folder, text, language)


@pytest.mark.parametrize("repeat", [0, -1, 11])
def test_how_often(folder: Path, language: str, repeat: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"^repeatCount must be 1 to 10"):
        playlist(folder, "1", language, repeat=repeat)


def test_a_set_is_rendered_once(tmp_path: Path, language: str) -> None:
    async def read_out() -> SpeechLibrary:
        library = SpeechLibrary(tmp_path, OPTIONS)
        codes = [library.digit_clips(str(code), language, "PCMU") for code in range(10, 30)]
        await asyncio.gather(*codes)
        return library

    assert asyncio.run(read_out()).rendered == 1
    # Also by the next process.
    assert asyncio.run(read_out()).rendered == 0
    assert not list(tmp_path.glob(".work-*"))


def test_trimming_and_levelling_do_what_they_say(language: str) -> None:
    rate = {"fa": 16000, "en": 22050}[language]
    tone = 0.01 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    padded = np.concatenate([np.zeros(rate), tone, np.zeros(2 * rate)])
    cut = trimmed(padded, rate)
    assert len(cut) / rate == pytest.approx(1.04, abs=0.021)
    assert level_db(levelled(tone, rate), rate) == pytest.approx(-20, abs=0.01)
    click = np.zeros(rate)
    click[rate // 2] = 0.1
    assert np.abs(levelled(click, rate)).max() == pytest.approx(0.89)
    with pytest.raises(ValueError, match="silent"):
        trimmed(np.zeros(rate), rate)
