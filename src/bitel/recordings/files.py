"""Atomic files: creation, uploads, removal on failure, and sync to disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bitel.errors import PayloadTooLargeError

PIECE_BYTES: Final = 1024 * 1024
"""Bytes of an upload that are buffered before a write."""

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def new_file(opened: ExitStack, path: Path) -> int:
    """Return a descriptor of an empty file at `path`, closed with `opened`.

    A symbolic link is not followed. Raises OSError.
    """
    descriptor = os.open(path, _FLAGS, 0o600)
    opened.callback(os.close, descriptor)
    return descriptor


@contextmanager
def removed_on_failure(*paths: Path) -> Iterator[None]:
    """Remove the files if the block raises."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def sync(*paths: Path) -> None:
    """Make files or folders durable by fsync(2). Raises OSError."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def receive(chunks: AsyncIterator[bytes], into: Path, max_bytes: int) -> int:
    """Write `chunks` to the new file `into` and return its size in bytes.

    Raises PayloadTooLargeError as soon as it exceeds `max_bytes`, and FileExistsError if `into`
    exists. The file is removed after every other failure, also of `chunks`.
    """
    received = 0
    piece = bytearray()
    file = await asyncio.to_thread(into.open, "xb")
    with removed_on_failure(into), file:
        async for chunk in chunks:
            received += len(chunk)
            if received > max_bytes:
                raise PayloadTooLargeError(f"The file is larger than {max_bytes} bytes.")
            piece += chunk
            if len(piece) >= PIECE_BYTES:
                await asyncio.to_thread(file.write, piece)
                piece = bytearray()
        await asyncio.to_thread(file.write, piece)
    return received
