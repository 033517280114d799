"""The main loop of a sender process: `python -m bitel.rtp.sender DESCRIPTOR [CORE]`.

DESCRIPTOR is the socket to the parent. The process exits when that closes, so also when the parent
dies. It ignores SIGINT and SIGTERM, since calls continue while the service drains. It runs on CORE
only, if given.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from math import inf

from bitel.rtp.ipc import (
    Change,
    CloseClips,
    Frames,
    Message,
    Open,
    OpenClip,
    Play,
    Replace,
    Stop,
    StopAudio,
    encode,
)
from bitel.rtp.packet import PCMA
from bitel.rtp.sender.priority import claim_a_core
from bitel.rtp.sender.sendmmsg import Sendmmsg
from bitel.rtp.sender.stream_receiver import StreamReceiver
from bitel.rtp.sender.stream_table import StreamTable
from bitel.rtp.sender.tick_schedule import (
    MOST_SLOTS,
    REPORT_INTERVAL,
    Schedule,
    TickLateness,
)
from bitel.rtp.stream_spec import StreamReport, StreamSpec

RECEIVE_INTERVAL = 0.05  # seconds between reads of RTP and RTCP
IDLE_WAIT = 0.5  # seconds to wait for a command while there is no stream
COMMANDS_INTERVAL = 0.01  # seconds between reads of commands
ENDS_INTERVAL = 0.02  # seconds between messages with reports; each wakes the parent
LEAD = 0.001  # seconds before a tick at which commands are read
MARGIN = 0.0003  # seconds before a tick at which no further command is started
FEWEST = 8  # commands handled, and reports sent, per tick, even if it is late
MOST_WAITING = 2000  # commands kept here; more stay with the parent, which counts them
MAX_DESCRIPTORS = 64  # per read
CHUNK = 64 * 1024  # bytes per read


class ParentGoneError(Exception):
    """The parent closed its socket or died."""


class ParentSocket:
    """Non-blocking socket to the parent: receives commands with descriptors, sends messages."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._frames = Frames()
        self._out = b""
        self._descriptors: deque[int] = deque()  # arrived, in the order of their frames

    def receive(self) -> list[Message]:
        """The commands that have arrived. Raises ParentGoneError."""
        received: list[Message] = []
        while len(received) < MOST_WAITING:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, CHUNK, MAX_DESCRIPTORS)
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError as error:
                raise ParentGoneError from error
            if not data:
                raise ParentGoneError
            self._descriptors.extend(descriptors)
            received += self._frames.feed(data)
            # A read ends behind descriptors, even if more data is there.
            if not descriptors and len(data) < CHUNK:
                break
        return received

    def take_socket(self, port: int) -> socket.socket:
        """The socket passed with the frame for this port."""
        bound = socket.socket(fileno=self.take_descriptor())
        if bound.getsockname()[1] != port:
            raise RuntimeError(f"the socket for RTP port {port} was lost on its way here")
        return bound

    def take_descriptor(self) -> int:
        """The descriptor passed with the current frame; the caller must close it."""
        return self._descriptors.popleft()

    def send(self, *messages: Message) -> None:
        """Sends messages, after unsent parts of earlier ones. Raises ParentGoneError."""
        self._out += b"".join(map(encode, messages))
        try:
            while self._out:
                self._out = self._out[self._socket.send(self._out) :]
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError as error:
            raise ParentGoneError from error

    @property
    def behind(self) -> bool:
        """Whether earlier messages are not completely sent."""
        return bool(self._out)

    def wait(self, seconds: float) -> bool:
        """Waits for something to receive, with microsecond precision; False after `seconds`."""
        return bool(select.select([self._socket], [], [], seconds)[0])


