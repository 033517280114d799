"""The menu of a call: the first source of keys counts; an opt-out is stored, then confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bitel.dialer.menu_session import LEAD_OUT, MenuSession
from bitel.domain.menus import CONFIRMATION, KeyAction, Menu
from bitel.rtp.shared_clip import SharedClip, clip_of
from bitel.rtp.streamer import MAX_CLIPS
from tests.support.waiting import until

MENU = Menu(
    {
        "1": KeyAction("thanks", "yes"),
        "2": KeyAction("ask", menu=Menu({"1": KeyAction("thanks")}, wait=3)),
        "9": KeyAction(opt_out=True),
    },
    attempts=2,
)
CLIPS: dict[str | float, SharedClip] = {
    key: clip_of(b"\xd5" * 160) for key in ("thanks", "ask", CONFIRMATION, 5.0, 3.0, LEAD_OUT)
}
AUDIO = [clip_of(b"\xd5" * 160)]
NAMES = {clip.number: key for key, clip in CLIPS.items()} | {AUDIO[0].number: "audio"}


class Heard:
    """A session, and what it plays."""

    def __init__(self, menu: Menu = MENU, audio: list[SharedClip] = AUDIO) -> None:
        self.played: list[list[str | float]] = []
        self.stored = asyncio.Event()
        self.asked = 0
        self.session = MenuSession(menu, audio, CLIPS, self._replace, self._opt_out)

    def _replace(self, clips: Sequence[SharedClip]) -> None:
        self.played.append([NAMES[clip.number] for clip in clips])

    async def _opt_out(self) -> None:
        self.asked += 1
        await self.stored.wait()


def names(clips: list[SharedClip]) -> list[str | float]:
    return [NAMES[clip.number] for clip in clips]


async def test_what_is_played_follows_the_keys() -> None:
    heard = Heard()
    assert names(heard.session.begin()) == ["audio", 5.0, "audio", 5.0, LEAD_OUT]
    heard.session.press_rtp("5", 0.0)
    assert heard.played == []
    heard.session.press_rtp("21", 0.0)
    assert heard.played == [["ask", 3.0, "ask", 3.0, LEAD_OUT], ["thanks", LEAD_OUT]]


@pytest.mark.parametrize("first", ["rtp", "info"])
async def test_keys_that_come_both_ways_count_once(first: str) -> None:
    """Else the second copy would choose in the menu below."""
    heard = Heard()
    press = {
        "rtp": lambda keys: heard.session.press_rtp(keys, 0.0),
        "info": heard.session.press_info,
    }
    second = "info" if first == "rtp" else "rtp"
    press[first]("2")
    press[second]("2")
    press[second]("1")
    assert len(heard.played) == 1
    assert heard.session.reports == ()


async def test_a_key_that_does_nothing_fixes_no_source() -> None:
    """A tone that was misheard in speech would make all real keys void."""
    heard = Heard()
    heard.session.press_rtp("5", 0.0)
    heard.session.press_info("1")
    assert heard.session.reports == ("yes",)


async def test_a_key_that_is_first_known_from_the_end_of_the_stream_counts() -> None:
    """The callee hung up right after it."""
    heard = Heard()
    heard.session.press_rtp("5", 0.0)
    heard.session.finish("59")
    assert heard.session.has_opted_out
    heard.session.close()


async def test_keys_that_were_reported_count_once_at_the_end() -> None:
    heard = Heard()
    heard.session.press_rtp("2", 0.0)
    heard.session.finish("2")
    assert len(heard.played) == 1


async def test_an_opt_out_is_confirmed_once_it_is_stored() -> None:
    heard = Heard()
    heard.session.press_info("9")
    await until(lambda: heard.asked)
    assert heard.played == [[5.0, LEAD_OUT]], "what was played has stopped"
    assert heard.session.has_opted_out
    heard.stored.set()
    await until(lambda: len(heard.played) == 2)
    assert heard.played[1] == [CONFIRMATION, LEAD_OUT]
    heard.session.press_info("9")
    assert heard.asked == 1


async def test_the_end_of_the_call_ends_the_wait_for_it() -> None:
    heard = Heard()
    heard.session.press_info("9")
    await until(lambda: heard.asked)
    heard.session.close()
    heard.stored.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(heard.played) == 1
    assert heard.session.has_opted_out, "the end of the call stores it"


async def test_a_fault_while_it_is_stored_leaves_the_call_to_its_end() -> None:
    heard = Heard()

    async def broken() -> None:
        raise RuntimeError("a fault of the program")

    heard.session._opt_out = broken
    heard.session.press_info("9")
    task = heard.session._opting_out
    assert task is not None
    await task
    assert len(heard.played) == 1


async def test_a_text_of_very_many_parts_is_repeated_less_often() -> None:
    heard = Heard(Menu({"1": KeyAction()}, attempts=5), AUDIO * 100)
    clips = heard.session.begin()
    assert len(clips) <= MAX_CLIPS
    assert names(clips).count("audio") == 200
    assert names(clips)[-1] == LEAD_OUT
