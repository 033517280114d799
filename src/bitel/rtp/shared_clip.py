"""Recordings in memory files (memfd): the service reads them once, sender processes map them.

Senders get a descriptor, not a path. So a loaded recording depends on no disk, mount or bucket, and
no sender waits for one.
"""

from __future__ import annotations

import itertools
import os
import stat
import weakref
from pathlib import Path

from bitel.rtp.packet import SAMPLE_RATE

MAX_BYTES = 4 * 3600 * SAMPLE_RATE  # of one clip: four hours
_CHUNK = 1 << 20  # bytes of one read
_numbers = itertools.count(1)


class ClipError(Exception):
    """The recording can't be read, or has a size that can't be played."""


class SharedClip:
    """A raw G.711 recording of `size` bytes behind a descriptor.

    `number` identifies it in messages to the senders. The memory is freed once this object is
    garbage and no sender plays it.
    """

    __slots__ = ("__weakref__", "_descriptor", "number", "size")

    def __init__(self, descriptor: int, size: int) -> None:
        self.number = next(_numbers)
        self.size = size
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False

    def fileno(self) -> int:
        """The descriptor, open as long as this object exists."""
        return self._descriptor


def clip_of(content: bytes) -> SharedClip:
    """Makes a clip of G.711 bytes. Raises OSError."""
    clip = SharedClip(_memory_file(), len(content))
    _write_all(clip.fileno(), content)
    return clip


def read_clip(path: Path, size: int | None = None, *, copy: bool = True) -> SharedClip:
    """Makes a clip of the file at `path`; blocks while its storage is read.

    `size` is the expected size in bytes, if known. Without `copy` the clip is the open file itself:
    it survives removal of its name, but pages that are evicted from the page cache are read from
    storage again. Raises ClipError.
    """
    try:
        # From here on, the objects close their descriptors.
        file = SharedClip(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), 0)
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ClipError(f"the recording {path} is not a file")
        _check_size(path, status.st_size, size)
        clip = SharedClip(_memory_file(), 0) if copy else file
        clip.size = _read_all(file.fileno(), clip.fileno() if copy else None)
        _check_size(path, clip.size, size)
    except (OSError, ValueError) as error:
        raise ClipError(f"the recording {path} can't be read: {error}") from error
    return clip


def _memory_file() -> int:
    return os.memfd_create("bitel-clip", os.MFD_CLOEXEC)


def _check_size(path: Path, found: int, size: int | None) -> None:
    if size is not None and found != size:
        raise ClipError(f"the recording {path} has {found} bytes and should have {size}")
    if not 0 < found <= MAX_BYTES:
        raise ClipError(f"the recording {path} has {found} bytes; 1 to {MAX_BYTES} can be sent")


def _read_all(file: int, memory: int | None) -> int:
    """Copies the file to `memory`, or only reads it; returns its size. Stops above `MAX_BYTES`."""
    read = 0
    while read <= MAX_BYTES and (chunk := os.read(file, _CHUNK)):
        read += len(chunk)
        if memory is not None:
            _write_all(memory, chunk)
    return read


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
