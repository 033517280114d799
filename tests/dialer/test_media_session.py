"""How long a media session waits for a far end that holds it or sends nothing: no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from bitel.dialer.call_attempt import CallAttempt, CallLeg
from bitel.dialer.media_session import MediaSession
from bitel.domain.attempts import DialRequest, Outcome
from bitel.rtp.packet import PTIMES
from bitel.rtp.shared_clip import SharedClip, clip_of
from bitel.rtp.streamer import Streamer, StreamReport, StreamSpec
from bitel.sip import Ended, MediaChanged
from bitel.sip.grammar import Address
from bitel.sip.sdp import PACKET_LENGTHS, Direction, NegotiatedMedia

FAR = ("192.0.2.1", 4000)
CLIP = clip_of(b"\xd5" * 160)


def test_packet_lengths_that_sdp_agrees_on_are_those_that_the_sender_has() -> None:
    assert set(PACKET_LENGTHS) == set(PTIMES)


class FakeStreamer:
    """Notes what is asked of it; a stream that is stopped ends at once."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.silence: Callable[[], None] | None = None
        self._end: Callable[[StreamReport], None]

    def play(
        self,
        spec: StreamSpec,
        clips: Sequence[SharedClip],
        on_end: Callable[[StreamReport], None],
        on_silence: Callable[[], None],
        on_keys: Callable[[str, float], None] | None = None,
        on_audio: Callable[[Sequence[bytes | None]], None] | None = None,
    ) -> int:
        self._end, self.silence = on_end, on_silence if spec.silence_timeout else None
        self.did.append("play held" if spec.held else "play")
        return 1

    def change(self, stream: int, spec: StreamSpec) -> None:
        self.did.append("hold" if spec.held else "go on")

    def stop_stream(self, stream: int) -> None:
        self.did.append("stop")
        self.end(StreamReport(1, 7, finished=False))

    def end(self, report: StreamReport) -> None:
        """The stream is over, and this is what became of it."""
        self._end(report)


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
        media_timeout: float = 5.0,
        longest: float = 60.0,
        answered_for: float = 0.0,
    ) -> None:
        self.loop, self.streamer = loop, FakeStreamer()
        self.talk = MediaSession(cast(Streamer, self.streamer), media_timeout, longest)
        agreed = NegotiatedMedia("PCMA", 8, (101,), FAR, 20, direction)
        self.talk.begin(3000, agreed, [CLIP], answered_for)

    def change(self, ours: Direction) -> None:
        self.talk.follow(MediaChanged("call", NegotiatedMedia("PCMA", 8, (101,), FAR, 20, ours)))


async def no_names(host: str) -> str:
    raise OSError(host)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLoop]:
    real = asyncio.new_event_loop()
    made = FakeLoop(real)
    monkeypatch.setattr("asyncio.get_running_loop", lambda: made)
    yield made
    real.close()


def test_a_call_ends_at_its_longest_duration_whatever_it_does(loop: FakeLoop) -> None:
    stage = Stage(loop)
    loop.advance(30)
    stage.change("inactive")
    loop.advance(29.4)
    assert not stage.talk.over.done()
    loop.advance(0.1)
    assert stage.talk.over.done()
    assert stage.talk.why == "the call had lasted 60 s, the longest that it may"
    assert stage.streamer.did == ["play", "hold", "stop"]
    assert stage.talk.media().sent == 7


def test_holds_do_not_prolong_it(loop: FakeLoop) -> None:
    stage = Stage(loop, "inactive", answered_for=20.0)
    for _ in range(3):
        loop.advance(6)
        stage.change("sendrecv")
        loop.advance(6)
        stage.change("inactive")
    assert not stage.talk.over.done()
    loop.advance(3.5)
    assert stage.talk.over.done()
    assert stage.talk.why == "the call had lasted 60 s, the longest that it may"


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
    assert Stage(loop, media_timeout=0.0).streamer.silence is None


@pytest.mark.parametrize(
    ("direction", "is_stopped"), [("sendrecv", True), ("inactive", False), ("sendonly", False)]
)
def test_media_has_stopped_only_where_the_far_end_was_meant_to_send(
    loop: FakeLoop, direction: Direction, is_stopped: bool
) -> None:
    stage = Stage(loop)
    stage.change(direction)
    stage.streamer.end(StreamReport(1, 7, finished=True, silent_for=9.0, stopped=True))
    assert stage.talk.is_stopped is is_stopped
    assert stage.talk.silent_for == (9.0 if is_stopped else 0.0)


@pytest.mark.parametrize(
    ("rtp", "rtp_at", "info", "info_at", "digits"),
    [
        ("12", 5.0, "", None, "12"),
        ("", None, "34", 5.0, "34"),
        ("12", 5.0, "34", 5.1, "12"),
        ("12", 5.1, "34", 5.0, "34"),
        ("", None, "", None, ""),
    ],
)
def test_digits_are_those_of_the_source_that_came_first(
    loop: FakeLoop, rtp: str, rtp_at: float | None, info: str, info_at: float | None, digits: str
) -> None:
    stage = Stage(loop)
    stage.streamer.end(StreamReport(1, 7, finished=True, digits=rtp, digits_at=rtp_at))
    assert stage.talk.media(info, info_at).digits == digits


@pytest.mark.parametrize(
    ("answered", "silent_for", "ended_at"),
    [(1005.0, 9.0, 1011.0), (1015.0, 9.0, 1015.0)],
    ids=["in the call", "before the answer"],
)
async def test_a_call_whose_bye_is_lost_is_never_over_before_its_answer(
    answered: float, silent_for: float, ended_at: float
) -> None:
    now = 0.0
    order = DialRequest("attempt", "call", "+989121234567", "recording")
    attempt = CallAttempt(order, 60.0, lambda: 1000.0 + now, lambda at: None, lambda: now)
    attempt.answered_at = answered
    leg = attempt.leg = CallLeg("call", Address("192.0.2.9", 5060), lambda: None, no_names)
    streamer = FakeStreamer()
    talk = attempt.media_session = MediaSession(cast(Streamer, streamer))
    talk.begin(3000, NegotiatedMedia("PCMA", 8, (101,), FAR, 20, "sendrecv"), [CLIP])
    now = 20.0
    attempt.hung_up_at = attempt.stopped_at = attempt.now()
    streamer.end(StreamReport(1, 7, finished=True, silent_for=silent_for, stopped=True))
    now = 52.0
    leg.receive(Ended("call", "us", None, bye_unanswered=True))
    assert attempt.result(Outcome.ANSWERED).ended_at == ended_at
