"""Uploads: receives, decodes and stores recordings, and cleans up after failures."""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from starlette.requests import ClientDisconnect, Request

from bitel.api.context import ApiContext
from bitel.api.multipart import OTHER_BYTES, FilePart
from bitel.api.rate_limits import ConcurrencyQuota, quota_of
from bitel.api.reading import declared_length
from bitel.domain.ids import new_id
from bitel.errors import InvalidRequestError, PayloadTooLargeError, UnavailableError
from bitel.recordings import decode, files
from bitel.recordings.limits import DecodeLimits
from bitel.store import recordings
from bitel.store.recordings import Recording

log = structlog.get_logger(__name__)

MOST_UPLOADS: Final = 16
"""Concurrent uploads of one project, each with a file on the disk."""
IDLE_SECONDS: Final = 30.0
"""Maximum pause of an upload."""
UPLOAD_SECONDS: Final = 900.0
"""Maximum duration of an upload."""
STALE_SECONDS: Final = 86_400.0
"""Age from which files in the incoming folder belong to no running upload. Much longer than an
upload, since the system clock may be set meanwhile."""


class UploadService:
    """Receives recordings."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._under_way = ConcurrencyQuota(MOST_UPLOADS, "uploads")

    async def receive(self, project_id: str, request: Request) -> tuple[Recording, str]:
        """Receive the file of a multipart request, decode it and store it as a new recording.

        Returns the recording, and what is wrong with its file, as in `decode.Decoded.warning`.
        Raises PayloadTooLargeError, UnsupportedMediaError, InvalidRequestError,
        TooManyRequestsError, UnavailableError or ClientDisconnect; then nothing is kept.
        """
        longest = self._context.settings.voices.max_upload
        check_declared_length(request, longest, "recording")
        part = FilePart(request.headers.get("content-type", ""))
        with self._under_way.one_more(project_id):
            return await self._receive(project_id, request, part)

    async def _receive(
        self, project_id: str, request: Request, part: FilePart
    ) -> tuple[Recording, str]:
        context = self._context
        quota, voices = quota_of(context.settings), context.settings.voices
        # An early check; the write below checks again.
        await context.database.read(lambda conn: recordings.check_room(conn, project_id, quota))
        async with upload_folder(context.incoming, "recording") as folder:
            source = folder / "upload"
            size = await files.receive(part.chunks(body_of(request)), source, voices.max_upload)
            limits = DecodeLimits(max_seconds=voices.max_seconds)
            decoded = await decode.decode(source, folder, limits, project_id)
            if await request.is_disconnected():
                raise ClientDisconnect
            now = context.clock()
            recording = Recording(new_id(now), project_id, part.name, decoded.duration, size, now)
            # The audio first: a recording must never be without it.
            await context.voices.put(recording.id, decoded)
            try:
                await context.database.write(lambda conn: recordings.add(conn, recording, quota))
            except Exception:
                # Not on cancellation: a queued write is still executed, and needs its audio.
                await context.voices.delete(recording.id)
                raise
        return recording, decoded.warning


def check_declared_length(request: Request, longest: int, what: str) -> None:
    """Raise PayloadTooLargeError if the request says that its file, a `what`, is too large."""
    if (declared_length(request) or 0) > longest + OTHER_BYTES:
        raise PayloadTooLargeError(f"the {what} is larger than the {longest} bytes allowed")


async def body_of(request: Request) -> AsyncIterator[bytes]:
    """The body of `request`. Raises InvalidRequestError if it pauses or lasts too long."""
    pieces = request.stream()
    deadline = time.monotonic() + UPLOAD_SECONDS
    while True:
        try:
            async with asyncio.timeout(min(IDLE_SECONDS, deadline - time.monotonic())):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise InvalidRequestError(
                f"the upload paused for more than {IDLE_SECONDS:g} seconds, "
                f"or took more than {UPLOAD_SECONDS:g} in all"
            ) from None
        yield piece


@asynccontextmanager
async def upload_folder(incoming: Path, what: str) -> AsyncIterator[Path]:
    """A temporary folder for one upload of a `what`. OSError becomes UnavailableError."""
    try:
        folder = Path(await asyncio.to_thread(_make_folder, incoming))
        try:
            yield folder
        finally:
            # `sweep` removes what can't be removed now.
            remove = partial(shutil.rmtree, ignore_errors=True)
            await asyncio.shield(asyncio.to_thread(remove, folder))
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnavailableError(f"the service has no room for the {what} now") from fault
        raise UnavailableError(f"the service can't keep the {what} now") from fault


def _make_folder(incoming: Path) -> str:
    incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.mkdtemp(dir=incoming)


def sweep(incoming: Path) -> None:
    """Remove files of uploads whose process was killed; keeps those that may still be running."""
    try:
        left = list(incoming.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for each in left:
        try:
            if time.time() - each.stat().st_mtime <= STALE_SECONDS:
                continue
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
        except FileNotFoundError:
            continue  # another process sweeps here too
        except OSError as fault:
            # It only wastes space.
            log.warning("upload_not_swept", path=str(each), fault=str(fault))
