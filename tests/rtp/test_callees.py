"""What callees send: a real sender process, real UDP; and the rules of listening without it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.bpf import DENSEST, DROP_ALL, keep_one_in
from bitel.rtp.packet import RtpHeader
from bitel.rtp.port_pool import bind_rtp
from bitel.rtp.sender import rtcp
from bitel.rtp.sender.rtcp import Progress, Quality, RtcpSessions
from bitel.rtp.sender.rtp_receiver import IN_FLIGHT, LINGERING, YOUNG, RemoteSource, RtpReceiver
from bitel.rtp.stream_spec import Latch, StreamSpec
from bitel.rtp.streamer import Streamer, StreamReport
from tests.rtp.streams import change, change_command, play, play_command, start_with
from tests.support.free_ports import free_range
from tests.support.prerequisites import need_ipv6
from tests.support.rtp_packets import pack
from tests.support.waiting import until

HOST = "127.0.0.1"
EVENT = 101
SSRC = 0xCAFEBABE
Recording = Callable[[int], Path]


def voice(sequence: int, kind: int = 8, ssrc: int = 1) -> bytes:
    return pack(RtpHeader(kind, sequence % 2**16, 160 * sequence, ssrc)) + bytes(160)


def key(code: int, timestamp: int, sequence: int, *, end: bool = False, kind: int = EVENT) -> bytes:
    header = RtpHeader(kind, sequence, timestamp, 1)
    return pack(header) + struct.pack("!BBH", code, 0x80 * end, 800)


def reception(highest: int, lost: int, jitter: int, ssrc: int = SSRC) -> bytes:
    return struct.pack("!BBHIIIIIII", 0x81, 201, 7, 99, ssrc, lost, highest, jitter, 0, 0)


def bound(host: str = HOST, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setblocking(False)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def arrived(at: socket.socket) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(at.recv(2048))
        except BlockingIOError:
            return packets


class Callee:
    """An RTP port, and its RTCP port above it."""

    def __init__(self) -> None:
        while True:
            port = free_range(1).start
            with contextlib.suppress(OSError), contextlib.ExitStack() as taken:
                self.rtp = taken.enter_context(bound(port=port))
                self.rtcp = taken.enter_context(bound(port=port + 1))
                taken.pop_all()
                break
        self.address: tuple[str, int] = self.rtp.getsockname()

    def close(self) -> None:
        self.rtp.close()
        self.rtcp.close()


@pytest.fixture
def callee() -> Iterator[Callee]:
    made = Callee()
    yield made
    made.close()


@pytest.fixture
async def streamer() -> AsyncIterator[Streamer]:
    started = Streamer(HOST, free_range(20), receive=True)
    await started.start()
    yield started
    await started.stop()


async def test_a_call_is_heard(
    streamer: Streamer, callee: Callee, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_with(monkeypatch, 1000, 0, SSRC)
    port, reports = streamer.open_port(), list[StreamReport]()
    stream = play(
        streamer,
        port,
        callee.address,
        8,
        [recording(16000)],
        reports.append,
        event_types=(EVENT,),
    )
    heard: list[bytes] = []
    while len(heard) <= 5:
        await asyncio.sleep(0.005)
        heard += arrived(callee.rtp)
    for i in range(64):
        callee.rtp.sendto(voice(i), (HOST, port))
        if i % 8 == 0:
            await asyncio.sleep(0.01)
    for i, code in enumerate([1, 2, 10]):
        for end in (False, False, True, True):
            callee.rtp.sendto(key(code, 5000 * i, 70 + i, end=end), (HOST, port))
    callee.rtp.sendto(b"noise", (HOST, port))
    # Of 20 packets 5 were lost, then 10 of 50; jitter is in samples.
    callee.rtcp.sendto(reception(1019, 5, 40), (HOST, port + 1))
    callee.rtcp.sendto(reception(1049, 10, 80), (HOST, port + 1))
    callee.rtcp.sendto(reception(1049, 50, 80, ssrc=SSRC + 1), (HOST, port + 1))
    callee.rtcp.sendto(b"noise", (HOST, port + 1))
    await until(lambda: reports)
    [report] = reports
    assert (report.stream, report.finished, report.packets) == (stream, True, 100)
    assert report.digits == "12*"
    assert 64 <= report.received <= 80
    assert report.silent_for is not None
    assert 0 <= report.silent_for < 30
    assert (report.far_loss, report.far_jitter_ms) == (0.2, 10.0)
    goodbyes = [data for data in arrived(callee.rtcp) if data.endswith(struct.pack("!I", SSRC))]
    assert len(goodbyes) == 1


async def test_nothing_is_heard_of_a_callee_that_says_nothing(
    streamer: Streamer, callee: Callee, recording: Recording
) -> None:
    reports = list[StreamReport]()
    port = streamer.open_port()
    stream = play(streamer, port, callee.address, 8, [recording(160)], reports.append)
    await until(lambda: reports)
    assert reports == [StreamReport(stream, 1, finished=True)]


async def test_a_stream_follows_its_callee_to_another_port_once(
    streamer: Streamer, callee: Callee, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, reports = streamer.open_port(), list[StreamReport]()
    natted, stranger, late, moved = bound(), bound("127.0.0.2"), bound(), bound()
    got: dict[socket.socket, list[bytes]] = {callee.rtp: [], natted: [], moved: []}

    def packets(at: socket.socket) -> int:
        got[at] += arrived(at)
        return len(got[at])

    async def more(at: socket.socket) -> None:
        """Packets are sent and read by turns: after some more, what had come before was read."""
        enough = packets(at) + 8
        await until(lambda: packets(at) >= enough)

    clip = recording(16000)
    start_with(monkeypatch, 0, 0, SSRC)
    stream = play(streamer, port, callee.address, 8, [clip], reports.append)
    await until(lambda: packets(callee.rtp))
    stranger.sendto(voice(0), (HOST, port))  # another host
    await more(callee.rtp)

    def follows() -> bool:
        natted.sendto(voice(16), (HOST, port))
        return packets(natted) > 3

    await until(follows)
    packets(callee.rtp)  # those that were on their way
    late.sendto(voice(0), (HOST, port))  # once is enough
    await more(natted)
    change(streamer, stream, callee.address, 8)  # as it was: what was found out still holds
    await more(natted)
    change(streamer, stream, moved.getsockname(), 8)  # the callee has moved
    await until(lambda: reports)
    assert packets(natted) > 16
    assert packets(moved) > 20
    assert arrived(stranger) == arrived(late) == arrived(callee.rtp) == []
    heard = sorted(chain.from_iterable(got.values()), key=lambda data: data[2:4])
    assert b"".join(data[12:] for data in heard) == clip.read_bytes()
    for each in (natted, stranger, late, moved):
        each.close()


async def test_without_receive_nothing_is_listened_to(callee: Callee, recording: Recording) -> None:
    streamer, reports = Streamer(HOST, free_range(20)), list[StreamReport]()
    await streamer.start()
    port = streamer.open_port()
    stream = play(streamer, port, callee.address, 8, [recording(1600)], reports.append)
    other = bound()
    for i in range(32):
        other.sendto(voice(i), (HOST, port))
    await until(lambda: reports)
    assert reports == [StreamReport(stream, 10, finished=True)]
    assert arrived(other) == []
    await streamer.stop()
    other.close()


async def test_strangers_bytes_do_not_hurt_a_sender(
    streamer: Streamer, callee: Callee, recording: Recording
) -> None:
    port, reports = streamer.open_port(), list[StreamReport]()
    clip = recording(8000)
    play(streamer, port, callee.address, 8, [clip], reports.append, event_types=(EVENT,))
    [pid] = streamer.sender_pids()
    while not reports:
        for _ in range(20):
            kind = random.choice([b"\x80\xe5", b"\x9f\x80", b"\xb0\xe5", b"\x81\xc8", b""])
            data = kind + random.randbytes(random.randrange(200))
            callee.rtp.sendto(data, (HOST, port))
            callee.rtcp.sendto(data, (HOST, port + 1))
        await asyncio.sleep(0.005)
    assert reports[0].finished
    assert streamer.sender_pids() == [pid]
    assert b"".join(data[12:] for data in arrived(callee.rtp)) == clip.read_bytes()


KEEP_SOME = keep_one_in(DENSEST, frozenset({EVENT}))


@pytest.mark.parametrize("keep", [DROP_ALL, KEEP_SOME, None])
def test_what_the_kernel_hands_up(keep: bytes | None) -> None:
    ours, theirs = bind_rtp(socket.AF_INET, HOST, 0, keep), bound()
    sent = [voice(i) for i in range(20)]
    sent += [key(1, 0, 33), pack(RtpHeader(8, 35, 0, 1, marker=True)), b"x", b""]
    for data in sent:
        theirs.sendto(data, ours.getsockname())
    kept = {DROP_ALL: [], KEEP_SOME: [sent[0], sent[16], sent[20], sent[21]], None: sent}[keep]
    assert arrived(ours) == kept
    ours.close()
    theirs.close()


class Listening:
    """A listener on a socket of its own, without a filter at first, on a clock set by hand."""

    def __init__(self) -> None:
        self.now = 1.0
        self.latched: list[tuple[int, tuple[str, int]]] = []
        self.listener = RtpReceiver(
            lambda stream, far: self.latched.append((stream, far)), lambda: self.now
        )
        self.socket = bound()
        self.port: int = self.socket.getsockname()[1]
        self.listener.open(self.port, self.socket)

    def listen(
        self,
        stream: int,
        far: tuple[str, int],
        latch: Latch = "port",
        event_types: tuple[int, ...] = (EVENT,),
        payload_type: int = 8,
    ) -> None:
        spec = StreamSpec(self.port, far, payload_type, "alaw", 20, event_types, latch)
        self.listener.add(stream, spec)

    def move(
        self,
        stream: int,
        far: tuple[str, int] | None,
        event_types: tuple[int, ...] = (EVENT,),
        payload_type: int = 8,
    ) -> None:
        self.listener.change(change_command(stream, far, payload_type, event_types=event_types))

    def remove(self, stream: int) -> RemoteSource:
        source = self.listener.remove(stream)
        assert source is not None
        return source

    def take(self, data: bytes, source: tuple[str, int]) -> None:
        self.listener._receive(self.listener._ports[self.port], data, source, self.now)


@pytest.fixture
def listening() -> Iterator[Listening]:
    made = Listening()
    yield made
    made.socket.close()


def test_streams_that_share_a_port_are_told_apart_by_the_far_address(listening: Listening) -> None:
    for stream in (1, 2):
        listening.listen(stream, ("192.0.2.1", 4000 + stream))
    listening.take(key(1, 0, 0), ("192.0.2.1", 4001))
    listening.take(key(2, 0, 0), ("192.0.2.1", 4002))
    listening.take(key(3, 0, 0), ("192.0.2.1", 4003))
    assert listening.remove(1).digits == "1"
    assert listening.remove(2).digits == "2"
    assert listening.latched == []
    assert len(listening.listener) == 0


def test_one_of_two_callees_at_one_host_is_not_guessed(listening: Listening) -> None:
    listening.listen(1, ("192.0.2.1", 4001))
    listening.listen(2, ("192.0.2.1", 4002))
    listening.take(voice(0), ("192.0.2.1", 9999))
    assert listening.latched == []
    listening.take(voice(0), ("192.0.2.1", 4001))
    listening.take(voice(0), ("192.0.2.1", 9999))  # only the second is still to be found
    assert listening.latched == [(2, ("192.0.2.1", 9999))]


def test_two_calls_to_one_address_are_both_let_go(listening: Listening) -> None:
    for stream in (1, 2):
        listening.listen(stream, ("192.0.2.1", 4001))
    listening.take(key(1, 0, 0), ("192.0.2.1", 4001))
    assert listening.remove(1).digits == "1"
    listening.take(key(2, 0, 0), ("192.0.2.1", 4001))
    assert listening.remove(2).digits == "2"
    assert len(listening.listener) == 0


def test_a_new_address_may_be_followed_anew(listening: Listening) -> None:
    listening.listen(1, ("192.0.2.1", 4001))
    listening.take(voice(0), ("192.0.2.1", 4001))
    listening.take(voice(0), ("192.0.2.1", 5555))
    listening.move(1, ("192.0.2.7", 4001))
    listening.take(voice(0), ("192.0.2.1", 4001))
    listening.take(voice(0), ("192.0.2.7", 5555))
    assert listening.latched == [(1, ("192.0.2.7", 5555))]
    listening.move(9, ("192.0.2.7", 4001))
    assert listening.listener.remove(9) is None


NAMED, ELSEWHERE = ("192.0.2.1", 4001), ("198.51.100.9", 7000)


def test_without_latching_only_the_named_address_counts(listening: Listening) -> None:
    listening.listen(1, NAMED, "off")
    listening.now += YOUNG
    for source in (ELSEWHERE, ("192.0.2.1", 4002)):
        listening.take(key(9, 0, 0), source)
    listening.take(key(1, 0, 0), NAMED)
    heard = listening.remove(1)
    assert listening.latched == []
    assert (heard.digits, heard.unexpected) == ("1", 2)


def test_latched_by_host_the_first_source_decides_and_then_its_ssrc(listening: Listening) -> None:
    listening.listen(1, NAMED, "host")
    listening.now += YOUNG
    listening.take(voice(0), ELSEWHERE)
    assert listening.latched == [(1, ELSEWHERE)]
    listening.take(voice(1, ssrc=2), NAMED)  # too late, though it is the address that was named
    listening.take(voice(2, ssrc=2), ELSEWHERE)  # nor another source from the one that was first
    moved = ("203.0.113.4", 9000)
    listening.take(voice(3), moved)  # the same source, behind another address of its NAT
    listening.take(voice(4), moved)
    assert listening.latched == [(1, ELSEWHERE), (1, moved)]
    assert listening.remove(1).unexpected == 2


def test_latched_by_host_a_new_address_restarts_the_search(listening: Listening) -> None:
    listening.listen(1, NAMED, "host")
    listening.take(voice(0), ELSEWHERE)
    listening.move(1, ("192.0.2.7", 4001))
    listening.take(voice(1, ssrc=2), ("203.0.113.4", 9000))
    listening.take(voice(2), ELSEWHERE)
    assert listening.latched == [(1, ELSEWHERE), (1, ("203.0.113.4", 9000))]


def test_latched_by_host_nothing_is_guessed_among_several_streams(listening: Listening) -> None:
    listening.listen(1, NAMED, "host")
    listening.listen(2, ("192.0.2.2", 4001), "host")
    listening.take(voice(0), ELSEWHERE)
    assert listening.latched == []
    listening.take(voice(0), ("192.0.2.2", 5555))  # of the one host that one of them has named
    listening.take(voice(0, ssrc=2), ELSEWHERE)  # only one is left
    assert listening.latched == [(2, ("192.0.2.2", 5555)), (1, ELSEWHERE)]
    assert [listening.remove(stream).unexpected for stream in (1, 2)] == [0, 0]


def test_an_address_that_can_not_be_sent_to_is_not_latched_on(listening: Listening) -> None:
    listening.listen(1, NAMED, "host")
    for source in (("0.0.0.0", 7000), ("255.255.255.255", 7000), ("198.51.100.9", 0)):
        listening.take(voice(0), source)
    assert listening.latched == []


def test_packets_from_elsewhere_are_counted_where_it_is_known_whose_they_are(
    listening: Listening,
) -> None:
    listening.listen(1, NAMED)
    listening.take(voice(0, ssrc=5), ELSEWHERE)  # early media that was under way
    listening.now += YOUNG
    listening.take(voice(0), NAMED)
    listening.take(voice(1, ssrc=5), ELSEWHERE)
    listening.take(b"\x80", ELSEWHERE)  # no RTP
    assert listening.remove(1).unexpected == 1
    listening.now += LINGERING
    for stream in (2, 3):
        listening.listen(stream, ("192.0.2.1", 4000 + stream))
        listening.take(voice(0, ssrc=stream), ("192.0.2.1", 4000 + stream))
    listening.now += YOUNG
    listening.take(voice(1, ssrc=5), ELSEWHERE)  # of either
    listening.take(voice(1, ssrc=3), ELSEWHERE)
    assert listening.remove(3).unexpected == 1
    listening.take(voice(2, ssrc=3), ("192.0.2.1", 4003))  # under way when its call ended
    assert listening.remove(2).unexpected == 0


def test_what_was_under_way_when_the_callee_moved_is_not_from_elsewhere(
    listening: Listening,
) -> None:
    listening.listen(1, NAMED)
    listening.take(voice(0), NAMED)
    listening.move(1, ("192.0.2.1", 6001))
    listening.take(key(5, 0, 1), NAMED)
    assert listening.latched == [], "it would send the stream back to where it came from"
    listening.take(voice(2), ("192.0.2.1", 7001))
    listening.now += IN_FLIGHT
    listening.take(voice(3), NAMED)
    heard = listening.remove(1)
    assert listening.latched == [(1, ("192.0.2.1", 7001))]
    assert (heard.digits, heard.unexpected) == ("5", 1)


@pytest.mark.parametrize("audio", [8, 98])
def test_telephone_events_are_handed_up_whatever_the_type_of_the_audio(
    listening: Listening, audio: int
) -> None:
    """The kernel keeps the event types of the port's streams, and of the audio one in 16."""
    callee = bound()

    def send(*event_types: int) -> None:
        for number in range(16):
            callee.sendto(voice(number, audio), ("127.0.0.1", listening.port))
        for number, kind in enumerate(event_types):
            data = key(number, 160 * number, 16 * number + 1, kind=kind)
            callee.sendto(data, ("127.0.0.1", listening.port))

    def handed_up() -> list[int]:
        return [data[1] for data in arrived(listening.socket)]

    listening.listen(1, callee.getsockname(), event_types=(96, 101, audio), payload_type=audio)
    send(96, 101, 97)
    assert handed_up() == [audio, 96, 101]
    listening.listen(2, ("192.0.2.1", 4001), event_types=(97,))
    send(96, 101, 97)
    assert handed_up() == [audio, 96, 101, 97]
    listening.move(1, None, event_types=(102,), payload_type=audio)
    send(96, 101, 97, 102)
    assert handed_up() == [audio, 96, 101, 97, 102]
    listening.remove(1)
    listening.listen(3, callee.getsockname(), event_types=(97, 96))
    send(96, 101, 97, 102)
    assert handed_up() == [audio, 96, 97]
    callee.close()


