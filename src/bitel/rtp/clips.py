"""Recordings in memory: raw G.711 files, mapped once and shared by all streams that play them."""

from __future__ import annotations

import mmap
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitel.g711 import ALAW_SILENCE, ULAW_SILENCE
from bitel.rtp.ipc import Law
from bitel.rtp.packet import PTIMES, SAMPLE_RATE, SAMPLES_PER_MS, SAMPLES_PER_PACKET

SILENCE: dict[Law, int] = {"alaw": ALAW_SILENCE, "ulaw": ULAW_SILENCE}

MAX_BYTES = 4 * 3600 * SAMPLE_RATE  # of one clip: four hours
MAX_IDLE = 256  # clips kept open without a stream; each holds a descriptor

_LONGEST_PACKET = max(PTIMES) * SAMPLES_PER_MS  # bytes
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)  # Linux: read it now, not page by page while sending

Segment = tuple[int, int]
"""Packets that lie one behind the other in memory: the address of the first, and their count."""

ClipName = str | int
"""The number of a clip that the parent passed in memory, or the path of a file."""

_Identity = tuple[int, int, int, int]
_Key = tuple[ClipName, Law, int]


class ClipError(Exception):
    """A recording that can't be played."""


class Clip:
    """One file, cut into packets of so many samples.

    Its whole packets come straight from the mapped memory, the rest of it from a padded copy.
    """

    def __init__(self, mapped: _Mapped, law: Law, samples: int) -> None:
        self.users = 0
        self.size = mapped.size
        self._memory = mapped.memory
        self._end = mapped.end
        self._silence = bytes([SILENCE[law]])
        self.segments, self._tail = self.cut(0, samples)

    def cut(self, offset: int, samples: int) -> tuple[list[Segment], NDArray[np.uint8] | None]:
        """The file from byte `offset` on, as packets of so many samples.

        Returns the segments, and the memory of the last packet where that is padded; the caller
        must keep it for as long as the segments are used.
        """
        whole, rest = divmod(self.size - offset, samples)
        segments = [(self._memory.ctypes.data + offset, whole)] if whole else []
        if not rest:
            return segments, None
        tail = np.frombuffer(self._end[-rest:].ljust(samples, self._silence), np.uint8)
        return [*segments, (tail.ctypes.data, 1)], tail


class _OpenedClip(Clip):
    """A clip that the sender opened by its path."""

    def __init__(self, path: str, law: Law, samples: int) -> None:
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
            super().__init__(_Mapped(descriptor, status.st_size), law, samples)
        finally:
            os.close(descriptor)


