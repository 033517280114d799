"""RTCP (RFC 3550 section 6): the sessions of streams, and the packets that they send and parse.

The RTCP port is the RTP port plus one on both sides; there is no multiplexing (RFC 5761).
"""

from __future__ import annotations

import base64
import contextlib
import heapq
import random
import selectors
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import urandom
from typing import NamedTuple

from bitel.rtp.ipc import Change, Play
from bitel.rtp.packet import SAMPLES_PER_MS, VERSION, PacketError
from bitel.rtp.sender.rtp_receiver import datagrams

INTERVAL = 5.0  # seconds between reports, on average (section 6.2)
MOST_PER_SECOND = 500  # reports per second of all streams; with more streams the interval grows
MOST_AT_ONCE = 8  # datagrams read from a socket at a time

SENDER_REPORT = 200
RECEIVER_REPORT = 201
SOURCE_DESCRIPTION = 202
GOODBYE = 203

CNAME = 1  # the mandatory SDES item
UNIX_IN_NTP = 2_208_988_800  # seconds from 1900 to 1970

_HEADER = struct.Struct("!BBH")
_BLOCK_SIZE = 24
_SENDER_INFO = 20  # bytes between a sender report's SSRC and its report blocks
_PADDING = 0x20


class Progress(NamedTuple):
    """Current RTP timestamp and sender's counts of a stream; `running` unless it is paused."""

    timestamp: int
    packets: int
    octets: int
    running: bool


class Quality(NamedTuple):
    """Reception at the remote by its last report; None: no report. `loss`: cumulative, 0 to 1."""

    loss: float | None = None
    jitter_ms: float | None = None


@dataclass(slots=True)
class _Session:
    play: Play
    remote: tuple[str, int]
    """Destination of reports."""
    source: str
    """Host whose reports are accepted."""
    description: bytes
    awaited: bool
    quality: Quality


class RtcpSessions:
    """The RTCP sessions of all streams.

    `progress` returns that of a stream at a time; None if it has sent nothing. `on_packet` is
    called with the stream and the time of each report received.
    """

    def __init__(
        self,
        progress: Callable[[int, float], Progress | None],
        clock: Callable[[], float] = time.monotonic,
        on_packet: Callable[[int, float], None] = lambda stream, now: None,
    ) -> None:
        self._progress = progress
        self._clock = clock
        # Section 6.4.1 demands wall-clock time, but a step of that clock would look like a jump of
        # the audio. So it is read once.
        self._wall = time.time() - clock()
        self._on_packet = on_packet
        self._sockets: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._sessions: dict[int, _Session] = {}
        self._by_ssrc: dict[int, _Session] = {}
        self._due: list[tuple[float, int]] = []  # a heap

    def open(self, port: int, bound: socket.socket) -> None:
        """Sets the RTCP socket of an RTP port."""
        self._sockets[port] = bound
        self._selector.register(bound, selectors.EVENT_READ, port)

    def add(self, command: Play) -> None:
        """Starts the session of a stream, if its port has an RTCP socket."""
        port, (host, remote_port) = command.spec.port, command.spec.remote
        if port not in self._sockets or remote_port == 65535:
            return
        # A random CNAME per call, for privacy (RFC 7022 section 4.2).
        cname = base64.b64encode(urandom(12)).decode()
        session = _Session(
            command,
            (host, remote_port + 1),
            host,
            source_description(command.ssrc, cname),
            command.spec.awaited,
            Quality(),
        )
        self._sessions[command.stream] = self._by_ssrc[command.ssrc] = session
        # The initial interval is halved (section 6.2).
        self._plan(session, self._interval / 2)

    def redirect(self, command: Change) -> None:
        """Follows a new RTP address in the stream's specification."""
        session = self._sessions.get(command.stream)
        host, port = command.spec.remote
        if session is not None and port < 65535:
            session.awaited = command.spec.awaited
            session.remote = host, port + 1
            session.source = host

    def accept(self, stream: int, remote: tuple[str, int]) -> None:
        """Accepts reports from `remote`, the latched RTP address.

        Our reports still go to the address in SDP; to the latched host only if the stream was
        `awaited`.
        """
        session = self._sessions.get(stream)
        if session is None:
            return
        session.source, port = remote
        if session.awaited and port < 65535:
            session.remote = session.source, port + 1

    def remove(self, stream: int, packets: int) -> Quality:
        """Ends the session of a stream that has sent `packets` packets.

        Sends BYE unless it sent nothing (section 6.3.7).
        """
        session = self._sessions.get(stream)
        if session is None:
            return Quality()
        self._read(session.play.spec.port)
        del self._sessions[stream]
        if self._by_ssrc.get(session.play.ssrc) is session:
            del self._by_ssrc[session.play.ssrc]
        if packets:
            report = receiver_report(session.play.ssrc)
            self._send(session, report + session.description + goodbye(session.play.ssrc))
        return session.quality

    def send(self, deadline: float) -> None:
        """Sends due reports, until the deadline."""
        while self._due and (now := self._clock()) >= self._due[0][0] and now < deadline:
            _, stream = heapq.heappop(self._due)
            session = self._sessions.get(stream)
            if session is not None:
                self._report(session, now)
                self._plan(session, self._interval)

    def read(self, deadline: float) -> None:
        """Reads one readable socket, and others until the deadline."""
        for key, _ in self._selector.select(0):
            self._read(key.data)
            if self._clock() >= deadline:
                return

    @property
    def _interval(self) -> float:
        return max(INTERVAL, len(self._sessions) / MOST_PER_SECOND)

    def _plan(self, session: _Session, interval: float) -> None:
        # Randomized to 0.5 to 1.5 intervals, so that reports do not synchronize (section 6.3.1).
        due = self._clock() + interval * random.uniform(0.5, 1.5)
        heapq.heappush(self._due, (due, session.play.stream))

    def _report(self, session: _Session, now: float) -> None:
        progress = self._progress(session.play.stream, now)
        if progress is None:
            return
        if progress.running:
            report = sender_report(session.play.ssrc, self._wall + now, *progress[:3])
        else:
            report = receiver_report(session.play.ssrc)
        self._send(session, report + session.description)

    def _send(self, session: _Session, datagram: bytes) -> None:
        # The stream's RTP packets have the same error and report it.
        with contextlib.suppress(OSError):
            self._sockets[session.play.spec.port].sendto(datagram, session.remote)

    def _read(self, port: int) -> None:
        for datagram, (host, _) in datagrams(self._sockets[port], MOST_AT_ONCE):
            with contextlib.suppress(PacketError):
                for report in reception_reports(datagram):
                    self._receive(port, host, report)

    def _receive(self, port: int, host: str, report: ReceptionReport) -> None:
        session = self._by_ssrc.get(report.ssrc)
        if session is None or (session.play.spec.port, session.source) != (port, host):
            return
        self._on_packet(session.play.stream, self._clock())
        expected = report.highest - session.play.sequence + 1
        if expected > 0:
            loss = min(max(report.lost / expected, 0.0), 1.0)
            session.quality = Quality(loss, report.jitter / SAMPLES_PER_MS)


