"""The sender process: `python -m bitel.rtp.sender DESCRIPTOR TRANSMIT [CORE]`.

The streamer starts it, and may give it a core to run on. It lives as long as the socket to its
parent: when that closes, because the parent stopped it or died, it ends, and no orphan goes on
talking into a phone. Signals that end a service are therefore ignored: while the service drains,
calls go on.
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

from bitel.rtp.callees import Callees
from bitel.rtp.ipc import (
    Change,
    CloseClips,
    End,
    Frames,
    Load,
    Message,
    Open,
    OpenClip,
    OpenRtcp,
    Play,
    Ready,
    Stop,
    encode,
)
from bitel.rtp.packet import PCMA
from bitel.rtp.priority import claim_a_core
from bitel.rtp.sendmmsg import choose
from bitel.rtp.slot_scheduler import MOST_SLOTS, TICK_SECONDS
from bitel.rtp.stream_table import StreamTable
from bitel.rtp.tick_schedule import TURN, Schedule, TickLateness

CALLEES_INTERVAL = 0.05  # seconds between looks at what callees have sent
IDLE_WAIT = 0.5  # seconds to wait for a command while nothing plays
COMMANDS_INTERVAL = 0.01  # seconds from commands that came to the next look for some
ENDS_INTERVAL = 0.02  # seconds from one word on who ended to the next; each wakes the parent
LEAD = 0.001  # seconds before a tick at which the commands that have come are taken together
MARGIN = 0.0003  # seconds before a tick at which no further command is begun
FEWEST = 8  # commands that are handled per tick, and ends told, however late it is
MOST_WAITING = 2000  # commands that were taken in; more wait with the parent, which counts them
MAX_DESCRIPTORS = 64  # that one read may bring
CHUNK = 64 * 1024  # bytes of one read


class ParentGoneError(Exception):
    """The parent closed its socket, or died."""


class ParentSocket:
    """The socket to the parent: commands with their descriptors in, messages out; never blocks."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._frames = Frames()
        self._out = b""
        self._descriptors: deque[int] = deque()  # arrived, in the order of their frames

    def receive(self) -> list[Message]:
        """The commands that have arrived; `ParentGoneError` at the end."""
        came: list[Message] = []
        # One read ends at the first descriptors, whatever has come after them.
        more = True
        while more and len(came) < MOST_WAITING:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, CHUNK, MAX_DESCRIPTORS)
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError as error:
                raise ParentGoneError from error
            if not data:
                raise ParentGoneError
            self._descriptors.extend(descriptors)
            came += self._frames.feed(data)
            more = bool(descriptors) or len(data) == CHUNK
        return came

    def take_socket(self, port: int) -> socket.socket:
        """The socket that came with the frame for this port."""
        bound = socket.socket(fileno=self.take_descriptor())
        if bound.getsockname()[1] != port:
            raise RuntimeError(f"the socket for RTP port {port} was lost on its way here")
        return bound

    def take_descriptor(self) -> int:
        """The descriptor that came with the frame at hand; it is the caller's to close."""
        return self._descriptors.popleft()

    def send(self, *messages: Message) -> None:
        """Sends messages, and what is left of earlier ones."""
        if messages:
            self._out += encode(messages)
        try:
            while self._out:
                self._out = self._out[self._socket.send(self._out) :]
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError as error:
            raise ParentGoneError from error

    @property
    def behind(self) -> bool:
        """The parent has not taken everything yet."""
        return bool(self._out)

    def wait(self, seconds: float) -> bool:
        """Waits, to the microsecond, until there is something to receive; False: the time is up."""
        return bool(select.select([self._socket], [], [], seconds)[0])


