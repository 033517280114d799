"""Holds, new addresses, payload types and packet times, tick by tick: no clock, no network."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitel.rtp.ipc import Replace
from bitel.rtp.packet import PTIMES, RtpHeader
from bitel.rtp.sender.sendmmsg import Group, Packets, Refused
from bitel.rtp.sender.stream_table import StreamTable
from bitel.rtp.sender.tick_schedule import STREAMS_PER_SLOT, TICK_SECONDS, SlotScheduler
from bitel.rtp.stream_spec import UNHEARD, StreamReport
from tests.rtp.streams import change_command, host_and_port, open_clips, play_command

Recording = Callable[[int], Path]
PORT = 4000
FAR = ("192.0.2.1", 5000)


class Played:
    """An engine whose packets are kept with the time of their tick."""

    def __init__(self) -> None:
        self.engine = StreamTable(self._transmit)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.engine.open(PORT, self.socket)
        self.packets: list[tuple[float, tuple[str, int], RtpHeader, bytes]] = []
        self.ends: list[StreamReport] = []
        self.index = 0

    @property
    def now(self) -> float:
        return self.index * TICK_SECONDS

    def play(self, *clips: Path, stream: int = 1, ptime: int = 20) -> None:
        numbers, start = open_clips(self.engine, *clips), (65530, 2**32 - 320, 7)
        command = play_command(stream, PORT, FAR, clips=numbers, start=start, ptime=ptime)
        assert self.engine.play(command) is None

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_SECONDS)):
            _, _, ends = self.engine.tick(self.index, self.now)
            self.ends += ends
            self.index += 1

    def hold(self, stream: int = 1, after: float = 0.0) -> None:
        self.engine.change(change_command(stream, held=True), self.now + after)

    def resume(self, stream: int = 1, after: float = 0.0) -> None:
        self.engine.change(change_command(stream), self.now + after)

    def voice(self) -> bytes:
        return b"".join(payload for *_, payload in self.packets)

    def _transmit(self, packets: Packets, groups: Sequence[Group]) -> Refused:
        for _, first, count in groups:
            for row in range(first, first + count):
                header, _ = RtpHeader.parse(packets.headers[row].tobytes())
                payload = ctypes.string_at(int(packets.payloads[row]), packets.samples)
                far = host_and_port(packets.family, packets.names[row].tobytes())
                self.packets.append((self.now, far, header, payload))
        return []


@pytest.fixture
def played() -> Iterator[Played]:
    made = Played()
    yield made
    made.socket.close()


@pytest.mark.parametrize("ptime", PTIMES)
def test_every_packet_time(played: Played, recording: Recording, ptime: int) -> None:
    clip = recording(8000)
    played.play(clip, ptime=ptime)
    played.run(1.2)
    size = 8 * ptime
    packets = -(-8000 // size)
    assert played.voice() == clip.read_bytes() + b"\xd5" * (packets * size - 8000)
    headers = [header for _, _, header, _ in played.packets]
    assert [h.sequence for h in headers] == [(65530 + i) % 2**16 for i in range(packets)]
    assert [h.timestamp for h in headers] == [
        (2**32 - 320 + size * i) % 2**32 for i in range(packets)
    ]
    times = [time for time, *_ in played.packets]
    assert {round((b - a) * 1000) for a, b in pairwise(times)} == {ptime}
    assert played.ends == [StreamReport(1, packets, True, "")]


def test_packet_times_side_by_side(played: Played, recording: Recording) -> None:
    clip = recording(2400)  # 300 ms: whole packets of all but 40 ms
    for stream, ptime in enumerate(PTIMES):
        played.play(clip, stream=stream, ptime=ptime)
    played.run(0.4)
    assert {end.stream: end.packets for end in played.ends} == {0: 30, 1: 15, 2: 10, 3: 8, 4: 5}
    assert len(played.engine._streams) == 0


@pytest.mark.parametrize("ptime", PTIMES)
@pytest.mark.parametrize("ticks", [0, 1, 7, 30])
def test_other_clips_are_sent_from_the_next_packet_on(
    played: Played, recording: Recording, ptime: int, ticks: int
) -> None:
    first, second, third = recording(8000), recording(500), recording(1000)
    played.play(first, ptime=ptime)
    played.run(ticks * TICK_SECONDS)
    sent = len(played.packets)
    played.engine.replace(Replace(1, open_clips(played.engine, second, third)))
    played.run(1.2)
    size = 8 * ptime
    new = [(part.read_bytes(), -(-part.stat().st_size // size)) for part in (second, third)]
    expected = first.read_bytes()[: sent * size]
    expected += b"".join(part.ljust(packets * size, b"\xd5") for part, packets in new)
    assert played.voice() == expected
    headers = [header for *_, header, _ in played.packets]
    packets = sent + sum(count for _, count in new)
    assert [h.sequence for h in headers] == [(65530 + i) % 2**16 for i in range(packets)]
    assert [h.timestamp for h in headers] == [
        (2**32 - 320 + size * i) % 2**32 for i in range(packets)
    ]
    assert {h.ssrc for h in headers} == {7}
    assert [h.marker for h in headers] == [True] + [False] * (packets - 1)
    times = [time for time, *_ in played.packets]
    assert {round((b - a) * 1000) for a, b in pairwise(times)} == {ptime}
    assert played.ends == [StreamReport(1, packets, True, "")]


def test_other_clips_are_sent_after_a_hold(played: Played, recording: Recording) -> None:
    first, second = recording(8000), recording(800)
    played.play(first)
    played.run(0.1)
    sent = len(played.packets)
    played.hold()
    played.engine.replace(Replace(1, open_clips(played.engine, second)))
    played.run(0.5)
    assert len(played.packets) == sent
    played.resume()
    played.run(0.5)
    assert played.voice() == first.read_bytes()[: sent * 160] + second.read_bytes()
    assert played.ends == [StreamReport(1, sent + 5, True, "")]


def test_other_streams_of_the_batch_go_on(played: Played, recording: Recording) -> None:
    clips = [recording(1600 * (n + 1)) for n in range(4)]
    for stream, clip in enumerate(clips):
        played.play(clip, stream=stream)
    played.run(0.06)
    played.engine.replace(Replace(3, open_clips(played.engine, recording(160))))
    played.run(1.0)
    assert {end.stream: end.finished for end in played.ends} == dict.fromkeys(range(4), True)
    lengths = {end.stream: end.packets for end in played.ends}
    assert [lengths[n] for n in range(3)] == [10, 20, 30]
    assert lengths[3] is not None
    assert lengths[3] <= 5


def test_clips_that_are_not_loaded_end_the_stream(played: Played, recording: Recording) -> None:
    played.play(recording(8000))
    played.run(0.1)
    played.engine.replace(Replace(1, [99]))
    played.run(0.2)
    (end,) = played.ends
    assert (end.finished, end.error) == (False, "recording 99 is not loaded")
    played.engine.replace(Replace(1, [0]))  # it has ended


# Each step: whether the stream is held, whether it gets a new address, its payload type and packet
# time, and for how many ticks it then goes on.
steps = st.lists(
    st.tuples(
        st.booleans(),
        st.booleans(),
        st.sampled_from([8, 98, 127]),
        st.sampled_from(PTIMES),
        st.integers(0, 50),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(
    steps=steps,
    ptime=st.sampled_from(PTIMES),
    sizes=st.lists(st.integers(1, 2400), min_size=1, max_size=4),
)
@example(
    steps=[
        (False, False, 8, 10, 24),
        (True, False, 8, 10, 5),
        (True, False, 8, 10, 36),
        (False, False, 8, 60, 16),
    ],
    ptime=10,
    sizes=[401],
)
def test_a_recording_is_heard_whole_whatever_changes_meanwhile(
    steps: list[tuple[bool, bool, int, int, int]],
    ptime: int,
    sizes: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    voice = bytes(i * 7 % 211 for i in range(sum(sizes)))  # no 0xd5, which is silence
    clips = []
    for number, size in enumerate(sizes):
        clips.append(folder / f"clip{number}.alaw")
        begin = sum(sizes[:number])
        clips[-1].write_bytes(voice[begin : begin + size])
    played = Played()
    played.play(*clips, ptime=ptime)
    far, held_before = 5000, set[int]()  # packets that a hold, or the beginning, came before
    for held, moves, payload_type, size, ticks in [*steps, (False, False, 8, 20, 1500)]:
        far += moves
        address = ("192.0.2.1", far) if moves else None
        command = change_command(1, address, payload_type, ptime=size, held=held)
        played.engine.change(command, played.now)
        before = len(played.packets)
        if held:
            held_before.add(before)
        played.run(ticks * TICK_SECONDS)
        fresh = played.packets[before:]
        assert not (held and fresh)
        assert {address for _, address, *_ in fresh} <= {("192.0.2.1", far)}
        assert {header.payload_type for *_, header, _ in fresh} <= {payload_type}
        assert len({len(payload) for *_, payload in fresh} - {8 * size}) == 0
        assert not (held and ticks >= max(PTIMES) / 2) or played.engine.idle(played.index)
    assert played.voice().replace(b"\xd5", b"") == voice
    assert played.ends == [StreamReport(1, len(played.packets), True, "")]
    assert played.packets[0][2].marker
    for number, ((then, _, last, audio), (now, _, header, next_audio)) in enumerate(
        pairwise(played.packets), 1
    ):
        step = (header.timestamp - last.timestamp) % 2**32
        assert header.ssrc == last.ssrc
        assert header.sequence == (last.sequence + 1) % 2**16
        if number in held_before:
            # The timestamp goes on with the clock, to half a packet, but for the waits for the
            # turns of the packet that was not sent and of the one that is.
            assert header.marker
            behind = (now - then) * 8000 - step
            assert -len(audio) - len(next_audio) / 2 - 1 < behind < 1.5 * len(next_audio) + 1
        else:
            assert not header.marker
            assert step == len(audio)
            assert now - then == pytest.approx(len(audio) / 8000)
    played.socket.close()


@pytest.mark.parametrize("ptime", PTIMES)
def test_octets_are_counted_over_a_change_of_the_packet_time(
    played: Played, recording: Recording, ptime: int
) -> None:
    played.play(recording(16000))
    played.run(0.1)
    played.engine.change(change_command(1, ptime=ptime), played.now)
    played.run(0.24)
    progress = played.engine.progress(1, played.now)
    assert progress is not None
    assert progress.octets == len(played.voice())
    assert progress.packets == len(played.packets)
    last = played.packets[-1]
    clock = last[2].timestamp + round((played.now - last[0]) * 8000)
    assert abs((progress.timestamp - clock + 2**31) % 2**32 - 2**31) <= 16


def test_a_stream_that_begins_held(played: Played, recording: Recording) -> None:
    clip = recording(320)
    for stream in (1, 2):
        clips, start = open_clips(played.engine, clip), (100, 1000, 7)
        remote = "0.0.0.0", 5000
        command = play_command(stream, PORT, remote, clips=clips, start=start, held=True)
        assert played.engine.play(command, played.now) is None
    played.run(1.0)
    assert played.packets == []
    played.engine.change(change_command(1, FAR), played.now)
    played.engine.stop(2)
    played.run(0.1)
    assert sorted(played.ends, key=lambda end: end.stream) == [
        StreamReport(1, 2, True, ""),
        StreamReport(2, 0, False, ""),
    ]
    assert played.voice() == clip.read_bytes()
    assert {far for _, far, *_ in played.packets} == {("192.0.2.1", 5000)}
    assert [packet[2].timestamp for packet in played.packets] == [9000, 9160]
    assert [packet[2].marker for packet in played.packets] == [True, False]


def test_the_first_packet_after_a_pause_bears_the_marker(
    played: Played, recording: Recording
) -> None:
    played.play(recording(8000))
    played.run(0.1)
    played.hold()
    played.hold(after=1.0)  # said twice
    played.run(3.0)
    assert len(played.packets) == 5
    played.resume()
    played.resume(after=1.0)
    played.run(0.1)
    headers = [header for _, _, header, _ in played.packets]
    assert [header.marker for header in headers] == [True] + [False] * 4 + [True] + [False] * 4
    assert (headers[5].timestamp - headers[4].timestamp) % 2**32 == 8 * 3020


def test_a_paused_stream_can_be_stopped(played: Played, recording: Recording) -> None:
    played.play(recording(8000))
    played.run(0.1)
    played.hold()
    played.run(0.1)
    played.engine.stop(1)
    played.engine.stop(1)
    played.resume()
    played.run(0.1)
    assert played.ends == [StreamReport(1, 5, False, "")]
    assert len(played.packets) == 5


def test_what_is_said_to_nobody(played: Played) -> None:
    played.hold(9)
    played.resume(9)
    played.engine.latch(9, ("192.0.2.1", 1), 0.0)
    played.engine.stop(9)
    played.run(0.1)
    assert played.ends == []


@pytest.mark.parametrize("ptime", PTIMES)
def test_many_streams_are_spread_evenly_over_their_packet_time(
    played: Played, recording: Recording, ptime: int
) -> None:
    clips = open_clips(played.engine, recording(8000))
    scheduler = SlotScheduler(ptime, socket.AF_INET, lambda packets, groups: [])
    assert len(scheduler.batches) == ptime // 2
    assert {id(scheduler.choose(port)) for port in range(100)} == {id(scheduler.batches[0])}
    for stream in range(6 * STREAMS_PER_SLOT):
        played.engine.open(stream, played.socket)
        command = play_command(stream, stream, FAR, clips=clips, ptime=ptime)
        assert played.engine.play(command) is None
    counts = []
    for _ in range(ptime // 2):
        before = len(played.packets)
        played.run(TICK_SECONDS)
        counts.append(len(played.packets) - before)
    used = [count for count in counts if count]
    assert sum(used) == 6 * STREAMS_PER_SLOT
    assert len(used) == min(ptime // 2, 6)
    assert max(used) <= 2 * STREAMS_PER_SLOT


def awaited(played: Played, clip: Path, *, held: bool = False) -> None:
    clips = open_clips(played.engine, clip)
    start = (0, 1000, 7)
    command = play_command(1, PORT, FAR, clips=clips, start=start, held=held, awaited=True)
    assert played.engine.play(command) is None


def test_a_stream_that_is_awaited_begins_with_the_first_packet_of_its_callee(
    played: Played, recording: Recording
) -> None:
    awaited(played, recording(5 * 160))
    played.run(0.3)
    assert played.packets == []
    played.engine.latch(1, ("192.0.2.9", 7000), played.now)
    played.run(0.3)
    assert [far for _, far, _, _ in played.packets] == [("192.0.2.9", 7000)] * 5
    assert played.packets[0][2].marker
    assert [end.finished for end in played.ends] == [True]


def test_one_that_is_held_too_waits_for_both(played: Played, recording: Recording) -> None:
    awaited(played, recording(5 * 160), held=True)
    played.engine.latch(1, ("192.0.2.9", 7000), played.now)
    played.run(0.1)
    assert played.packets == []
    played.resume()
    played.run(0.3)
    assert len(played.packets) == 5


def test_a_change_to_an_address_that_is_awaited_stops_it_until_then(
    played: Played, recording: Recording
) -> None:
    played.play(recording(20 * 160))
    played.run(0.1)
    sent = len(played.packets)
    assert 0 < sent < 20
    elsewhere = change_command(1, ("192.0.2.9", 7000), awaited=True)
    played.engine.change(elsewhere, played.now)
    played.run(0.3)
    assert len(played.packets) == sent
    # A change without a new address leaves it waiting.
    played.resume()
    played.run(0.1)
    assert len(played.packets) == sent
    played.engine.latch(1, ("192.0.2.9", 7002), played.now)
    played.run(0.6)
    assert len(played.packets) == 20
    assert {far for _, far, _, _ in played.packets[sent:]} == {("192.0.2.9", 7002)}


def test_an_address_that_may_be_sent_to_ends_the_wait(played: Played, recording: Recording) -> None:
    awaited(played, recording(5 * 160))
    played.engine.change(change_command(1, ("192.0.2.3", 9)), played.now)
    played.run(0.3)
    assert len(played.packets) == 5


def test_only_a_stream_that_still_waits_is_stopped_as_unheard(
    played: Played, recording: Recording
) -> None:
    awaited(played, recording(5 * 160))
    played.play(recording(5 * 160), stream=2)
    for stream in (1, 2):
        played.engine.stop(stream, if_awaited=True)
    played.run(0.3)
    ends = {end.stream: end for end in played.ends}
    assert (ends[1].packets, ends[1].finished, ends[1].error) == (0, False, UNHEARD)
    assert (ends[2].packets, ends[2].finished, ends[2].error) == (5, True, "")
