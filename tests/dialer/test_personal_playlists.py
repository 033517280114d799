"""Playlists of personal texts: their parts in order, and no more memory than calls need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitel.dialer import playlist
from bitel.dialer.playlist import Playlist, Playlists
from bitel.domain.attempts import DialRequest
from bitel.errors import NotFoundError, UnavailableError
from bitel.recordings.decode import Decoded
from bitel.recordings.storage import VoiceStore
from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary


class Parts:
    """Stored parts of 60 ms, each with bytes of its own, and playlists over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: set[str] = set()
        self.voices = VoiceStore.open("", folder)
        speech = SpeechLibrary(folder / "speech", SpeechOptions())
        self.playlists = Playlists(self.voices, speech, self._duration)

    async def put(self, part_id: str, content: bytes) -> None:
        path = self.folder / "part"
        path.write_bytes(content)
        await self.voices.put(part_id, Decoded(path, path, 0.06, 480))
        self.known.add(part_id)

    async def play(self, *part_ids: str) -> Playlist:
        request = DialRequest("a", "c", "+989121234567", None, parts=part_ids)
        return (await self.playlists.for_request(request, ["PCMA", "PCMU"]))["PCMA"]

    async def _duration(self, part_id: str) -> float | None:
        return 0.06 if part_id in self.known else None


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def content(clips: Playlist) -> bytes:
    return b"".join(os.pread(clip.fileno(), clip.size, 0) for clip in clips)


async def test_parts_are_played_in_order_between_the_silences(parts: Parts) -> None:
    for name in "abc":
        await parts.put(name, name.encode() * 480)
    silence = b"\xd5" * 1600
    clips = await parts.play("b", "a", "b", "c")
    wanted = silence + b"b" * 480 + b"a" * 480 + b"b" * 480 + b"c" * 480 + silence
    assert content(clips) == wanted
    assert clips[1] is clips[3], "an equal part is in memory once"


async def test_a_part_that_is_deleted_or_lost_is_told_apart(parts: Parts) -> None:
    await parts.put("a", b"a" * 480)
    with pytest.raises(NotFoundError):
        await parts.play("a", "gone")
    parts.known.add("lost")
    with pytest.raises(UnavailableError, match="lost the audio"):
        await parts.play("a", "lost")


async def test_names_of_calls_that_are_over_take_no_memory(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand names only the newest stay, and the words that all calls share."""
    monkeypatch.setattr(playlist, "MAX_IDLE", 16)
    await parts.put("hello", b"h" * 480)
    shared = (await parts.play("hello"))[1]
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        await parts.put(f"name-{number}", b"%8d" % number * 60)
        clips = await parts.play("hello", f"name-{number}")
        assert clips[1] is shared
    del clips
    assert len(os.listdir("/proc/self/fd")) <= before + 16
