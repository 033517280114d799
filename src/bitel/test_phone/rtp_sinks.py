"""UDP ports that hear one call each: one keeps the audio, one only counts packets.

Reading 50 packets a second of each of a thousand calls would fill a core. So the ear that counts
reads until the first RTP packet, and then tells the kernel to drop what follows before it is
queued, and to count what it drops: a packet costs this process nothing, and the count is exact.
Linux has both halves, a socket filter (SO_ATTACH_FILTER, socket(7)) and the count of drops
(SO_MEMINFO). Elsewhere every packet is read and counted here.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from bitel.g711 import Pcm
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.test_phone.packet_recorder import PacketRecorder

_MAX_DATAGRAM: Final = 2048
_READS_AT_ONCE: Final = 64
_PORTS_TRIED: Final = 100
"""Every second one is even."""

# From asm-generic/socket.h and linux/sock_diag.h; Python's socket module does not name them.
_SO_ATTACH_FILTER: Final = 26
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("9I")
_MEMINFO_DROPS: Final = 8
_BPF_TAKE_NOTHING: Final = struct.pack("HBBI", 0x06, 0, 0, 0)


class Ear:
    """A UDP port on `host`; `on_first` is called at its first RTP packet, from the event loop.

    Open it within a running event loop, and close it once. Raises OSError where nothing can be
    bound. What is no RTP is passed over.
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
        """Do with an RTP packet what this ear is for."""


def _bind_even(host: str) -> socket.socket:
    """A UDP socket of an even port; the one above is for the call's RTCP (RFC 3550 section 11).

    Were that another call's ear, it would take the reports on this call for audio of its own.
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


class CountingEar(Ear):
    """Hears that there is audio, and how much, for nearly no CPU."""

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


class RecordingEar(Ear):
    """Keeps the first `minutes` of audio, 0.5 MB each."""

    def __init__(self, host: str, on_first: Callable[[], None], *, minutes: float) -> None:
        self._hearing = PacketRecorder(minutes)
        super().__init__(host, on_first)

    def heard(self) -> Pcm:
        """What came, as a listener would have heard it; also after `close`."""
        return self._hearing.pcm16()

    def _take(self, datagram: bytes) -> None:
        self._hearing.receive(datagram, self._loop.time())
