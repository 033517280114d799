"""Recordings in memory: raw G.711 files, mapped once and shared by all streams that play them."""

from __future__ import annotations

import mmap
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bitel.g711 import ALAW_SILENCE, ULAW_SILENCE
from bitel.rtp.packet import SAMPLE_RATE, SAMPLES_PER_PACKET
from bitel.rtp.wire import Law

SILENCE: dict[Law, int] = {"alaw": ALAW_SILENCE, "ulaw": ULAW_SILENCE}

MAX_BYTES = 4 * 3600 * SAMPLE_RATE  # of one clip: four hours
MAX_IDLE = 256  # clips kept open though nobody plays them; each holds a descriptor

_POPULATE = getattr(mmap, "MAP_POPULATE", 0)  # Linux: read it now, not page by page while sending

Segment = tuple[int, int]
"""Packets that lie one behind the other in memory: the address of the first, and their count."""

_Identity = tuple[int, int, int, int]
_Key = tuple[str, Law, int]


class ClipError(Exception):
    """A recording that can't be played."""


class Clip:
    """One file, cut into packets of so many samples.

    Its whole packets come straight from the page cache, the rest of it from a padded copy.
    """

    def __init__(self, path: str, law: Law, samples: int) -> None:
        self.users = 0
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            self.identity = _identity(status)
            if not stat.S_ISREG(status.st_mode):
                raise ClipError(f"the recording {path} is not a file")
            if not 0 < status.st_size <= MAX_BYTES:
                raise ClipError(
                    f"the recording {path} has {status.st_size} bytes; 1 to {MAX_BYTES} can be sent"
                )
            whole, rest = divmod(status.st_size, samples)
            body = whole * samples
            self._memory: list[NDArray[np.uint8]] = []
            self.segments: list[Segment] = []
            if whole:
                flags = mmap.MAP_SHARED | _POPULATE
                mapped = mmap.mmap(descriptor, body, flags=flags, prot=mmap.PROT_READ)
                self._keep(np.frombuffer(mapped, np.uint8), whole)
            if rest:
                # Read, not mapped: a file cut short meanwhile then can't fault this process. The
                # kernel, which alone reads the mapping, answers EFAULT.
                tail = os.pread(descriptor, rest, body).ljust(samples, bytes([SILENCE[law]]))
                self._keep(np.frombuffer(tail, np.uint8), 1)
        finally:
            os.close(descriptor)

    def _keep(self, memory: NDArray[np.uint8], packets: int) -> None:
        self._memory.append(memory)
        self.segments.append((memory.ctypes.data, packets))


class ClipCache:
    """Open clips by path, law and packet size; those nobody plays are closed, the oldest first."""

    def __init__(self, max_idle: int = MAX_IDLE) -> None:
        self._max_idle = max_idle
        self._clips: dict[_Key, Clip] = {}
        self._idle: OrderedDict[_Key, Clip] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clips)

    def acquire(self, path: str, law: Law, samples: int = SAMPLES_PER_PACKET) -> Clip:
        """The clip, to be released by the same values; `ClipError` where it can't be read."""
        key = (path, law, samples)
        try:
            clip = self._clips.get(key)
            # A file written anew under its name is another recording.
            if clip is None or clip.identity != _identity(os.stat(path)):
                clip = self._clips[key] = Clip(path, law, samples)
                self._idle.pop(key, None)
        except (OSError, ValueError) as error:
            raise ClipError(f"the recording {path} can't be read: {error}") from None
        if clip.users == 0:
            self._idle.pop(key, None)
        clip.users += 1
        return clip

    def release(self, path: str, law: Law, clip: Clip, samples: int = SAMPLES_PER_PACKET) -> None:
        """One player less. Dropped clips are unmapped when the last reference goes."""
        clip.users -= 1
        key = (path, law, samples)
        if clip.users or self._clips.get(key) is not clip:
            return
        self._idle[key] = clip
        while len(self._idle) > self._max_idle:
            oldest, _ = self._idle.popitem(last=False)
            del self._clips[oldest]


class Playlist:
    """The clips of one stream, held until it is closed."""

    def __init__(
        self,
        cache: ClipCache,
        paths: list[str],
        law: Law,
        samples: int = SAMPLES_PER_PACKET,
    ) -> None:
        """Opens them all, so that a missing one is known before anything is heard: `ClipError`."""
        self._cache = cache
        self._law = law
        self._samples = samples
        self._held: list[tuple[str, Clip]] = []
        try:
            for path in paths:
                self._held.append((path, cache.acquire(path, law, samples)))
        except ClipError:
            self.close()
            raise
        self._segments: Iterator[Segment] = iter(
            [segment for _, clip in self._held for segment in clip.segments]
        )

    def next_segment(self) -> Segment | None:
        """What is to be sent next; None at the end."""
        return next(self._segments, None)

    def close(self) -> None:
        """Gives the clips back."""
        for path, clip in self._held:
            self._cache.release(path, self._law, clip, self._samples)
        self._held.clear()


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
