"""The parent's end of one sender process, from its start to its death."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Protocol

from bitel.rtp.ipc import Frames, Load, Message, Ready, WireError, encode

START_TIMEOUT = 20.0  # seconds until the process must be ready
STOP_TIMEOUT = 2.0  # seconds from the request to stop until a process is killed
SILENCE_LIMIT = 15.0  # seconds without its report, due four times a second, until it counts as hung
EXIT_WAIT = 0.02  # seconds until a process whose socket has closed counts as hung
KILL_WAIT = 0.2  # seconds that a killed process is waited for
RETRY_DELAY = 0.005  # seconds, where the kernel holds too many descriptors in flight

_CHUNK = 64 * 1024  # bytes, of one write or read
_MOST_IN_FRAME = 64  # messages


class SenderFailedError(Exception):
    """A sender process did not start, died, or hangs.

    `status` is its exit status as in `subprocess`, the negative number of a signal; None if it did
    not exit by itself and was killed. `streams`: how many streams ended with it.
    """

    def __init__(
        self, what: str, pid: int | None = None, status: int | None = None, streams: int = 0
    ) -> None:
        super().__init__(what)
        self.pid = pid
        self.status = status
        self.streams = streams


class HasDescriptor(Protocol):
    """An open file or socket."""

    def fileno(self) -> int:
        """Its descriptor."""


class SenderLink:
    """One process and the socket to it.

    Nothing here blocks: what the process does not read yet waits in a queue. `on_message` gets
    what it says; `on_lost` is called once, when it is gone without having been closed.
    """

    def __init__(
        self,
        on_message: Callable[[Message], None],
        on_lost: Callable[[SenderFailedError], None],
        *,
        transmit: str,
        core: int | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._transmit = transmit
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = Frames()
        self._queue: deque[tuple[Message, HasDescriptor | None]] = deque()
        self._begun = b""  # of the frames at the head, what was not written yet
        self._writing = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._up = False
        self._heard_at = 0.0
        self._watch: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process, while the link is up."""
        return self._process.pid if self._process is not None and self._socket else None

    @property
    def queued(self) -> int:
        """How many messages the process has not been able to take yet."""
        return len(self._queue)

    async def start(self) -> None:
        """Starts the process and waits for its first word; `SenderFailedError` otherwise."""
        self._ready.add_done_callback(_retrieved)
        self._spawn()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.shield(self._ready)
        except TimeoutError:
            await self.close()
            raise SenderFailedError(
                f"the RTP sender process was not ready within {START_TIMEOUT:.0f} s"
            ) from None
        except BaseException:
            await self.close()
            raise
        if self._socket is None:
            raise SenderFailedError("the RTP sender process ended as soon as it was ready")
        self._up = True
        self._heard_at = self._loop.time()
        self._check_alive()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._socket = ours
        with theirs:
            command = [sys.executable, "-m", "bitel.rtp.sender"]
            command += [str(theirs.fileno()), self._transmit]
            if self._core is not None:
                command.append(str(self._core))
            # Popen rather than asyncio's: the end of the process is seen on the socket.
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # of its own, also for the kernel's autogroup scheduling
            )
        self._loop.add_reader(ours, self._read)

    def send(self, message: Message, passed: HasDescriptor | None = None) -> None:
        """Queues a message, with the socket or file to pass along if any."""
        if self._socket is None:
            return
        self._queue.append((message, passed))
        if not self._writing:
            self._writing = True
            # The next round of the loop: everything that this one says goes out in one write.
            self._loop.call_soon(self._write)

    async def close(self) -> None:
        """Closes the socket, which the process takes as its end; kills it where it does not."""
        self._disconnect()
        await self._reap()

    async def _reap(self) -> None:
        if self._process is None:
            return
        deadline = self._loop.time() + STOP_TIMEOUT
        while self._process.poll() is None:
            if self._loop.time() > deadline:
                self._process.kill()
                deadline += STOP_TIMEOUT
            await asyncio.sleep(0.005)  # the end of a `Popen` wakes no event loop

    def _disconnect(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
        self._queue.clear()
        self._begun = b""

    def _lost(self, reason: str) -> None:
        """The process is of no use any more: end it, and say so once."""
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
        if self._loop.time() - self._heard_at > SILENCE_LIMIT:
            self._read()  # where this loop itself was held up, the reports are waiting
        if self._socket is None:
            return
        if self._loop.time() - self._heard_at > SILENCE_LIMIT:
            self._lost(f"has said nothing for {SILENCE_LIMIT:.0f} s")
        else:
            self._watch = self._loop.call_later(1.0, self._check_alive)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(f"is unreachable: {error}")
            return
        if not data:
            self._lost("ended unexpectedly")
            return
        try:
            messages = self._frames.feed(data)
        except WireError as error:
            self._lost(f"said {error}")
            return
        for message in messages:
            if isinstance(message, Load):
                self._heard_at = self._loop.time()
            if not isinstance(message, Ready):
                self._on_message(message)
            elif not self._ready.done():
                self._ready.set_result(None)

    def _write(self) -> None:
        """Writes what the process can take now, and comes back for the rest."""
        if self._socket is None:
            return
        try:
            while self._begun or self._queue:
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
        """One write: a message with its descriptor, or as many without one as a chunk holds."""
        if not self._begun:
            message, passed = self._queue[0]
            if passed is not None:
                frame = encode([message])
                # The descriptor leaves with the frame's first byte.
                self._begun = frame[socket.send_fds(ours, [frame], [passed.fileno()]) :]
                self._queue.popleft()
                return
            self._begun = self._next_frames()
        self._begun = self._begun[ours.send(self._begun) :]

    def _next_frames(self) -> bytes:
        """Takes messages without a descriptor from the queue, as frames for one write."""
        frames = bytearray()
        while len(frames) < _CHUNK and (messages := self._next_messages()):
            frames += encode(messages)
        return bytes(frames)

    def _next_messages(self) -> list[Message]:
        messages: list[Message] = []
        while self._queue and self._queue[0][1] is None and len(messages) < _MOST_IN_FRAME:
            messages.append(self._queue.popleft()[0])
        return messages


def _retrieved(future: asyncio.Future[None]) -> None:
    """Marks the outcome as seen, for a start that was given up before it came."""
    if not future.cancelled():
        future.exception()