class _Mapped:
    """A file of `size` bytes in memory, its last ones in `end` too."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        flags = mmap.MAP_SHARED | _POPULATE
        mapped = mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ)
        self.memory = np.frombuffer(mapped, np.uint8)
        # Read, not mapped: a file cut short meanwhile then can't fault this process. The
        # kernel, which alone reads the mapping, answers EFAULT.
        self.end = os.pread(descriptor, _LONGEST_PACKET, max(0, size - _LONGEST_PACKET))
        self.clips: dict[tuple[Law, int], Clip] = {}

    def clip(self, law: Law, samples: int) -> Clip:
        """The file cut into packets of so many samples; made once for each kind."""
        key = (law, samples)
        if key not in self.clips:
            self.clips[key] = Clip(self, law, samples)
        return self.clips[key]


class ClipCache:
    """Clips by number or path, law and packet size.

    Those with a number stay until they are unloaded. Of those opened by path, the ones that no
    stream plays are closed, the oldest first.
    """

    def __init__(self, max_idle: int = MAX_IDLE) -> None:
        self._max_idle = max_idle
        self._loaded: dict[int, _Mapped] = {}
        self._clips: dict[_Key, _OpenedClip] = {}
        self._idle: OrderedDict[_Key, _OpenedClip] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clips)

    def load(self, number: int, descriptor: int) -> None:
        """Map what the descriptor refers to, which is then closed; `ClipError` if that fails."""
        try:
            self._loaded[number] = _Mapped(descriptor, os.fstat(descriptor).st_size)
        except (OSError, ValueError) as error:
            raise ClipError(f"recording {number} can't be mapped: {error}") from None
        finally:
            os.close(descriptor)

    def unload(self, numbers: Sequence[int]) -> None:
        """Forget clips; those that a stream plays are unmapped when it ends."""
        for number in numbers:
            self._loaded.pop(number, None)

    def acquire(self, name: ClipName, law: Law, samples: int = SAMPLES_PER_PACKET) -> Clip:
        """The clip, to be released by the same values; `ClipError` where it can't be read."""
        if isinstance(name, str):
            return self._open(name, law, samples)
        mapped = self._loaded.get(name)
        if mapped is None:
            raise ClipError(f"recording {name} is not loaded")
        clip = mapped.clip(law, samples)
        clip.users += 1
        return clip

    def _open(self, path: str, law: Law, samples: int) -> Clip:
        key = (path, law, samples)
        try:
            clip = self._clips.get(key)
            # A file written anew under its name is another recording.
            if clip is None or clip.identity != _identity(os.stat(path)):
                clip = self._clips[key] = _OpenedClip(path, law, samples)
                self._idle.pop(key, None)
        except (OSError, ValueError) as error:
            raise ClipError(f"the recording {path} can't be read: {error}") from None
        if clip.users == 0:
            self._idle.pop(key, None)
        clip.users += 1
        return clip

    def release(
        self, name: ClipName, law: Law, clip: Clip, samples: int = SAMPLES_PER_PACKET
    ) -> None:
        """One player less. Dropped clips are unmapped when the last reference goes."""
        clip.users -= 1
        key = (name, law, samples)
        opened = self._clips.get(key)
        if clip.users or opened is None or opened is not clip:
            return
        self._idle[key] = opened
        while len(self._idle) > self._max_idle:
            oldest, _ = self._idle.popitem(last=False)
            del self._clips[oldest]


class Playlist:
    """The clips of one stream, held until it is closed."""

    def __init__(
        self,
        cache: ClipCache,
        names: Sequence[ClipName],
        law: Law,
        samples: int = SAMPLES_PER_PACKET,
    ) -> None:
        """Opens them all, so that a missing one is known before anything is heard: `ClipError`."""
        self._cache = cache
        self._law = law
        self._acquired_as = samples
        self._held: list[tuple[ClipName, Clip]] = []
        try:
            for name in names:
                self._held.append((name, cache.acquire(name, law, samples)))
        except ClipError:
            self.close()
            raise
        self._segments = [segment for _, clip in self._held for segment in clip.segments]
        self._given = 0  # of them
        # The clip at which the first of them begins, and the byte in it.
        self._first = (0, 0)
        self._samples = samples
        self._tails: list[NDArray[np.uint8]] = []

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
        number, offset = self._first = self._position(left)
        self._samples = samples
        self._segments, self._given, self._tails = [], 0, []
        for _, clip in self._held[number:]:
            segments, tail = clip.cut(offset, samples)
            self._segments += segments
            if tail is not None:
                self._tails.append(tail)
            offset = 0

    def _position(self, left: int) -> tuple[int, int]:
        """The clip, and the byte in it, of the next sample to be sent."""
        number, offset = self._first
        given = 0
        while given < self._given:
            clip = self._held[number][1]
            whole, rest = divmod(clip.size - offset, self._samples)
            for packets in ([whole] if whole else []) + ([1] if rest else []):
                given += 1
                is_last = given == self._given
                sent = packets - left if is_last else packets
                offset = min(offset + sent * self._samples, clip.size)
                if is_last and offset < clip.size:
                    return number, offset
                if is_last:
                    break
            if offset == clip.size:
                number, offset = number + 1, 0
        return number, offset

    def close(self) -> None:
        """Gives the clips back."""
        for name, clip in self._held:
            self._cache.release(name, self._law, clip, self._acquired_as)
        self._held.clear()


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
