"""Sender processes from the parent's side: start, messages, failure and restart.

`SenderProcess` is one process and the socket to it; `SupervisedSender` restarts it when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bitel.errors import UnavailableError
from bitel.rtp.ipc import (
    Change,
    ClipOpened,
    CloseClips,
    Frames,
    Heard,
    Message,
    Open,
    OpenClip,
    Play,
    Pressed,
    Replace,
    Silent,
    Stop,
    StopAudio,
    StreamerStats,
    WireError,
    encode,
)
from bitel.rtp.port_pool import PortSockets
from bitel.rtp.shared_clip import SharedClip
from bitel.rtp.stream_spec import OnAudio, OnKeys, StreamReport

START_TIMEOUT = 20.0  # seconds until the process must be ready
STOP_TIMEOUT = 2.0  # seconds from the request to stop until a process is killed
SILENCE_LIMIT = 15.0  # seconds without a report (due every 0.25 s) until a process counts as hung
EXIT_WAIT = 0.02  # seconds to wait for the exit of a process whose socket has closed
KILL_WAIT = 0.2  # seconds to wait for a killed process
RETRY_DELAY = 0.005  # seconds, if too many descriptors are in flight
OPEN_CLIP_TIMEOUT = 10.0  # seconds for a process to map a clip, including a restart
FIRST_DELAY = 0.1  # seconds before a dead process is restarted; doubled while that fails
LONGEST_DELAY = 10.0  # seconds
SETTLED = 30.0  # seconds of running after which the restart delay is reset
DEFAULT_QUEUE_LIMIT = 50_000  # commands

_CHUNK = 64 * 1024  # bytes, of one write or read


class SenderFailedError(Exception):
    """A sender process did not start, died or hung."""

    pid: int | None = None
    status: int | None = None
    """Exit status as in `subprocess`; None if it was killed here or never ran."""
    streams = 0
    """Number of streams that ended with it."""


class SenderProcess:
    """One process and the socket to it. Nothing blocks: unsent messages wait in a queue.

    `on_message` is called with each message from the process; `on_lost` once, if it ends or hangs
    after it was ready and before `close`. `core`: the CPU core to run on; None: any.
    """

    def __init__(
        self,
        on_message: Callable[[Message], None],
        on_lost: Callable[[SenderFailedError], None],
        core: int | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = Frames()
        self._queue: deque[tuple[bytes, tuple[socket.socket | SharedClip, ...]]] = deque()  # frames
        self._unwritten = b""  # of frames taken from the queue
        self._writing = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._up = False
        self._reported_at = 0.0
        self._hang_timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process id, while its socket is open."""
        return self._process.pid if self._process is not None and self._socket else None

    @property
    def queued(self) -> int:
        """Number of messages in the queue."""
        return len(self._queue)

    async def start(self) -> None:
        """Starts the process and waits until it is ready; raises SenderFailedError."""
        self._spawn()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._ready
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                what = f"the RTP sender process was not ready within {START_TIMEOUT:.0f} s"
                raise SenderFailedError(what) from None
            raise
        if self._socket is None:
            raise SenderFailedError("the RTP sender process ended as soon as it was ready")
        self._up = True
        self._reported_at = self._loop.time()
        self._check_alive()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._socket = ours
        with theirs:
            command = [sys.executable, "-m", "bitel.rtp.sender", str(theirs.fileno())]
            if self._core is not None:
                command.append(str(self._core))
            # Popen, not asyncio's subprocess: the closed socket shows the end of the process.
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # also for the kernel's autogroup scheduling
            )
        self._loop.add_reader(ours, self._read)

    def send(self, message: Message, *passed: socket.socket | SharedClip) -> None:
        """Queues a message, with the sockets or the clip whose descriptors to pass."""
        if self._socket is None:
            return
        self._queue.append((encode(message), passed))
        if not self._writing:
            self._writing = True
            # In the next iteration of the loop, so that all messages of this one share a write.
            self._loop.call_soon(self._write)

    async def close(self) -> None:
        """Closes the socket, which ends the process; kills it after `STOP_TIMEOUT`."""
        self._disconnect()
        if self._process is None:
            return
        deadline = self._loop.time() + STOP_TIMEOUT
        while self._process.poll() is None:
            if self._loop.time() > deadline:
                self._process.kill()
                deadline += STOP_TIMEOUT
            await asyncio.sleep(0.005)  # asyncio does not report the end of a `Popen`

    def _disconnect(self) -> None:
        if self._hang_timer is not None:
            self._hang_timer.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
        self._queue.clear()
        self._unwritten = b""

    def _lost(self, reason: str) -> None:
        """Ends a process that failed, and reports it once."""
        if self._socket is None:
            return
        self._disconnect()
        error = SenderFailedError(f"the RTP sender process {reason}")
        if self._process is not None:
            error.pid = self._process.pid
            error.status = self._wait(EXIT_WAIT)
            if error.status is None:
                self._process.kill()
                # If it takes longer, the next Popen reaps it.
                self._wait(KILL_WAIT)
        if not self._ready.done():
            self._ready.set_exception(error)
        if self._up:
            self._on_lost(error)

    def _wait(self, seconds: float) -> int | None:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def _check_alive(self) -> None:
        if self._loop.time() - self._reported_at > SILENCE_LIMIT:
            self._read()  # if this loop was blocked, reports are still unread
        if self._socket is None:
            return
        if self._loop.time() - self._reported_at > SILENCE_LIMIT:
            self._lost(f"has said nothing for {SILENCE_LIMIT:.0f} s")
        else:
            self._hang_timer = self._loop.call_later(1.0, self._check_alive)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_CHUNK)
            messages = self._frames.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(f"is unreachable: {error}")
            return
        except WireError as error:
            self._lost(f"said {error}")
            return
        if not data:
            self._lost("ended unexpectedly")
        for message in messages:
            if isinstance(message, StreamerStats):
                self._reported_at = self._loop.time()
                if not self._ready.done():
                    self._ready.set_result(None)
            self._on_message(message)

    def _write(self) -> None:
        """Writes until the socket is full; continues when it is writable."""
        if self._socket is None:
            return
        try:
            while self._unwritten or self._queue:
                self._write_some(self._socket)
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket, self._write)
        except OSError as error:
            if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS):
                self._lost(f"is unreachable: {error}")
                return
            self._loop.remove_writer(self._socket)
            self._loop.call_later(RETRY_DELAY, self._write)
        else:
            self._loop.remove_writer(self._socket)
            self._writing = False

    def _write_some(self, ours: socket.socket) -> None:
        """One write: a frame with descriptors, or a chunk of frames without."""
        queue = self._queue
        if not self._unwritten and queue[0][1]:
            frame, passed = queue[0]
            # The descriptors are sent with the frame's first byte.
            sent = socket.send_fds(ours, [frame], [each.fileno() for each in passed])
            self._unwritten = frame[sent:]
            queue.popleft()
            return
        if not self._unwritten:
            frames = bytearray()
            while queue and not queue[0][1] and len(frames) < _CHUNK:
                frames += queue.popleft()[0]
            self._unwritten = bytes(frames)
        self._unwritten = self._unwritten[ours.send(self._unwritten) :]


