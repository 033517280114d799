"""Sanitizes a client's text to plain words on one line, without commands to the engine.

espeak-ng interprets commands that begin with U+0001, phonemes in `[[…]]` if a flag is set, and some
private characters; Piper interprets `[[…]]` as phonemes and each line as a text. `plain` removes
all of these. espeak-ng interprets markup in angle brackets only with a flag, which the worker does
not set.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from bitel.errors import InvalidRequestError

_LINE_BREAK_CHARACTERS: Final = "\n\r\u2028\u2029"
_ALLOWED_CONTROLS: Final = "\t" + _LINE_BREAK_CHARACTERS
# Persian spelling and emoji need these two; other format characters only affect display.
_JOINERS: Final = "\u200c\u200d"

# English voices do not speak these digits; Persian ones speak both kinds alike.
_DIGITS: Final = str.maketrans("۰۱۲۳۴۵۶۷۸۹٠١٢٣٤٥٦٧٨٩", "0123456789" * 2)

_LINE_BREAK: Final = re.compile(f"[{_LINE_BREAK_CHARACTERS}]+")
_DECIMAL_SIGN: Final = re.compile(r"(?<=\d)٫(?=\d)")
_THOUSANDS_SIGN: Final = re.compile(r"(?<=\d)٬(?=\d)")
# espeak-ng 1.52 has a buffer overflow at a few hundred characters without a space (A.B.A.B.…).
_LONG_WORD: Final = re.compile(r"\S{40}(?=\S)")
_BRACKETS: Final = re.compile(r"\[{2,}|\]{2,}")


def plain(text: str, max_chars: int) -> str:
    """Return `text` in a normalized form that can be passed to an engine.

    Persian and Arabic digits become 0 to 9, a line end ends the sentence, and words of more than 40
    characters are split. Raises InvalidRequestError, naming `text`, if it is longer than
    `max_chars`, has control characters or lone surrogates, or no letter, digit or symbol.
    """
    if len(text) > max_chars:
        raise InvalidRequestError(
            f"text has {len(text)} characters; at most {max_chars} can be spoken."
        )
    words = "".join(map(_spoken_character, text)).translate(_DIGITS)
    lines = (" ".join(line.split()) for line in _LINE_BREAK.split(words))
    words = " ".join(map(_sentence, filter(None, lines)))
    words = _THOUSANDS_SIGN.sub(",", _DECIMAL_SIGN.sub(".", words))
    words = _BRACKETS.sub(lambda brackets: brackets[0][0], words)
    words = _LONG_WORD.sub(r"\g<0> ", words)
    if not any(unicodedata.category(character)[0] in "LNS" for character in words):
        raise InvalidRequestError("text holds nothing that can be spoken; write at least a word.")
    return words


def digits(text: str, max_digits: int) -> str:
    """Return 1 to `max_digits` decimal digits of any script as ASCII digits.

    Raises InvalidRequestError, naming `text`.
    """
    values = [unicodedata.decimal(character, None) for character in text[: max_digits + 1]]
    if not 1 <= len(text) <= max_digits or None in values:
        raise InvalidRequestError(f"text must be 1 to {max_digits} digits, as in 4071.")
    return "".join(map(str, values))


def _spoken_character(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs" or (category == "Cc" and character not in _ALLOWED_CONTROLS):
        raise InvalidRequestError(
            f"text holds the control character U+{ord(character):04X}; write plain words."
        )
    if category == "Cf":
        return character if character in _JOINERS else ""
    return " " if category in ("Cn", "Co") else character


def _sentence(line: str) -> str:
    """Return a line that ends in punctuation, for a pause."""
    return line if unicodedata.category(line[-1])[0] == "P" else f"{line}."