class Sender:
    """The main loop: commands, reception, tick, sleep."""

    def __init__(self, parent: ParentSocket, table: StreamTable) -> None:
        self._parent = parent
        self._table = table
        self._receiver = StreamReceiver(table)
        self._receive_due = 0.0
        self._commands: deque[Message] = deque()
        self._may_have_commands = True
        self._has_read = False  # commands, since the last tick
        self._read_due = 0.0  # when to read commands next, unless there is no stream
        self._ends: deque[StreamReport] = deque()  # unsent
        self._ends_due = 0.0
        self._schedule = Schedule(time.monotonic())
        self._lateness = TickLateness()
        self._packets = 0
        self._refused = 0
        self._stats_due = 0.0

    def run(self) -> None:
        """Runs until it raises ParentGoneError."""
        idle = True
        while True:
            self._take_commands()
            if idle:
                # New streams start at once, not at the next tick of the old schedule.
                self._schedule.restart(time.monotonic())
            now = time.monotonic()
            if now >= self._stats_due:
                self._send_stats(now)
            if now >= self._receive_due and self._receiver:
                self._receive_due = now + RECEIVE_INTERVAL
                news = self._receiver.read(self._schedule.due - MARGIN)
                if news:
                    self._parent.send(*news)
            idle = not self._skip_idle_ticks()
            if self._parent.behind or (self._ends and (idle or now >= self._ends_due)):
                self._send_ends(inf if idle else self._schedule.due - MARGIN)
            if not idle:
                if not self._wait_until_due():
                    self._tick()
            elif not self._commands:
                wait = RECEIVE_INTERVAL if self._receiver else IDLE_WAIT
                self._may_have_commands = self._parent.wait(wait)

    def _skip_idle_ticks(self) -> bool:
        """Advances to the next tick that has something to do; False: there is none."""
        for _ in range(MOST_SLOTS):
            if not self._table.idle(self._schedule.index):
                return True
            self._schedule.skip()
        return False

    def _wait_until_due(self) -> bool:
        """Sleeps until the tick is due; returns True earlier to handle commands or reports."""
        now = time.monotonic()
        pause = self._schedule.due - now
        if pause > MARGIN and (self._commands or (self._ends and now >= self._ends_due)):
            return True
        if self._schedule.due - LEAD < self._read_due:
            time.sleep(max(0.0, pause))  # without reading commands more often than needed
            return False
        if pause <= 0:
            self._may_have_commands = True
            return False
        if pause > LEAD:
            # One sleep per tick, not two: with few streams, wake-ups are the largest cost.
            if not self._parent.wait(pause):
                return False
            # A command has no effect before the next tick, so all of them are read together just
            # before it: waking up for each costs more than handling it.
            time.sleep(max(0.0, self._schedule.due - LEAD - time.monotonic()))  # see above
        elif self._has_read:
            time.sleep(pause)  # reading more commands now could delay the tick
            return False
        self._may_have_commands = True
        return True

    def _take_commands(self) -> None:
        """Reads and handles commands, until the margin before the next tick."""
        if self._may_have_commands and len(self._commands) < MOST_WAITING:
            received = self._parent.receive()
            self._commands.extend(received)
            self._has_read, self._may_have_commands = True, False
            if received:
                self._read_due = time.monotonic() + COMMANDS_INTERVAL
        handled = 0
        while self._commands:
            if handled >= FEWEST and time.monotonic() > self._schedule.due - MARGIN:
                break
            handled += 1
            end = self._handle(self._commands.popleft())
            if end is not None:
                self._ends.append(end)

    def _send_ends(self, deadline: float) -> None:
        """Sends reports until the deadline, after unsent parts of earlier messages."""
        ends: list[StreamReport] = []
        while self._ends:
            if len(ends) >= FEWEST and time.monotonic() > deadline:
                break
            ends.append(self._receiver.complete(self._ends.popleft()))
        if not self._ends:
            self._ends_due = time.monotonic() + ENDS_INTERVAL
        self._parent.send(*ends)

    def _handle(self, command: Message) -> StreamReport | None:
        """Executes a command; returns the report of a stream that can't be played."""
        match command:
            case Open(port, has_rtcp):
                bound = self._parent.take_socket(port)
                self._table.open(port, bound)
                self._receiver.rtp.open(port, bound)
                if has_rtcp:
                    self._receiver.rtcp.open(port, self._parent.take_socket(port + 1))
            case OpenClip(clip):
                descriptor = self._parent.take_descriptor()
                self._parent.send(self._table.open_clip(clip, descriptor))
            case CloseClips(clips):
                self._table.close_clips(clips)
            case Play():
                end = self._table.play(command, time.monotonic())
                if end is None and command.receive:
                    self._receiver.add(command)
                return end
            case Stop(stream, if_awaited):
                self._table.stop(stream, if_awaited=if_awaited)
            case StopAudio(stream):
                self._receiver.rtp.stop_audio(stream)
            case Replace():
                self._table.replace(command)
            case Change():
                self._table.change(command, time.monotonic())
                self._receiver.change(command)
            case _:
                raise AssertionError(f"the streamer does not send {command}")
        return None

    def _tick(self) -> None:
        due = self._schedule.due
        sent, refused, ends = self._table.tick(self._schedule.index, due)
        now = time.monotonic()
        if sent or refused:
            self._packets += sent
            self._refused += refused
            self._lateness.record(now - due)
        self._schedule.advance(now)
        self._has_read = False
        self._ends += ends

    def _send_stats(self, now: float) -> None:
        self._stats_due = now + REPORT_INTERVAL
        if not self._parent.behind:
            stats = self._lateness.report()
            self._parent.send(
                stats._replace(
                    packets=self._packets, refused=self._refused, cpu_seconds=time.process_time()
                )
            )


def _warm_up() -> None:
    """Runs all code once without sending: first calls take milliseconds, which would be audible."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        table = StreamTable(lambda packets, groups: [])
        table.open(0, unused)
        table.open_clip(0, os.open(__file__, os.O_RDONLY))
        spec = StreamSpec(0, ("127.0.0.1", 9), PCMA, "alaw")
        table.play(Play(0, spec, [0], 0, 0, 0))
        table.tick(0, 0.0)
        table.tick(0, 0.0)
        for held in (True, False):
            table.change(Change(0, spec._replace(held=held), moved=False), 0.0)
        table.replace(Replace(0, [0]))
        table.tick(0, 0.0)
        table.stop(0)
        table.tick(0, 0.0)


def main(arguments: list[str]) -> int:
    """Runs until the parent is gone; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    inherited, *core = arguments
    # select(2) supports descriptors up to 1023 only; a duplicate gets the lowest free number.
    parent = ParentSocket(socket.socket(fileno=os.dup(int(inherited))))
    os.close(int(inherited))
    sender = Sender(parent, StreamTable(Sendmmsg()))
    claim_a_core(int(core[0]) if core else None)
    _warm_up()
    # This process makes no reference cycles, and a collection is an audible pause.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        sender.run()
    except ParentGoneError:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
