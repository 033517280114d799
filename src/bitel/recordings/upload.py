"""A body that arrives in pieces, to a file: never more of it in memory than one piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bitel.errors import PayloadTooLargeError

PIECE_BYTES: Final = 1024 * 1024


async def receive(chunks: AsyncIterator[bytes], into: Path, max_bytes: int) -> int:
    """Write `chunks` to the new file `into` and return their bytes, 0 to `max_bytes`.

    Raises PayloadTooLargeError the moment the sum passes `max_bytes`, and FileExistsError where
    `into` is there already. After any other failure, also of `chunks`, the file is gone.
    """
    received = 0
    piece = bytearray()
    file = await asyncio.to_thread(into.open, "xb")
    with _removed_on_failure(into), file:
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


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
