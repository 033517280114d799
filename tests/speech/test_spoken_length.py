"""The bound of a text's duration is not exceeded by what the engine speaks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary
from bitel.speech.parts import Part, batches, part_of
from bitel.speech.spoken_length import longest_seconds

PERSIAN = "اآبپتثجچحخدذرزژسشصضطظعغفقکگلمنوهی"
LATIN = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
USUAL = {
    "fa": [
        "سلام، این یک پیام آزمایشی است.",
        "مشترک گرامی، بدهی شما ۱۲۵۰۰۰ تومان است و تا پایان ماه مهلت دارید.",
        "علی رضایی",
        "1403/05/21",
    ],
    "en": [
        "Hello, your appointment is tomorrow at 10:30.",
        "Your parcel will be delivered on Monday between nine and twelve o'clock.",
        "Alexandra",
    ],
}


def some_texts(chance: random.Random) -> list[str]:
    """Random words of each kind, and mixtures of all."""
    kinds = [PERSIAN, LATIN, LATIN.upper(), DIGITS, PERSIAN + DIGITS, LATIN + ".,!?-/:'@&%+€½é😀"]
    texts = []
    for kind in kinds:
        for _ in range(15):
            sizes = [chance.randint(1, 9) for _ in range(chance.randint(1, 5))]
            words = ("".join(chance.choices(kind, k=size)) for size in sizes)
            texts.append("x " + " ".join(words))
    return texts


@pytest.mark.parametrize("language", ["fa", "en"])
async def test_no_part_is_longer_than_its_bound(tmp_path: Path, language: str) -> None:
    texts = some_texts(random.Random(7)) + USUAL[language]
    library = SpeechLibrary(tmp_path / "speech", SpeechOptions())
    bounds = {part_of(text, 1000, is_last=False): longest_seconds(text, language) for text in texts}
    durations: dict[Part, float] = {}
    for batch in batches(list(bounds)):
        async with library.rendered_parts(batch, language) as clips:
            durations |= zip(batch, (clip.duration for clip in clips), strict=True)
    assert {p.words: (s, bounds[p]) for p, s in durations.items() if s > bounds[p]} == {}
    usual = [part_of(text, 1000, is_last=False) for text in USUAL[language]]
    # Money is reserved for it, so it should not be far too much.
    assert sum(bounds[part] for part in usual) < 4.5 * sum(durations[part] for part in usual)


def test_the_pace_counts() -> None:
    slow = longest_seconds("hello", "en", words_per_minute=75)
    assert slow > 1.5 * longest_seconds("hello", "en")
