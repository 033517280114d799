"""What an order plays, as clips for the streamer, in each law that may be agreed on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from bitel.dialers.quiet import quiet_clips
from bitel.dialing.dialer import Order
from bitel.voices.speech_library import SpeechLibrary
from bitel.voices.storage import VoiceStore

Codec = Literal["PCMA", "PCMU"]
Playlist = Sequence[Path]

LEAD_IN: Final = 0.2
"""Seconds of silence between the answer and what is played."""

LEAD_OUT: Final = 0.2
"""Seconds of silence between what is played and our BYE."""

MOST_REMEMBERED: Final = 4096
"""Recordings whose place is remembered, so that a campaign does not look for its own each time."""


class PlaylistSource(Protocol):
    """Knows what orders play."""

    async def for_order(self, order: Order, codecs: Sequence[Codec]) -> Mapping[str, Playlist]:
        """The clips that `order` plays, by codec; they are on this machine.

        Raises NotFoundError or InvalidRequestError where there will never be any, and
        UnavailableError where there are none now.
        """


class Playlists:
    """Lays clips out for orders; everything is on this machine before anybody's phone rings.

    `folder` is for the silence around what is played. Raises OSError if it can't be written.
    """

    def __init__(self, voices: VoiceStore, speech: SpeechLibrary, folder: Path) -> None:
        self._voices = voices
        self._speech = speech
        self._lead_in = quiet_clips(folder, LEAD_IN)
        self._lead_out = quiet_clips(folder, LEAD_OUT)
        self._recordings: OrderedDict[tuple[str, Codec], Path] = OrderedDict()
        self._plain: dict[tuple[str, tuple[Codec, ...]], Mapping[str, Playlist]] = {}

    async def for_order(self, order: Order, codecs: Sequence[Codec]) -> Mapping[str, Playlist]:
        """The clips that `order` plays, by codec.

        Raises NotFoundError for a recording that is gone, and BitelError where digits can't be
        spoken.
        """
        if order.recording_id is None or order.digits:
            return await self._laid_out(order, codecs)
        key = order.recording_id, tuple(codecs)
        plain = self._plain.get(key)
        if plain is None:
            plain = self._plain[key] = await self._laid_out(order, codecs)
            if len(self._plain) > MOST_REMEMBERED:
                del self._plain[next(iter(self._plain))]
        return plain

    async def _laid_out(self, order: Order, codecs: Sequence[Codec]) -> Mapping[str, Playlist]:
        return {
            codec: [self._lead_in[codec], *await self._spoken(order, codec), self._lead_out[codec]]
            for codec in codecs
        }

    async def _spoken(self, order: Order, codec: Codec) -> Playlist:
        recording = None
        if order.recording_id is not None:
            recording = await self._recording(order.recording_id, codec)
        if not order.digits:
            return [] if recording is None else [recording]
        return await self._speech.digit_clips(
            order.digits, order.language or None, codec, order.repeat_count, recording
        )

    async def _recording(self, recording_id: str, codec: Codec) -> Path:
        key = (recording_id, codec)
        if key not in self._recordings:
            self._recordings[key] = await self._voices.clip(recording_id, codec)
            if len(self._recordings) > MOST_REMEMBERED:
                self._recordings.popitem(last=False)
        return self._recordings[key]
