"""Upper bounds of the duration of spoken texts, from the text alone.

Calls with texts of their own are priced when they are placed, before their texts are spoken. The
rates are the highest that espeak-ng 1.52 took at 150 words a minute for random texts of each kind,
with voices `fa` and `en`, silence at both ends left out; usual texts take a third to a half of the
bound. Seconds a character:

| characters | measured | bound |
|---|---|---|
| lower-case Latin vowels | 0.08 | 0.10 |
| other lower-case Latin letters (most: words without vowels) | 0.22 | 0.23 |
| upper-case Latin letters (most: WWW) | 0.42 | 0.45 |
| Persian letters with a voice that reads them | 0.17 | 0.20 |
| digits (most: 19 of them in one number) | 0.78 | 0.80 |
| a space, from which a word begins | 0.18 | 0.20 |
| punctuation that makes a pause | 0.40 | 0.50 |
| punctuation within a word, which is read out | 1.15 | 1.30 |
| other symbols of ASCII | 1.10 | 1.20 |
| other characters, by their names (most: an emoji) | 2.02 | 2.30 |
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import lru_cache
from typing import Final

MARGIN: Final = 1.1
"""Factor on top of the measured rates, for other voices."""
BASE: Final = 0.6
"""Seconds of any part, its pause included."""

_PERSIAN: Final = "اآأإبپتثجچحخدذرزژسشصضطظعغفقکكگلمنوؤهیيىئءة"
_READ_PERSIAN: Final = frozenset({"fa", "ar", "ur"})
"""Languages whose voices read Persian letters; others spell them."""
_PAUSES: Final = ".,;:!?،؛؟…"
_WITHIN_WORD: Final = re.compile(r"(?<=\S)[^\w\s](?=\S)")
_READ_OUT: Final = 0.8
"""Seconds more for punctuation within a word."""


class _Rates(dict[str, float]):
    """Seconds by character."""

    def __missing__(self, character: str) -> float:
        category = unicodedata.category(character)
        if character.isspace() or category in ("Cf", "Cc"):
            rate = 0.2
        elif category[0] == "P":
            rate = 0.5
        elif category[0] == "N":
            rate = 0.8 if character.isdecimal() else 2.3
        else:
            rate = 2.3
        self[character] = rate
        return rate


@lru_cache(maxsize=2)
def _rates(reads_persian: bool) -> _Rates:
    rates = _Rates()
    rates |= dict.fromkeys(string.ascii_lowercase, 0.23) | dict.fromkeys("aeiou", 0.1)
    rates |= dict.fromkeys(string.ascii_uppercase, 0.45)
    rates |= dict.fromkeys(string.punctuation, 1.2)
    rates |= dict.fromkeys(_PAUSES, 0.5)
    if reads_persian:
        rates |= dict.fromkeys(_PERSIAN, 0.2)
    return rates


def longest_seconds(text: str, language: str, words_per_minute: int = 150) -> float:
    """An upper bound of the seconds that a part of a text takes in `language`, its pause included.

    It holds for espeak-ng; Piper's voices speak at a similar pace.
    """
    rates = _rates(language.partition("-")[0] in _READ_PERSIAN)
    seconds = sum(map(rates.__getitem__, text))
    if not text.replace(" ", "").isalnum():
        seconds += _READ_OUT * len(_WITHIN_WORD.findall(text))
    return BASE + seconds * MARGIN * 150 / words_per_minute
