"""What a stream plays: recordings that are mapped once, and cut into packets."""

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
"""Packets that lie one behind the other in memory: the address of the first, and their count."""

_Cut = tuple[list[Segment], NDArray[np.uint8] | None]
"""Segments, and the memory of the last packet if that is padded; it must be kept as long as the
segments are used."""


class Clip:
    """A mapped file.

    Whole packets come straight from the mapped memory, the rest of it from a padded copy.
    """

    def __init__(self, descriptor: int) -> None:
        """Raises OSError or ValueError; the descriptor stays open."""
        self.size = size = os.fstat(descriptor).st_size
        # Populated now, not page by page while sending.
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        mapped = mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ)
        self._memory = np.frombuffer(mapped, np.uint8)
        # Read, not mapped: a file cut short meanwhile then can't fault this process. The
        # kernel, which alone reads the mapping, answers EFAULT.
        self._end = os.pread(descriptor, _LONGEST_PACKET, max(0, size - _LONGEST_PACKET))
        self._whole: dict[tuple[Law, int], _Cut] = {}

    def cut(self, law: Law, offset: int, samples: int) -> _Cut:
        """The clip from byte `offset` on, as packets of so many samples."""
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
        """Cuts the clips into packets of so many samples."""
        self._law = law
        self._clips = clips
        self._cut_from(0, 0, samples)

    def next_segment(self) -> Segment | None:
        """What is to be sent next; None at the end."""
        if self._given == len(self._segments):
            return None
        self._given += 1
        return self._segments[self._given - 1]

    def recut(self, samples: int, left: int) -> None:
        """Cut what is still to be sent into packets of so many samples.

        `left` packets of the segment that was given last are still to be sent.
        """
        self._cut_from(*self._position(left), samples)

    def _cut_from(self, number: int, offset: int, samples: int) -> None:
        """Cut the rest of the playlist, from byte `offset` of clip `number` on."""
        self._first = number, offset
        self._samples = samples
        self._given = 0  # of the segments
        self._segments: list[Segment] = []
        self._places: list[tuple[int, int]] = []  # of each: the clip, and the byte in it
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
        """The clip, and the byte in it, of the next sample to be sent."""
        if not self._given:
            return self._first
        number, offset = self._places[self._given - 1]
        offset += (self._segments[self._given - 1][1] - left) * self._samples
        return (number, offset) if offset < self._clips[number].size else (number + 1, 0)
