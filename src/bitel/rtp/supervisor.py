"""A sender process that is kept running: started anew when it dies, its streams accounted for."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bitel.errors import UnavailableError
from bitel.rtp.ipc import (
    Change,
    ClipOpened,
    CloseClips,
    End,
    Load,
    Message,
    Open,
    OpenClip,
    OpenRtcp,
    Play,
    Silent,
    Stop,
)
from bitel.rtp.link import SenderFailedError, SenderLink
from bitel.rtp.shared_clip import SharedClip

__all__ = ["DEFAULT_QUEUE_LIMIT", "SenderFailedError", "SupervisedSender"]

Sockets = tuple[socket.socket, socket.socket | None]
"""Of a port: for RTP, and for RTCP where that is spoken."""

StreamCommand = Play | Change

DEFAULT_QUEUE_LIMIT = 50_000  # commands
OPEN_CLIP_TIMEOUT = 10.0  # seconds for a process to take a clip, a restart of it included
FIRST_DELAY = 0.1  # seconds before a dead process is started again; doubled while that fails
LONGEST_DELAY = 10.0  # seconds
SETTLED = 30.0  # seconds a process must have lived for its successor to get the first delay again


class SupervisedSender:
    """The streams of one sender process, over as many lives as it takes.

    `on_end` is called once for every stream that was given to `play`, with `finished=False` for
    all that ran in a process that died; `on_failure` with each death and each failed start;
    `on_silent` with a stream whose callee was heard before and is silent now.
    """

    def __init__(
        self,
        on_end: Callable[[End], None],
        on_failure: Callable[[SenderFailedError], None],
        on_silent: Callable[[int], None],
        *,
        transmit: str,
        queue_limit: int,
        core: int | None = None,
    ) -> None:
        self._on_end = on_end
        self._on_failure = on_failure
        self._on_silent = on_silent
        self._transmit = transmit
        self._queue_limit = queue_limit
        self._core = core
        self._link: SenderLink | None = None
        self._known_ports: set[int] = set()
        self._streams: set[int] = set()
        # Until the next life begins: what was said of each stream, beginning with its Play.
        self._held: dict[int, tuple[Sockets, Sequence[SharedClip], list[StreamCommand]]] = {}
        # Passed to this life, and not closed there yet.
        self._passed_clips: dict[int, weakref.ref[SharedClip]] = {}
        self._open_clips: set[int] = set()  # those of them that it has confirmed
        # Waited for, also over a restart; the result says what went wrong, if anything did.
        self._opening: dict[int, tuple[SharedClip, asyncio.Future[str]]] = {}
        # No longer referenced; filled by whatever thread drops the last reference.
        self._dropped_clips: deque[int] = deque()
        self._load = Load(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)
        self._load_before = self._load  # of the lives before this one
        self._restarting: asyncio.Task[None] | None = None
        self._delay = FIRST_DELAY
        self._started_at = 0.0
        self._heard_at = 0.0

    @property
    def pid(self) -> int | None:
        """The running process."""
        return self._link.pid if self._link is not None else None

    async def start(self) -> None:
        """Starts the process; raises `SenderFailedError` where it can't be."""
        link = SenderLink(self._heard, self._lost, transmit=self._transmit, core=self._core)
        await link.start()
        self._known_ports.clear()
        self._passed_clips.clear()
        self._open_clips.clear()
        self._dropped_clips.clear()
        self._link = link
        self._started_at = self._heard_at = asyncio.get_running_loop().time()
        for clip, _ in self._opening.values():
            self._pass_clip(link, clip)
        for bound, clips, (play, *later) in self._held.values():
            assert isinstance(play, Play)
            self._send(link, play, bound, clips)
            for command in later:
                link.send(command)
        self._held.clear()

    async def stop(self) -> None:
        """Ends the process; all its streams end with it."""
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        self._end_all("the streamer was stopped")
        for _, opened in self._opening.values():
            if not opened.done():
                opened.set_result("the streamer was stopped")
        self._opening.clear()

    async def open_clips(self, clips: Iterable[SharedClip]) -> None:
        """Returns when the process has these clips in memory; at once for those it has already.

        `UnavailableError` where it can't map one, or gives no answer.
        """
        missing = [clip for clip in clips if clip.number not in self._open_clips]
        if not missing:
            return
        answers = [self._open_clip(clip) for clip in missing]
        done, waiting = await asyncio.wait(answers, timeout=OPEN_CLIP_TIMEOUT)
        if waiting:
            raise UnavailableError("The RTP sender process does not answer.")
        for each in done:
            if error := each.result():
                raise UnavailableError(f"The RTP sender process can't play: {error}.")

    def _open_clip(self, clip: SharedClip) -> asyncio.Future[str]:
        if clip.number not in self._opening:
            answer = asyncio.get_running_loop().create_future()
            self._opening[clip.number] = (clip, answer)
            if self._link is not None:
                self._pass_clip(self._link, clip)
        return self._opening[clip.number][1]

    def _pass_clip(self, link: SenderLink, clip: SharedClip) -> None:
        self._close_dropped_clips(link)
        if clip.number not in self._passed_clips:
            dropped = partial(_note_dropped, self._dropped_clips, clip.number)
            self._passed_clips[clip.number] = weakref.ref(clip, dropped)
            link.send(OpenClip(clip.number), clip)

    def _close_dropped_clips(self, link: SenderLink) -> None:
        numbers = []
        while self._dropped_clips:
            number = self._dropped_clips.popleft()
            self._passed_clips.pop(number, None)
            self._open_clips.discard(number)
            numbers.append(number)
        if numbers:
            link.send(CloseClips(numbers))

    def _clip_opened(self, answer: ClipOpened) -> None:
        if answer.error:
            self._passed_clips.pop(answer.clip, None)  # to be tried again
        elif answer.clip in self._passed_clips:
            self._open_clips.add(answer.clip)
        _, waiting = self._opening.pop(answer.clip, (None, None))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.error)

    def play(self, command: Play, bound: Sockets, clips: Sequence[SharedClip] = ()) -> None:
        """Starts a stream from the sockets of its port; `clips` are those it names by number."""
        self._streams.add(command.stream)
        queued = len(self._held) if self._link is None else self._link.queued
        if queued >= self._queue_limit:
            self._end(End(command.stream, 0, False, "the RTP sender process does not keep up"))
        elif self._link is None:
            self._held[command.stream] = (bound, clips, [command])
        else:
            self._send(self._link, command, bound, clips)

    def _send(
        self, link: SenderLink, command: Play, bound: Sockets, clips: Sequence[SharedClip]
    ) -> None:
        if command.port not in self._known_ports:
            rtp, rtcp = bound
            link.send(Open(command.port), rtp)
            if rtcp is not None:
                link.send(OpenRtcp(command.port), rtcp)
            self._known_ports.add(command.port)
        for clip in clips:
            self._pass_clip(link, clip)
        link.send(command)

    def stop_stream(self, stream: int, *, if_awaited: bool = False) -> None:
        """Ends a stream; its `End` comes from the process."""
        if stream in self._held:
            self._end(End(stream, 0, False, ""))
        elif self._link is not None and stream in self._streams:
            self._link.send(Stop(stream, if_awaited))

    def change(self, command: Change) -> None:
        """Changes the media of a running stream; one that is over is left alone."""
        if command.stream in self._held:
            self._held[command.stream][2].append(command)
        elif self._link is not None and command.stream in self._streams:
            self._link.send(command)

    def reported_ago(self) -> float:
        """Seconds since the process last said how it fares, which it does four times in each."""
        return asyncio.get_running_loop().time() - self._heard_at

    def load(self) -> Load:
        """Totals over all lives; lateness of the present one."""
        now, before = self._load, self._load_before
        return now._replace(
            packets=now.packets + before.packets,
            refused=now.refused + before.refused,
            ticks=now.ticks + before.ticks,
            late_ticks=now.late_ticks + before.late_ticks,
            cpu_seconds=now.cpu_seconds + before.cpu_seconds,
        )

    def _heard(self, message: Message) -> None:
        if isinstance(message, End):
            self._end(message)
            if self._dropped_clips and self._link is not None:
                self._close_dropped_clips(self._link)
        elif isinstance(message, ClipOpened):
            self._clip_opened(message)
        elif isinstance(message, Load):
            self._load = message
            self._heard_at = asyncio.get_running_loop().time()
        elif isinstance(message, Silent):
            self._on_silent(message.stream)

    def _end(self, end: End) -> None:
        if end.stream in self._streams:
            self._streams.discard(end.stream)
            self._held.pop(end.stream, None)
            self._on_end(end)

    def _end_all(self, reason: str) -> None:
        # How many packets had left is known only to the process that is gone.
        for stream in list(self._streams):
            self._end(End(stream, None, False, reason))

    def _lost(self, error: SenderFailedError) -> None:
        self._link = None
        self._load_before = self.load()
        self._load = Load(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)
        error.streams = len(self._streams)
        self._end_all(str(error))
        lived = asyncio.get_running_loop().time() - self._started_at
        self._delay = FIRST_DELAY if lived > SETTLED else min(self._delay * 2, LONGEST_DELAY)
        self._restarting = asyncio.get_running_loop().create_task(self._restart())
        self._on_failure(error)

    async def _restart(self) -> None:
        while True:
            await asyncio.sleep(self._delay)
            try:
                await self.start()
            except (SenderFailedError, OSError) as fault:
                self._delay = min(self._delay * 2, LONGEST_DELAY)
                error = fault if isinstance(fault, SenderFailedError) else _not_started(fault)
                error.streams = len(self._streams)
                self._end_all(str(error))
                self._on_failure(error)
            else:
                return


def _not_started(fault: OSError) -> SenderFailedError:
    return SenderFailedError(f"the RTP sender process can't be started: {fault}")


def _note_dropped(dropped: deque[int], number: int, _: weakref.ref[SharedClip]) -> None:
    dropped.append(number)
