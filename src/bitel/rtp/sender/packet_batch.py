"""The streams that one tick sends together (`Batch`), as NumPy arrays.

A tick costs a few array operations, independent of the number of streams. Counters that grow by one
per tick are computed from the number of ticks; only fields that the kernel reads are updated.
Streams are added and removed between ticks: `settle` then rewrites the arrays, ordered by socket.
"""

from __future__ import annotations

import socket
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bitel.rtp.packet import SAMPLES_PER_PACKET, VERSION
from bitel.rtp.sender.sendmmsg import HEADER, Group, Packets, Transmit

MARKER = 0x80
SMALLEST = 64  # rows
_ONE = np.uint16(1)
_Row = TypeVar("_Row", bound=np.generic)

_STATE = np.dtype(
    [
        ("stream", "i8"),
        ("descriptor", "i4"),
        ("began", "i8"),  # tick of its first packet
        ("over", "i8"),  # tick at which the current segment has been sent
        ("refused", "i4"),
        ("errno", "i4"),  # of the last refused packet
    ]
)


class StreamRow(NamedTuple):
    """The row of a stream as plain values.

    `remote` is a `sendmmsg.sockaddr`, `payload` the memory address of the first of `packets`
    payloads. `sent` and `refused` count its earlier packets; `errno` is that of the last refused
    one. It is sent at the first tick at or after `begin`, by the clock of `Batch.due`. `marker`:
    its first packet begins a talkspurt (RFC 3551 section 4.1).
    """

    stream: int
    descriptor: int
    remote: bytes
    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: int
    packets: int
    sent: int = 0
    refused: int = 0
    errno: int = 0
    begin: float = 0.0
    marker: bool = True

    def header(self) -> tuple[int, ...]:
        """The fields of a `HEADER`."""
        kind = MARKER * self.marker | self.payload_type
        return VERSION << 6, kind, self.sequence, self.timestamp, self.ssrc

    def state(self, ticks: int) -> tuple[int, ...]:
        """The fields of a `_STATE` after `ticks` ticks."""
        began = ticks - self.sent - self.refused
        return self.stream, self.descriptor, began, ticks + self.packets, self.refused, self.errno


