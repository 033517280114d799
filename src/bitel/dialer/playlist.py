"""What an order plays, as clips for the streamer, in each law that may be agreed on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from bitel.dialer.clip_pool import ClipPool, Location
from bitel.dialing.dialer import DialRequest
from bitel.errors import NotFoundError, UnavailableError
from bitel.g711 import ALAW_SILENCE, SAMPLE_RATE, ULAW_SILENCE
from bitel.recordings.storage import VoiceStore
from bitel.rtp.shared_clip import SharedClip, clip_of
from bitel.speech.library import SpeechLibrary

Codec = Literal["PCMA", "PCMU"]
Playlist = Sequence[SharedClip]

LEAD_IN: Final = 0.2
"""Seconds of silence between the answer and what is played."""

LEAD_OUT: Final = 0.2
"""Seconds of silence between what is played and our BYE."""

DurationOf = Callable[[str], Awaitable[float | None]]
"""Seconds that the recording of an id lasts; None if there is none, or none any more."""


class PlaylistSource(Protocol):
    """Knows what orders play."""

    async def for_order(
        self, order: DialRequest, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        """The clips that `order` plays, by codec; they are in memory, or on this machine.

        Raises NotFoundError or InvalidRequestError where there will never be any, and
        UnavailableError where there are none now.
        """


class Playlists:
    """Lays clips out for orders; everything is in memory before a phone rings.

    `duration_of` tells a recording that was deleted from one that the storage has lost.
    """

    def __init__(self, voices: VoiceStore, speech: SpeechLibrary, duration_of: DurationOf) -> None:
        self._voices = voices
        self._speech = speech
        self._duration_of = duration_of
        self._lead_in = _silence(LEAD_IN)
        self._lead_out = _silence(LEAD_OUT)
        self._pool = ClipPool()

    async def for_order(
        self, order: DialRequest, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        """The clips that `order` plays, by codec.

        Raises NotFoundError for a recording that was deleted, InvalidRequestError where digits
        can't be spoken, and UnavailableError where the storage, its file or the engine fails.
        """
        return {
            codec: [self._lead_in[codec], *await self._spoken(order, codec), self._lead_out[codec]]
            for codec in codecs
        }

    async def _spoken(self, order: DialRequest, codec: Codec) -> list[SharedClip]:
        clips = []
        if order.recording_id is not None:
            clips.append(await self._recording(order.recording_id, codec))
        if order.digits:
            paths = await self._speech.digit_clips(
                order.digits, order.language or None, codec, order.repeat_count
            )
            clips += [await self._file(path) for path in paths]
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
    """Silence by codec.

    It keeps the first and the last syllable from being lost: the path that audio takes opens with
    the first packets, which phones and carriers often drop, and what a phone's jitter buffer still
    holds is lost when the BYE comes.
    """
    codes = {"PCMA": ALAW_SILENCE, "PCMU": ULAW_SILENCE}
    return {
        codec: clip_of(bytes([code]) * round(seconds * SAMPLE_RATE))
        for codec, code in codes.items()
    }
