"""Menus: what follows each key, and how long a call may take with any keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.menus import (
    CALL_AUDIO,
    CONFIRMATION,
    Collect,
    KeyAction,
    Menu,
    MenuRun,
    MenuStep,
    Playback,
    counted_keys,
    from_json,
    longest_seconds,
    request_menu,
    to_json,
)

VOTE = Menu(
    {
        "1": KeyAction("thanks", "yes"),
        "2": KeyAction(report="no"),
        "3": KeyAction("which", menu=Menu({"1": KeyAction("a"), "9": KeyAction(then="repeat")})),
        "8": KeyAction(opt_out=True),
        "9": KeyAction(then="repeat"),
        "0": KeyAction("bye", opt_out=True),
    },
    wait=4,
    attempts=3,
)


def test_the_audio_is_repeated_while_no_key_is_pressed() -> None:
    assert MenuRun(VOTE).begin() == (CALL_AUDIO, 4.0) * 3


def test_a_key_plays_its_audio_and_then_the_call_ends() -> None:
    run = MenuRun(VOTE)
    assert run.press("7") is None
    assert run.press("1") == MenuStep(("thanks",))
    assert run.reports == ["yes"]
    assert run.press("2") is None, "it is over"
    assert run.reports == ["yes"]


def test_a_key_without_audio_ends_the_call() -> None:
    assert MenuRun(VOTE).press("2") == MenuStep(())


def test_a_menu_below_has_its_own_keys() -> None:
    run = MenuRun(VOTE)
    assert run.press("3") == MenuStep(("which", 5.0) * 2)
    assert run.press("2") is None
    assert run.press("9") == MenuStep(("which", 5.0))
    assert run.press("1") == MenuStep(("a",))


def test_repetitions_are_as_many_as_attempts_and_then_the_call_ends() -> None:
    run = MenuRun(VOTE)
    for _ in range(3):
        assert run.press("9") == MenuStep((CALL_AUDIO, 4.0))
    assert run.press("9") == MenuStep(())
    assert run.press("1") is None


def test_an_opt_out_is_confirmed() -> None:
    run = MenuRun(VOTE)
    assert run.press("8") == MenuStep((CONFIRMATION,), opt_out=True)
    assert run.has_opted_out
    assert MenuRun(VOTE).press("0") == MenuStep(("bye",), opt_out=True)


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ("12", [(6.0,), (6.0,)]),
        ("1234", [(6.0,)] * 3 + [()]),
        ("12#3", [(6.0,), (6.0,), (), None]),
        ("#1", [None, (6.0,)]),
        ("1*A2", [(6.0,), None, None, (6.0,)]),
    ],
)
def test_digits_are_collected(keys: str, steps: list[Playback | None]) -> None:
    run = MenuRun(Menu(collect=Collect(4, "#"), wait=6))
    found = [run.press(key) for key in keys]
    assert [None if step is None else step.play for step in found] == steps


IDS = st.sampled_from(["a", "b", "c"])
KEYS = st.sampled_from("0123456789*#")


def menus(below: st.SearchStrategy[Menu | None]) -> st.SearchStrategy[Menu]:
    actions = st.builds(
        KeyAction,
        st.none() | IDS,
        st.none() | st.sampled_from(["yes", "no"]),
        st.booleans(),
        st.sampled_from(["end", "repeat"]),
        below,
    )
    rest = {"wait": st.integers(1, 60), "attempts": st.integers(1, 5)}
    collecting = st.builds(Collect, st.integers(1, 20), st.sampled_from(["", "#", "*"]))
    return st.builds(Menu, st.dictionaries(KEYS, actions), **rest) | st.builds(
        Menu, collect=collecting, **rest
    )


MENUS = menus(st.none() | menus(st.none()))
SECONDS = {"a": 1.5, "b": 7.0, "c": 0.2, CONFIRMATION: 0.4}


@given(MENUS)
def test_a_menu_is_stored_and_read(menu: Menu) -> None:
    assert from_json(to_json(menu)) == menu
    one, other = request_menu("p", menu), request_menu("q", menu)
    assert one == request_menu("p", from_json(to_json(menu)))
    assert one.id != other.id
    assert len(one.id) == 32
    assert one.recordings <= {"a", "b", "c"}


@given(MENUS, st.floats(0, 100), st.lists(st.tuples(KEYS, st.floats(0, 1)), max_size=40))
def test_no_keys_make_a_call_longer_than_its_longest(
    menu: Menu, prompt: float, keys: list[tuple[str, float]]
) -> None:
    """The callee presses each key when a part of what is played has been heard."""
    lengths = {**SECONDS, CALL_AUDIO: prompt}

    def length(play: Playback) -> float:
        return sum(each if isinstance(each, float) else lengths[each] for each in play)

    run = MenuRun(menu)
    left, passed = length(run.begin()), 0.0
    for key, part in keys:
        passed += part * left
        step = run.press(key)
        left = left * (1 - part) if step is None else length(step.play)
    assert passed + left <= longest_seconds(menu, prompt, SECONDS) + 1e-6


def test_words_are_counted_in_place_of_keys() -> None:
    assert counted_keys("11#", ()) == {"1", "#"}
    assert counted_keys("12", ("yes", "yes")) == {"yes"}
