"""The packets of a batch as the kernel wants them: headers, addresses and vectors in arrays.

The arrays are the C structures themselves, so that one assignment fills a field for all streams
and `sendmmsg` reads them where they are. Row i of each array belongs to the same packet.
"""

from __future__ import annotations

import ctypes
import socket

import numpy as np
from numpy.typing import NDArray

from bitel.rtp.packet import HEADER_SIZE, SAMPLES_PER_PACKET

HEADER = np.dtype(
    [
        ("first", "u1"),  # version, padding, extension, count of contributing sources
        ("kind", "u1"),  # marker and payload type
        ("sequence", ">u2"),
        ("timestamp", ">u4"),
        ("ssrc", ">u4"),
    ]
)
assert HEADER.itemsize == HEADER_SIZE


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_size_t), ("len", ctypes.c_size_t)]


class _Msghdr(ctypes.Structure):
    """`struct msghdr` of Linux, pointers as integers."""

    _fields_ = [
        ("name", ctypes.c_size_t),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_size_t),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_size_t),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Mmsghdr(ctypes.Structure):
    """`struct mmsghdr`: a msghdr padded to its alignment, then how much of it was sent."""

    _fields_ = [("header", _Msghdr), ("sent", ctypes.c_uint32)]


IOVEC = np.dtype(_Iovec)
MMSGHDR = np.dtype(_Mmsghdr)


class Packets:
    """Room for `capacity` packets of G.711 of so many samples to addresses of one family.

    `headers`, `names` and `payloads` are the caller's to fill; all that depends only on the row
    is set here once.
    """

    def __init__(
        self,
        capacity: int,
        family: socket.AddressFamily,
        samples: int = SAMPLES_PER_PACKET,
    ) -> None:
        self.capacity = capacity
        self.family = family
        self.samples = samples
        self.name_size = 28 if family == socket.AF_INET6 else 16
        self.headers = np.zeros(capacity, HEADER)
        self.names = np.zeros(capacity, f"V{self.name_size}")
        self._iovecs = np.zeros((capacity, 2), IOVEC)
        self._messages = np.zeros(capacity, MMSGHDR)
        rows = np.arange(capacity, dtype=np.uintp)
        self._iovecs["base"][:, 0] = self.headers.ctypes.data + rows * np.uintp(HEADER_SIZE)
        self._iovecs["len"] = (HEADER_SIZE, samples)
        messages = self._messages["header"]
        messages["name"] = self.names.ctypes.data + rows * np.uintp(self.name_size)
        messages["namelen"] = self.name_size
        messages["iov"] = self._iovecs.ctypes.data + rows * np.uintp(2 * IOVEC.itemsize)
        messages["iovlen"] = 2
        self.address = self._messages.ctypes.data  # of the first mmsghdr
        self.payloads: NDArray[np.uintp] = self._iovecs["base"][:, 1]  # addresses


def sockaddr(family: socket.AddressFamily, host: str, port: int) -> bytes:
    """`struct sockaddr_in` or `sockaddr_in6` of Linux; `OSError` where host is of neither kind."""
    address = socket.inet_pton(family, host)
    start = int(family).to_bytes(2, "little" if _LITTLE else "big") + port.to_bytes(2, "big")
    if family == socket.AF_INET6:
        return start + bytes(4) + address + bytes(4)
    return start + address + bytes(8)


def far_end(family: socket.AddressFamily, name: bytes) -> tuple[str, int]:
    """What `sockaddr` was made of."""
    address = name[8:24] if family == socket.AF_INET6 else name[4:8]
    return socket.inet_ntop(family, address), int.from_bytes(name[2:4], "big")


_LITTLE = np.dtype("<u2").isnative
