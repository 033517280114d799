"""Storage of recordings: a local folder, or S3 with a local cache.

A recording is two objects of raw G.711, one per law, named after its id.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, S3Store

from bitel.errors import NotFoundError, SettingsError, UnavailableError
from bitel.g711 import alaw_decode
from bitel.recordings import wav
from bitel.recordings.decode import Decoded
from bitel.recordings.files import removed_on_failure, sync
from bitel.settings import S3Settings
from bitel.supervision import SharedTasks

if TYPE_CHECKING:
    # obstore defines these in its stubs only.
    from obstore.store import RetryConfig, S3Config

Law = Literal["PCMA", "PCMU"]

SUFFIXES: Final[dict[Law, str]] = {"PCMA": ".alaw", "PCMU": ".ulaw"}
CHUNK_BYTES: Final = 64 * 1024

# Calls wait for their recording, so retries end after 30 s, not after obstore's 3 minutes.
S3_RETRY: Final[RetryConfig] = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}

CHECK_PREFIX: Final = "bitel-check-"
"""Prefix of the object written by `check`."""
CHECK_TIMEOUT: Final = 20.0

WITHOUT_S3_SETTINGS: Final = S3Settings()

LISTED: Final = 500
"""Objects per page of a listing."""

PUT_AT_ONCE: Final = 8
"""Objects that are stored at once, of several recordings."""

_OBJECT: Final = re.compile(r"([0-9a-f]{32})\.[au]law")
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


class VoiceStore:
    """Recordings by id. Its methods raise UnavailableError while the storage is unavailable.

    With a remote store, `folder` is the cache; with a local one, the store's folder.
    """

    def __init__(self, store: ObjectStore, folder: Path, *, remote: bool) -> None:
        self._store = store
        self._folder = folder
        self._remote = remote
        self._downloads: SharedTasks[Path] = SharedTasks()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @classmethod
    def open(
        cls, storage_url: str, data_dir: Path, s3: S3Settings = WITHOUT_S3_SETTINGS
    ) -> VoiceStore:
        """Open the store of the setting `storage_url`, without a request to it.

        Empty: the folder `data_dir`/voices. `s3://bucket/prefix`: S3 with a cache in
        `data_dir`/clips; empty fields of `s3` are taken from the `AWS_` variables. Raises
        SettingsError.
        """
        if not storage_url:
            folder = data_dir / "voices"
            return cls(LocalStore(folder, mkdir=True), folder, remote=False)
        if not storage_url.startswith("s3://"):
            raise SettingsError("storage_url must be empty or of the form s3://bucket/prefix.")
        try:
            store = S3Store.from_url(
                storage_url,
                config=_s3_config(s3),
                client_options={"allow_http": True} if s3.allow_http else None,
                retry_config=S3_RETRY,
            )
        except (BaseError, ValueError) as error:
            raise SettingsError(
                "storage_url must be empty or of the form s3://bucket/prefix, "
                "with an [s3] section, or AWS_ variables, that fit it."
            ) from error
        return cls(store, data_dir / "clips", remote=True)

    async def check(self) -> None:
        """Write, read and delete an object of a remote store.

        Raises UnavailableError with the cause in a sentence.
        """
        if not self._remote:
            return
        key, content = f"{CHECK_PREFIX}{uuid.uuid4().hex}", b"bitel checks that it may write here"
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await obstore.put_async(self._store, key, content)
                found = await (await obstore.get_async(self._store, key)).bytes_async()
                await obstore.delete_async(self._store, key)
        except TimeoutError:
            raise UnavailableError(
                f"The storage_url can't be used: no answer within {CHECK_TIMEOUT:g} s."
            ) from None
        except (BaseError, OSError) as error:
            raise UnavailableError(f"The storage_url can't be used: {_cause(error)}.") from error
        if bytes(found) != content:
            raise UnavailableError(
                "The storage_url can't be used: an object that was written came back changed."
            )

    async def put(self, recording_id: str, decoded: Decoded) -> None:
        """Store both laws of a new recording durably.

        If this raises, written objects are removed if possible. `recording_id` is 1 to 64 letters,
        digits, - or _.
        """
        await self.put_each({recording_id: decoded})

    async def put_each(self, recordings: Mapping[str, Decoded]) -> None:
        """As `put`, for new recordings by their ids: all of them or none."""
        files: dict[str, Path] = {}
        for recording_id, decoded in recordings.items():
            files[_key(recording_id, "PCMA")] = decoded.alaw
            files[_key(recording_id, "PCMU")] = decoded.ulaw
        keys = list(files)
        try:
            with _errors_as_unavailable():
                for at in range(0, len(keys), PUT_AT_ONCE):
                    some = keys[at : at + PUT_AT_ONCE]
                    puts = (self._put_file(key, files[key]) for key in some)
                    # None may be under way when the others are removed.
                    for done in await asyncio.gather(*puts, return_exceptions=True):
                        if isinstance(done, BaseException):
                            raise done
                    if not self._remote:
                        stored = [self._folder / key for key in some]
                        await asyncio.gather(*(asyncio.to_thread(sync, path) for path in stored))
                if not self._remote:
                    await asyncio.to_thread(sync, self._folder)
        except BaseException:
            # If this fails too, objects are left over; the first error is the one to report.
            with suppress(BaseError, OSError):
                await asyncio.shield(self._discard(keys))
            raise

    async def _put_file(self, key: str, path: Path) -> None:
        await obstore.put_async(self._store, key, path)  # raises at once where there is no file

    async def clip(self, recording_id: str, law: Law, size: int | None = None) -> Path:
        """Return a local file with the recording's raw G.711 bytes in `law`.

        It is downloaded from a remote store if it is not cached, or the cached file does not have
        `size` bytes; concurrent callers share a download. Raises NotFoundError.
        """
        key = _key(recording_id, law)
        path = self._folder / key
        with _errors_as_unavailable():
            found = await asyncio.to_thread(_size_of, path)
        if found is not None and (not self._remote or size is None or found == size):
            return path
        if not self._remote:
            raise _not_found(recording_id)
        return await self._downloads.get(key, lambda: self._download(recording_id, key))

    async def wav(self, recording_id: str) -> AsyncIterator[bytes]:
        """Yield the recording as an 8 kHz mono 16-bit WAV, decoded from A-law, in chunks.

        Raises NotFoundError before the first chunk.
        """
        path = await self.clip(recording_id, "PCMA")
        with _errors_as_unavailable():
            file = await asyncio.to_thread(path.open, "rb")
        with file:
            yield wav.header(os.fstat(file.fileno()).st_size)
            while codes := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield wav.body(alaw_decode(np.frombuffer(codes, dtype=np.uint8)))

    async def wav_size(self, recording_id: str) -> int:
        """Return the size of `wav` in bytes. Raises NotFoundError."""
        key = _key(recording_id, "PCMA")
        with _errors_as_unavailable():
            try:
                return wav.size((await obstore.head_async(self._store, key))["size"])
            except FileNotFoundError:
                raise _not_found(recording_id) from None

    async def delete(self, recording_id: str) -> None:
        """Delete a recording, if it exists. Caches of other machines are not changed."""
        keys = [_key(recording_id, law) for law in SUFFIXES]
        with _errors_as_unavailable():
            await self._discard(keys)

    async def stored_before(self, at: float) -> AsyncIterator[list[str]]:
        """Yield the ids of recordings that were stored before `at`, in pages.

        `at` is in Unix seconds by the system clock. Incomplete recordings are included.
        """
        with _errors_as_unavailable():
            async for objects in obstore.list(self._store, chunk_size=LISTED):
                names = [each["path"] for each in objects if each["last_modified"].timestamp() < at]
                ids = {found[1] for name in names if (found := _OBJECT.fullmatch(name))}
                if ids:
                    yield sorted(ids)

    async def _discard(self, keys: list[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                await obstore.delete_async(self._store, key)
            await asyncio.to_thread((self._folder / key).unlink, missing_ok=True)

    async def _download(self, recording_id: str, key: str) -> Path:
        path = self._folder / key
        incomplete = self._folder / f".{key}.{uuid.uuid4().hex}"
        with _errors_as_unavailable(), removed_on_failure(incomplete):
            try:
                answer = await obstore.get_async(self._store, key)
            except FileNotFoundError:
                raise _not_found(recording_id) from None
            # The cache folder may have been deleted.
            await asyncio.to_thread(partial(self._folder.mkdir, parents=True, exist_ok=True))
            with await asyncio.to_thread(incomplete.open, "xb") as file:
                async for chunk in answer.stream(min_chunk_size=1024 * 1024):
                    await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(sync, incomplete)
            # After the sync, so that a file of this name is complete even after a power loss.
            await asyncio.to_thread(os.replace, incomplete, path)
        return path


@contextmanager
def _errors_as_unavailable() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise UnavailableError("The storage of recordings can't be used now.") from error


def _key(recording_id: str, law: Law) -> str:
    if not _ID.fullmatch(recording_id):
        raise _not_found(recording_id)
    return recording_id + SUFFIXES[law]


def _s3_config(s3: S3Settings) -> S3Config:
    """Our settings as obstore's options; it takes missing ones from `AWS_` variables."""
    secret = s3.secret_access_key.get_secret_value()
    config: S3Config = {}
    if s3.endpoint:
        config["endpoint"] = s3.endpoint
    if s3.region:
        config["region"] = s3.region
    elif s3.endpoint and not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        config["region"] = "us-east-1"  # accepted by other servers than Amazon's
    if secret:
        config["access_key_id"] = s3.access_key_id
        config["secret_access_key"] = secret
    if s3.virtual_hosted:
        config["virtual_hosted_style_request"] = True
    return config


def _cause(error: BaseException) -> str:
    """The cause of an S3 error, in words for an operator."""
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    said = f" (the server said {code[1]})" if code else ""
    if "169.254." in text:
        # Without credentials, obstore queries the EC2 metadata service.
        return (
            "there are no credentials; set access_key_id and secret_access_key in [s3], or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, FileNotFoundError):
        return f"the server knows no such bucket{said}"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"the server refuses these credentials, or they may not write there{said}"
    if "BadScheme" in text or "URL scheme is not allowed" in text:
        return "its endpoint is plain HTTP; set allow_http = true in [s3], or an https:// endpoint"
    if "kind: Connect" in text:
        why = re.search(r'message: "([^"]+)"', text)
        place = re.search(r"performing \w+ (https?://[^/ ]+)", text)
        at = f" at {place[1]}" if place else ""
        return f"no connection to the server{at}" + (f": {why[1]}" if why else "")
    return text.strip().splitlines()[0].rstrip(".") + said


def _not_found(recording_id: str) -> NotFoundError:
    return NotFoundError(f"There is no recording {recording_id[:64]!r}.")


def _size_of(path: Path) -> int | None:
    """The size of a regular file in bytes; None if there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
