"""A recording in shared memory: the service reads it once, its sender processes map it.

The senders get the descriptor of a memory file, not a path. What a call plays therefore depends
on no disk, mount or bucket once it is loaded, and no sender ever waits for one.
"""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
import weakref
from pathlib import Path

from bitel.rtp.clips import MAX_BYTES, ClipError

_PIECE = 1 << 20  # bytes of one read
_numbers = itertools.count(1)


class SharedClip:
    """A raw G.711 recording of `size` bytes behind a descriptor.

    `number` names it towards the senders; there is only one of each in a process. The memory is
    freed when the last reference is gone here, and no stream of a sender plays it any more.
    """

    __slots__ = ("__weakref__", "_descriptor", "number", "path", "size")

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.number = next(_numbers)
        self.path = path
        self.size = size
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False

    def fileno(self) -> int:
        """The descriptor; it stays open as long as this object is referenced."""
        return self._descriptor


def clip_of(content: bytes, name: str) -> SharedClip:
    """A clip that was never in a file; `name` is what messages call it. Raises OSError."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("bitel-clip", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
    except BaseException:
        os.close(descriptor)
        raise
    return SharedClip(Path(name), descriptor, len(content))


def read_clip(path: Path, size: int | None = None, *, copy: bool = True) -> SharedClip:
    """Read the file `path` to its end; blocks for as long as its storage takes.

    `size` is how many bytes it should have, if that is known. Without `copy`, and where the system
    has no memory files, the clip is the open file itself: that survives the loss of its name and
    folder, and depends on its storage for what the page cache gives up. Raises ClipError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise ClipError(f"the recording {path} can't be read: {error}") from error
    memory = None
    try:
        _check(path, os.fstat(descriptor), size)
        if copy and hasattr(os, "memfd_create"):
            memory = os.memfd_create("bitel-clip", os.MFD_CLOEXEC)
        read = _read_all(descriptor, memory)
        _check_size(path, read, size)
    except BaseException as error:
        os.close(descriptor)
        if memory is not None:
            os.close(memory)
        if isinstance(error, OSError):
            raise ClipError(f"the recording {path} can't be read: {error}") from error
        raise
    if memory is None:
        return SharedClip(path, descriptor, read)
    os.close(descriptor)
    return SharedClip(path, memory, read)


def _check(path: Path, status: os.stat_result, size: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ClipError(f"the recording {path} is not a file")
    _check_size(path, status.st_size, size)


def _check_size(path: Path, found: int, size: int | None) -> None:
    if size is not None and found != size:
        raise ClipError(f"the recording {path} has {found} bytes and should have {size}")
    if not 0 < found <= MAX_BYTES:
        raise ClipError(f"the recording {path} has {found} bytes; 1 to {MAX_BYTES} can be sent")


def _read_all(descriptor: int, memory: int | None) -> int:
    """The bytes read, also where they are copied nowhere: that they can be read is then known."""
    read = 0
    while piece := os.read(descriptor, _PIECE):
        read += len(piece)
        if read > MAX_BYTES:
            break
        left = memoryview(piece) if memory is not None else memoryview(b"")
        while left:
            assert memory is not None
            left = left[os.write(memory, left) :]
    return read
