"""Classic BPF programs that select which received packets the kernel delivers to a socket.

Thousands of remotes send 50 packets a second each. A sample of these shows where they send from and
whether they still send; packets that are dropped in the kernel cost no system call.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

DENSEST = 16  # with few streams, one audio packet in 16 is delivered
SPARSEST = 256  # with many streams, one in 256
DELIVERED_RATE = 2000  # target for the packets delivered per second, all streams together
LEAST_IN_TIMEOUT = 4  # packets of a stream delivered within its silence timeout, at least
USUAL_RATE = 50  # packets that a remote usually sends per second

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python's socket module does not name it


def _program(*instructions: tuple[int, int, int, int]) -> bytes:
    """Encodes instructions: code, jump if true, jump if false, constant (linux/filter.h)."""
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


DROP_ALL = _program((0x06, 0, 0, 0))  # return 0 bytes of every packet


def keep_one_in(count: int, event_types: frozenset[int] = frozenset()) -> bytes:
    """A program that keeps one RTP packet in `count`, and all with the marker bit or an event type.

    `count` is a power of two up to `SPARSEST`, applied to the sequence number; ValueError for
    others. `event_types` are the payload types of telephone events, 0 to 127.
    """
    if count not in (1 << bits for bits in range(SPARSEST.bit_length())):
        raise ValueError(f"one packet in {count} can't be kept: name a power of 2 to {SPARSEST}")
    types = sorted(event_types)
    # Offsets are from the UDP header, which has 8 bytes.
    return _program(
        (0x30, 0, 0, 8 + 1),  # load the byte of marker and payload type
        (0x35, len(types) + 2, 0, 128),  # a marker: keep
        # One of these types: keep.
        *((0x15, len(types) + 1 - place, 0, kind) for place, kind in enumerate(types)),
        (0x30, 0, 0, 8 + 3),  # load the lower byte of the sequence number
        (0x45, 1, 0, count - 1),  # no multiple of it: drop
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    )


def one_in(streams: int, silence_timeout: float = 0.0) -> int:
    """The `count` of `keep_one_in` for this number of streams.

    Several packets of a stream are delivered within `silence_timeout` (seconds; 0: none), so that
    the loss of single ones does not look like silence.
    """
    sparsest = silence_timeout * USUAL_RATE / LEAST_IN_TIMEOUT if silence_timeout else SPARSEST
    wanted = DENSEST
    while wanted * 4 <= min(sparsest, SPARSEST) and streams * USUAL_RATE > DELIVERED_RATE * wanted:
        wanted *= 4
    return wanted


def attach(bound: socket.socket, program: bytes) -> None:
    """Attaches a filter to the socket, in place of an earlier one. Errors are ignored."""
    room = ctypes.create_string_buffer(program)
    count = len(program) // struct.calcsize("HBBI")
    description = struct.pack("@HP", count, ctypes.addressof(room))  # struct sock_fprog
    # Without the filter, the small receive buffer limits how many packets can queue.
    with contextlib.suppress(OSError):
        bound.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, description)
