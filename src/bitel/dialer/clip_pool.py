"""Recordings in memory, read once for all calls that play them."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from bitel.errors import UnavailableError
from bitel.recordings.shared_tasks import SharedTasks
from bitel.rtp.shared_clip import ClipError, SharedClip, read_clip

MOST_IDLE: Final = 256
"""Clips that stay in memory while no call plays them; each holds a descriptor."""

MOST_IDLE_BYTES: Final = 64 * 1024 * 1024
"""Bytes of them."""

MOST_COPIED_BYTES: Final = 1024 * 1024 * 1024
"""Bytes of all clips in memory above which further ones stay in their files, mapped from there."""

READ_TIMEOUT: Final = 10.0
"""Seconds for a file to be read; a mount whose server is gone may block indefinitely."""

READERS: Final = 4
"""Threads that read; apart from all others, which a mount that blocks must not hold up."""


class Location(NamedTuple):
    """Where a clip is read from, and how many bytes it must have, if that is known."""

    path: Path
    size: int | None = None


class ClipPool:
    """Clips by name.

    A clip that a call plays, or is about to, is never read again. Of the others the latest stay,
    up to `MOST_IDLE` clips and `MOST_IDLE_BYTES`.
    """

    def __init__(self) -> None:
        self._clips: weakref.WeakValueDictionary[str, SharedClip] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[str, SharedClip] = OrderedDict()
        self._recent_bytes = 0
        self._bytes = 0
        self._freed: deque[int] = deque()  # sizes; appended to by the thread that drops a clip
        self._reading: SharedTasks[SharedClip] = SharedTasks()
        self._threads = ThreadPoolExecutor(READERS, "clip-reader")

    async def get(self, name: str, locate: Callable[[], Awaitable[Location]]) -> SharedClip:
        """The clip of that name; read from where `locate` says if it is not in memory.

        Raises what `locate` does, and UnavailableError where the file can't be read.
        """
        clip = self._clips.get(name)
        if clip is None:
            clip = await self._reading.get(name, lambda: self._read(name, locate))
        self._touch(name, clip)
        return clip

    async def _read(self, name: str, locate: Callable[[], Awaitable[Location]]) -> SharedClip:
        path, size = await locate()
        while self._freed:
            self._bytes -= self._freed.popleft()
        copy = self._bytes + (size or 0) <= MOST_COPIED_BYTES
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: read_clip(path, size, copy=copy)
        )
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                clip = await work
        except TimeoutError:
            raise UnavailableError(
                f"The recording {path} takes longer than {READ_TIMEOUT:.0f} s to read."
            ) from None
        except ClipError as fault:
            raise UnavailableError(f"A recording can't be had: {fault}.") from fault
        self._clips[name] = clip
        self._bytes += clip.size
        weakref.finalize(clip, self._freed.append, clip.size).atexit = False
        return clip

    def _touch(self, name: str, clip: SharedClip) -> None:
        recent = self._recent
        if name in recent:
            recent.move_to_end(name)
            return
        recent[name] = clip
        self._recent_bytes += clip.size
        while len(recent) > MOST_IDLE or (self._recent_bytes > MOST_IDLE_BYTES and len(recent) > 1):
            _, oldest = recent.popitem(last=False)
            self._recent_bytes -= oldest.size
