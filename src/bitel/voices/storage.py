"""Where recordings are kept: a local folder, or S3 with a local copy of what is played.

A recording is two objects of raw G.711, one per law, named after its id.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal

import numpy as np
import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from bitel.errors import NotFoundError, SettingsError, UnavailableError
from bitel.g711 import alaw_decode
from bitel.voices import wav
from bitel.voices.decoding import Decoded

if TYPE_CHECKING:
    # obstore has this in its stubs only.
    from obstore.store import RetryConfig

Law = Literal["PCMA", "PCMU"]

SUFFIXES: Final[dict[Law, str]] = {"PCMA": ".alaw", "PCMU": ".ulaw"}
CHUNK_BYTES: Final = 64 * 1024

# A call is waiting for its clip: better to fail after half a minute than to hold it for three.
S3_RETRY: Final[RetryConfig] = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}

_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


class VoiceStore:
    """Recordings by id. Its methods raise UnavailableError while the storage can't be reached.

    With a remote store, `folder` holds the copies that were fetched; with a local one it is the
    store's own folder.
    """

    def __init__(self, store: ObjectStore, folder: Path, *, remote: bool) -> None:
        self._store = store
        self._folder = folder
        self._remote = remote
        self._downloads: dict[str, asyncio.Task[Path]] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @classmethod
    def open(cls, storage_url: str, data_dir: Path) -> VoiceStore:
        """Open the store that the setting `storage_url` names.

        Empty is the folder `data_dir`/voices; `s3://bucket/prefix` takes its credentials,
        region and endpoint from the usual `AWS_` variables and keeps copies of what is played
        in `data_dir`/clips. Raises SettingsError.
        """
        if not storage_url:
            folder = data_dir / "voices"
            return cls(LocalStore(folder, mkdir=True), folder, remote=False)
        if not storage_url.startswith("s3://"):
            raise SettingsError("storage_url must be empty or of the form s3://bucket/prefix.")
        try:
            store = S3Store.from_url(storage_url, retry_config=S3_RETRY)
        except (BaseError, ValueError) as error:
            raise SettingsError(
                "storage_url must be empty or of the form s3://bucket/prefix, "
                "with AWS_ variables that fit it."
            ) from error
        return cls(store, data_dir / "clips", remote=True)

    async def put(self, recording_id: str, decoded: Decoded) -> None:
        """Keep both laws of a new recording; they are durable when this returns.

        If it raises, what was written is removed again, as far as the storage still answers.
        `recording_id` is 1 to 64 letters, digits, - or _.
        """
        files: dict[Law, Path] = {"PCMA": decoded.alaw, "PCMU": decoded.ulaw}
        keys = [_key(recording_id, law) for law in files]
        stored = False
        try:
            with self._failures_named():
                for key, path in zip(keys, files.values(), strict=True):
                    await obstore.put_async(self._store, key, path)
                if not self._remote:
                    await asyncio.to_thread(self._sync, keys)
            stored = True
        finally:
            if not stored:
                # Half a recording that stays behind costs space and nothing else: no one was
                # told its id, so the failure that led here is the one to report.
                with suppress(BaseError, OSError):
                    await asyncio.shield(self._discard(keys))

    async def clip(self, recording_id: str, law: Law, size: int | None = None) -> Path:
        """Return a local file with the recording's raw G.711 bytes in `law`.

        From a remote store it is fetched once; callers that want it meanwhile wait for the same
        download. A local copy that does not have `size` bytes, where that is known, is fetched
        again. Raises NotFoundError where the storage has no such file; whether there should be one
        is the caller's to know.
        """
        key = _key(recording_id, law)
        path = self._folder / key
        with self._failures_named():
            found = await asyncio.to_thread(_size_of, path)
        if found is not None and (not self._remote or size is None or found == size):
            return path
        if not self._remote:
            raise _not_found(recording_id)
        download = self._downloads.get(key)
        if download is None:
            download = asyncio.create_task(self._download(recording_id, key))
            self._downloads[key] = download
            download.add_done_callback(partial(self._downloaded, key))
        # One caller that gives up must not take the download from the others.
        return await asyncio.shield(download)

    async def wav(self, recording_id: str) -> AsyncIterator[bytes]:
        """Yield the recording as it will be heard: WAV, 8 kHz mono, 16 bits, after A-law.

        Raises NotFoundError before the first piece.
        """
        path = await self.clip(recording_id, "PCMA")
        with self._failures_named():
            file = await asyncio.to_thread(path.open, "rb")
        with file:
            yield wav.header(os.fstat(file.fileno()).st_size)
            while codes := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield wav.body(alaw_decode(np.frombuffer(codes, dtype=np.uint8)))

    async def wav_size(self, recording_id: str) -> int:
        """Return the bytes that `wav` yields in all. Raises NotFoundError."""
        key = _key(recording_id, "PCMA")
        with self._failures_named():
            try:
                return wav.size((await obstore.head_async(self._store, key))["size"])
            except FileNotFoundError:
                raise _not_found(recording_id) from None

    async def delete(self, recording_id: str) -> None:
        """Remove a recording; one that is not there is no error.

        Copies on other machines stay in their folders until those are cleaned.
        """
        keys = [_key(recording_id, law) for law in SUFFIXES]
        with self._failures_named():
            await self._discard(keys)

    async def _discard(self, keys: list[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                await obstore.delete_async(self._store, key)
            await asyncio.to_thread((self._folder / key).unlink, missing_ok=True)

    async def _download(self, recording_id: str, key: str) -> Path:
        path = self._folder / key
        incomplete = self._folder / f".{key}.{uuid.uuid4().hex}"
        try:
            with self._failures_named():
                try:
                    answer = await obstore.get_async(self._store, key)
                except FileNotFoundError:
                    raise _not_found(recording_id) from None
                # The folder is a cache, and may have been deleted.
                await asyncio.to_thread(partial(self._folder.mkdir, parents=True, exist_ok=True))
                with await asyncio.to_thread(incomplete.open, "xb") as file:
                    async for chunk in answer.stream(min_chunk_size=1024 * 1024):
                        await asyncio.to_thread(file.write, chunk)
                    await asyncio.to_thread(_flush_to_disk, file)
                # A file of this name is complete, also after a power loss.
                await asyncio.to_thread(os.replace, incomplete, path)
        finally:
            with suppress(OSError):
                incomplete.unlink(missing_ok=True)
        return path

    def _downloaded(self, key: str, download: asyncio.Task[Path]) -> None:
        del self._downloads[key]
        if not download.cancelled():
            # Looked at here, since every caller may have given up before it failed.
            download.exception()

    def _sync(self, keys: list[str]) -> None:
        for path in [*(self._folder / key for key in keys), self._folder]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise UnavailableError("The storage of recordings can't be used now.") from error


def _key(recording_id: str, law: Law) -> str:
    if not _ID.fullmatch(recording_id):
        raise _not_found(recording_id)
    return recording_id + SUFFIXES[law]


def _not_found(recording_id: str) -> NotFoundError:
    return NotFoundError(f"There is no recording {recording_id[:64]!r}.")


def _size_of(path: Path) -> int | None:
    """The size of a file in bytes; None where there is no file of that name."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