class Batch:
    """A set of streams of equal packet length, each of which `send` sends one packet."""

    def __init__(
        self, family: socket.AddressFamily, transmit: Transmit, samples: int = SAMPLES_PER_PACKET
    ) -> None:
        self._transmit = transmit
        self.samples = samples  # per packet
        self._step = np.uint32(samples)
        self._stride = np.uintp(samples)
        self.due = 0.0  # when the current or last tick was due, by the caller's clock
        self.index = 0  # number of that tick
        self._packets = Packets(SMALLEST, family, samples)
        self._state = np.zeros(SMALLEST, _STATE)
        self._rows = 0
        self._streams = 0  # after the next `settle`
        self._ticks = 0
        self._first_over = 0  # no segment ends before this tick
        self._marked = False  # the next packet of some row has the marker bit
        self._set_views()
        self._groups: list[Group] = []
        self._new: dict[int, StreamRow] = {}
        self._gone: set[int] = set()
        self._taken: set[int] = set()
        self._removed_unsent: list[StreamRow] = []  # removed before they were sent

    def __len__(self) -> int:
        """The number of streams after the next `settle`."""
        return self._streams

    @property
    def idle(self) -> bool:
        """Whether a tick would neither send nor settle anything."""
        return not (self._rows or self._new or self._removed_unsent)

    def add(self, stream: StreamRow) -> None:
        """Adds a stream, to be sent at the first tick at or after its `begin`.

        A late tick that was due before `begin` does not include it: its next packet would follow
        too soon.
        """
        self._new[stream.stream] = stream
        self._streams += 1

    def remove(self, stream: int) -> None:
        """Removes a stream; the next `settle` returns its last state."""
        self._streams -= 1
        new = self._new.pop(stream, None)
        if new is None:
            self._gone.add(stream)
        else:
            self._removed_unsent.append(new)

    def look(self, stream: int) -> StreamRow:
        """The current state of a stream: its next packet, and counts of the earlier ones."""
        new = self._new.get(stream)
        return self._read(self._row(stream)) if new is None else new

    def take(self, stream: int) -> StreamRow:
        """Removes a stream and returns its state, which `add` takes later."""
        self._streams -= 1
        new = self._new.pop(stream, None)
        if new is None:
            new = self._read(self._row(stream))
            self._taken.add(stream)
        return new

    def has_sent(self, stream: int) -> bool:
        """Whether the last tick sent the stream; False before its first, also after a hold."""
        return stream not in self._new

    def redirect(self, stream: int, remote: bytes) -> None:
        """Sets the stream's destination, a `sendmmsg.sockaddr`."""
        if stream in self._new:
            self._new[stream] = self._new[stream]._replace(remote=remote)
        else:
            self._packets.names[self._row(stream)] = np.void(remote)

    def set_payload_type(self, stream: int, payload_type: int) -> None:
        """Sets the payload type from the stream's next packet on."""
        if stream in self._new:
            self._new[stream] = self._new[stream]._replace(payload_type=payload_type)
        else:
            row = self._row(stream)
            self._kinds[row] = (self._kinds[row] & MARKER) | payload_type

    def settle(self) -> list[StreamRow]:
        """Applies additions and removals; returns the last state of the removed streams."""
        removed, self._removed_unsent = self._removed_unsent, []
        fresh = [new for new in self._new.values() if new.begin <= self.due] if self._new else []
        if not fresh and not self._gone and not self._taken:
            return removed
        state = self._state[: self._rows]
        leaves = _among(state["stream"], self._gone | self._taken)
        rows = map(self._read, np.flatnonzero(leaves).tolist())
        removed += [row for row in rows if row.stream in self._gone]
        kept = np.flatnonzero(~leaves)
        for new in fresh:
            del self._new[new.stream]
        self._gone.clear()
        self._taken.clear()
        self._rewrite(kept, fresh)
        return removed

    def run_out(self) -> list[tuple[int, int]]:
        """The rows whose segment has been sent, with their streams, except those being removed."""
        if self._ticks < self._first_over:
            return []
        state = self._state[: self._rows]
        rows = np.flatnonzero(state["over"] <= self._ticks)
        if not len(rows) and len(state):
            self._first_over = int(state["over"].min())
        return [
            (row, stream)
            for row, stream in zip(rows.tolist(), state["stream"][rows].tolist(), strict=True)
            if stream not in self._gone and stream not in self._taken
        ]

    def point(self, row: int, payload: int, packets: int) -> None:
        """Sets the next segment of a row: `packets` payloads from the memory address `payload`."""
        self._packets.payloads[row] = payload
        self._state["over"][row] = self._ticks + packets

    def repoint(self, stream: int, payload: int, packets: int) -> None:
        """Sets the next segment of a stream, in place of what is left of the current one."""
        if stream in self._new:
            self._new[stream] = self._new[stream]._replace(payload=payload, packets=packets)
            return
        self.point(self._row(stream), payload, packets)
        self._first_over = min(self._first_over, self._ticks + packets)

    def send(self) -> tuple[int, int]:
        """Sends a packet of every stream; returns how many were sent and how many refused."""
        refused = self._transmit(self._packets, self._groups)
        if self._marked:
            # Only the first packet of a talkspurt has it (RFC 3551 section 4.1).
            np.bitwise_and(self._kinds, 0xFF ^ MARKER, out=self._kinds)
            self._marked = False
        np.add(self._sequences, _ONE, out=self._sequences)  # wraps
        np.add(self._timestamps, self._step, out=self._timestamps)
        self._sequences_sent[...] = self._sequences
        self._timestamps_sent[...] = self._timestamps
        np.add(self._payloads, self._stride, out=self._payloads)
        self._ticks += 1
        for row, problem in refused:
            self._state["refused"][row] += 1
            self._state["errno"][row] = problem
        return self._rows - len(refused), len(refused)

    def _row(self, stream: int) -> int:
        return int(np.flatnonzero(self._state["stream"][: self._rows] == stream)[0])

    def _read(self, row: int) -> StreamRow:
        stream, descriptor, began, over, refused, code = self._state[row].item()
        _, kind, sequence, timestamp, ssrc = self._packets.headers[row].item()
        return StreamRow(
            stream,
            descriptor,
            self._packets.names[row].tobytes(),
            kind & ~MARKER,
            sequence,
            timestamp,
            ssrc,
            int(self._packets.payloads[row]),
            over - self._ticks,
            self._ticks - began - refused,
            refused,
            code,
        )

    def _rewrite(self, kept: NDArray[np.intp], fresh: list[StreamRow]) -> None:
        """Rewrites the arrays from the kept rows and the new streams, ordered by socket."""
        old, before = self._packets, self._state
        rows = len(kept) + len(fresh)
        fresh_state = [new.state(self._ticks) for new in fresh]
        state = _joined(before[kept], np.array(fresh_state, _STATE))
        order = np.argsort(state["descriptor"], kind="stable")
        remotes = np.frombuffer(b"".join([new.remote for new in fresh]), old.names.dtype)
        starts = np.array([new.payload for new in fresh], np.uintp)
        fresh_headers = np.array([new.header() for new in fresh], HEADER)
        headers = _joined(old.headers[kept], fresh_headers)[order]
        names = _joined(old.names[kept], remotes)[order]
        payloads = _joined(old.payloads[kept], starts)[order]
        if rows > old.capacity or rows < old.capacity // 8:
            capacity = max(SMALLEST, 1 << (rows - 1).bit_length()) if rows else SMALLEST
            self._packets = Packets(capacity, old.family, self.samples)
            self._state = np.zeros(capacity, _STATE)
        self._rows = rows
        self._state[:rows] = state[order]
        self._packets.headers[:rows] = headers
        self._packets.names[:rows] = names
        self._packets.payloads[:rows] = payloads
        self._groups = _groups(self._state["descriptor"][:rows])
        self._first_over = self._ticks  # unknown: `run_out` finds it
        self._marked = self._marked or bool(fresh)
        self._set_views()

    def _set_views(self) -> None:
        """Sets what each tick writes: views, and counters in native byte order."""
        rows = self._rows
        headers = self._packets.headers[:rows]
        self._kinds: NDArray[np.uint8] = headers["kind"]
        self._sequences_sent = headers["sequence"]
        self._timestamps_sent = headers["timestamp"]
        self._sequences = self._sequences_sent.astype(np.uint16)
        self._timestamps = self._timestamps_sent.astype(np.uint32)
        self._payloads = self._packets.payloads[:rows]


def _among(numbers: NDArray[np.int64], members: set[int]) -> NDArray[np.bool_]:
    """As `np.isin`, but cheaper for few numbers."""
    if not members:
        return np.zeros(len(numbers), np.bool_)
    wanted = np.fromiter(members, np.int64, len(members))
    wanted.sort()
    places = np.searchsorted(wanted[:-1], numbers)
    found: NDArray[np.bool_] = wanted[places] == numbers
    return found


def _joined(first: NDArray[_Row], second: NDArray[_Row]) -> NDArray[_Row]:
    """As `np.concatenate`, which is slow for structured types."""
    joined = np.empty(len(first) + len(second), first.dtype)
    joined[: len(first)] = first
    joined[len(first) :] = second
    return joined


def _groups(descriptors: NDArray[np.int32]) -> list[Group]:
    """The runs of equal descriptors."""
    if not len(descriptors):
        return []
    changes = np.flatnonzero(descriptors[1:] != descriptors[:-1]) + 1
    firsts = [0, *changes.tolist()]
    ends = [*firsts[1:], len(descriptors)]
    of_runs = descriptors[firsts].tolist()
    return [
        (descriptor, first, end - first)
        for descriptor, first, end in zip(of_runs, firsts, ends, strict=True)
    ]