@dataclass(slots=True)
class _Stream:
    """`remote` is the address in the latest specification, not the latched one."""

    on_end: Callable[[StreamReport], None]
    on_silence: Callable[[], None] | None
    on_keys: OnKeys | None
    on_audio: OnAudio | None
    remote: tuple[str, int]


class SupervisedSender:
    """The streams of one sender process, which is restarted whenever it dies.

    `on_failure` is called when it dies and when a restart fails. New streams are refused while
    `queue_limit` commands wait.
    """

    def __init__(
        self,
        on_failure: Callable[[SenderFailedError], None],
        queue_limit: int,
        core: int | None = None,
    ) -> None:
        self._on_failure = on_failure
        self._queue_limit = queue_limit
        self._core = core
        self._process: SenderProcess | None = None
        self._known_ports: set[int] = set()
        self._streams: dict[int, _Stream] = {}
        # Commands, by stream, that wait for a restart of the process.
        self._held: dict[int, tuple[Play, PortSockets, Sequence[SharedClip], list[Change]]] = {}
        # Clips passed to this process and not closed; True once confirmed.
        self._clips: dict[int, bool] = {}
        # Clips that callers wait for, also during a restart; the result is the error or empty.
        self._opening: dict[int, tuple[SharedClip, asyncio.Future[str]]] = {}
        # Clips that were garbage collected, which may happen on any thread.
        self._dropped_clips: deque[int] = deque()
        self._stats = StreamerStats()
        self._stats_before = StreamerStats()  # of earlier processes
        self._failures = 0
        self._restarting: asyncio.Task[None] | None = None
        self._delay = FIRST_DELAY
        self._started_at = 0.0
        self._reported_at = 0.0

    @property
    def pid(self) -> int | None:
        """The id of the running process."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Starts the process; raises SenderFailedError."""
        process = SenderProcess(self._received, self._lost, self._core)
        await process.start()
        self._known_ports.clear()
        self._clips.clear()
        self._dropped_clips.clear()
        self._process = process
        self._started_at = self._reported_at = asyncio.get_running_loop().time()
        for clip, _ in self._opening.values():
            self._pass_clip(process, clip)
        for play, sockets, clips, changes in self._held.values():
            self._send(process, play, sockets, clips)
            for change in changes:
                process.send(change)
        self._held.clear()

    async def stop(self) -> None:
        """Ends the process and all its streams."""
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        process, self._process = self._process, None
        if process is not None:
            await process.close()
        self._end_all("the streamer was stopped")
        for _, opened in self._opening.values():
            if not opened.done():
                opened.set_result("the streamer was stopped")
        self._opening.clear()

    async def open_clips(self, clips: Iterable[SharedClip]) -> None:
        """Waits until the process has mapped these clips.

        Raises UnavailableError if it can't map one or does not answer.
        """
        missing = [clip for clip in clips if not self._clips.get(clip.number)]
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
            if self._process is not None:
                self._pass_clip(self._process, clip)
        return self._opening[clip.number][1]

    def _pass_clip(self, process: SenderProcess, clip: SharedClip) -> None:
        self._close_dropped_clips(process)
        if clip.number not in self._clips:
            self._clips[clip.number] = False
            weakref.finalize(clip, self._dropped_clips.append, clip.number).atexit = False
            process.send(OpenClip(clip.number), clip)

    def _close_dropped_clips(self, process: SenderProcess) -> None:
        numbers = []
        while self._dropped_clips:
            numbers.append(self._dropped_clips.popleft())
            self._clips.pop(numbers[-1], None)
        if numbers:
            process.send(CloseClips(numbers))

    def _clip_opened(self, answer: ClipOpened) -> None:
        if answer.error:
            self._clips.pop(answer.clip, None)  # to be tried again
        elif answer.clip in self._clips:
            self._clips[answer.clip] = True
        _, waiting = self._opening.pop(answer.clip, (None, None))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.error)

    def play(
        self,
        command: Play,
        sockets: PortSockets,
        clips: Sequence[SharedClip],
        on_end: Callable[[StreamReport], None],
        on_silence: Callable[[], None] | None,
        on_keys: OnKeys | None = None,
        on_audio: OnAudio | None = None,
    ) -> None:
        """Starts a stream from the sockets of its port; `clips` are those of the command.

        `on_end` is called once, in a later iteration of the event loop, with `finished=False` if
        the process died.
        """
        self._streams[command.stream] = _Stream(
            on_end, on_silence, on_keys, on_audio, command.spec.remote
        )
        queued = len(self._held) if self._process is None else self._process.queued
        if queued >= self._queue_limit:
            self._end(
                StreamReport.failed(command.stream, "the RTP sender process does not keep up")
            )
        elif self._process is None:
            self._held[command.stream] = command, sockets, clips, []
        else:
            self._send(self._process, command, sockets, clips)

    def _send(
        self,
        process: SenderProcess,
        command: Play,
        sockets: PortSockets,
        clips: Sequence[SharedClip],
    ) -> None:
        port = command.spec.port
        if port not in self._known_ports:
            passed = [each for each in sockets if each is not None]
            process.send(Open(port, has_rtcp=len(passed) > 1), *passed)
            self._known_ports.add(port)
        for clip in clips:
            self._pass_clip(process, clip)
        process.send(command)

    def stop_stream(self, stream: int, *, if_awaited: bool = False) -> None:
        """Ends a stream; the process then reports its end."""
        if stream in self._held:
            self._end(StreamReport.failed(stream, ""))
        elif self._process is not None and stream in self._streams:
            self._process.send(Stop(stream, if_awaited))

    def stop_audio(self, stream: int) -> None:
        """Pass on no further audio of the remote."""
        running = self._streams.get(stream)
        if running is not None:
            running.on_audio = None
            if stream in self._held:
                play, sockets, clips, changes = self._held[stream]
                play = play._replace(reports_audio=False)
                self._held[stream] = play, sockets, clips, changes
            elif self._process is not None:
                self._process.send(StopAudio(stream))

    def replace(self, stream: int, clips: Sequence[SharedClip]) -> None:
        """Sends other clips from the next packet on; does nothing for a stream that has ended."""
        if stream not in self._streams:
            return
        numbers = [clip.number for clip in clips]
        if stream in self._held:
            play, sockets, _, changes = self._held[stream]
            self._held[stream] = play._replace(clips=numbers), sockets, clips, changes
        elif self._process is not None:
            for clip in clips:
                self._pass_clip(self._process, clip)
            self._process.send(Replace(stream, numbers))

    def change(self, command: Change) -> None:
        """Changes the media of a running stream; does nothing for one that has ended.

        A `moved` remote that equals the latest one is no change.
        """
        running, remote = self._streams.get(command.stream), command.spec.remote
        if running is None:
            return
        if command.moved and remote == running.remote:
            command = command._replace(moved=False)
        elif command.moved:
            running.remote = remote
        if command.stream in self._held:
            self._held[command.stream][3].append(command)
        elif self._process is not None:
            self._process.send(command)

    def stats(self) -> StreamerStats:
        """Totals of all processes so far; lateness of the current one."""
        reported_ago = asyncio.get_running_loop().time() - self._reported_at
        return self._stats.plus(self._stats_before)._replace(
            running=len(self._streams), failures=self._failures, reported_ago=reported_ago
        )

    def _received(self, message: Message) -> None:
        if isinstance(message, StreamReport):
            self._end(message)
            if self._dropped_clips and self._process is not None:
                self._close_dropped_clips(self._process)
        elif isinstance(message, ClipOpened):
            self._clip_opened(message)
        elif isinstance(message, StreamerStats):
            self._stats = message
            self._reported_at = asyncio.get_running_loop().time()
        elif isinstance(message, Silent):
            running = self._streams.get(message.stream)
            if running is not None and running.on_silence is not None:
                running.on_silence()

        elif isinstance(message, Heard):
            running = self._streams.get(message.stream)
            if running is not None and running.on_audio is not None:
                running.on_audio(message.payloads)
        elif isinstance(message, Pressed):
            running = self._streams.get(message.stream)
            if running is not None and running.on_keys is not None:
                running.on_keys(message.keys, message.at)

    def _end(self, report: StreamReport) -> None:
        running = self._streams.pop(report.stream, None)
        if running is not None:
            self._held.pop(report.stream, None)
            asyncio.get_running_loop().call_soon(running.on_end, report)

    def _end_all(self, reason: str) -> None:
        for stream in list(self._streams):
            self._end(StreamReport.failed(stream, reason, packets=None))

    def _lost(self, error: SenderFailedError) -> None:
        self._process = None
        self._stats_before = self._stats.plus(self._stats_before)._replace(
            worst_ms=0.0, p99_ms=0.0, p90_ms=0.0
        )
        self._stats = StreamerStats()
        loop = asyncio.get_running_loop()
        lived = loop.time() - self._started_at
        self._delay = FIRST_DELAY if lived > SETTLED else min(self._delay * 2, LONGEST_DELAY)
        self._restarting = loop.create_task(self._restart())
        self._failed(error)

    async def _restart(self) -> None:
        while True:
            await asyncio.sleep(self._delay)
            try:
                await self.start()
            except SenderFailedError as error:
                self._failed(error)
            except OSError as error:
                what = f"the RTP sender process can't be started: {error}"
                self._failed(SenderFailedError(what))
            else:
                return
            self._delay = min(self._delay * 2, LONGEST_DELAY)

    def _failed(self, error: SenderFailedError) -> None:
        self._failures += 1
        error.streams = len(self._streams)
        self._end_all(str(error))
        self._on_failure(error)
