"""Templates: what they are cut into, what they need, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.templates import MAX_PLACEHOLDERS, fill, is_speakable, parse, variables_of
from bitel.errors import InvalidRequestError

ALI = {"name": "علی", "amount": "1200", "title": ""}

words = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=8)
names = st.text("abcxyz09_آابپتنی", min_size=1, max_size=9)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("سلام {name} عزیز", ["سلام", "علی", "عزیز"]),
        ("{name}", ["علی"]),
        ("Hello {name}, you owe {amount}%.", ["Hello", "علی,", "you owe", "1200%."]),
        ("{name} {amount}", ["علی", "1200"]),
        ("{name}{amount}", ["علی1200"]),
        ("at {amount}:{amount}", ["at", "1200:1200"]),
        ("{ name } x", ["علی", "x"]),
        ("no variables", ["no variables"]),
        ("{{{name}}} and {{x}}", ["{علی}", "and {x}"]),
        ("Dear {title} {name}", ["Dear", "علی"]),
        ("Dear {title}, your bill", ["Dear , your bill"]),
        ("one {title} two {title} three", ["one two three"]),
        ("{name} , {amount}", ["علی,", "1200"]),
        ("{name}\nNext line", ["علی.", "Next line"]),
        ("First line\n{name}", ["First line.", "علی"]),
        ("{title} . {name}", ["علی"]),
    ],
)
def test_parts(text: str, parts: list[str]) -> None:
    assert fill(parse(text), ALI) == parts


@pytest.mark.parametrize("text", ["", " ", "{title}", "…{title}!"])
def test_nothing_to_speak_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"recipients\[3\] holds nothing"):
        fill(parse(text), ALI, "recipients[3]")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hello {name", "text has a { at character 7 without its counterpart"),
        ("hello name}", "text has a } at character 11 without its counterpart"),
        ("a {} b", "text has {} at character 3, which is no variable"),
        ("a {x!r} b", "at character 3, which is no variable"),
        ("a {{x} b", "text has a } at character 6"),
        ("a {" + "x" * 65 + "}", "whose name has 65 characters"),
        ("{a} " * (MAX_PLACEHOLDERS + 1), "text has 21 variables"),
    ],
)
def test_malformed_texts_are_refused_with_the_position(text: str, sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse(text)
    assert sentence in str(refused.value)


def test_a_missing_variable_names_the_row() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        fill(parse("a {name} b"), {}, "recipients[17]")
    assert str(refused.value) == "recipients[17] has no variable 'name', which the text needs"


def test_a_long_value_names_the_row() -> None:
    with pytest.raises(InvalidRequestError, match=r"'name' of recipients\[2\] has 201 characters"):
        fill(parse("{name}"), {"name": "a" * 201}, "recipients[2]")


def test_names_of_spreadsheet_columns() -> None:
    template = parse("{نام مشتری} {نام‌خانوادگی} {first-name} {مبلغِ_۲}")
    assert variables_of(template) == ("نام مشتری", "نام‌خانوادگی", "first-name", "مبلغِ_۲")


@given(st.lists(st.one_of(words, st.tuples(names)), min_size=1, max_size=20), st.data())
def test_parts_are_the_text_in_order(items: list[str | tuple[str]], data: st.DataObject) -> None:
    """With each value given, the parts are the filled text; literals next to each other are one."""
    text = " ".join(item if isinstance(item, str) else f"{{{item[0]}}}" for item in items)
    template = parse(text)
    wanted = {item[0] for item in items if not isinstance(item, str)}
    assert set(variables_of(template)) == wanted
    values = {name: data.draw(words) for name in wanted}
    parts = fill(template, values)
    filled = " ".join(item if isinstance(item, str) else values[item[0]] for item in items)
    assert " ".join(parts) == filled
    assert all(map(is_speakable, parts))
    literals = sum(
        isinstance(item, str) and (at == 0 or not isinstance(items[at - 1], str))
        for at, item in enumerate(items)
    )
    assert len(parts) == literals + sum(not isinstance(item, str) for item in items)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(InvalidRequestError):
        template = parse(text)
        parts = fill(template, dict.fromkeys(template.variables, "x"))
        assert all(part and is_speakable(part) for part in parts)


@given(st.text(max_size=40))
def test_doubled_braces_are_literal(text: str) -> None:
    doubled = text.replace("{", "{{").replace("}", "}}")
    template = parse(doubled)
    assert template.variables == ()
    assert template.literal_chars == len(text)


@given(st.text(max_size=30))
def test_values_are_taken_literally(value: str) -> None:
    parts = fill(parse("a {v} b"), {"v": value})
    assert " ".join(parts).split() == f"a {value} b".split() or not is_speakable(value)
