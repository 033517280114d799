"""Menus of requests: checks what their keys play, and has their texts spoken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bitel.api.schemas import KeyBody, MenuBody, SubmenuBody
from bitel.api.speech import Playback
from bitel.domain.menus import (
    CONFIRMATION,
    DEFAULT_ATTEMPTS,
    DEFAULT_WAIT,
    Collect,
    KeyAction,
    Menu,
    longest_seconds,
)
from bitel.errors import InvalidRequestError

CONFIRMATION_SECONDS: Final = 0.5
"""Seconds of `CONFIRMATION`, rounded up."""

Play = Callable[[str], Awaitable[Playback]]
"""The audio of a recording or a text; raises BitelError."""


@dataclass(frozen=True, slots=True)
class CheckedMenu:
    """A menu whose recordings exist."""

    menu: Menu
    seconds_of: dict[str, float]
    """The seconds of each recording."""

    def longest(self, prompt: float) -> float:
        """The longest that a call whose audio takes `prompt` seconds may play and wait."""
        return longest_seconds(self.menu, prompt, self.seconds_of)


async def check_menu(body: MenuBody, play: Play, say: Play) -> CheckedMenu:
    """The menu of a request. Raises BitelError, which names the key."""
    seconds_of = {CONFIRMATION: CONFIRMATION_SECONDS}

    async def audio_of(where: str, key: KeyBody) -> str | None:
        try:
            if key.play is not None:
                found = await play(key.play)
            elif key.say is not None:
                found = await say(key.say)
            else:
                return None
        except InvalidRequestError as fault:
            field = "play" if key.play is not None else "say"
            raise InvalidRequestError(f"{where}.{field}: {fault}") from None
        assert found.recording_id is not None
        seconds_of[found.recording_id] = found.seconds
        return found.recording_id

    async def menu_of(where: str, menu: MenuBody | SubmenuBody) -> Menu:
        keys: dict[str, KeyAction] = {}
        for name, key in menu.keys.items():
            at = f"{where}.keys.{name}"
            keys[name] = KeyAction(
                await audio_of(at, key),
                key.report,
                bool(key.opt_out),
                "repeat" if key.repeat else "end",
                None if key.menu is None else await menu_of(f"{at}.menu", key.menu),
            )
        collect = menu.collect
        return Menu(
            keys,
            None if collect is None else Collect(collect.digits, collect.end or ""),
            DEFAULT_WAIT if menu.wait is None else menu.wait,
            DEFAULT_ATTEMPTS if menu.attempts is None else menu.attempts,
        )

    return CheckedMenu(await menu_of("menu", body), seconds_of)
