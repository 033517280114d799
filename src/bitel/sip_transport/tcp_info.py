"""The kernel's counters of a TCP connection: bytes acknowledged and received, and idle time.

Linux only: `TCP_INFO` of tcp(7), and `SIOCOUTQ`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import termios
from fcntl import ioctl
from typing import NamedTuple

_SIZE = 232
_LAST_DATA_RECEIVED, _LAST_ACK_RECEIVED, _BYTES_ACKED, _BYTES_RECEIVED = 52, 56, 120, 128
"""Offsets in `struct tcp_info` of <linux/tcp.h>; the last two are there from Linux 4.1 on."""


class TcpProgress(NamedTuple):
    """A connection at one moment."""

    acknowledged: int
    """Bytes that the far end's kernel has acknowledged since the start, its SYN included."""
    queued: int
    """Bytes that our kernel has, and theirs has not acknowledged."""
    received: int
    """Bytes that have come from the far end, its FIN included."""
    idle: float
    """Seconds since the far end last sent bytes or an acknowledgement."""


class TcpInfo:
    """Asks about the connection of `sock`, also once that is closed, until `close`.

    It holds a duplicate of the socket: after a reset or an end of the connection the event loop
    has closed its own by the time it says so, and the counters are needed just then. As the
    connection stays open until the duplicate is closed, that must follow at once.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = None
        # Without a free descriptor nothing is known, as on other systems.
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                self._sock = socket.socket(fileno=os.dup(sock.fileno()))

    def read(self) -> TcpProgress | None:
        """How the connection stands; None where the system does not say."""
        sock = self._sock
        if sock is None:
            return None
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
            (queued,) = struct.unpack("i", ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
            (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
            (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
        except (OSError, struct.error):  # no TCP, or an older kernel
            return None
        (data_received,) = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)
        (ack_received,) = struct.unpack_from("=I", info, _LAST_ACK_RECEIVED)
        return TcpProgress(acknowledged, queued, received, min(data_received, ack_received) / 1000)

    def close(self) -> None:
        """Let go of the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