class Sender:
    """The loop: commands, what callees sent, tick, sleep."""

    def __init__(self, parent: ParentSocket, engine: StreamTable) -> None:
        self._parent = parent
        self._engine = engine
        self._callees = Callees(engine)
        self._callees_due = 0.0
        self._commands: deque[Message] = deque()
        self._look = True  # whether the parent may have said something
        self._looked = False  # since the last tick
        self._look_due = 0.0  # before that it may not look again, unless nothing plays
        self._ends: deque[End] = deque()  # that the parent is still to be told
        self._ends_due = 0.0
        self._schedule = Schedule(TICK_SECONDS, time.monotonic())
        self._punctuality = TickLateness()
        self._packets = 0
        self._refused = 0
        self._report_due = 0.0

    def run(self) -> None:
        """Runs until `ParentGoneError`."""
        self._parent.send(Ready())
        idle = True
        while True:
            self._take_commands()
            if idle:
                # What was told just now begins at once, however long the wait for it was.
                self._schedule.restart(time.monotonic())
            now = time.monotonic()
            if now >= self._report_due:
                self._report(now)
            if now >= self._callees_due and self._callees:
                self._callees_due = now + CALLEES_INTERVAL
                self._callees.attend(self._schedule.due - MARGIN)
                silent = self._callees.fallen_silent()
                if silent:
                    self._parent.send(*silent)
            idle = not self._skip_idle_ticks()
            if self._parent.behind or (self._ends and (idle or now >= self._ends_due)):
                self._tell(inf if idle else self._schedule.due - MARGIN)
            if not idle:
                if not self._wait_until_due():
                    self._tick()
            elif not self._commands:
                self._look = self._parent.wait(CALLEES_INTERVAL if self._callees else IDLE_WAIT)

    def _skip_idle_ticks(self) -> bool:
        """Goes on to the next tick that has something to do; False: there is none."""
        for _ in range(MOST_SLOTS):
            if not self._engine.idle(self._schedule.index):
                return True
            self._schedule.skip()
        return False

    def _wait_until_due(self) -> bool:
        """Sleeps until the tick is due; True where it is time for commands or ends before that."""
        now = time.monotonic()
        pause = self._schedule.due - now
        if pause > MARGIN and (self._commands or (self._ends and now >= self._ends_due)):
            return True
        if self._schedule.due - LEAD < self._look_due:
            # The parent has been looked at a moment ago, and may wait: nothing else is to be done.
            time.sleep(max(0.0, pause))
            return False
        if pause <= 0:
            self._look = True
            return False
        if pause > LEAD:
            # One sleep a tick rather than two: waking up is what few streams cost most.
            if not self._parent.wait(pause):
                return False
            # Nothing that is said between two ticks has an effect before the second one, and
            # waking up for each command costs more than the command.
            time.sleep(max(0.0, self._schedule.due - LEAD - time.monotonic()))
        elif self._looked:
            # In the last moment no command is looked at any more, so that many can't delay the
            # tick, and this process has nothing else to do until then.
            time.sleep(pause)
            return False
        self._look = True
        return True

    def _take_commands(self) -> None:
        """Handles what has arrived, as far as the time until the next tick goes."""
        if self._look and len(self._commands) < MOST_WAITING:
            came = self._parent.receive()
            self._commands.extend(came)
            self._looked, self._look = True, False
            if came:
                self._look_due = time.monotonic() + COMMANDS_INTERVAL
        handled = 0
        while self._commands:
            if handled >= FEWEST and time.monotonic() > self._schedule.due - MARGIN:
                break
            handled += 1
            end = self._handle(self._commands.popleft())
            if end is not None:
                self._ends.append(end)

    def _tell(self, deadline: float) -> None:
        """Tells the parent who ended, as far as time goes, and what is left of earlier words."""
        told: list[End] = []
        while self._ends:
            if len(told) >= FEWEST and time.monotonic() > deadline:
                break
            told.append(self._callees.complete(self._ends.popleft()))
        if not self._ends:
            self._ends_due = time.monotonic() + ENDS_INTERVAL
        self._parent.send(*told)

    def _handle(self, command: Message) -> End | None:
        match command:
            case Open(port):
                self._open(port)
            case OpenRtcp(port):
                self._callees.reporting.open(port, self._parent.take_socket(port + 1))
            case OpenClip(clip):
                descriptor = self._parent.take_descriptor()
                self._parent.send(self._engine.open_clip(clip, descriptor))
            case CloseClips(clips):
                self._engine.close_clips(clips)
            case Play():
                return self._play(command)
            case Stop(stream, if_awaited):
                self._engine.stop(stream, if_awaited=if_awaited)
            case Change():
                self._engine.change(command, time.monotonic())
                self._callees.change(command)
            case _:
                raise AssertionError(f"the streamer does not say {command}")
        return None

    def _open(self, port: int) -> None:
        bound = self._parent.take_socket(port)
        self._engine.open(port, bound)
        self._callees.listener.open(port, bound)

    def _play(self, command: Play) -> End | None:
        end = self._engine.play(command, time.monotonic())
        if end is None and command.listen:
            self._callees.add(command)
        return end

    def _tick(self) -> None:
        due = self._schedule.due
        sent, refused, ends = self._engine.tick(self._schedule.index, due)
        now = time.monotonic()
        if sent or refused:
            self._packets += sent
            self._refused += refused
            self._punctuality.record(now - due)
        self._schedule.advance(now)
        self._looked = False
        self._ends += ends

    def _report(self, now: float) -> None:
        self._report_due = now + TURN
        if self._parent.behind:
            return
        lateness = self._punctuality.turn()
        self._parent.send(
            Load(
                self._packets,
                self._refused,
                lateness.ticks,
                lateness.late,
                round(lateness.worst_ms, 3),
                round(lateness.p99_ms, 3),
                round(lateness.tenth_ms, 3),
                time.process_time(),
            )
        )


def _warm_up() -> None:
    """Plays something to nobody: first calls take milliseconds, which no listener should hear."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        engine = StreamTable(lambda packets, groups: [])
        engine.open(0, unused)
        # Any file that is there will do; it is never sent.
        engine.play(Play(0, 0, "127.0.0.1", 9, PCMA, "alaw", [__file__], 0, 0, 0))
        engine.tick(0, 0.0)
        engine.tick(0, 0.0)
        for held in (True, False):
            engine.change(Change(0, None, PCMA, 20, (), held), 0.0)
        engine.tick(0, 0.0)
        engine.stop(0)
        engine.tick(0, 0.0)


def main(arguments: list[str]) -> int:
    """Runs the process until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    inherited, transmit, *core = arguments
    # A copy has the lowest free number; select takes none above 1023.
    parent = ParentSocket(socket.socket(fileno=os.dup(int(inherited))))
    os.close(int(inherited))
    sender = Sender(parent, StreamTable(choose(transmit)))
    claim_a_core(int(core[0]) if core else None)
    _warm_up()
    # Nothing here makes reference cycles, and a collection is a pause that a listener could hear.
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
