"""Menus: what the keys do that a callee presses while, or after, a call plays its audio.

A menu is a value; `MenuRun` follows one call through it. It knows no audio and no clock: it answers
each key with what is to be played from then on, as a list of recordings and silences. The end of
what is played is the end of the call. So a prompt that waits for a key is a silence after it, and
a prompt that is repeated is in the list several times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

KEYS: Final = "0123456789*#"
DEFAULT_WAIT: Final = 5
"""Seconds."""
DEFAULT_ATTEMPTS: Final = 2
MOST_DIGITS: Final = 20

CALL_AUDIO: Final = ""
"""In place of a recording: the call's own recording, digits and text."""
CONFIRMATION: Final = "*confirmation"
"""In place of a recording: two tones, which confirm what has no recording of its own."""

Playback = tuple[str | float, ...]
"""What is played: ids of recordings, or one of the above, and seconds of silence."""

Then = Literal["end", "repeat"]


@dataclass(frozen=True, slots=True)
class RequestMenu:
    """The menu of a request's calls, as it is stored."""

    id: str
    """A hash of the other fields."""
    project_id: str
    body: str
    """The menu, as `to_json` writes it."""
    recordings: frozenset[str]
    """Those that it may play."""


def request_menu(project_id: str, menu: Menu) -> RequestMenu:
    """The menu as it is stored for a project."""
    body = to_json(menu)
    digest = hashlib.sha256(f"{project_id}\n{body}".encode()).hexdigest()
    return RequestMenu(digest[:32], project_id, body, frozenset(menu.recordings()))


@dataclass(frozen=True, slots=True)
class Collect:
    """Digits that are collected, in place of keys with actions."""

    digits: int
    """How many, 1 to `MOST_DIGITS`."""
    end: str = ""
    """The key that ends them earlier; empty: none does."""


@dataclass(frozen=True, slots=True)
class KeyAction:
    """What one key does."""

    audio: str | None = None
    """The recording that is played; None: none."""
    report: str | None = None
    """The word that is reported, and counted in the campaign in place of the key."""
    opt_out: bool = False
    """Whether the number is added to the project's do-not-call list."""
    then: Then = "end"
    menu: Menu | None = None
    """The menu that follows, with `audio` for its prompt."""


@dataclass(frozen=True, slots=True)
class Menu:
    """The keys of a call, while and after its prompt is played."""

    keys: Mapping[str, KeyAction] = field(default_factory=lambda: MappingProxyType({}))
    collect: Collect | None = None
    wait: int = DEFAULT_WAIT
    """Seconds after the prompt in which a key is waited for."""
    attempts: int = DEFAULT_ATTEMPTS
    """How often the prompt is played while no key is pressed."""

    def waits(self) -> set[int]:
        """The seconds for which it, or a menu below, waits for a key."""
        below = [each.menu.waits() for each in self.keys.values() if each.menu is not None]
        return {self.wait}.union(*below)

    def recordings(self) -> Iterator[str]:
        """The recordings that it may play, in any order; some may be named twice."""
        for action in self.keys.values():
            if action.audio is not None:
                yield action.audio
            if action.menu is not None:
                yield from action.menu.recordings()


def longest_seconds(menu: Menu, prompt: float, seconds_of: Mapping[str, float]) -> float:
    """The longest that a call with this menu may play and wait, whatever keys are pressed.

    Args:
        prompt: the seconds of its prompt.
        seconds_of: the seconds of each recording, and of `CONFIRMATION`.
    """
    listening = menu.attempts * (prompt + menu.wait)
    if any(action.then == "repeat" for action in menu.keys.values()):
        # Each repetition is one prompt more, and there are as many as attempts.
        listening *= 2
    if menu.collect is not None:
        # Each digit but the last is waited for anew.
        return listening + menu.collect.digits * menu.wait
    return listening + max(
        (_longest_of(action, seconds_of) for action in menu.keys.values()), default=0.0
    )


