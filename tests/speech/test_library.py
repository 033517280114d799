"""Texts spoken once and kept: shared while they are made, found again, and gone when room lacks."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from bitel.errors import InvalidRequestError, UnavailableError
from bitel.recordings import worker_process
from bitel.recordings.decode import Decoded
from bitel.recordings.limits import SpeechLimits
from bitel.speech import library as speech_library
from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary
from tests.support.clocks import FakeClock
from tests.support.waiting import until

SPEECH_WORKER = "bitel.speech.worker"


@pytest.fixture
def clock() -> FakeClock:
    """From the present on: the files' times are real ones."""
    return FakeClock(time.time())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "speech"


@pytest.fixture
def library(folder: Path) -> SpeechLibrary:
    return SpeechLibrary(folder, SpeechOptions())


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that were run as workers, in order."""
    ran: list[str] = []
    run = worker_process.run

    async def counted(module: str, *arguments: object, **named: object) -> worker_process.Ended:
        ran.append(module)
        return await run(module, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(worker_process, "run", counted)
    return ran


@pytest.fixture
def go_ahead(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """No worker is run before this is set."""
    run, go = worker_process.run, asyncio.Event()

    async def waiting(*arguments: object, **named: object) -> worker_process.Ended:
        await go.wait()
        return await run(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(worker_process, "run", waiting)
    return go


def kept(folder: Path) -> int:
    """Texts that are there, whole, with nothing left beside them."""
    files = list(folder.iterdir())
    stems = {path.stem for path in files if path.suffix in (".alaw", ".ulaw")}
    assert len(files) == 2 * len(stems)
    return len(stems)


async def test_both_laws_of_a_text(library: SpeechLibrary) -> None:
    decoded = await library.render("سلام، کد شما ۱۲۳۴ است", "fa")
    assert decoded.alaw.stat().st_size == decoded.ulaw.stat().st_size == decoded.samples
    assert decoded.duration == decoded.samples / 8000 > 1
    key = await library.recording_key("سلام، کد شما 1234 است")
    assert decoded.alaw.name == f"{key}.alaw"


async def test_once_and_kept(library: SpeechLibrary, folder: Path, workers: list[str]) -> None:
    first = await library.render("hello", "en")
    content = first.alaw.read_bytes()
    assert await library.render(" hello\n", "en") == first
    assert await SpeechLibrary(folder, SpeechOptions()).render("hello", "en") == first
    assert workers.count(SPEECH_WORKER) == library.rendered == 1
    assert first.alaw.read_bytes() == content
    assert kept(folder) == 1


async def test_equal_requests_share_one_rendering(
    library: SpeechLibrary, folder: Path, workers: list[str]
) -> None:
    results = await asyncio.gather(*(library.render("hello", "en") for _ in range(50)))
    assert len(set(results)) == 1
    assert workers.count(SPEECH_WORKER) == 1
    await asyncio.gather(*(library.render(f"hello {n}", "en") for n in range(5)))
    assert workers.count(SPEECH_WORKER) == library.rendered == 6
    assert kept(folder) == 6


async def test_who_gives_up_takes_it_from_nobody(
    library: SpeechLibrary, workers: list[str]
) -> None:
    first = asyncio.create_task(library.render("hello", "en"))
    second = asyncio.create_task(library.render("hello", "en"))
    await until(lambda: workers)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).duration > 0.2
    assert workers.count(SPEECH_WORKER) == 1


async def test_the_key_is_all_that_decides_the_sound(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "voice.onnx"
    model.write_bytes(b"model")
    program = tmp_path / "piper"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    plain = SpeechOptions()
    keys = [
        await SpeechLibrary(folder, options).recording_key(text, language)
        for options, text, language in [
            (plain, "hello", "en"),
            (plain, "hello", "fa"),
            (plain, "goodbye", "en"),
            (SpeechOptions(languages={"fa": "fa", "en": "en-us"}), "hello", "en"),
            (SpeechOptions(words_per_minute=200), "hello", "en"),
        ]
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)
    library = SpeechLibrary(folder, plain)
    assert await library.recording_key("hello", "EN") == keys[0]
    assert await library.recording_key("سلام") == await library.recording_key("سلام", "fa")


async def test_another_piper_model_is_another_key(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/bin/piper")
    model = tmp_path / "voice.onnx"
    options = SpeechOptions(piper={"en": model})
    keys = set()
    for content in (b"one", b"another"):
        model.write_bytes(content)
        keys.add(await SpeechLibrary(folder, options).recording_key("hello", "en"))
    assert len(keys) == 2


async def test_what_is_refused_is_not_kept(
    library: SpeechLibrary, folder: Path, workers: list[str]
) -> None:
    for text, language in (("", "en"), ("a\x00", "en"), ("x" * 1001, "en"), ("hello", "de")):
        with pytest.raises(InvalidRequestError):
            await library.render(text, language)
        with pytest.raises(InvalidRequestError):
            await library.recording_key(text, language)
    assert workers == []
    with pytest.raises(InvalidRequestError, match="this language's voice"):
        await library.render("\u02dc", "en")
    assert kept(folder) == 0


async def test_a_failure_is_not_kept(folder: Path) -> None:
    hurried = SpeechLibrary(folder, SpeechOptions(limits=SpeechLimits(wall_seconds=0.01)))
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await hurried.render("hello", "en")
        with pytest.raises(UnavailableError):
            await hurried.digit_clips("1", "en", "PCMA")
    assert kept(folder) == 0
    patient = SpeechLibrary(folder, SpeechOptions())
    assert (await patient.render("hello", "en")).duration > 0.2


async def test_too_many_at_once(
    library: SpeechLibrary, monkeypatch: pytest.MonkeyPatch, go_ahead: asyncio.Event
) -> None:
    monkeypatch.setattr(speech_library, "MAX_WAITING", 2)
    texts = ["one", "two", "three", "one"]
    asked = []
    for text in texts:
        asked.append(asyncio.create_task(library.render(text, "en")))
        # One asks after the other: the first two are under way when the third comes.
        await until(lambda: len(library._texts) >= min(len(asked), 2))
    await asyncio.wait(asked[2:3])
    go_ahead.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert len(refused) == 1
    assert isinstance(refused[0], UnavailableError)
    assert "waiting" in str(refused[0])
    assert results[2] is refused[0]
    assert results[3] == results[0]
    assert library.rendered == 2


async def test_what_is_under_way_is_not_looked_for(
    library: SpeechLibrary, monkeypatch: pytest.MonkeyPatch, go_ahead: asyncio.Event
) -> None:
    look, looks = library._find, list[str]()

    def counted(key: str) -> Decoded | None:
        looks.append(key)
        return look(key)

    monkeypatch.setattr(library, "_find", counted)
    first = asyncio.create_task(library.render("one", "en"))
    await until(lambda: library._texts)
    again = asyncio.create_task(library.render("one", "en"))
    await asyncio.sleep(0)
    go_ahead.set()
    assert await again == await first
    # Before it was spoken, and once it was kept; a look in between might have missed it.
    assert len(looks) == 2


async def test_the_oldest_go_when_room_lacks(folder: Path, clock: FakeClock) -> None:
    options = SpeechOptions()
    size = 2 * (await SpeechLibrary(folder, options).render("one", "en")).samples
    library = SpeechLibrary(folder, options, max_bytes=int(size * 3.5), clock=clock)
    for text in ("two", "three"):
        clock.now += 1000
        await library.render(text, "en")
    clock.now += 1000
    await library.render("one", "en")
    assert library.rendered == 2
    clock.now += 1000
    await library.render("four and a half", "en")
    before = library.rendered
    # One was used after two and three were made, so it is the one that is left of them.
    await library.render("one", "en")
    assert library.rendered == before
    await library.render("two", "en")
    assert library.rendered == before + 1


async def test_what_was_just_handed_out_stays(folder: Path, clock: FakeClock) -> None:
    library = SpeechLibrary(folder, SpeechOptions(), max_bytes=1, clock=clock)
    first = await library.render("one", "en")
    clock.now += 100
    second = await library.render("two", "en")
    assert first.alaw.exists()
    clock.now += 100
    await library.render("three", "en")
    assert not first.alaw.exists()
    assert not first.ulaw.exists()
    assert second.alaw.exists()


async def test_digits_never_go(folder: Path, clock: FakeClock) -> None:
    library = SpeechLibrary(folder, SpeechOptions(), max_bytes=1, clock=clock)
    clips = await library.digit_clips("12", "en", "PCMA")
    clock.now += 1e6
    await library.render("one", "en")
    assert all(clip.exists() for clip in clips)


@pytest.mark.parametrize("law", ["alaw", "ulaw"])
async def test_half_a_recording_is_none(library: SpeechLibrary, law: str) -> None:
    first = await library.render("hello", "en")
    path: Path = getattr(first, law)
    path.write_bytes(path.read_bytes()[:1000])
    again = await library.render("hello", "en")
    assert library.rendered == 2
    assert again.alaw.stat().st_size == again.ulaw.stat().st_size > 1000
    path.unlink()
    assert (await library.render("hello", "en")).duration > 0.2


async def test_closing_ends_what_is_under_way(
    library: SpeechLibrary, folder: Path, workers: list[str]
) -> None:
    speaking = asyncio.create_task(library.render("hello", "en"))
    await until(lambda: workers)
    await library.close()
    with pytest.raises(asyncio.CancelledError):
        await speaking
    assert kept(folder) == 0


def test_what_a_killed_process_left_is_swept(folder: Path) -> None:
    # One that is at work may look an hour older, as the system clock may have been set meanwhile.
    for name, age in ((".work-old", 2 * speech_library.STALE_SECONDS), (".work-new", 3660)):
        work = folder / name
        work.mkdir(parents=True)
        (work / "0.wav").write_bytes(b"RIFF")
        os.utime(work, (time.time() - age, time.time() - age))
    SpeechLibrary(folder, SpeechOptions())
    assert [path.name for path in folder.iterdir()] == [".work-new"]


async def test_a_full_disk_is_said_in_a_sentence(
    library: SpeechLibrary, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(UnavailableError, match="folder of spoken texts"):
        await library.render("hello", "en")


async def test_the_loop_goes_on(library: SpeechLibrary) -> None:
    late = 0.0

    async def tick() -> None:
        nonlocal late
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late = max(late, time.perf_counter() - before - 0.005)

    ticker = asyncio.create_task(tick())
    await asyncio.gather(
        library.digit_clips("4071", "fa", "PCMA"), library.render("سلام. " * 100, "fa")
    )
    ticker.cancel()
    assert late < 0.25