class ReceptionReport(NamedTuple):
    """A report block (section 6.4.1).

    `lost` is the cumulative number of packets lost, negative if there were duplicates. `highest` is
    the extended highest sequence number; `jitter` is in timestamp units.
    """

    ssrc: int
    lost: int
    highest: int
    jitter: int


def reception_reports(datagram: bytes) -> list[ReceptionReport]:
    """The report blocks of a compound packet; raises PacketError."""
    reports: list[ReceptionReport] = []
    start = 0
    while start < len(datagram):
        if len(datagram) - start < _HEADER.size:
            raise PacketError("a piece of an RTCP header stands at the end")
        first, kind, words = _HEADER.unpack_from(datagram, start)
        end = start + 4 * (words + 1)
        if first >> 6 != VERSION or end > len(datagram):
            raise PacketError(f"no RTCP packet of {4 * (words + 1)} bytes at byte {start}")
        # A compound packet begins with a report without padding (appendix A.2).
        if start == 0 and (kind not in (SENDER_REPORT, RECEIVER_REPORT) or first & _PADDING):
            raise PacketError(f"an RTCP datagram begins with a packet of type {kind}")
        if kind in (SENDER_REPORT, RECEIVER_REPORT):
            skipped = 8 + (_SENDER_INFO if kind == SENDER_REPORT else 0)
            reports += _blocks(datagram[start + skipped : end], first & 0x1F)
        start = end
    if not start:
        raise PacketError("an empty RTCP datagram")
    return reports


def _blocks(data: bytes, count: int) -> list[ReceptionReport]:
    if len(data) < count * _BLOCK_SIZE:
        raise PacketError(f"{count} reception reports do not fit their packet")
    reports = []
    for start in range(0, count * _BLOCK_SIZE, _BLOCK_SIZE):
        ssrc, lost, highest, jitter = struct.unpack_from("!IIII", data, start)
        lost &= 0xFFFFFF  # the upper 8 bits are the fraction lost
        reports.append(ReceptionReport(ssrc, lost - (lost >> 23 << 24), highest, jitter))
    return reports


def sender_report(ssrc: int, now: float, timestamp: int, packets: int, octets: int) -> bytes:
    """A sender report without report blocks; `now` (Unix seconds) is the time of `timestamp`."""
    ntp = round((now + UNIX_IN_NTP) * 2**32)
    body = struct.pack(
        "!IQIII", ssrc, ntp % 2**64, timestamp % 2**32, packets % 2**32, octets % 2**32
    )
    return _packet(SENDER_REPORT, 0, body)


def receiver_report(ssrc: int) -> bytes:
    """A receiver report without report blocks, for a source that is not sending."""
    return _packet(RECEIVER_REPORT, 0, struct.pack("!I", ssrc))


def source_description(ssrc: int, cname: str) -> bytes:
    """An SDES packet with the CNAME of the source, at most 255 bytes."""
    item = cname.encode()
    text = struct.pack("!IBB", ssrc, CNAME, len(item)) + item
    # One or more zero bytes end the items and pad to a word (section 6.5).
    return _packet(SOURCE_DESCRIPTION, 1, text + bytes(4 - len(text) % 4))


def goodbye(ssrc: int) -> bytes:
    """A BYE packet of the source."""
    return _packet(GOODBYE, 1, struct.pack("!I", ssrc))


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return _HEADER.pack(VERSION << 6 | count, kind, len(body) // 4) + body