def test_digits_count_under_each_event_type_and_the_first_is_dated(listening: Listening) -> None:
    listening.listen(1, NAMED, event_types=(96, 101))
    listening.take(voice(0), NAMED)
    listening.now = 7.0
    listening.take(key(1, 0, 1, kind=101), NAMED)
    listening.now = 9.0
    listening.take(key(2, 800, 2, kind=96), NAMED)
    listening.take(key(3, 1600, 3, kind=97), NAMED)
    listening.move(1, None, event_types=(97,))
    listening.take(key(4, 2400, 4, kind=97), NAMED)
    listening.take(key(5, 3200, 5, kind=96), NAMED)  # under way, or a phone that keeps to it
    listening.move(1, None, payload_type=96)
    listening.take(key(6, 4000, 6, kind=96), NAMED)  # that is audio now
    heard = listening.remove(1)
    assert (heard.digits, heard.digits_at) == ("1245", 7.0)


def test_what_the_last_call_left_behind_is_not_heard(listening: Listening) -> None:
    callee = bound()
    for i in range(5):
        callee.sendto(key(i, i, i), ("127.0.0.1", listening.port))
    listening.listen(1, callee.getsockname())
    callee.sendto(key(9, 0, 0), ("127.0.0.1", listening.port))
    assert listening.remove(1).digits == "9"
    callee.close()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60) | st.builds(lambda b: b"\x80\x65" + b, st.binary())))
