"""Receivers of the RTP of one call: `RecordingSink` records audio, `CountingSink` counts packets.

Reading 50 packets a second of each of a thousand calls would fill a core. So `CountingSink` reads
until the first RTP packet, and then makes the kernel drop the others by a socket filter
(`bitel.rtp.bpf`) and count them (SO_MEMINFO). Without Linux, every packet is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import re
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bitel.g711 import SAMPLE_RATE, Pcm
from bitel.recordings import wav
from bitel.rtp.bpf import DROP_ALL, attach
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.test_phone.packet_recorder import PacketRecorder

_MAX_DATAGRAM: Final = 2048
_READS_AT_ONCE: Final = 64
_PORTS_TRIED: Final = 100
"""The kernel chooses ports at random, half of which are even."""
_MAX_NAME: Final = 80
"""Characters of the number, and of the Call-ID, in a file name."""

# From asm-generic/socket.h and linux/sock_diag.h, which the module `socket` lacks.
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("9I")
_MEMINFO_DROPS: Final = 8


class RtpSink:
    """A UDP port on `host` that calls `on_first` at its first RTP packet.

    It needs a running event loop. Raises OSError if no port can be bound. Datagrams that are not
    RTP are ignored.
    """

    def __init__(self, host: str, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._loop = asyncio.get_running_loop()
        self._read = 0
        self._socket = _bind_even(host)
        self.port: int = self._socket.getsockname()[1]
        self._loop.add_reader(self._socket, self._on_readable)

    @property
    def packets(self) -> int:
        """Number of RTP packets received so far."""
        return self._read

    def send(self, packet: bytes, remote: tuple[str, int]) -> None:
        """Send a packet from the port; the network may lose it."""
        with contextlib.suppress(OSError):
            self._socket.sendto(packet, remote)

    def close(self) -> int:
        """Close the port; returns the number of RTP packets received."""
        self._on_readable()
        packets = self.packets
        self._loop.remove_reader(self._socket)
        self._socket.close()
        return packets

    def _on_readable(self) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                data = self._socket.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                return
            try:
                RtpHeader.parse(data)
            except PacketError:
                continue
            self._read += 1
            self._receive(data)
            if self._read == 1:
                self._on_first()

    def _receive(self, datagram: bytes) -> None:
        """Process an RTP packet."""


def _bind_even(host: str) -> socket.socket:
    """A UDP socket of an even port: the odd one above is for the call's RTCP (RFC 3550 section 11).

    If that were another call's RTP port, it would receive these reports.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(_PORTS_TRIED):
        bound = socket.socket(family, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            bound.bind((host, 0))
        except OSError:
            bound.close()
            raise
        if bound.getsockname()[1] % 2 == 0:
            return bound
        bound.close()
    raise OSError(errno.EADDRINUSE, f"no even port of {host} is free")


class CountingSink(RtpSink):
    """Counts packets at nearly no CPU cost."""

    def __init__(self, host: str, on_first: Callable[[], None]) -> None:
        self._drops_before: int | None = None
        super().__init__(host, on_first)

    @property
    def packets(self) -> int:
        """Number of packets received; after the first RTP packet, every datagram counts."""
        if self._drops_before is None:
            return self._read
        return self._read + self._drops() - self._drops_before

    def _receive(self, datagram: bytes) -> None:
        if self._read == 1 and sys.platform == "linux":
            self._drops_before = self._drops()
            attach(self._socket, DROP_ALL)

    def _drops(self) -> int:
        meminfo = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        drops: int = _MEMINFO.unpack(meminfo)[_MEMINFO_DROPS]
        return drops


class RecordingSink(RtpSink):
    """Keeps the first `minutes` of audio, 0.5 MB each."""

    def __init__(self, host: str, on_first: Callable[[], None], *, minutes: float) -> None:
        self._recorder = PacketRecorder(minutes)
        super().__init__(host, on_first)

    def pcm(self) -> Pcm:
        """The audio as a phone would play it, at 8 kHz; also after `close`."""
        return self._recorder.pcm16()

    def _receive(self, datagram: bytes) -> None:
        self._recorder.receive(datagram, self._loop.time())


def write_recording(folder: Path, number: str, call_id: str, sink: RecordingSink) -> Path:
    """Write the audio of a closed sink as an 8 kHz mono WAV; returns its path. Raises OSError."""
    path = folder / recording_name(number, call_id)
    # Renamed when complete, as programs may watch the folder.
    unfinished = path.with_suffix(".part")
    wav.write(unfinished, sink.pcm(), SAMPLE_RATE)
    return unfinished.rename(path)


def recording_name(number: str, call_id: str) -> str:
    """The file name of a call: its number and Call-ID, sanitized because the caller chooses both.

    Letters, digits, `+`, `-`, `.` and `_` are kept. If other characters were replaced, a hash keeps
    the name unique.
    """
    return f"{_safe(number)}_{_safe(call_id)}.wav"


def _safe(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9+._-]|^\.", "-", text[:_MAX_NAME])
    if plain == text:
        return plain
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{plain}-{digest[:8]}"
