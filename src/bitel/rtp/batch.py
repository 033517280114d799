"""The streams that are sent at the same instant of every packet time, as arrays.

A tick costs a handful of array operations, however many streams there are. Streams come and go
between ticks; `settle` then rewrites the arrays, ordered by socket.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitel.rtp.memory import HEADER, Packets
from bitel.rtp.packet import SAMPLES_PER_PACKET, VERSION
from bitel.rtp.sendmmsg import Group, Transmit

MARKER = 0x80
SMALLEST = 64  # rows

_STATE = np.dtype(
    [
        ("stream", "i8"),
        ("descriptor", "i4"),
        ("left", "i4"),  # packets of the present segment not sent yet
        ("sent", "i4"),
        ("refused", "i4"),
        ("errno", "i4"),  # of the packet refused last
    ]
)


@dataclass(frozen=True, slots=True)
class NewStream:
    """What a stream starts with, or goes on with after a pause.

    `far` is the callee's `memory.sockaddr`, `payload` the address of the first of `packets`
    payloads. `sent`, `refused` and `errno` are what had become of its packets before.
    """

    stream: int
    descriptor: int
    far: bytes
    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: int
    packets: int
    sent: int = 0
    refused: int = 0
    errno: int = 0


class Count(NamedTuple):
    """What has become of a stream's packets."""

    sent: int
    refused: int
    problem: str


