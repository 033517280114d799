"""A talk's patience with a far end that holds it or says nothing, without network or waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from bitel.dialers.talk import LONGEST_HOLD, Patience, Talk
from bitel.rtp.streamer import Streamer, StreamReport
from bitel.sip import MediaChanged
from bitel.sip.sdp import Agreed, Direction

FAR = ("192.0.2.1", 4000)


class FakeStreamer:
    """Notes what is asked of it; a stream that is stopped ends at once."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.silence: Callable[[], None] | None = None
        self._end: Callable[[StreamReport], None]

    def play(
        self,
        port: int,
        far: tuple[str, int],
        payload_type: int,
        clips: Sequence[Path],
        on_end: Callable[[StreamReport], None],
        *,
        held: bool,
        on_silence: Callable[[], None] | None,
        **rest: Any,
    ) -> int:
        self._end, self.silence = on_end, on_silence
        self.did.append("play held" if held else "play")
        return 1

    def change(
        self, stream: int, far: tuple[str, int], payload_type: int, *, held: bool, **rest: Any
    ) -> None:
        self.did.append("hold" if held else "go on")

    def stop_stream(self, stream: int) -> None:
        self.did.append("stop")
        self._end(StreamReport(1, 7, finished=False))


class FakeLoop:
    """A loop whose time is set by hand; only what a talk uses of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = 0.0
        self.create_future = loop.create_future
        self.timers: dict[object, tuple[float, Callable[..., None], tuple[object, ...]]] = {}

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, then: Callable[..., None], *words: object) -> Any:
        timers = self.timers

        class Handle:
            def cancel(self) -> None:
                timers.pop(self, None)

        handle = Handle()
        timers[handle] = self.now + delay, then, words
        return handle

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for handle, (due, then, words) in list(self.timers.items()):
            if due <= self.now and handle in self.timers:
                del self.timers[handle]
                then(*words)


class Stage:
    """A talk that has begun."""

    def __init__(
        self,
        loop: FakeLoop,
        direction: Direction = "sendrecv",
        patience: Patience = Patience(5.0, 60.0),  # noqa: B008
    ) -> None:
        self.loop, self.streamer = loop, FakeStreamer()
        self.talk = Talk(cast(Streamer, self.streamer), patience)
        self.talk.begin(3000, Agreed("PCMA", 8, (101,), FAR, 20, direction), [Path("clip")])

    def change(self, ours: Direction) -> None:
        self.talk.follow(MediaChanged("call", Agreed("PCMA", 8, (101,), FAR, 20, ours)))


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    made = FakeLoop(asyncio.new_event_loop())
    monkeypatch.setattr("asyncio.get_running_loop", lambda: made)
    return made


def test_nobody_is_held_for_ever(loop: FakeLoop) -> None:
    stage = Stage(loop)
    stage.change("inactive")
    loop.advance(30)
    stage.change("recvonly")  # still held: the time goes on
    loop.advance(29)
    assert not stage.talk.over.done()
    loop.advance(1)
    assert stage.talk.over.done()
    assert stage.talk.why == "the far end held the call for 60 s"
    assert stage.streamer.did == ["play", "hold", "hold", "stop"]
    assert stage.talk.media().sent == 7
    assert Patience().hold == LONGEST_HOLD


def test_nor_by_letting_go_for_a_moment_each_time(loop: FakeLoop) -> None:
    stage = Stage(loop, "inactive")
    for _ in range(3):
        loop.advance(19)
        stage.change("sendrecv")
        loop.advance(50)
        stage.change("inactive")
    assert not stage.talk.over.done()
    loop.advance(3)
    assert stage.talk.over.done()
    assert stage.talk.why == "the far end held the call for 60 s"


def test_a_hold_that_is_over_is_waited_for_no_longer(loop: FakeLoop) -> None:
    stage = Stage(loop, "inactive")
    loop.advance(50)
    stage.talk.stop()
    assert stage.talk.why == ""
    assert not loop.timers
    assert stage.streamer.did[0] == "play held"


def test_silence_counts_only_while_the_far_end_is_to_send(loop: FakeLoop) -> None:
    stage = Stage(loop)
    silence = stage.streamer.silence
    assert silence is not None
    loop.advance(10)
    stage.change("inactive")
    silence()
    stage.change("sendonly")
    loop.advance(10)
    silence()
    stage.change("sendrecv")
    loop.advance(4.9)
    silence()
    assert not stage.talk.over.done()
    loop.advance(0.1)
    silence()
    assert stage.talk.over.done()
    assert stage.talk.why.startswith("media time-out")


def test_without_a_time_out_nobody_asks(loop: FakeLoop) -> None:
    assert Stage(loop, patience=Patience()).streamer.silence is None
