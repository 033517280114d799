"""Cleans a client's text into plain words on one line, without commands to a speech engine.

espeak-ng takes commands that begin with U+0001, phonemes in `[[…]]` where a flag allows them, and
uses some private characters itself; Piper always takes `[[…]]` as phonemes, and each line as a
text of its own. `plain` removes all that. espeak-ng interprets markup in angle brackets only where
a flag says so, which the worker never sets.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from bitel.errors import InvalidRequestError

_LINE_BREAK_CHARACTERS: Final = "\n\r\u2028\u2029"
_ALLOWED_CONTROLS: Final = "\t" + _LINE_BREAK_CHARACTERS
# Needed by Persian spelling and joined emoji; other format characters only affect drawing.
_JOINERS: Final = "\u200c\u200d"

# An English voice is silent on these digits; a Persian one reads both kinds alike.
_DIGITS: Final = str.maketrans("۰۱۲۳۴۵۶۷۸۹٠١٢٣٤٥٦٧٨٩", "0123456789" * 2)

_LINE_BREAK: Final = re.compile(f"[{_LINE_BREAK_CHARACTERS}]+")
_DECIMAL_SIGN: Final = re.compile(r"(?<=\d)٫(?=\d)")
_THOUSANDS_SIGN: Final = re.compile(r"(?<=\d)٬(?=\d)")
# espeak-ng 1.52 writes past the end of a buffer at a few hundred characters without a space, as in
# A.B.A.B.… .
_LONG_WORD: Final = re.compile(r"\S{40}(?=\S)")
_BRACKETS: Final = re.compile(r"\[{2,}|\]{2,}")


def plain(text: str, max_chars: int) -> str:
    """Return `text` as an engine can take it; equal words give equal results.

    Persian and Arabic digits become 0 to 9, the end of a line becomes that of a sentence, and words
    of more than 40 characters are split. Raises InvalidRequestError, naming `text`, where it is
    longer than `max_chars`, holds control characters or half a surrogate pair, or has no letter,
    digit or symbol to speak.
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
    """Return `text`, 1 to `max_digits` decimal digits of any script, as the digits 0 to 9.

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
    """Return a line with a pause at its end, unless its own punctuation makes one."""
    return line if unicodedata.category(line[-1])[0] == "P" else f"{line}."
