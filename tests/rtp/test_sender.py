"""When the sender's packets leave, on a clock that is set by hand."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitel.rtp.ipc import Message, Open
from bitel.rtp.packet import RtpHeader
from bitel.rtp.sender import __main__ as sender_module
from bitel.rtp.sender.__main__ import COMMANDS_INTERVAL, ENDS_INTERVAL, ParentGoneError, Sender
from bitel.rtp.sender.sendmmsg import Group, Packets, Refused
from bitel.rtp.sender.stream_receiver import StreamReceiver
from bitel.rtp.sender.stream_table import StreamTable
from bitel.rtp.stream_spec import StreamReport
from tests.rtp.streams import change_command, open_clips, play_command

PORT = 4000
PACKETS = 5
INTERVAL = 0.02
BEGINNING = 100.0
ALL_OVER = BEGINNING + 5


class Machine:
    """A parent, a clock and a network in one. It stops the sender whenever it likes.

    `stalls` are times after the beginning, and for how long the sender then stands still. It does
    so at the first call of something that is the machine's. `takes` seconds go by whenever it looks
    at the clock, as it does with each command, and with each end that it tells.
    """

    behind = False  # the parent takes all at once

    def __init__(
        self, clip: Path, stalls: Sequence[tuple[float, float]] = (), takes: float = 0.0
    ) -> None:
        self.now = BEGINNING
        self._takes = takes
        self.sent: dict[int, list[float]] = defaultdict(list)  # of each stream, when
        self.ends: list[StreamReport] = []
        self.told: list[float] = []  # when the parent was told of ends
        self.looks: list[float] = []  # when the sender looked for commands
        self._clip = clip
        self._stalls = sorted(stalls)
        self._commands: list[tuple[float, Message]] = [(BEGINNING, Open(PORT, has_rtcp=False))]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def play(self, stream: int, after: float) -> None:
        """Has a stream of `PACKETS` played."""
        command = play_command(stream, PORT, ("192.0.2.1", 5000), clips=[0], start=(0, 0, stream))
        self.say(after, command)

    def say(self, after: float, command: Message) -> None:
        """Tells the sender so many seconds after the beginning."""
        self._commands.append((BEGINNING + after, command))
        self._commands.sort(key=lambda said: said[0])

    def run(self) -> None:
        """Runs the sender until all is over."""
        with pytest.MonkeyPatch.context() as patch, self._socket:
            patch.setattr(sender_module, "time", self)
            patch.setattr(StreamReceiver, "complete", self._complete)
            table = StreamTable(self._transmit)
            open_clips(table, self._clip)
            sender = Sender(self, table)  # type: ignore[arg-type]
            with pytest.raises(ParentGoneError):
                sender.run()

    def monotonic(self) -> float:
        self.now += self._takes
        return self.now

    def process_time(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._stall()

    def wait(self, seconds: float) -> bool:
        up = self.now + seconds
        said_at = self._commands[0][0] if self._commands else ALL_OVER
        self.now = max(self.now, min(said_at, up))
        self._stall()
        return said_at <= up

    def receive(self) -> list[Message]:
        self._stall()
        self.looks.append(self.now)
        if self.now >= ALL_OVER:
            raise ParentGoneError
        said = [command for at, command in self._commands if at <= self.now]
        del self._commands[: len(said)]
        return said

    def take_socket(self, port: int) -> socket.socket:
        assert port == PORT
        return self._socket

    def send(self, *messages: Message) -> None:
        self._stall()
        ends = [message for message in messages if isinstance(message, StreamReport)]
        if ends:
            self.ends += ends
            self.told.append(self.now)

    def _complete(self, end: StreamReport) -> StreamReport:
        self.now += self._takes
        return end

    def _stall(self) -> None:
        if self._stalls and self.now >= BEGINNING + self._stalls[0][0]:
            self.now += self._stalls.pop(0)[1]

    def _transmit(self, packets: Packets, groups: Sequence[Group]) -> Refused:
        self._stall()
        for _, first, count in groups:
            for row in range(first, first + count):
                header, _ = RtpHeader.parse(packets.headers[row].tobytes())
                self.sent[header.ssrc].append(self.now)
        return []


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sender") / "clip.alaw"
    path.write_bytes(bytes(160 * PACKETS))
    return path


def assert_in_time(sent: list[float], told: float) -> None:
    """No packet before its time, counted from when the stream was to begin."""
    for number, left in enumerate(sent):
        assert left >= told + number * INTERVAL - 1e-9


times = st.floats(0, 0.3)


@settings(deadline=None)
@given(
    told=st.lists(times, min_size=1, max_size=12),
    stalls=st.lists(st.tuples(times, times), max_size=12),
)
@example(told=[0.059], stalls=[(0.0, 0.06)])  # between its first word and its first look
@example(told=[0.0, 0.071], stalls=[(0.05, 0.05)])  # a late tick, with a stream that begins
def test_no_packet_leaves_before_its_time_however_the_sender_is_held_up(
    clip: Path, told: list[float], stalls: list[tuple[float, float]]
) -> None:
    machine = Machine(clip, stalls)
    for stream, after in enumerate(told):
        machine.play(stream, after)
    machine.run()
    assert sorted(machine.ends) == [StreamReport(n, PACKETS, True, "") for n in range(len(told))]
    for stream, after in enumerate(told):
        assert len(machine.sent[stream]) == PACKETS
        assert_in_time(machine.sent[stream], BEGINNING + after)


@pytest.mark.parametrize("stall", [0.0, 0.001, 0.03, 0.07, 0.19, 0.3])
def test_what_goes_on_after_a_pause_makes_up_for_nothing(clip: Path, stall: float) -> None:
    machine = Machine(clip, [(0.2, stall)])
    machine.play(1, 0.0)
    machine.say(0.03, change_command(1, held=True))
    for stream in range(2, 7):  # without them there were nothing to be late for
        machine.play(stream, 0.08 * (stream - 1))
    resumed = 0.2 + 0.9 * stall
    machine.say(resumed, change_command(1))
    machine.run()
    before, after = machine.sent[1][:2], machine.sent[1][2:]
    assert max(before) < BEGINNING + 0.03
    assert len(after) == PACKETS - 2
    assert_in_time(after, BEGINNING + resumed)


def test_the_first_streams_begin_at_once_and_others_within_a_packet_time(clip: Path) -> None:
    machine = Machine(clip)
    told = [0.1, 0.1, 0.1037, 0.125, 0.15]
    for stream, after in enumerate(told):
        machine.play(stream, after)
    machine.run()
    waited = [machine.sent[stream][0] - BEGINNING - after for stream, after in enumerate(told)]
    assert waited[:2] == pytest.approx([0, 0], abs=1e-9)
    assert all(0 < wait <= INTERVAL + 1e-9 for wait in waited[2:])


def test_commands_and_ends_of_many_are_few_words(clip: Path) -> None:
    machine = Machine(clip)
    many = 500
    for stream in range(many):
        machine.play(stream, 0.002 * stream)
    machine.run()
    assert len(machine.ends) == many
    looks = [at for at in machine.looks if at < BEGINNING + 1]
    assert 50 < len(looks) <= 1 / COMMANDS_INTERVAL + 1
    assert 40 < len(machine.told) <= (1 + PACKETS * INTERVAL) / ENDS_INTERVAL + 1
    for stream in range(many):
        waited = machine.sent[stream][0] - BEGINNING - 0.002 * stream
        assert 0 <= waited <= COMMANDS_INTERVAL + INTERVAL + 0.002


def test_an_end_is_told_soon_whether_others_play_or_not(clip: Path) -> None:
    machine = Machine(clip)
    machine.play(1, 0.0)
    machine.play(2, 0.03)
    machine.run()
    over = [machine.sent[stream][-1] + INTERVAL for stream in (1, 2)]
    for told, at in zip(machine.told, over, strict=True):
        assert at <= told <= at + 0.002


def test_many_that_come_at_once_begin_as_soon_as_they_can(clip: Path) -> None:
    machine, many = Machine(clip, takes=20e-6), 500
    machine.play(many, 0.0)
    for stream in range(many):
        machine.play(stream, 0.05)
    machine.run()
    begun = [machine.sent[stream][0] - BEGINNING - 0.05 for stream in range(many)]
    # Each takes two or three looks at the clock.
    assert max(begun) <= many * 3 * 20e-6 + 2 * INTERVAL


def test_no_tick_waits_for_many_ends_to_be_told(clip: Path) -> None:
    machine, many = Machine(clip, takes=100e-6), 500
    for stream in range(many):
        machine.play(stream, 0.001)
    on = 0.001 + (PACKETS - 2) * INTERVAL
    machine.play(many, on)
    machine.run()
    assert len(machine.ends) == many + 1
    sent = machine.sent[many]
    assert [after - before for before, after in pairwise(sent)] == pytest.approx(
        [INTERVAL] * (PACKETS - 1), abs=0.005
    )
