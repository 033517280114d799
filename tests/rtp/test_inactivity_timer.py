"""Who has fallen silent, on a clock that is set by hand; and how sparsely callees are heard."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.rtp.bpf import DENSEST, SPARSEST, attach, keep_one_in, one_in
from bitel.rtp.ipc import Silent
from bitel.rtp.packet import RtpHeader
from bitel.rtp.port_pool import bind_rtp
from bitel.rtp.sender.rtp_receiver import YOUNG, RtpReceiver
from bitel.rtp.sender.stream_receiver import CHECK_INTERVAL, InactivityTimer, StreamReceiver
from bitel.rtp.sender.stream_table import StreamTable
from bitel.rtp.stream_spec import StreamReport
from tests.rtp.streams import play_command
from tests.support.free_ports import free_range
from tests.support.rtp_packets import pack

HOST = "127.0.0.1"


def test_who_never_sent_is_not_silent() -> None:
    silence = InactivityTimer()
    silence.add(1, 2.0, 0.0)
    assert [silence.expired(at) for at in (1.0, 3.0, 100.0)] == [[], [], []]


def test_silence_is_told_again_and_again_until_something_comes() -> None:
    silence = InactivityTimer()
    silence.add(1, 2.0, 0.0)
    silence.note_packet(1, 1.0)
    assert silence.expired(2.9) == []
    assert silence.expired(3.0) == [1]
    assert silence.expired(4.9) == []
    assert silence.expired(5.0) == [1]
    silence.note_packet(1, 6.5)
    assert silence.expired(7.0) == []
    assert silence.expired(8.5) == [1]
    silence.remove(1)
    silence.note_packet(1, 9.0)
    assert silence.expired(100.0) == []


@given(
    st.lists(st.floats(0.05, 40.0), max_size=30),
    st.floats(0.5, 60.0),
    st.floats(0.01, 0.5),
)
def test_it_is_told_soon_after_the_patience_is_over_and_never_before(
    gaps: list[float], patience: float, step: float
) -> None:
    silence, now, heard = InactivityTimer(), 0.0, None
    silence.add(7, patience, now)
    for gap in gaps:
        until = now + gap
        while now < until:
            now += step
            for _ in silence.expired(now):
                assert heard is not None
                assert now - heard >= patience
        heard = now
        silence.note_packet(7, now)
    if heard is not None:
        told: list[int] = []
        while not told:
            now += step
            told = silence.expired(now)
            assert now - heard <= patience + step + 1e-6
        assert len(silence._due) <= 1


def test_a_look_in_the_very_moment_comes_to_an_end() -> None:
    # In floating point 0.2 + 0.5 - 0.2 is less than 0.5, so that it is due and not silent yet.
    heard, patience = 0.2, 0.5
    now = heard + patience
    assert now - heard < patience
    silence = InactivityTimer()
    silence.add(1, patience, 0.0)
    silence.note_packet(1, heard)
    assert silence.expired(now) == []
    assert silence.expired(now + 1e-6) == [1]


def test_streams_that_are_over_are_soon_out_of_memory() -> None:
    silence = InactivityTimer()
    for stream in range(1000):
        silence.add(stream, 600.0, stream * 0.1)
        silence.remove(stream)
        silence.expired(stream * 0.1)
    assert len(silence._due) <= CHECK_INTERVAL * 10 + 2


def test_it_is_not_the_callee_who_is_silent_while_we_do_not_listen() -> None:
    now = 100.0
    callees = StreamReceiver(StreamTable(lambda packets, groups: []), lambda: now)
    ours = [bind_rtp(socket.AF_INET, HOST, 0, keep_one_in(1)) for _ in range(3)]
    theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    theirs.bind((HOST, free_range(1).start))
    for stream, bound in enumerate(ours):
        callees.rtp.open(40 + stream, bound)
        far_port = theirs.getsockname()[1]
        callees.add(
            play_command(
                stream, 40 + stream, (HOST, far_port), start=(0, 0, 9), silence_timeout=5.0
            )
        )

    def speak_to(bound: list[socket.socket]) -> None:
        for each in bound:
            theirs.sendto(pack(RtpHeader(8, 0, 0, 1, marker=True)), each.getsockname())

    speak_to(ours)
    callees.read(now + 1)
    # The process is stopped for longer than our patience, and what came meanwhile waits.
    now = 110.0
    speak_to(ours)
    assert callees.read(now - 1) == []
    # There is time for a single port at each look: all have their turn, and nobody is judged.
    for _ in range(200):
        now += 0.05
        speak_to(ours)
        assert callees.read(now - 1) == []
    heard = [each.sampled for port in callees.rtp._ports.values() for each in port.sources.values()]
    assert min(heard) > 0
    # With time to listen again, who then sends nothing is silent.
    for _ in range(99):
        now += 0.05
        speak_to(ours[:2])
        assert callees.read(now + 1) == []
    silent = []
    for _ in range(8):
        now += 0.05
        speak_to(ours[:2])
        silent += callees.read(now + 1)
    assert silent == [Silent(2)]
    for each in (*ours, theirs):
        each.close()


def test_reports_are_a_sign_of_life_too() -> None:
    now = 100.0
    callees = StreamReceiver(StreamTable(lambda packets, groups: []), lambda: now)
    bound = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    rtp, rtcp, far = bound
    for each in bound:
        each.bind((HOST, free_range(1).start))
        each.setblocking(False)
    callees.rtp.open(40, rtp)
    callees.rtcp.open(40, rtcp)
    far_port = far.getsockname()[1] - 1
    play = play_command(1, 40, (HOST, far_port), start=(0, 0, 77), silence_timeout=5.0)
    callees.add(play)
    now = 104.0
    report = struct.pack("!BBHIIIIIII", 0x81, 201, 7, 9, 77, 0, 10, 0, 0, 0)
    far.sendto(report, rtcp.getsockname())
    callees.read(now + 1)
    while now < 108.9:
        now = min(now + 0.4, 108.9)
        assert callees.read(now + 1) == []
    now = 109.0
    assert callees.read(now + 1) == [Silent(1)]
    callees.complete(StreamReport(1, 0, True, ""))
    now = 200.0
    assert callees.read(now + 1) == []
    for each in bound:
        each.close()


@given(st.integers(0, 100_000))
def test_the_more_streams_the_sparser_the_listening(streams: int) -> None:
    count = one_in(streams)
    assert DENSEST <= count <= SPARSEST
    assert count <= one_in(streams + 1)
    assert count == SPARSEST or streams * 50 / count <= 2000


@given(st.integers(0, 100_000), st.floats(10, 600))
def test_who_is_given_up_for_silence_is_heard_several_times_before(
    streams: int, patience: float
) -> None:
    assert patience * 50 / one_in(streams, patience) >= 4
    if patience >= 21:
        assert one_in(streams, patience) == one_in(streams)


def test_one_in_a_number_that_is_no_power_of_two_is_refused() -> None:
    for count in (0, 3, 512):
        with pytest.raises(ValueError, match=f"one packet in {count} "):
            keep_one_in(count)


def test_a_filter_takes_the_place_of_the_one_before() -> None:
    ours = bind_rtp(socket.AF_INET, HOST, 0, keep_one_in(DENSEST))
    theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    kept = []
    for count in (16, 256, 64):
        attach(ours, keep_one_in(count))
        for number in range(512):
            theirs.sendto(pack(RtpHeader(8, number, 0, 1)), ours.getsockname())
        received = []
        while True:
            try:
                received.append(ours.recv(2048))
            except BlockingIOError:
                break
        kept.append(len(received))
    assert kept == [32, 2, 8]
    ours.close()
    theirs.close()


def test_many_streams_are_heard_sparsely_and_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitel.rtp.bpf.DELIVERED_RATE", 10)
    now = 0.0
    listener = RtpReceiver(lambda stream, far: None, lambda: now)
    ours = bind_rtp(socket.AF_INET, HOST, 0, keep_one_in(DENSEST))
    theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    theirs.bind((HOST, free_range(1).start))
    listener.open(40, ours)
    for stream in range(20):
        far = theirs.getsockname()[1] if stream == 0 else 1000 + stream
        listener.add(stream, play_command(stream, 40, (HOST, far)).spec)
    reads = []
    for number in range(1024):
        if number == 32:
            now = YOUNG  # no longer young: from now on one in 256 will do
        theirs.sendto(pack(RtpHeader(8, number, 0, 1)) + bytes(160), ours.getsockname())
        if number % 16 == 0:
            listener.read(now + 1)
            reads.append(listener._ports[40].one_in)
    heard = listener.remove(0)
    assert heard is not None
    assert set(reads) == {16, 256}
    assert 512 <= heard.packets <= 1024
    for each in (ours, theirs):
        each.close()


@pytest.mark.parametrize(
    ("streams", "silence", "stopped"),
    [(1, 5.9, False), (1, 6.1, True), (20, 12.7, False), (20, 12.9, True)],
)
def test_media_has_stopped_when_neither_loss_nor_sparse_listening_explains_it(
    monkeypatch: pytest.MonkeyPatch, streams: int, silence: float, stopped: bool
) -> None:
    """With one packet in 256 looked at, one is seen every 5.12 s, unless it is lost."""
    monkeypatch.setattr("bitel.rtp.bpf.DELIVERED_RATE", 10)
    now = [100.0]
    callees = StreamReceiver(StreamTable(lambda packets, groups: []), lambda: now[0])
    ours = bind_rtp(socket.AF_INET, HOST, 0, keep_one_in(DENSEST))
    theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    theirs.bind((HOST, free_range(1).start))
    callees.rtp.open(40, ours)
    for stream in range(streams):
        far = theirs.getsockname()[1] if stream == 0 else 1000 + stream
        callees.add(play_command(stream, 40, (HOST, far), start=(0, 0, stream)))
    now[0] += YOUNG
    for _ in range(2):  # from the first reading on, listening is as sparse as it will be
        theirs.sendto(pack(RtpHeader(8, 0, 0, 1)) + bytes(160), ours.getsockname())
        callees.read(now[0] + 1)
    while now[0] < 100 + YOUNG + silence - 1e-9:
        now[0] = min(now[0] + 0.3, 100 + YOUNG + silence)
        callees.read(now[0] + 1)
    end = callees.complete(StreamReport(0, 50, True, ""))
    assert end.silent_for == pytest.approx(silence)
    assert end.stopped is stopped
    for other in range(1, streams):
        assert not callees.complete(StreamReport(other, 50, True, "")).stopped, (
            "it never sent anything"
        )
    ours.close()
    theirs.close()


def test_a_pause_of_our_own_is_not_taken_for_the_end_of_media() -> None:
    now = [100.0]
    callees = StreamReceiver(StreamTable(lambda packets, groups: []), lambda: now[0])
    ours = bind_rtp(socket.AF_INET, HOST, 0, keep_one_in(DENSEST))
    theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    theirs.bind((HOST, free_range(1).start))
    callees.rtp.open(40, ours)
    far = theirs.getsockname()[1]
    callees.add(play_command(1, 40, (HOST, far), start=(0, 0, 1)))
    theirs.sendto(pack(RtpHeader(8, 0, 0, 1)) + bytes(160), ours.getsockname())
    callees.read(now[0] + 1)
    now[0] += 60.0
    callees.read(now[0] + 1)
    assert not callees.complete(StreamReport(1, 50, True, "")).stopped
    ours.close()
    theirs.close()