class Batch:
    """Adds, removes, and sends one packet of each stream at a time."""

    def __init__(
        self,
        family: socket.AddressFamily,
        transmit: Transmit,
        samples: int = SAMPLES_PER_PACKET,
    ) -> None:
        self._transmit = transmit
        self.samples = samples  # in a packet
        self.due = 0.0  # of the last tick, by the caller's clock
        self._packets = Packets(SMALLEST, family, samples)
        self._state = np.zeros(SMALLEST, _STATE)
        self._rows = 0
        self._groups: list[Group] = []
        self._new: dict[int, NewStream] = {}
        self._gone: set[int] = set()
        self._taken: set[int] = set()
        self._unborn: list[NewStream] = []  # removed before they were in the arrays

    def __len__(self) -> int:
        """How many streams there will be after the next `settle`."""
        return self._rows - len(self._gone) - len(self._taken) + len(self._new)

    @property
    def idle(self) -> bool:
        """A tick would neither send nor settle anything."""
        return not (self._rows or self._new or self._unborn)

    def add(self, stream: NewStream) -> None:
        """The stream's first packet goes with the next tick."""
        self._new[stream.stream] = stream

    def remove(self, stream: int) -> None:
        """No packet more of this stream; its count comes from the next `settle`."""
        new = self._new.pop(stream, None)
        if new is None:
            self._gone.add(stream)
        else:
            self._unborn.append(new)

    def look(self, stream: int) -> NewStream:
        """The stream as it stands: what its next packet will be, and what became of the others."""
        new = self._new.get(stream)
        return self._read(self._row(stream)) if new is None else new

    def take(self, stream: int) -> NewStream:
        """Removes a stream that may come back: `add` what this returns. No count follows."""
        new = self._new.pop(stream, None)
        if new is None:
            new = self._read(self._row(stream))
            self._taken.add(stream)
        return new

    def redirect(self, stream: int, far: bytes) -> None:
        """The stream's next packets go to this `memory.sockaddr`."""
        if stream in self._new:
            self._new[stream] = replace(self._new[stream], far=far)
        else:
            self._packets.names[self._row(stream)] = np.void(far)

    def settle(self) -> list[tuple[int, Count]]:
        """Makes additions and removals so; returns what the removed streams had sent."""
        unborn, self._unborn = self._unborn, []
        counts = [(new.stream, Count(new.sent, new.refused, _problem(new.errno))) for new in unborn]
        if not self._new and not self._gone and not self._taken:
            return counts
        state = self._state[: self._rows]
        stays = ~np.isin(state["stream"], list(self._gone | self._taken))
        counts += [
            (stream, Count(sent, refused, _problem(code)))
            for stream, _, _, sent, refused, code in state[~stays].tolist()
            if stream in self._gone
        ]
        kept = np.flatnonzero(stays)
        fresh = list(self._new.values())
        self._new.clear()
        self._gone.clear()
        self._taken.clear()
        self._rewrite(kept, fresh)
        return counts

    def run_out(self) -> list[tuple[int, int]]:
        """The rows, and their streams, that have nothing left of their segment to send."""
        state = self._state[: self._rows]
        rows = np.flatnonzero(state["left"] == 0)
        return list(zip(rows.tolist(), state["stream"][rows].tolist(), strict=True))

    def point(self, row: int, payload: int, packets: int) -> None:
        """The row goes on with `packets` payloads from this address."""
        self._packets.payloads[row] = payload
        self._state["left"][row] = packets

    def send(self) -> tuple[int, int]:
        """Sends a packet of every stream; how many left, and how many the kernel refused."""
        rows = self._rows
        refused = self._transmit(self._packets, self._groups)
        headers, state = self._packets.headers[:rows], self._state[:rows]
        headers["kind"] &= 0xFF ^ MARKER  # it marks the first packet of a talkspurt (RFC 3551 4.1)
        headers["sequence"] += np.uint16(1)  # wraps
        headers["timestamp"] += np.uint32(self.samples)
        self._packets.payloads[:rows] += np.uintp(self.samples)
        state["left"] -= 1
        state["sent"] += 1
        for row, problem in refused:
            state["sent"][row] -= 1
            state["refused"][row] += 1
            state["errno"][row] = problem
        return rows - len(refused), len(refused)

    def _row(self, stream: int) -> int:
        return int(np.flatnonzero(self._state["stream"][: self._rows] == stream)[0])

    def _read(self, row: int) -> NewStream:
        stream, descriptor, left, sent, refused, code = self._state[row].item()
        _, kind, sequence, timestamp, ssrc = self._packets.headers[row].item()
        return NewStream(
            stream,
            descriptor,
            self._packets.names[row].tobytes(),
            kind & ~MARKER,
            sequence,
            timestamp,
            ssrc,
            int(self._packets.payloads[row]),
            left,
            sent,
            refused,
            code,
        )

    def _rewrite(self, kept: NDArray[np.intp], fresh: list[NewStream]) -> None:
        """New arrays of the kept rows and the new streams, those of one socket side by side."""
        old, before = self._packets, self._state
        rows = len(kept) + len(fresh)
        family = old.family
        state = np.concatenate([before[kept], _fresh_state(fresh)])
        order = np.argsort(state["descriptor"], kind="stable")
        names = np.array([new.far for new in fresh], old.names.dtype)
        payloads = np.array([new.payload for new in fresh], np.uintp)
        headers = np.concatenate([old.headers[kept], _fresh_headers(fresh)])[order]
        names = np.concatenate([old.names[kept], names])[order]
        payloads = np.concatenate([old.payloads[kept], payloads])[order]
        if rows > old.capacity or rows < old.capacity // 8:
            capacity = max(SMALLEST, 1 << (rows - 1).bit_length()) if rows else SMALLEST
            self._packets = Packets(capacity, family, self.samples)
            self._state = np.zeros(capacity, _STATE)
        self._rows = rows
        self._state[:rows] = state[order]
        self._packets.headers[:rows] = headers
        self._packets.names[:rows] = names
        self._packets.payloads[:rows] = payloads
        self._groups = _groups(self._state["descriptor"][:rows])


def _fresh_state(fresh: list[NewStream]) -> NDArray[np.void]:
    return np.array(
        [
            (new.stream, new.descriptor, new.packets, new.sent, new.refused, new.errno)
            for new in fresh
        ],
        _STATE,
    )


def _fresh_headers(fresh: list[NewStream]) -> NDArray[np.void]:
    return np.array(
        [
            (VERSION << 6, MARKER | new.payload_type, new.sequence, new.timestamp, new.ssrc)
            for new in fresh
        ],
        HEADER,
    )


def _groups(descriptors: NDArray[np.int32]) -> list[Group]:
    """The runs of equal descriptors."""
    if not len(descriptors):
        return []
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(descriptors)) + 1])
    counts = np.diff(firsts, append=len(descriptors))
    return list(zip(descriptors[firsts].tolist(), firsts.tolist(), counts.tolist(), strict=True))


def _problem(code: int) -> str:
    return os.strerror(code) if code else ""
