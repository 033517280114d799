"""Workers that are killed from outside, can't be started, or can't write what they made."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bitel.errors import UnavailableError
from bitel.recordings.decode import decode
from bitel.recordings.limits import DecodeLimits
from bitel.speech.engines import SpeechOptions, speak
from bitel.speech.library import SpeechLibrary
from tests.support.small_disk import fill, small_disk
from tests.support.worker_processes import killing

if TYPE_CHECKING:
    from tests.recordings.audio_files import Media

DECODER = "bitel.recordings.decode_worker"
SPEAKER = "bitel.speech.worker"


async def test_decode_worker_killed_once_is_run_again(media: Media, into: Path) -> None:
    source = media.wav(media.sweep(44100, 60.0))
    async with killing(DECODER, times=1) as killed:
        decoded = await decode(source, into, DecodeLimits())
    assert len(killed) == 1
    assert decoded.duration == 60.0


async def test_decode_worker_killed_twice_is_unavailable(media: Media, into: Path) -> None:
    source = media.wav(media.sweep(44100, 60.0))
    async with killing(DECODER) as killed:
        with pytest.raises(UnavailableError, match="killed by signal 9"):
            await decode(source, into, DecodeLimits())
    assert len(killed) == 2
    assert list(into.iterdir()) == []


async def test_speech_worker_killed_once_is_run_again(into: Path) -> None:
    async with killing(SPEAKER, times=1) as killed:
        path = await speak("hello", "en", into, SpeechOptions())
    assert len(killed) == 1
    assert path.stat().st_size > 1000


async def test_speech_worker_killed_twice_is_unavailable(tmp_path: Path) -> None:
    library = SpeechLibrary(tmp_path / "speech", SpeechOptions())
    async with killing(SPEAKER):
        with pytest.raises(UnavailableError, match="killed by signal 9"):
            await library.digit_clips("123", "en", "PCMA")
    assert await library.digit_clips("123", "en", "PCMA")
    await library.close()


async def test_interpreter_is_gone(
    media: Media, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = media.wav()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(UnavailableError, match="can't be started"):
            await decode(source, into, DecodeLimits())
        with pytest.raises(UnavailableError, match="can't be started"):
            await speak("hello", "en", into, SpeechOptions())


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN])
async def test_no_process_can_be_started(
    media: Media, into: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    source = media.wav()
    monkeypatch.setattr("asyncio.create_subprocess_exec", refuse)
    with pytest.raises(UnavailableError, match="can't be started"):
        await decode(source, into, DecodeLimits())


@pytest.mark.parametrize("seconds", [0.1, 60.0])
async def test_disk_is_full_while_the_worker_writes(
    media: Media, tmp_path: Path, seconds: float
) -> None:
    # A short recording fails when its file is closed, a long one before that.
    source = media.wav(media.sweep(44100, seconds))
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        with pytest.raises(UnavailableError, match="no room"):
            await decode(source, disk, DecodeLimits())


async def test_a_link_in_the_folder_of_results_is_not_followed(
    media: Media, into: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("kept")
    (into / "recording.ulaw").symlink_to(tmp_path / "other")
    with pytest.raises(UnavailableError, match="can't be decoded now"):
        await decode(media.wav(), into, DecodeLimits())
    assert (tmp_path / "other").read_text() == "kept"


async def test_source_is_gone_before_the_worker_opens_it(into: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="can't be decoded now"):
        await decode(tmp_path / "gone", into, DecodeLimits())


async def test_folder_of_results_is_gone(media: Media, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="can't be decoded now"):
        await decode(media.wav(), tmp_path / "gone", DecodeLimits())


async def test_folder_of_spoken_texts_is_replaced_by_a_file(tmp_path: Path) -> None:
    library = SpeechLibrary(tmp_path / "speech", SpeechOptions())
    (tmp_path / "speech").rmdir()
    (tmp_path / "speech").write_text("")
    with pytest.raises(UnavailableError):
        await library.render("hello", "en")
    with pytest.raises(UnavailableError):
        await library.digit_clips("123", "en", "PCMA")