def test_hostile_datagrams_are_taken_without_complaint(datagrams: list[bytes]) -> None:
    listening = Listening()
    listening.listen(1, ("192.0.2.1", 4001))
    for data in datagrams:
        listening.take(data, ("192.0.2.1", 4001))
    assert listening.remove(1).packets <= 16 * len(datagrams)
    listening.socket.close()


class Session:
    """The RTCP of one stream, on a clock that is set by hand."""

    def __init__(self, callee: Callee) -> None:
        self.now = 100.0
        self.running = True
        self.callee = callee
        self.reporting = RtcpSessions(self.progress, lambda: self.now)
        self.socket = bound()
        self.port: int = self.socket.getsockname()[1] - 1
        self.reporting.open(self.port, self.socket)
        far = callee.address
        self.reporting.add(play_command(1, self.port, far, start=(1000, 0, SSRC)))

    def progress(self, stream: int, now: float) -> Progress | None:
        return Progress(int(now * 8000), 50, 8000, self.running)

    def sent_until(self, then: float) -> list[tuple[float, bytes]]:
        sent = []
        while self.now < then:
            self.now += 0.01
            self.reporting.send(self.now + 1)
            sent += [(self.now, data) for data in arrived(self.callee.rtcp)]
        return sent


@pytest.fixture
def session(callee: Callee) -> Iterator[Session]:
    made = Session(callee)
    yield made
    made.socket.close()