def _longest_of(action: KeyAction, seconds_of: Mapping[str, float]) -> float:
    seconds = 0.0 if action.audio is None else seconds_of[action.audio]
    if action.menu is not None:
        return longest_seconds(action.menu, seconds, seconds_of)
    if action.opt_out and action.audio is None:
        return seconds_of[CONFIRMATION]
    return seconds


@dataclass(frozen=True, slots=True)
class MenuStep:
    """What follows a key."""

    play: Playback
    """From now on, in place of what is played."""
    opt_out: bool = False
    """It is played only once the number is on the do-not-call list."""


class MenuRun:
    """The way of one call through its menu."""

    def __init__(self, menu: Menu) -> None:
        self._menu = menu
        self._prompt: str | None = CALL_AUDIO
        self._repeats = 0
        self._digits = ""
        self._is_over = False
        self.reports: list[str] = []
        """The words that were reported."""
        self.has_opted_out = False

    @property
    def silence(self) -> Playback:
        """The silence in which a key is waited for."""
        return (float(self._menu.wait),)

    def begin(self) -> Playback:
        """What is played from the answer on."""
        return self._listen(self._menu.attempts)

    def press(self, key: str) -> MenuStep | None:
        """What follows a key, of `KEYS` or ABCD; None: nothing changes."""
        if self._is_over:
            return None
        if self._menu.collect is not None:
            return self._collect(key, self._menu.collect)
        action = self._menu.keys.get(key)
        if action is None:
            return None
        if action.report is not None:
            self.reports.append(action.report)
        self.has_opted_out = self.has_opted_out or action.opt_out
        return MenuStep(self._follow(action), action.opt_out)

    def _follow(self, action: KeyAction) -> Playback:
        if action.menu is not None:
            self._menu, self._prompt, self._repeats = action.menu, action.audio, 0
            return self._listen(self._menu.attempts)
        spoken: Playback = () if action.audio is None else (action.audio,)
        if action.opt_out and not spoken:
            spoken = (CONFIRMATION,)
        if action.then == "repeat" and self._repeats < self._menu.attempts:
            self._repeats += 1
            return self._listen(1)
        self._is_over = True
        return spoken

    def _collect(self, key: str, collect: Collect) -> MenuStep | None:
        if key == collect.end and self._digits:
            self._is_over = True
            return MenuStep(())
        if not key.isdecimal():
            return None
        self._digits += key
        self._is_over = len(self._digits) == collect.digits
        return MenuStep(() if self._is_over else self.silence)

    def _listen(self, times: int) -> Playback:
        prompt: Playback = () if self._prompt is None else (self._prompt,)
        return (*prompt, *self.silence) * times


def to_json(menu: Menu) -> str:
    """The menu as it is stored; `from_json` reads it."""
    return json.dumps(_plain(menu), sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> Menu:
    """A stored menu."""
    return _menu(json.loads(text))


def _plain(menu: Menu) -> dict[str, Any]:
    plain: dict[str, Any] = {"wait": menu.wait, "attempts": menu.attempts}
    if menu.collect is not None:
        plain["collect"] = [menu.collect.digits, menu.collect.end]
    plain["keys"] = {
        key: {
            "audio": action.audio,
            "report": action.report,
            "optOut": action.opt_out,
            "then": action.then,
            "menu": None if action.menu is None else _plain(action.menu),
        }
        for key, action in menu.keys.items()
    }
    return plain


def _menu(plain: Mapping[str, Any]) -> Menu:
    keys = {
        key: KeyAction(
            each["audio"],
            each["report"],
            each["optOut"],
            each["then"],
            None if each["menu"] is None else _menu(each["menu"]),
        )
        for key, each in plain["keys"].items()
    }
    collect = Collect(*plain["collect"]) if "collect" in plain else None
    return Menu(keys, collect, plain["wait"], plain["attempts"])


def counted_keys(keys: str, reports: Sequence[str]) -> set[str]:
    """What a campaign counts of a call: the words that were reported, else the keys pressed."""
    return set(reports) if reports else set(keys)
