"""Templates: texts with `{variables}`, which become the parts of each recipient's own text.

A part is spoken by itself, and equal parts of all recipients are spoken once. So a text is cut at
the white space around each word that has a variable: `Dear {name}, call {phone}.` has the parts
`Dear`, `Ali,`, `call` and `123.`. A word is not cut, since its parts would sound wrong alone, as in
`{hour}:{minute}` or `{amount}%`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bitel.errors import InvalidRequestError

MAX_PLACEHOLDERS: Final = 20
"""Places of variables in one text, so a call plays at most 41 parts."""
MAX_NAME: Final = 64
"""Characters of a variable's name."""
MAX_VALUE: Final = 200
"""Characters of a variable's value."""

# Columns of spreadsheets have spaces within their names, Persian words joiners.
_WITHIN_NAME: Final = frozenset("_- \u200c")
_TOKEN: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SPACES: Final = re.compile(r"(\s+)")


class MissingVariableError(InvalidRequestError):
    """A recipient has no value for a variable of the text."""


@dataclass(frozen=True, slots=True)
class Variable:
    """The place of a variable's value."""

    name: str


Word = tuple[str | Variable, ...]
"""A word with at least one variable."""


@dataclass(frozen=True, slots=True)
class Template:
    """A text that was parsed: literal stretches, and words with variables, in order."""

    pieces: tuple[str | Word, ...]
    variables: tuple[str, ...]
    """The names of its variables, each once, in order of their first place."""
    literal_chars: int
    """The length of the text without its variables."""


def parse(text: str) -> Template:
    """Parse a text in which `{name}` is a variable, and `{{` and `}}` are braces.

    Names have letters, digits, `_`, `-` and inner spaces. Raises InvalidRequestError, naming `text`
    and the position, from 1.
    """
    items: list[str | Variable] = []
    end = 0
    for token in _TOKEN.finditer(text):
        items.append(text[end : token.start()])
        end = token.end()
        if token[1] is not None:
            items.append(Variable(_name(token[1], token.start() + 1)))
        elif len(token[0]) == 2:
            items.append(token[0][0])
        else:
            raise InvalidRequestError(
                f"text has a {token[0]} at character {token.start() + 1} without its counterpart; "
                f"a variable is written as {{name}}, and a brace itself as {token[0] * 2}"
            )
    items.append(text[end:])
    variables = [item.name for item in items if isinstance(item, Variable)]
    if len(variables) > MAX_PLACEHOLDERS:
        raise InvalidRequestError(
            f"text has {len(variables)} variables; at most {MAX_PLACEHOLDERS} may stand in it"
        )
    return Template(
        tuple(_pieces(items)),
        tuple(dict.fromkeys(variables)),
        sum(len(item) for item in items if isinstance(item, str)),
    )


def variables_of(template: Template) -> tuple[str, ...]:
    """The names of the template's variables, each once."""
    return template.variables


def fill(template: Template, variables: Mapping[str, str], row: str = "recipient") -> Sequence[str]:
    """The parts of the text with these values, in order; each has something to speak.

    Values are taken literally, braces included. A word whose values are all empty adds only its
    punctuation. `row` names the recipient in errors, as in `recipients[17]`. Raises
    MissingVariableError, and InvalidRequestError where nothing can be spoken.
    """
    parts: list[str] = []
    pending = ""  # literal stretches that follow each other
    for piece in template.pieces:
        if isinstance(piece, str):
            pending = f"{pending} {piece}" if pending else piece
            continue
        word, has_value = _fill_word(piece, variables, row)
        if has_value and (word[0].isalnum() or is_speakable(word)):
            if pending:
                _add_literal(parts, pending)
                pending = ""
            parts.append(word)
        elif word:
            pending = f"{pending} {word}" if pending else word
    if pending:
        _add_literal(parts, pending)
    if not parts:
        raise InvalidRequestError(f"the text of {row} holds nothing that can be spoken")
    return parts


def _fill_word(word: Word, variables: Mapping[str, str], row: str) -> tuple[str, bool]:
    """The word with these values, and whether one of them is not empty."""
    filled = ""
    has_value = False
    for item in word:
        if isinstance(item, str):
            filled += item
            continue
        value = variables.get(item.name)
        if value is None:
            raise MissingVariableError(f"{row} has no variable {item.name!r}, which the text needs")
        if len(value) > MAX_VALUE:
            raise InvalidRequestError(
                f"the variable {item.name!r} of {row} has {len(value)} characters; at most "
                f"{MAX_VALUE} can be spoken"
            )
        value = value.strip()
        has_value = has_value or bool(value)
        filled += value
    return filled.strip(), has_value


def _add_literal(parts: list[str], literal: str) -> None:
    """Add a part, or only its punctuation to the part before it."""
    if literal[0].isalnum() or is_speakable(literal):
        parts.append(literal)
    elif parts and not ends_sentence_or_clause(parts[-1]):
        parts[-1] += literal


def is_speakable(text: str) -> bool:
    """Whether the text has a letter, a digit or a symbol."""
    return any(
        character.isalnum() or unicodedata.category(character)[0] in "LNS" for character in text
    )


def ends_sentence_or_clause(text: str) -> bool:
    """Whether the text ends with punctuation."""
    return unicodedata.category(text[-1])[0] == "P"


def _name(written: str, position: int) -> str:
    name = written.strip()
    if not name or not all(map(_may_be_in_name, name)) or not (name[0].isalnum() or name[0] == "_"):
        raise InvalidRequestError(
            f"text has {{{written[:MAX_NAME]}}} at character {position}, which is no variable; a "
            "name has letters, digits and _, as in {name}; a brace itself is written twice"
        )
    if len(name) > MAX_NAME:
        raise InvalidRequestError(
            f"text has a variable at character {position} whose name has {len(name)} characters; "
            f"at most {MAX_NAME} are taken"
        )
    return name


def _may_be_in_name(character: str) -> bool:
    return (
        character.isalnum()
        or character in _WITHIN_NAME
        or unicodedata.category(character)[0] == "M"  # vowel signs
    )


def _pieces(items: Sequence[str | Variable]) -> list[str | Word]:
    """Cut the text at the white space around words with variables."""
    pieces: list[str | Word] = []
    word: list[str | Variable] = []

    def end_word(spaces: str) -> None:
        """Add the word to the literal before it, or as a piece of its own."""
        if any(isinstance(item, Variable) for item in word):
            last = word[-1]
            if "\n" in spaces and not (isinstance(last, str) and ends_sentence_or_clause(last)):
                word.append(".")  # the end of a line is that of a sentence
            pieces.append(tuple(word))
        elif literal := "".join(item for item in word if isinstance(item, str)):
            if pieces and isinstance(pieces[-1], str):
                pieces[-1] += literal + spaces
            else:
                pieces.append(literal + spaces)
        word.clear()

    for item in items:
        if isinstance(item, Variable):
            word.append(item)
            continue
        for at, text in enumerate(_SPACES.split(item)):
            if at % 2:
                end_word(text)
            elif text:
                word.append(text)
    end_word("")
    return [_without_ends(piece) if isinstance(piece, str) else piece for piece in pieces]


def _without_ends(literal: str) -> str:
    """A literal without white space at its ends, but ended as a sentence by the end of a line."""
    bare = literal.strip()
    line_ends = "\n" in literal[len(literal.rstrip()) :]
    return bare + "." if bare and line_ends and not ends_sentence_or_clause(bare) else bare