def test_reports_go_out_every_five_seconds_or_so(session: Session) -> None:
    sent = session.sent_until(200)
    assert 1.25 <= sent[0][0] - 100 <= 3.8
    times = [time for time, _ in sent]
    gaps = [b - a for a, b in pairwise(times)]
    assert all(2.49 <= gap <= 7.52 for gap in gaps)
    assert max(gaps) - min(gaps) > 0.5
    for time, data in sent:
        assert data[1] == 200
        assert struct.unpack_from("!IIII", data, 4 + 12)[:3] == (int(time * 8000), 50, 8000)
        assert data[28 + 1] == 202


def test_reports_go_out_over_ipv6() -> None:
    need_ipv6()
    ours, theirs = bound("::1"), bound("::1")
    now = [100.0]
    reports = RtcpSessions(lambda stream, now: Progress(0, 50, 8000, True), lambda: now[0])
    reports.open(4000, ours)
    far_port = theirs.getsockname()[1] - 1
    reports.add(play_command(1, 4000, ("::1", far_port), start=(1000, 0, SSRC)))
    now[0] += 4.0
    reports.send(now[0] + 1)
    [report] = arrived(theirs)
    assert report[1] == 200
    ours.close()
    theirs.close()


def test_a_stream_that_pauses_reports_that_it_is_there(session: Session) -> None:
    session.running = False
    assert {data[1] for _, data in session.sent_until(120)} == {201}


