"""Recordings whose storage is unavailable: no phone rings, and a call that rings plays in full."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import structlog
from obstore.store import MemoryStore

from bitel.dialer.menu_session import LEAD_OUT
from bitel.dialer.playlist import LEAD_IN, Playlists
from bitel.domain.attempts import Outcome
from bitel.recordings.decode import Decoded
from bitel.recordings.storage import VoiceStore
from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary
from tests.support.media_carrier import MediaCarrier, media_carrier
from tests.support.sip_dialer import Dialled, dialer
from tests.support.waiting import until
from tests.support.worker_processes import killing

ALAW = np.random.default_rng(7).integers(0, 256, 1600, dtype=np.uint8).tobytes()
QUIET = b"\xd5" * round(LEAD_IN * 8000), b"\xd5" * round(LEAD_OUT * 8000)


class Sound:
    """A storage that holds one recording, and playlists over it."""

    def __init__(self, folder: Path, voices: VoiceStore | None = None) -> None:
        self.folder = folder / "data" / "voices"
        self.durations: dict[str, float] = {"recording": len(ALAW) / 8000}
        self.voices = voices or VoiceStore.open("", folder / "data")
        self.speech = SpeechLibrary(
            folder / "speech", SpeechOptions(default_language="en", words_per_minute=300)
        )
        self.playlists = Playlists(self.voices, self.speech, self._duration)

    async def put(self, folder: Path, recording: str = "recording") -> None:
        for name in ("decoded.alaw", "decoded.ulaw"):
            (folder / name).write_bytes(ALAW)
        decoded = Decoded(
            folder / "decoded.alaw", folder / "decoded.ulaw", len(ALAW) / 8000, len(ALAW)
        )
        await self.voices.put(recording, decoded)
        self.durations[recording] = len(ALAW) / 8000

    async def _duration(self, recording_id: str) -> float | None:
        return self.durations.get(recording_id)


@pytest.fixture
async def sound(tmp_path: Path) -> Sound:
    made = Sound(tmp_path)
    await made.put(tmp_path)
    return made


def heard(far: MediaCarrier) -> bytes:
    return b"".join(payload for _, payload in far.rtp.packets)


async def answered_in_full(dialled: Dialled, far: MediaCarrier) -> None:
    before = len(heard(far))
    result = await dialled.call()
    assert result.outcome is Outcome.ANSWERED, result
    await until(lambda: len(heard(far)) - before == len(QUIET[0] + ALAW + QUIET[1]))
    assert heard(far)[before:] == QUIET[0] + ALAW + QUIET[1]


def gone(sound: Sound) -> None:
    shutil.move(sound.folder, sound.folder.with_name("away"))


def replaced_by_a_file(sound: Sound) -> None:
    gone(sound)
    sound.folder.write_text("")


def missing(sound: Sound) -> None:
    gone(sound)
    sound.folder.mkdir()


def damaged(damage: Callable[[Path], object]) -> Callable[[Sound], None]:
    def do(sound: Sound) -> None:
        shutil.copytree(sound.folder, sound.folder.with_name("away"))
        for path in sound.folder.iterdir():
            damage(path)

    return do


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        path.unlink()
        make(path)

    return do


FAULTS: dict[str, Callable[[Sound], None]] = {
    "folder gone": gone,
    "folder replaced by a file": replaced_by_a_file,
    "files missing": missing,
    "empty": damaged(lambda path: os.truncate(path, 0)),
    "cut short": damaged(lambda path: os.truncate(path, len(ALAW) - 1)),
    "a folder": damaged(replaced(Path.mkdir)),
    "a pipe": damaged(replaced(os.mkfifo)),
    "a loop of links": damaged(replaced(lambda path: path.symlink_to(path.name))),
    "a dangling link": damaged(replaced(lambda path: path.symlink_to("nowhere"))),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_nobody_is_rung_until_the_recording_is_back(
    tmp_path: Path, sound: Sound, fault: Callable[[Sound], None]
) -> None:
    fault(sound)
    with structlog.testing.capture_logs() as logs:
        async with (
            media_carrier() as far,
            dialer(tmp_path, far.uri, playlists=sound.playlists) as dialled,
        ):
            for _ in range(3):
                result = await dialled.call()
                assert result.outcome is Outcome.NOT_PLACED, result
                assert result.detail
            assert far.methods == []
            if sound.folder.is_dir():
                shutil.rmtree(sound.folder)
            else:
                sound.folder.unlink(missing_ok=True)
            shutil.move(sound.folder.with_name("away"), sound.folder)
            await answered_in_full(dialled, far)
    told = [(log["event"], log["log_level"]) for log in logs if "recordings" in log["event"]]
    assert told == [("recordings_unreachable", "error"), ("recordings_reachable", "info")]


async def test_unreadable_file(tmp_path: Path, sound: Sound) -> None:
    for path in sound.folder.iterdir():
        path.chmod(0)
    if os.access(sound.folder / "recording.alaw", os.R_OK):
        pytest.skip("root may read everything")
    async with (
        media_carrier() as far,
        dialer(tmp_path, far.uri, playlists=sound.playlists) as dialled,
    ):
        assert (await dialled.call()).outcome is Outcome.NOT_PLACED
        assert far.methods == []


@asynccontextmanager
async def ringing(
    folder: Path, sound: Sound
) -> AsyncIterator[tuple[MediaCarrier, Dialled, Callable[[], Awaitable[None]]]]:
    """A callee whose phone rings, who calls it, and what answers it and checks what is heard."""
    async with (
        media_carrier() as far,
        dialer(folder, far.uri, playlists=sound.playlists) as dialled,
    ):
        far.codes = [100, 180]
        calling = asyncio.create_task(dialled.call())
        await until(lambda: "INVITE" in far.methods)

        async def answer() -> None:
            far.answer(200)
            assert (await calling).outcome is Outcome.ANSWERED
            assert heard(far) == QUIET[0] + ALAW + QUIET[1]

        yield far, dialled, answer


async def test_folder_that_goes_away_while_it_rings_is_heard_in_full(
    tmp_path: Path, sound: Sound
) -> None:
    async with ringing(tmp_path, sound) as (far, dialled, answer):
        gone(sound)
        await answer()
        # Still in memory, it needs no disk for the next call either.
        far.codes = [100, 200]
        await answered_in_full(dialled, far)


async def test_file_that_is_cut_short_while_it_rings_is_heard_in_full(
    tmp_path: Path, sound: Sound
) -> None:
    async with ringing(tmp_path, sound) as (_, _, answer):
        for path in sound.folder.iterdir():
            os.truncate(path, 0)
        await answer()


async def test_sender_that_is_restarted_while_it_rings_needs_no_disk(
    tmp_path: Path, sound: Sound
) -> None:
    async with ringing(tmp_path, sound) as (_, dialled, answer):
        streamer = dialled.dialer.streamer
        gone(sound)
        [pid] = streamer.sender_pids()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: streamer.sender_pids() not in ([], [pid]))
        await answer()


async def test_deleted_recording_is_gone_for_good(tmp_path: Path, sound: Sound) -> None:
    del sound.durations["recording"]
    async with (
        media_carrier() as far,
        dialer(tmp_path, far.uri, playlists=sound.playlists) as dialled,
    ):
        assert (await dialled.call()).outcome is Outcome.MEDIA_MISMATCH
        assert far.methods == []


async def test_object_that_the_bucket_has_lost_and_its_copy_here(tmp_path: Path) -> None:
    store = MemoryStore()
    sound = Sound(tmp_path, VoiceStore(store, tmp_path / "clips", remote=True))
    async with (
        media_carrier() as far,
        dialer(tmp_path, far.uri, playlists=sound.playlists) as dialled,
    ):
        assert (await dialled.call()).outcome is Outcome.NOT_PLACED
        assert far.methods == []
        await sound.put(tmp_path)
        # A copy that was cut short is fetched anew, and so is one whose folder was cleared away.
        (tmp_path / "clips" / "recording.alaw").write_bytes(ALAW[:100])
        await answered_in_full(dialled, far)
    shutil.rmtree(tmp_path / "clips")
    sound.playlists = Playlists(sound.voices, sound.speech, sound._duration)
    async with (
        media_carrier() as far,
        dialer(tmp_path, far.uri, playlists=sound.playlists) as dialled,
    ):
        await answered_in_full(dialled, far)


async def test_digits_that_can_not_be_spoken_now(tmp_path: Path, sound: Sound) -> None:
    async with (
        media_carrier() as far,
        dialer(tmp_path, far.uri, playlists=sound.playlists) as dialled,
    ):
        async with killing("bitel.speech.worker"):
            result = await dialled.call(recording=None, digits="1")
        assert result.outcome is Outcome.NOT_PLACED, result
        assert far.methods == []
        result = await dialled.call(digits="1")
        assert result.outcome is Outcome.ANSWERED, result
        await until(lambda: len(heard(far)) > len(ALAW) + 8000)
        assert heard(far).startswith(QUIET[0] + ALAW)
