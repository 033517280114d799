"""The way out to the kernel: many packets in one `sendmmsg`, or one by one where there is none."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from bitel.rtp.memory import MMSGHDR, Packets, far_end

PATIENCE = 0.002  # seconds that one tick waits for full send buffers before packets are given up

Group = tuple[int, int, int]
"""Packets that leave from one socket: its descriptor, the first row, and how many rows."""

Refused = list[tuple[int, int]]
"""Packets that the kernel did not take: row and errno."""

_FULL = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS)


class Transmit(Protocol):
    """Sends rows of `packets`; what fails for one address leaves the others alone.

    While the same list of groups comes again, it has not changed.
    """

    def __call__(self, packets: Packets, groups: Sequence[Group]) -> Refused: ...


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The system calls of these groups."""

    groups: Sequence[Group]
    calls: list[tuple[tuple[Any, ...], Group]]


class Sendmmsg:
    """One system call for all the packets of a socket (Linux, and BSDs with the same structure)."""

    def __init__(self) -> None:
        """Raises `AttributeError` where the C library has no sendmmsg."""
        # PyDLL keeps the GIL: the sender has one thread, and nobody to give it to.
        self._call = ctypes.PyDLL(None, use_errno=True).sendmmsg
        self._call.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int]
        self._call.restype = ctypes.c_int
        # Less than half the cost of that: errno is not kept, arguments are what C wants already.
        self._quick = ctypes.PyDLL(None).sendmmsg
        self._prepared: WeakKeyDictionary[Packets, _Prepared] = WeakKeyDictionary()

    def __call__(self, packets: Packets, groups: Sequence[Group]) -> Refused:
        prepared = self._prepared.get(packets)
        if prepared is None or prepared.groups is not groups:
            prepared = self._prepared[packets] = self._prepare(packets, groups)
        refused: Refused = []
        quick, patience = self._quick, PATIENCE
        for arguments, group in prepared.calls:
            sent: int = quick(*arguments)
            if sent != group[2]:
                descriptor, first, count = group
                rest = (descriptor, first + max(sent, 0), count - max(sent, 0))
                patience = self._insist(packets, rest, patience, refused)
        return refused

    def _prepare(self, packets: Packets, groups: Sequence[Group]) -> _Prepared:
        flags = ctypes.c_int(socket.MSG_DONTWAIT)
        return _Prepared(
            groups,
            [
                (
                    (
                        ctypes.c_int(descriptor),
                        ctypes.c_void_p(packets.address + first * MMSGHDR.itemsize),
                        ctypes.c_uint(count),
                        flags,
                    ),
                    (descriptor, first, count),
                )
                for descriptor, first, count in groups
            ],
        )

    def _insist(self, packets: Packets, rest: Group, patience: float, refused: Refused) -> float:
        """Sends what a call has left over: past refused packets, and when there is room again.

        Why it was left over is known from the next call. Returns what is left of the patience.
        """
        descriptor, row, left = rest
        sent = 0
        while left:
            problem = ctypes.get_errno() if sent < 0 else 0
            if problem in _FULL:
                if patience <= 0:
                    refused.extend((row + i, problem) for i in range(left))
                    return patience
                patience -= _wait_for_room(descriptor, patience)
            elif problem and problem != errno.EINTR:
                # This packet's own fault (EPERM, ENETUNREACH, EFAULT...), or an answer to an
                # earlier one (ECONNREFUSED): the next ones get their chance.
                refused.append((row, problem))
                row, left = row + 1, left - 1
            if left:
                address = packets.address + row * MMSGHDR.itemsize
                sent = self._call(descriptor, address, left, socket.MSG_DONTWAIT)
                row, left = row + max(sent, 0), left - max(sent, 0)
        return patience


class Sendto:
    """A system call for each packet: for systems without sendmmsg, and few calls."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def __call__(self, packets: Packets, groups: Sequence[Group]) -> Refused:
        refused: Refused = []
        patience = PATIENCE
        for descriptor, first, count in groups:
            bound = self._socket(descriptor, packets.family)
            for row in range(first, first + count):
                problem = _send_one(bound, packets, row)
                while problem in _FULL and patience > 0:
                    patience -= _wait_for_room(descriptor, patience)
                    problem = _send_one(bound, packets, row)
                if problem:
                    refused.append((row, problem))
        return refused

    def _socket(self, descriptor: int, family: socket.AddressFamily) -> socket.socket:
        if descriptor not in self._sockets:
            copy = os.dup(descriptor)
            self._sockets[descriptor] = socket.socket(family, socket.SOCK_DGRAM, fileno=copy)
        return self._sockets[descriptor]


def _send_one(bound: socket.socket, packets: Packets, row: int) -> int:
    """Sends one packet; the errno, or 0."""
    payload = ctypes.string_at(int(packets.payloads[row]), packets.samples)
    header = packets.headers[row].tobytes()
    try:
        bound.sendto(header + payload, far_end(packets.family, packets.names[row].tobytes()))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _wait_for_room(descriptor: int, patience: float) -> float:
    """Waits up to `patience` seconds for a writable socket; how long it took, at least 0.1 ms."""
    began = time.monotonic()
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll(max(1, int(patience * 1000)))
    waited = time.monotonic() - began
    if waited < 0.0001:  # ENOBUFS: the socket has room, the device's queue has not
        time.sleep(0.0001)  # which nothing tells of
    return max(waited, 0.0001)


def choose(name: str = "auto") -> Transmit:
    """The way out by name: `sendmmsg`, `sendto`, or `auto`, the first where the system has it."""
    if name == "sendto":
        return Sendto()
    if name not in ("auto", "sendmmsg"):
        raise ValueError(f"{name!r} is no way to send; known are auto, sendmmsg and sendto")
    try:
        return Sendmmsg()
    except AttributeError:
        if name == "sendmmsg":
            raise
        return Sendto()
