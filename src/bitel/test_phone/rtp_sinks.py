"""UDP ports that receive the RTP of one call each: one records the audio, one counts packets.

Reading 50 packets a second of each of a thousand calls would fill a core. So `CountingSink` reads
until the first RTP packet, and then lets the kernel drop and count all others: a socket filter
(SO_ATTACH_FILTER, socket(7)) drops them before they are queued, and SO_MEMINFO has the exact count
of drops. Both are Linux's; elsewhere every packet is read and counted here.
"""

from __future__ import annotations

import asyncio
import ctypes
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
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.test_phone.packet_recorder import PacketRecorder

_MAX_DATAGRAM: Final = 2048
_READS_AT_ONCE: Final = 64
_PORTS_TRIED: Final = 100
"""Every second one is even."""
_MAX_NAME: Final = 80
"""Characters of a file name that come from the number, and from the Call-ID."""

# From asm-generic/socket.h and linux/sock_diag.h; Python's socket module does not name them.
_SO_ATTACH_FILTER: Final = 26
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("9I")
_MEMINFO_DROPS: Final = 8
_BPF_TAKE_NOTHING: Final = struct.pack("HBBI", 0x06, 0, 0, 0)


class RtpSink:
    """A UDP port on `host`; `on_first` is called at its first RTP packet, from the event loop.

    Open it within a running event loop, and close it once. Raises OSError where nothing can be
    bound. Datagrams that are no RTP are ignored.
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
        """How many RTP packets have come so far."""
        return self._read

    def close(self) -> int:
        """Listen no more; how many RTP packets came in all."""
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
            self._take(data)
            if self._read == 1:
                self._on_first()

    def _take(self, datagram: bytes) -> None:
        """Process an RTP packet."""


def _bind_even(host: str) -> socket.socket:
    """A UDP socket of an even port; the one above is for the call's RTCP (RFC 3550 section 11).

    Otherwise another call's sink at that port would take the reports for audio of its own.
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
    """Counts packets, for nearly no CPU."""

    def __init__(self, host: str, on_first: Callable[[], None]) -> None:
        self._drops_before: int | None = None
        super().__init__(host, on_first)

    @property
    def packets(self) -> int:
        """How many packets have come; after the first RTP packet any datagram counts."""
        if self._drops_before is None:
            return self._read
        return self._read + self._drops() - self._drops_before

    def _take(self, datagram: bytes) -> None:
        if self._read > 1 or sys.platform != "linux":
            return
        instructions = ctypes.create_string_buffer(_BPF_TAKE_NOTHING)
        program = struct.pack("HL", 1, ctypes.addressof(instructions))
        self._drops_before = self._drops()
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

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
        """The audio as a listener would have heard it, at 8 kHz; also after `close`."""
        return self._recorder.pcm16()

    def _take(self, datagram: bytes) -> None:
        self._recorder.receive(datagram, self._loop.time())


def write_recording(folder: Path, number: str, call_id: str, sink: RecordingSink) -> Path:
    """Write what a closed sink received as a WAV, 8 kHz mono 16 bit; its path. Raises OSError."""
    path = folder / recording_name(number, call_id)
    # Under another name first, so that a program that watches the folder finds whole files only.
    unfinished = path.with_suffix(".part")
    wav.write(unfinished, sink.pcm(), SAMPLE_RATE)
    return unfinished.rename(path)


def recording_name(number: str, call_id: str) -> str:
    """The file name for a call: the number as it arrived, and the Call-ID, made safe.

    The caller chooses both. Only letters, digits, `+`, `-`, `.` and `_` are kept; where something
    else was replaced, a hash tells apart names that would otherwise look alike.
    """
    return f"{_safe(number)}_{_safe(call_id)}.wav"


def _safe(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9+._-]|^\.", "-", text[:_MAX_NAME])
    if plain == text:
        return plain
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{plain}-{digest[:8]}"
