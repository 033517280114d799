"""Playlists of requests: shared clips by codec, with an in-memory cache of audio files."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np

from bitel.dialer.menu_session import LEAD_OUT
from bitel.domain.attempts import DialRequest
from bitel.domain.machines import LONGEST_GREETING
from bitel.domain.menus import CONFIRMATION, Menu
from bitel.errors import NotFoundError, UnavailableError
from bitel.g711 import ALAW_SILENCE, SAMPLE_RATE, ULAW_SILENCE, alaw_encode, ulaw_encode
from bitel.recordings.storage import VoiceStore
from bitel.rtp.shared_clip import ClipError, SharedClip, clip_of, read_clip
from bitel.speech.library import SpeechLibrary
from bitel.supervision import SharedTasks

Codec = Literal["PCMA", "PCMU"]
Playlist = Sequence[SharedClip]

LEAD_IN: Final = 0.2
"""Seconds of silence after the answer."""

TONES: Final = (660.0, 880.0)
"""Hertz of the tones that confirm an opt-out without a recording."""
TONE_SECONDS: Final = 0.2
TONE_LEVEL: Final = 8000
"""Amplitude, of 32767."""

DurationOf = Callable[[str], Awaitable[float | None]]
"""The duration of a recording, or of a part of a text, in seconds; None if there is none."""


class PlaylistSource(Protocol):
    """Gives the playlists of requests."""

    async def for_request(
        self, request: DialRequest, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        """The clips that `request` plays, by codec, from memory or local files.

        Raises NotFoundError for a deleted recording, InvalidRequestError if digits can't be spoken,
        and UnavailableError if the storage, a file or the speech engine fails.
        """

    async def for_menu(
        self, menu: Menu, codecs: Sequence[Codec]
    ) -> Mapping[str, Mapping[str | float, SharedClip]]:
        """The clips of a menu, by codec. Raises as `for_request`."""
        return {}

    async def for_machine(
        self, recording_id: str | None, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        """Silence of `LONGEST_GREETING` seconds and the recording, if any, by codec.

        Raises as `for_request`.
        """
        return {}


class Playlists(PlaylistSource):
    """Reads all audio into memory before a phone rings.

    `duration_of` distinguishes a deleted recording from one that the storage has lost.
    """

    def __init__(self, voices: VoiceStore, speech: SpeechLibrary, duration_of: DurationOf) -> None:
        self._voices = voices
        self._speech = speech
        self._duration_of = duration_of
        self._lead_in = _silence(LEAD_IN)
        self._lead_out = _silence(LEAD_OUT)
        self._silences: dict[float, Mapping[str, SharedClip]] = {}
        """By seconds, of which menus have few."""
        self._confirmation = _confirmation()
        self._pool = ClipPool()

    async def for_request(
        self, request: DialRequest, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        """Return the clips of a call, for each codec that may be chosen."""
        return {
            codec: [
                self._lead_in[codec],
                *await self._spoken(request, codec),
                self._lead_out[codec],
            ]
            for codec in codecs
        }

    async def for_menu(
        self, menu: Menu, codecs: Sequence[Codec]
    ) -> Mapping[str, Mapping[str | float, SharedClip]]:
        """Return the clips of a menu's recordings, of its silences and of the confirmation."""
        clips: dict[str, Mapping[str | float, SharedClip]] = {}
        for codec in codecs:
            of_codec: dict[str | float, SharedClip] = {
                float(seconds): self._silence(float(seconds), codec) for seconds in menu.waits()
            }
            of_codec[LEAD_OUT] = self._lead_out[codec]
            of_codec[CONFIRMATION] = self._confirmation[codec]
            for recording_id in set(menu.recordings()):
                of_codec[recording_id] = await self._recording(recording_id, codec)
            clips[codec] = of_codec
        return clips

    async def for_machine(
        self, recording_id: str | None, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        """Return what is played to a machine."""
        playlists: dict[str, Playlist] = {}
        for codec in codecs:
            playlists[codec] = [self._silence(float(LONGEST_GREETING), codec)]
            if recording_id is not None:
                spoken = await self._recording(recording_id, codec)
                playlists[codec] = [*playlists[codec], spoken, self._lead_out[codec]]
        return playlists

    def _silence(self, seconds: float, codec: Codec) -> SharedClip:
        if seconds not in self._silences:
            self._silences[seconds] = _silence(seconds)
        return self._silences[seconds][codec]

    async def _spoken(self, request: DialRequest, codec: Codec) -> list[SharedClip]:
        clips = []
        if request.recording_id is not None:
            clips.append(await self._recording(request.recording_id, codec))
        if request.digits:
            paths = await self._speech.digit_clips(
                request.digits, request.language or None, codec, request.repeat_count
            )
            clips += [await self._file(path) for path in paths]
        clips += [await self._recording(part_id, codec) for part_id in request.parts]
        return clips

    async def _recording(self, recording_id: str, codec: Codec) -> SharedClip:
        async def locate() -> Location:
            duration = await self._duration_of(recording_id)
            if duration is None:
                raise NotFoundError(f"There is no recording {recording_id!r}.")
            size = round(duration * SAMPLE_RATE)
            try:
                return Location(await self._voices.clip(recording_id, codec, size), size)
            except NotFoundError as fault:
                raise UnavailableError(
                    f"The storage has lost the audio of the recording {recording_id!r}."
                ) from fault

        return await self._pool.get(f"{recording_id} {codec}", locate)

    async def _file(self, path: Path) -> SharedClip:
        async def locate() -> Location:
            return Location(path)

        return await self._pool.get(str(path), locate)


def _silence(seconds: float) -> Mapping[str, SharedClip]:
    """Silence by codec, so that the first and last syllables are not lost.

    Phones and carriers often drop the first packets, which open the audio path, and the content of
    the jitter buffer is lost at the BYE.
    """
    codes = {"PCMA": ALAW_SILENCE, "PCMU": ULAW_SILENCE}
    return {
        codec: clip_of(bytes([code]) * round(seconds * SAMPLE_RATE))
        for codec, code in codes.items()
    }


def _confirmation() -> Mapping[str, SharedClip]:
    """Two rising tones, by codec."""
    times = np.arange(round(TONE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    # Fading in and out, so that they do not click.
    fade = np.minimum(1.0, np.minimum(times, TONE_SECONDS - times) / 0.01)
    tones = [np.sin(2 * np.pi * hertz * times) * fade for hertz in TONES]
    pcm = (np.concatenate(tones) * TONE_LEVEL).astype(np.int16)
    return {
        "PCMA": clip_of(alaw_encode(pcm).tobytes()),
        "PCMU": clip_of(ulaw_encode(pcm).tobytes()),
    }


MAX_IDLE: Final = 256
MAX_IDLE_BYTES: Final = 64 * 1024 * 1024
"""Clips, and their bytes, that stay in memory while no call plays them; each has a descriptor."""

MAX_COPIED_BYTES: Final = 1024 * 1024 * 1024
"""Bytes of clips in memory above which further ones are mapped from their files."""

READ_TIMEOUT: Final = 10.0
"""Timeout in seconds to read a file; a dead network mount may block indefinitely."""

READERS: Final = 4
"""Threads that read files: a separate pool, because a dead mount may block them all."""


class Location(NamedTuple):
    """The file of a clip, and its expected size in bytes, if known."""

    path: Path
    size: int | None = None


class ClipPool:
    """A cache of clips by name.

    Clips in use stay in memory; of the others the most recently used, up to `MAX_IDLE` clips and
    `MAX_IDLE_BYTES`.
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
        """The clip of that name, read from the `locate` result if it is not in memory.

        Raises what `locate` does, and UnavailableError if the file can't be read.
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
        copy = self._bytes + (size or 0) <= MAX_COPIED_BYTES
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
        while len(recent) > MAX_IDLE or (self._recent_bytes > MAX_IDLE_BYTES and len(recent) > 1):
            _, oldest = recent.popitem(last=False)
            self._recent_bytes -= oldest.size