def test_only_the_callee_of_a_stream_is_believed(session: Session, callee: Callee) -> None:
    stranger = bound("127.0.0.2")
    stranger.sendto(reception(1099, 50, 8), (HOST, session.port + 1))
    session.reporting.read(0)
    assert session.reporting.remove(1, 0) == Quality()
    assert arrived(callee.rtcp) == []  # no goodbye from one that has sent nothing
    stranger.close()


@pytest.mark.parametrize(
    ("highest", "lost", "view"),
    [
        (1099, 25, Quality(0.25, 1.0)),
        (1099, 0xFFFFFF, Quality(0.0, 1.0)),  # -1: doubled packets
        (1099, 5000, Quality(1.0, 1.0)),
        (999, 5, Quality()),  # before our first packet
    ],
)
def test_reports_are_kept_in_bounds(
    session: Session, callee: Callee, highest: int, lost: int, view: Quality
) -> None:
    callee.rtcp.sendto(reception(highest, lost, 8), (HOST, session.port + 1))
    assert session.reporting.remove(1, 50) == view
    [bye] = arrived(callee.rtcp)
    assert bye[1] == 201
    assert bye[-8:-4] == b"\x81\xcb\x00\x01"
    assert session.reporting.remove(1, 50) == Quality()
    assert rtcp.INTERVAL == 5.0
