"""Cache of spoken texts and digits: files in a folder, named by a hash of their content.

`<key>.alaw` and `<key>.ulaw` are a text, and are evicted when the cache is full; `digits-<key>/`
has the ten digits of a voice, which are kept. `.work-…` folders are temporary.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from bitel.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedMediaError,
)
from bitel.g711 import SAMPLE_RATE
from bitel.recordings.decode import Decoded, decode
from bitel.recordings.files import sync
from bitel.recordings.limits import MEBIBYTE, DecodeLimits
from bitel.recordings.storage import SUFFIXES, Law
from bitel.recordings.worker_process import SERVICE
from bitel.speech import digits, spoken_text
from bitel.speech.engines import Engine, SpeechOptions, engine_for, render
from bitel.speech.parts import Part, encode, part_of
from bitel.speech.spoken_length import longest_seconds
from bitel.supervision import SharedTasks

RENDERING: Final = 1
"""Part of every key; increase it when a code change alters the sound."""
MAX_WAITING: Final = 64
"""Texts being rendered or waiting for it, at most."""
MAX_DIGITS: Final = 10
MAX_REPEAT: Final = 10
COPY_SECONDS: Final = 120.0
"""A text returned this recently is not evicted, as it may be being copied."""
STALE_SECONDS: Final = 86_400.0
"""Age at which a `.work-…` folder is removed. It is far longer than a rendering, because file ages
depend on the system clock."""

_WORK: Final = ".work-"


class SpeechLibrary:
    """Speech by text and language. `rendered` counts the texts and digit sets rendered so far.

    `folder` is created. Texts take at most `max_bytes`, except those returned in the last two
    minutes; the least recently used are evicted first.
    """

    def __init__(
        self,
        folder: Path,
        options: SpeechOptions,
        *,
        max_bytes: int = 256 * MEBIBYTE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.rendered = 0
        self._folder = folder
        self._options = options
        self._max_bytes = max_bytes
        self._clock = clock
        self._engines: dict[str | None, Engine] = {}
        self._texts: SharedTasks[Decoded] = SharedTasks()
        self._digit_sets: SharedTasks[Path] = SharedTasks()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()

    async def recording_key(self, text: str, language: str | None = None) -> str:
        """Return the key of a spoken text, 64 hex digits, without rendering it.

        `language` is one of the options', or None for their default. Raises InvalidRequestError,
        naming `text` or `language`, and UnavailableError if the engine is not installed.
        """
        words = spoken_text.plain(text, self._options.max_chars)
        return _key(await self._engine(language), words)

    async def render(self, text: str, language: str | None = None, owner: str = SERVICE) -> Decoded:
        """Return the spoken text in both laws, rendered in a turn of the project `owner` or cached.

        The caller must copy the files within two minutes (as `VoiceStore.put` does) and not modify
        them. Raises InvalidRequestError and UnavailableError as `speak`.
        """
        words = spoken_text.plain(text, self._options.max_chars)
        engine = await self._engine(language)
        key = _key(engine, words)
        # If it is being rendered, the task has the result; the folder may not have it yet.
        if key not in self._texts:
            with _errors_as_unavailable():
                found = await asyncio.to_thread(self._find, key)
            if found is not None:
                return found
            if key not in self._texts and len(self._texts) >= MAX_WAITING:
                raise UnavailableError("Too many texts are waiting to be spoken; try again later.")
        return await self._texts.get(key, lambda: self._render(key, words, engine, owner))

    def part(self, text: str, *, is_last: bool) -> Part:
        """How a part of a text is spoken; see `parts.part_of`. Raises InvalidRequestError."""
        return part_of(text, self._options.max_chars, is_last=is_last)

    async def part_keys(self, parts: Iterable[Part], language: str | None) -> dict[Part, str]:
        """The keys of clips that `rendered_parts` makes, 64 hex digits each.

        Raises as `recording_key` does for `language`.
        """
        engine = await self._engine(language)
        return {part: _key(engine, part.words, part.pause) for part in parts}

    async def longest_seconds(self, language: str | None) -> Callable[[str], float]:
        """Gives an upper bound of the seconds of the clip of a part's text.

        Raises as `recording_key` does for `language`.
        """
        await self._engine(language)
        name = (language or self._options.default_language).lower()
        return partial(
            longest_seconds, language=name, words_per_minute=self._options.words_per_minute
        )

    @asynccontextmanager
    async def rendered_parts(
        self, parts: Sequence[Part], language: str | None, owner: str = SERVICE
    ) -> AsyncIterator[Sequence[Decoded]]:
        """Render parts at once, in a turn of `owner`; their files exist inside the block.

        Parts of `parts.batches` are few enough. Raises InvalidRequestError where a part can't be
        spoken, TextFailedError where the engine fails on one, and UnavailableError.
        """
        engine = await self._engine(language)
        async with self._work() as work:
            texts = [part.words for part in parts]
            spoken = await render(texts, engine, work, self._options, owner)
            made = await asyncio.to_thread(_encode_each, spoken, parts, work)
            self.rendered += len(parts)
            yield made

    async def digit_clips(
        self, text: str, language: str | None, law: Law, repeat: int = 2, intro: Path | None = None
    ) -> list[Path]:
        """Return the clips that speak the digits of `text` one by one, `repeat` times.

        `text` is 1 to 10 digits of any script, `repeat` 1 to 10. `intro` is a first clip in the
        same law. A voice's digits are rendered on first use. Raises InvalidRequestError, naming
        `text`, `repeatCount` or `language`, and UnavailableError.
        """
        code = spoken_text.digits(text, MAX_DIGITS)
        if not 1 <= repeat <= MAX_REPEAT:
            raise InvalidRequestError(f"repeatCount must be 1 to {MAX_REPEAT}, not {repeat}.")
        engine = await self._engine(language)
        folder = self._folder / f"digits-{_key(engine, digits.DIGITS)}"
        with _errors_as_unavailable():
            rendered = await asyncio.to_thread(folder.is_dir)
        if not rendered:
            await self._digit_sets.get(folder.name, lambda: self._render_digits(engine, folder))
        return digits.playlist(folder, code, law, repeat, intro)

    async def close(self) -> None:
        """Cancel all renderings, and so their callers."""
        await self._texts.close()
        await self._digit_sets.close()

    async def _engine(self, language: str | None) -> Engine:
        engine = self._engines.get(language)
        if engine is None:
            engine = await asyncio.to_thread(engine_for, language, self._options)
            if language is None or language in self._options.known:
                self._engines[language] = engine
        return engine

    async def _render(self, key: str, words: str, engine: Engine, owner: str) -> Decoded:
        limits = DecodeLimits(max_seconds=self._options.limits.max_seconds)
        async with self._work() as work:
            [source] = await render([words], engine, work, self._options, owner)
            self.rendered += 1
            decoded = await decode(source, work, limits, owner)
            kept = await asyncio.to_thread(self._keep, key, decoded)
        with _errors_as_unavailable():
            await asyncio.to_thread(self._make_room)
        return kept

    async def _render_digits(self, engine: Engine, folder: Path) -> Path:
        async with self._work() as work:
            clips = work / "clips"
            await asyncio.to_thread(clips.mkdir)
            await digits.render_set(engine, self._options, work, clips)
            self.rendered += 1
            await asyncio.to_thread(sync, *clips.iterdir(), clips)
            await asyncio.to_thread(_publish, clips, folder)
        return folder

    @asynccontextmanager
    async def _work(self) -> AsyncIterator[Path]:
        """Make a temporary folder for one rendering.

        Errors of decoding become UnavailableError: they are not the client's fault.
        """
        make = partial(tempfile.mkdtemp, prefix=_WORK, dir=self._folder)
        try:
            with _errors_as_unavailable():
                work = Path(await asyncio.to_thread(make))
                try:
                    yield work
                finally:
                    # If this fails, `_sweep` removes it later.
                    remove = partial(shutil.rmtree, work, ignore_errors=True)
                    await asyncio.shield(asyncio.to_thread(remove))
        except (PayloadTooLargeError, UnsupportedMediaError) as error:
            raise UnavailableError("What was spoken can't be turned into a clip now.") from error

    def _paths(self, key: str) -> dict[Law, Path]:
        return {law: self._folder / (key + suffix) for law, suffix in SUFFIXES.items()}

    def _find(self, key: str) -> Decoded | None:
        """Return a cached text and update its access time."""
        paths = self._paths(key)
        try:
            status, other = (path.stat() for path in paths.values())
            if not status.st_size == other.st_size > 0:
                return None
            for path in paths.values():
                # Players identify a recording by its modification time, so that must not change.
                os.utime(path, ns=(int(self._clock() * 1e9), path.stat().st_mtime_ns))
        except FileNotFoundError:
            return None
        seconds = status.st_size / SAMPLE_RATE
        return Decoded(paths["PCMA"], paths["PCMU"], seconds, status.st_size)

    def _keep(self, key: str, decoded: Decoded) -> Decoded:
        sync(decoded.alaw, decoded.ulaw)
        paths = self._paths(key)
        os.replace(decoded.alaw, paths["PCMA"])
        os.replace(decoded.ulaw, paths["PCMU"])
        kept = self._find(key)
        if kept is None:
            raise UnavailableError("The folder of spoken texts can't be used now.")
        return kept

    def _make_room(self) -> None:
        """Evict the least recently used texts until the others fit."""
        sizes: dict[str, int] = {}
        used: dict[str, float] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                key, suffix = os.path.splitext(entry.name)
                if suffix not in SUFFIXES.values():
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    sizes[key] = sizes.get(key, 0) + status.st_size
                    used[key] = max(used.get(key, 0.0), status.st_atime)
        excess = sum(sizes.values()) - self._max_bytes
        for key in sorted(used, key=used.__getitem__):
            if excess <= 0 or self._clock() - used[key] < COPY_SECONDS:
                return
            excess -= sizes[key]
            for path in self._paths(key).values():
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove the temporary folders of killed processes."""
        for work in self._folder.glob(f"{_WORK}*"):
            with suppress(FileNotFoundError):
                if self._clock() - work.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(work)


@contextmanager
def _errors_as_unavailable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError("The folder of spoken texts can't be used now.") from error


def _encode_each(spoken: Sequence[Path], parts: Sequence[Part], into: Path) -> list[Decoded]:
    return [
        encode(path, part.pause, into / f"part-{number}")
        for number, (path, part) in enumerate(zip(spoken, parts, strict=True))
    ]


def _key(engine: Engine, words: str, *more: float) -> str:
    parts = [RENDERING, engine.program, engine.voice, engine.pace, engine.version, words, *more]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _publish(clips: Path, folder: Path) -> None:
    try:
        os.rename(clips, folder)
    except OSError:
        # Another process may have rendered the same clips.
        if not folder.is_dir():
            raise
