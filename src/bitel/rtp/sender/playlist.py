"""Playlists of mapped recordings, cut into packets."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitel.g711 import ALAW_SILENCE, ULAW_SILENCE
from bitel.rtp.packet import PTIMES, SAMPLES_PER_MS
from bitel.rtp.stream_spec import Law

SILENCE: dict[Law, int] = {"alaw": ALAW_SILENCE, "ulaw": ULAW_SILENCE}

_LONGEST_PACKET = max(PTIMES) * SAMPLES_PER_MS  # bytes

Segment = tuple[int, int]
"""Packets that are contiguous in memory: the address of the first, and their count."""

_Cut = tuple[list[Segment], NDArray[np.uint8] | None]
"""Segments, and the memory of the last packet if it is padded, to keep while they are used."""


class Clip:
    """A mapped recording of `size` bytes.

    Whole packets are sent from the mapped memory, the rest from a copy padded with silence.
    """

    def __init__(self, descriptor: int) -> None:
        """Maps the file; the descriptor stays open. Raises OSError or ValueError."""
        self.size = size = os.fstat(descriptor).st_size
        # Page faults are taken now, not while sending.
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        mapped = mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ)
        self._memory = np.frombuffer(mapped, np.uint8)
        # Read, not mapped: only the kernel reads the mapping, so a file that is truncated causes
        # EFAULT, not SIGBUS.
        self._end = os.pread(descriptor, _LONGEST_PACKET, max(0, size - _LONGEST_PACKET))
        self._whole: dict[tuple[Law, int], _Cut] = {}

    def cut(self, law: Law, offset: int, samples: int) -> _Cut:
        """The clip from byte `offset` on, as packets of `samples` samples."""
        if offset:
            return self._cut(law, offset, samples)
        key = law, samples
        if key not in self._whole:
            self._whole[key] = self._cut(law, 0, samples)
        return self._whole[key]

    def _cut(self, law: Law, offset: int, samples: int) -> _Cut:
        whole, rest = divmod(self.size - offset, samples)
        segments = [(self._memory.ctypes.data + offset, whole)] if whole else []
        if not rest:
            return segments, None
        padded = self._end[-rest:].ljust(samples, bytes([SILENCE[law]]))
        tail = np.frombuffer(padded, np.uint8)
        return [*segments, (tail.ctypes.data, 1)], tail


class Playlist:
    """The clips of one stream, and the position in them."""

    def __init__(self, clips: Sequence[Clip], law: Law, samples: int) -> None:
        """Cuts the clips into packets of `samples` samples."""
        self._law = law
        self._clips = clips
        self._cut_from(0, 0, samples)

    def replaced_by(self, clips: Sequence[Clip]) -> Playlist:
        """A playlist of other clips, cut in the same way."""
        return Playlist(clips, self._law, self._samples)

    def next_segment(self) -> Segment | None:
        """The next segment to send; None at the end."""
        if self._given == len(self._segments):
            return None
        self._given += 1
        return self._segments[self._given - 1]

    def recut(self, samples: int, left: int) -> None:
        """Cuts the unsent rest into packets of `samples` samples.

        `left` packets of the last segment returned are still unsent.
        """
        self._cut_from(*self._position(left), samples)

    def _cut_from(self, number: int, offset: int, samples: int) -> None:
        """Cuts the playlist from byte `offset` of clip `number` on."""
        self._first = number, offset
        self._samples = samples
        self._given = 0  # segments returned so far
        self._segments: list[Segment] = []
        self._places: list[tuple[int, int]] = []  # clip and byte of each segment
        self._tails: list[NDArray[np.uint8] | None] = []  # only kept alive
        for place, clip in enumerate(self._clips[number:], number):
            segments, tail = clip.cut(self._law, offset, samples)
            self._segments += segments
            self._tails.append(tail)
            for _, packets in segments:
                self._places.append((place, offset))
                offset += packets * samples
            offset = 0

    def _position(self, left: int) -> tuple[int, int]:
        """The clip and the byte of the next unsent sample."""
        if not self._given:
            return self._first
        number, offset = self._places[self._given - 1]
        offset += (self._segments[self._given - 1][1] - left) * self._samples
        return (number, offset) if offset < self._clips[number].size else (number + 1, 0)
