"""sendmmsg(2) with its C structures as NumPy arrays, for many packets in one system call.

One assignment sets a field of all packets, and the kernel reads the arrays in place. Row i of each
array belongs to the same packet.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitel.rtp.packet import HEADER_SIZE, SAMPLES_PER_PACKET

FULL_BUFFER_WAIT = 0.002  # seconds per tick to wait for full send buffers, then packets are dropped

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

Group = tuple[int, int, int]
"""Packets of one socket: its descriptor, the first row, and the number of rows."""

Refused = list[tuple[int, int]]
"""Packets that the kernel refused: row and errno."""

_FULL = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)

# Linux structures, with pointers as integers.
IOVEC = np.dtype([("base", np.uintp), ("len", np.uintp)])
_MSGHDR = np.dtype(
    [
        ("name", np.uintp),
        ("namelen", np.uint32),
        ("iov", np.uintp),
        ("iovlen", np.uintp),
        ("control", np.uintp),
        ("controllen", np.uintp),
        ("flags", np.intc),
    ],
    align=True,
)
MMSGHDR = np.dtype([("header", _MSGHDR), ("sent", np.uint32)], align=True)


class Packets:
    """Arrays for `capacity` packets of `samples` bytes of G.711, to addresses of one family.

    The caller sets `headers`, `names` (each a `sockaddr`) and `payloads`; all other fields are set
    here once.
    """

    def __init__(
        self, capacity: int, family: socket.AddressFamily, samples: int = SAMPLES_PER_PACKET
    ) -> None:
        self.capacity = capacity
        self.family = family
        self.samples = samples
        name_size = 28 if family == socket.AF_INET6 else 16
        self.headers = np.zeros(capacity, HEADER)
        self.names = np.zeros(capacity, f"V{name_size}")
        self._iovecs = np.zeros((capacity, 2), IOVEC)
        self._messages = np.zeros(capacity, MMSGHDR)
        rows = np.arange(capacity, dtype=np.uintp)
        self._iovecs["base"][:, 0] = self.headers.ctypes.data + rows * np.uintp(HEADER_SIZE)
        self._iovecs["len"] = (HEADER_SIZE, samples)
        messages = self._messages["header"]
        messages["name"] = self.names.ctypes.data + rows * np.uintp(name_size)
        messages["namelen"] = name_size
        messages["iov"] = self._iovecs.ctypes.data + rows * np.uintp(2 * IOVEC.itemsize)
        messages["iovlen"] = 2
        self.address = self._messages.ctypes.data  # of the first mmsghdr
        self.payloads: NDArray[np.uintp] = self._iovecs["base"][:, 1]  # addresses
        # The last groups sent, and the arguments of their system calls.
        self.groups: Sequence[Group] | None = None
        self.calls: list[tuple[tuple[Any, ...], Group]] = []


Transmit = Callable[[Packets, Sequence[Group]], Refused]
"""Sends groups of packets; an error of one packet does not affect the others. The caller must not
modify a list of groups that it has passed."""


class Sendmmsg:
    """Sends the packets of each socket by one system call."""

    def __init__(self) -> None:
        # PyDLL keeps the GIL: the sender has one thread.
        self._call = ctypes.PyDLL(None, use_errno=True).sendmmsg
        self._call.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int]
        self._call.restype = ctypes.c_int
        # Without errno and conversion of arguments, a call costs less than half.
        self._quick = ctypes.PyDLL(None).sendmmsg

    def __call__(self, packets: Packets, groups: Sequence[Group]) -> Refused:
        """Send the groups of packets; returns those that the kernel refused."""
        if packets.groups is not groups:
            packets.groups = groups
            packets.calls = [(_arguments(packets, group), group) for group in groups]
        refused: Refused = []
        quick, wait = self._quick, FULL_BUFFER_WAIT
        for arguments, group in packets.calls:
            sent: int = quick(*arguments)
            if sent != group[2]:
                descriptor, first, count = group
                rest = (descriptor, first + max(sent, 0), count - max(sent, 0))
                wait = self._send_rest(packets, rest, wait, refused)
        return refused

    def _send_rest(self, packets: Packets, rest: Group, wait: float, refused: Refused) -> float:
        """Sends the rest of a group: skips refused packets, and waits while the buffer is full.

        The next call returns the error. Waits for up to `wait` seconds; returns the remaining ones.
        """
        descriptor, row, left = rest
        sent = 0
        while left:
            problem = ctypes.get_errno() if sent < 0 else 0
            if problem in _FULL:
                if wait <= 0:
                    refused.extend((row + i, problem) for i in range(left))
                    return wait
                wait -= _wait_for_room(descriptor, wait)
            elif problem and problem != errno.EINTR:
                # An error of this packet (EPERM, ENETUNREACH, EFAULT...), or of an earlier one
                # (ECONNREFUSED): the others may succeed.
                refused.append((row, problem))
                row, left = row + 1, left - 1
            if left:
                address = packets.address + row * MMSGHDR.itemsize
                sent = self._call(descriptor, address, left, socket.MSG_DONTWAIT)
                row, left = row + max(sent, 0), left - max(sent, 0)
        return wait


def _arguments(packets: Packets, group: Group) -> tuple[Any, ...]:
    """The arguments of sendmmsg(2)."""
    descriptor, first, count = group
    return (
        ctypes.c_int(descriptor),
        ctypes.c_void_p(packets.address + first * MMSGHDR.itemsize),
        ctypes.c_uint(count),
        ctypes.c_int(socket.MSG_DONTWAIT),
    )


def _wait_for_room(descriptor: int, wait: float) -> float:
    """Waits up to `wait` seconds for a writable socket; returns the time, at least 0.1 ms."""
    began = time.monotonic()
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll(max(1, int(wait * 1000)))
    waited = time.monotonic() - began
    if waited < 0.0001:
        time.sleep(0.0001)  # ENOBUFS: not the socket but the queue of the device is full
    return max(waited, 0.0001)


def sockaddr(family: socket.AddressFamily, host: str, port: int) -> bytes:
    """`struct sockaddr_in` or `sockaddr_in6` of Linux; OSError if the host is not of the family."""
    address = socket.inet_pton(family, host)
    start = int(family).to_bytes(2, sys.byteorder) + port.to_bytes(2, "big")
    if family == socket.AF_INET6:
        return start + bytes(4) + address + bytes(4)
    return start + address + bytes(8)
