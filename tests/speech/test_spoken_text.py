"""What is left of a text before an engine gets it: words, on one line, and no commands."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.errors import InvalidRequestError
from bitel.speech.spoken_text import plain

SURROGATES = st.characters(categories=["Cs"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("سلام", "سلام."),
        ("Hello, world!", "Hello, world!"),
        ("کد ۱۲۳۴ و ٥٦", "کد 1234 و 56."),
        ("۲٫۵ و ۱٬۰۰۰", "2.5 و 1,000."),
        ("می‌روم", "می‌روم."),
        ("a\r\n\r\n b,\n\tc?", "a. b, c?"),
        ("two\u2028lines", "two. lines."),
        ("\u202bright\u202c \ufeffto left\u200e", "right to left."),
        ("a\ue03cb\ufffe", "a b."),
        ("[[h@l'oU]] [[[x]]]", "[h@l'oU] [x]"),
        ("<b>x</b> &amp;", "<b>x</b> &amp;"),
        ("A.B." * 11, "A.B." * 10 + " A.B."),
        ("+", "+."),
        ("😀", "😀."),
    ],
)
def test_words(text: str, words: str) -> None:
    assert plain(text, 100) == words


@pytest.mark.parametrize("text", ["", " ", "\n", "...", "!?", "\u200c", "\ue000", "\u0651"])
def test_nothing_to_speak(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^text holds nothing that can be spoken"):
        plain(text, 100)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a\x00b", r"U\+0000"),
        ("\x01+50Shello", r"U\+0001"),
        ("[\x02h@l'oU]]", r"U\+0002"),
        ("\x1b[31m", r"U\+001B"),
        ("a\x85", r"U\+0085"),
        ("a\ud83d", r"U\+D83D"),
    ],
)
def test_control_characters(text: str, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^text holds the control character {named};"):
        plain(text, 100)


def test_length() -> None:
    assert plain("a" * 100, 100)
    with pytest.raises(InvalidRequestError, match=r"^text has 101 characters; at most 100"):
        plain("a" * 101, 100)


@given(st.text(max_size=60) | st.text("[]\n\t <>&;۱٫٬\u200c\u202e\ue000a", max_size=60))
def test_any_text_becomes_one_line_of_words_or_is_refused(text: str) -> None:
    try:
        words = plain(text, 50)
    except InvalidRequestError:
        return
    assert words.encode()
    assert words == words.strip()
    assert not any(unicodedata.category(character) in ("Cc", "Co", "Cs") for character in words)
    assert "[[" not in words
    assert "]]" not in words
    assert plain(words, 1000) == words
