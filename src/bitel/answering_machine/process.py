"""The detection process from the dialer's side: start at first need, audio, failure and restart.

A failure costs decisions, never calls: those that wait get an open verdict, and the next call
starts the process again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import structlog

from bitel.answering_machine.beep import Tone, ToneEnd
from bitel.answering_machine.detector import Decision, DetectorSettings, Reason, Verdict
from bitel.answering_machine.messages import (
    Alive,
    Audio,
    BeepEnded,
    Decided,
    End,
    Frames,
    Message,
    MessageError,
    Start,
    encode,
)

log = structlog.get_logger(__name__)

QUEUE_LIMIT: Final = 50_000
"""Messages that wait at most: 2.6 seconds of audio of 380 calls. Further audio is dropped."""
FLUSH_INTERVAL: Final = 0.02
"""Seconds that audio waits for that of other calls."""
SILENCE_LIMIT: Final = 5.0
"""Seconds without a report, due every 0.5 s while there are calls, until the process is killed."""
START_TIMEOUT: Final = 20.0
"""Seconds until the first report of a new process, which is slow to start on a busy machine. The
audio of calls waits meanwhile."""
FIRST_DELAY: Final = 0.1
"""Seconds before a dead process is started again; doubled while it dies at once."""
LONGEST_DELAY: Final = 10.0
SETTLED: Final = 30.0
"""Seconds of running after which the delay is reset."""
STOP_TIMEOUT: Final = 2.0
"""Seconds until a process that does not end is killed."""

_BATCH: Final = 1000  # messages of one frame
_CHUNK: Final = 64 * 1024  # bytes of one read
_SEND_BUFFER: Final = 1 << 20  # bytes; the kernel may allow less


class CallWatch:
    """A call whose audio is examined. Made by `DetectionProcess.watch`."""

    def __init__(
        self,
        process: DetectionProcess,
        number: int,
        on_decision: Callable[[Decision], None],
        on_beep: Callable[[ToneEnd], None] | None,
    ) -> None:
        self._process = process
        self._number = number
        self._on_decision = on_decision
        self._on_beep = on_beep
        self.decision: Decision | None = None
        """Set once, before `on_decision` is called."""

    def push(self, payload: bytes | None) -> None:
        """Pass the G.711 payload of the next packet in order, None for 20 ms that were lost."""
        self._process._push(self._number, payload)

    def close(self) -> None:
        """Stop the examination, without a decision if there is none yet."""
        self._process._close_watch(self._number)

    def _decide(self, decision: Decision) -> None:
        if self.decision is None:
            self.decision = decision
            self._on_decision(decision)

    def _beep_ended(self, beep: ToneEnd) -> None:
        if self._on_beep is not None:
            self._on_beep(beep)


class DetectionProcess:
    """Decides for many calls in a process of its own, which starts with the first of them."""

    def __init__(self, settings: DetectorSettings | None = None) -> None:
        self._settings = settings or DetectorSettings()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watches: dict[int, CallWatch] = {}
        self._next = 0
        self._queue: deque[Message] = deque()
        self._unwritten = b""
        self._writing = False
        self._frames = Frames()
        self._hang_timer: asyncio.TimerHandle | None = None
        self._delay = FIRST_DELAY
        self._has_reported = False
        """The present process has."""
        self._started_at = self._reported_at = self._not_before = 0.0
        self.failures = 0
        """How often the process died, hung or could not be started."""
        self.cpu_seconds = 0.0
        """CPU time of the present process."""

    @property
    def pid(self) -> int | None:
        """Id of the running process; None before the first call and after a failure."""
        return self._process.pid if self._process is not None and self._socket else None

    def watch(
        self,
        law: str,
        on_decision: Callable[[Decision], None],
        on_beep: Callable[[ToneEnd], None] | None = None,
    ) -> CallWatch:
        """Begin to examine a call that was answered now.

        `law`: "A" or "U". `on_decision` is called once, in a later iteration of the event loop,
        with an open verdict too. With `on_beep`, record tones are reported, also after the
        decision, until the watch is closed.
        """
        self._next += 1
        watch = self._watches[self._next] = CallWatch(self, self._next, on_decision, on_beep)
        loop = asyncio.get_running_loop()
        if self._socket is None and not self._start():
            loop.call_soon(self._give_up, self._next, Reason.WORKER_LOST)
            return watch
        if len(self._watches) == 1:
            # While it had no calls it sent no reports.
            self._reported_at = loop.time()
        self._put(Start(self._next, law, on_beep is not None))
        return watch

    async def close(self) -> None:
        """End the process and all watches, whose verdict stays open."""
        self._disconnect()
        self._give_up_all()
        process, self._process = self._process, None
        if process is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_TIMEOUT
        while process.poll() is None:
            if loop.time() > deadline:
                process.kill()
                deadline += STOP_TIMEOUT
            await asyncio.sleep(0.005)  # asyncio does not report the end of a `Popen`

    def _start(self) -> bool:
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before:
            return False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        with theirs:
            module = "bitel.answering_machine.worker"
            settings = json.dumps(asdict(self._settings))
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, str(theirs.fileno()), settings],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                self._failed(f"can't be started: {error}")
                return False
        self._socket = ours
        self._frames = Frames()
        self._has_reported = False
        self._started_at = self._reported_at = loop.time()
        loop.add_reader(ours, self._read)
        self._check_alive()
        return True

    def _push(self, number: int, payload: bytes | None) -> None:
        if number not in self._watches or self._socket is None:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            self._give_up(number, Reason.OVERLOAD)
            return
        self._put(Audio(number, payload))

    def _put(self, message: Message) -> None:
        self._queue.append(message)
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_later(FLUSH_INTERVAL, self._write)

    def _close_watch(self, number: int) -> None:
        if self._watches.pop(number, None) is not None and self._socket is not None:
            self._put(End(number))

    def _give_up(self, number: int, reason: Reason) -> None:
        watch = self._watches.get(number)
        self._close_watch(number)
        if watch is not None:
            watch._decide(Decision(None, reason, 0.0))

    def _give_up_all(self) -> None:
        watches, self._watches = list(self._watches.values()), {}
        for watch in watches:
            watch._decide(Decision(None, Reason.WORKER_LOST, 0.0))

    def _check_alive(self) -> None:
        loop = asyncio.get_running_loop()
        if self._watches and loop.time() - self._reported_at > self._silence_limit:
            self._read()  # if this loop was blocked, reports are still unread
        if self._socket is None:
            return
        if self._watches and loop.time() - self._reported_at > self._silence_limit:
            self._failed(f"has sent no report for {self._silence_limit:.0f} s")
        else:
            self._hang_timer = loop.call_later(1.0, self._check_alive)

    @property
    def _silence_limit(self) -> float:
        return SILENCE_LIMIT if self._has_reported else START_TIMEOUT

    def _disconnect(self) -> None:
        if self._hang_timer is not None:
            self._hang_timer.cancel()
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
        self._queue.clear()
        self._unwritten = b""

    def _failed(self, why: str) -> None:
        """Count and log a failure, and leave all verdicts open."""
        loop = asyncio.get_running_loop()
        self._disconnect()
        self.failures += 1
        if loop.time() - self._started_at >= SETTLED:
            self._delay = FIRST_DELAY
        self._not_before = loop.time() + self._delay
        log.warning("machine_detection_failed", why=why, again_in=self._delay)
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                # If it takes longer, the next Popen reaps it.
                self._process.wait(0.05)
        self._give_up_all()

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_CHUNK)
            messages = self._frames.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._failed(f"is unreachable: {error}")
            return
        except MessageError as error:
            self._failed(f"said {error}")
            return
        if not data:
            self._failed("ended unexpectedly")
            return
        for message in messages:
            self._handle(message)

    def _handle(self, message: Message) -> None:
        if isinstance(message, Alive):
            self._reported_at, self._has_reported = asyncio.get_running_loop().time(), True
            self.cpu_seconds = message.cpu_seconds
        elif isinstance(message, Decided):
            watch = self._watches.get(message.call)
            if watch is None:
                return
            if watch._on_beep is None:
                del self._watches[message.call]  # the process has forgotten it already
            verdict = None if message.verdict is None else Verdict(message.verdict)
            watch._decide(Decision(verdict, Reason(message.reason), message.at))
        elif isinstance(message, BeepEnded) and message.call in self._watches:
            beep = ToneEnd(Tone.BEEP, message.began, message.ended, message.frequency)
            self._watches[message.call]._beep_ended(beep)

    def _write(self) -> None:
        """Write until the socket is full; continues when it is writable."""
        self._writing = False
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        try:
            while self._unwritten or self._queue:
                if not self._unwritten:
                    count = min(_BATCH, len(self._queue))
                    self._unwritten = encode([self._queue.popleft() for _ in range(count)])
                self._unwritten = self._unwritten[self._socket.send(self._unwritten) :]
        except (BlockingIOError, InterruptedError):
            self._writing = True
            loop.add_writer(self._socket, self._write)
        except OSError as error:
            self._failed(f"is unreachable: {error}")
        else:
            loop.remove_writer(self._socket)
