"""Uploads over a real socket: what is taken, what is refused, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from sqlalchemy import func, select

from bitel.api import uploads
from bitel.recordings import decode as decoding
from bitel.recordings.decode import Decoded
from bitel.recordings.limits import DecodeLimits
from bitel.store.schema import recording
from tests.support.waiting import until
from tests.support.worker_processes import killing

if TYPE_CHECKING:
    from tests.api.stage import Stage

UPLOAD = "/api/v2/files/voice"


def tone(seconds: float = 0.5) -> bytes:
    """A WAV file with a tone of 440 Hz."""
    times = np.arange(int(seconds * 16_000)) / 16_000
    pcm = (9_000 * np.sin(2 * np.pi * 440 * times)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(pcm.tobytes())
    return file.getvalue()


def recordings(stage: Stage) -> int:
    counted: int = stage.do(
        lambda conn: conn.execute(select(func.count(recording.c.id))).scalar_one()
    )
    return counted - 1  # the stage's own


async def test_a_recording_goes_in_and_comes_out_as_it_will_be_heard(
    stage: Stage, served: Any
) -> None:
    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post(UPLOAD, files={"file": ("سلام.wav", tone(0.5))})
        assert answer.status_code == 200, answer.text
        result = answer.json()["result"]
        assert list(result) == ["id", "name", "duration", "size"]
        assert result["name"] == "سلام.wav"
        assert result["duration"] == pytest.approx(0.5, abs=0.02)
        assert result["size"] == len(tone(0.5))

        heard = await client.get(f"{UPLOAD}/{result['id']}")
        assert heard.headers["content-type"] == "audio/wav"
        assert heard.headers["content-length"] == str(len(heard.content))
        with wave.open(io.BytesIO(heard.content)) as file:
            assert (file.getnchannels(), file.getframerate()) == (1, 8000)
            assert file.getnframes() == pytest.approx(4000, abs=160)
            pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        assert np.abs(pcm).max() > 5_000

        head = await client.head(f"{UPLOAD}/{result['id']}")
        assert head.content == b""
        assert head.headers["content-length"] == heard.headers["content-length"]

        placed = await client.post("/api/v2/voice/single", json=stage.body(voiceId=result["id"]))
        assert placed.status_code == 200
    assert not list(stage.parts.incoming.iterdir())


async def test_a_file_that_is_cut_short_is_taken_with_a_warning(
    sqlite_stage: Stage, served: Any
) -> None:
    whole = tone(4.0)
    async with served(sqlite_stage) as url, sqlite_stage.client(url=url) as client:
        answer = await client.post(UPLOAD, files={"file": ("cut.wav", whole[: len(whole) // 2])})
        result = answer.json()["result"]
        assert list(result) == ["id", "name", "duration", "size", "warning"]
        assert "2.0 s of audio" in result["warning"]
        listed = (await client.get(UPLOAD)).json()["result"]["recordings"]
        assert all("warning" not in each for each in listed)
    assert recordings(sqlite_stage) == 1


async def test_silence_is_refused(sqlite_stage: Stage, served: Any) -> None:
    data = bytearray(tone(1.0))
    data[44:] = bytes(len(data) - 44)
    async with served(sqlite_stage) as url, sqlite_stage.client(url=url) as client:
        answer = await client.post(UPLOAD, files={"file": ("quiet.wav", bytes(data))})
    assert (answer.status_code, answer.json()["error"]) == (415, "UnsupportedMedia")
    assert "silent" in answer.json()["message"]
    assert recordings(sqlite_stage) == 0
    assert sqlite_stage.leftovers() == []


async def test_a_recording_is_nobody_elses(stage: Stage, served: Any) -> None:
    _, other = stage.new_token(stage.new_project("other"))
    async with served(stage) as url, stage.client(other, url) as client:
        for voice_id in (stage.recording_id, "0" * 32, "x", "..%2F..%2Fsigning.key"):
            answer = await client.get(f"{UPLOAD}/{voice_id}")
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")


REFUSED = {
    "not audio": ({"file": ("a.wav", b"not audio at all " * 100)}, 415, "UnsupportedMedia"),
    "empty": ({"file": ("a.wav", b"")}, 415, "UnsupportedMedia"),
    "too long": ({"file": ("a.wav", tone(2.5))}, 413, "PayloadTooLarge"),
    "wrong name": ({"voice": ("a.wav", tone())}, 400, "InvalidRequest"),
    "name in capitals": ({"File": ("a.wav", tone())}, 400, "InvalidRequest"),
}


@pytest.mark.parametrize(("files", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_no_recording_leaves_nothing(
    make_stage: Callable[..., Stage], served: Any, files: Any, status: int, code: str
) -> None:
    stage = make_stage(voices={"max_seconds": 2.0})
    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post(UPLOAD, files=files)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert stage.leftovers() == []
    assert recordings(stage) == 0


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
MULTIPART = "multipart/form-data; boundary=b"
BAD_BODIES = {
    "no multipart": (tone(), "audio/wav"),
    "no type": (tone(), ""),
    "JSON": (b"{}", "application/json"),
    "no boundary": (PART + tone() + b"\r\n--b--\r\n", "multipart/form-data"),
    "a long boundary": (b"x", f"multipart/form-data; boundary={'b' * 5000}"),
    "no end": (PART + tone(), MULTIPART),
    "nothing": (b"", MULTIPART),
    "no part": (b"--b--\r\n", MULTIPART),
    "two files": (PART + tone() + b"\r\n" + PART + tone() + b"\r\n--b--\r\n", MULTIPART),
    "many parts": (b"--b\r\n\r\n\r\n" * 100 + b"--b--\r\n", MULTIPART),
    "a long header": (b"--b\r\nX: " + b"x" * 200_000, MULTIPART),
    "another long part": (
        b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n'
        + b"x" * 200_000
        + b"\r\n"
        + PART
        + tone()
        + b"\r\n--b--\r\n",
        MULTIPART,
    ),
}


@pytest.mark.parametrize(("body", "kind"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_body_that_is_no_upload_leaves_nothing(
    sqlite_stage: Stage, served: Any, body: bytes, kind: str
) -> None:
    stage = sqlite_stage
    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post(UPLOAD, content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest"), answer.text
    assert stage.leftovers() == []
    assert recordings(stage) == 0


async def test_an_upload_over_the_limit_is_stopped_early(
    make_stage: Callable[..., Stage], served: Any
) -> None:
    stage = make_stage(voices={"max_upload": 100_000})
    async with served(stage) as url, stage.client(url=url) as client:
        declared = await client.post(UPLOAD, files={"file": b"x" * 1_000_000})
        assert (declared.status_code, declared.json()["error"]) == (413, "PayloadTooLarge")

        reader, writer = await connect(url)
        writer.write(head(stage, "Transfer-Encoding: chunked"))
        writer.write(b"%x\r\n%b\r\n" % (len(PART), PART))
        answer = asyncio.create_task(reader.readuntil(b"}"))
        sent = 0
        while not answer.done() and sent < 500_000_000:
            writer.write(b"10000\r\n%b\r\n" % (b"x" * 65_536))
            sent += 65_536
            await writer.drain()
        writer.close()
        streamed = await answer
    assert streamed.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in streamed
    assert b'"error":"PayloadTooLarge"' in streamed
    # What the kernel's buffers swallowed, and not what there was.
    assert sent < 50_000_000
    assert stage.leftovers() == []


async def test_a_client_that_goes_away_leaves_nothing(sqlite_stage: Stage, served: Any) -> None:
    stage = sqlite_stage
    async with served(stage) as url:
        _, writer = await connect(url)
        writer.write(head(stage, "Content-Length: 3000000") + PART + b"x" * 1_500_000)
        await writer.drain()
        await until(lambda: any(path.is_file() for path in stage.leftovers()))
        writer.transport.abort()
        await until(lambda: not stage.leftovers())
    assert recordings(stage) == 0


async def test_an_upload_that_pauses_is_given_up(
    sqlite_stage: Stage, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.05)

    async def halting() -> Any:
        yield PART + b"x"
        await asyncio.sleep(1)  # the client reads no answer before it has sent all
        yield b"x"

    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post(UPLOAD, content=halting(), headers={"Content-Type": MULTIPART})
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
    assert "paused" in answer.json()["message"]
    assert stage.leftovers() == []


async def test_without_a_row_there_is_no_audio(
    sqlite_stage: Stage, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitel.store.recordings.add", full)
    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post(UPLOAD, files={"file": ("a.wav", tone())})
    assert (answer.status_code, answer.json()["error"]) == (503, "Unavailable")
    assert stage.leftovers() == []


async def test_decode_worker_that_is_killed_is_run_again_and_then_unavailable(
    sqlite_stage: Stage, served: Any
) -> None:
    stage = sqlite_stage
    async with served(stage) as url, stage.client(url=url) as client:
        async with killing("bitel.recordings.decode_worker", times=1) as killed:
            answer = await client.post(UPLOAD, files={"file": ("a.wav", tone(60))})
        assert (answer.status_code, len(killed)) == (200, 1)
        async with killing("bitel.recordings.decode_worker") as killed:
            answer = await client.post(UPLOAD, files={"file": ("a.wav", tone(60))})
        assert (answer.status_code, len(killed)) == (503, 2)
    assert answer.json()["error"] == "Unavailable"
    assert "killed" in answer.json()["message"]
    assert recordings(stage) == 1
    assert not list(stage.parts.incoming.iterdir())


@pytest.mark.parametrize("lost", ["the upload", "its folder", "the folder of all uploads"])
async def test_upload_that_is_gone_before_it_is_decoded(
    sqlite_stage: Stage, served: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    stage = sqlite_stage
    decode = decoding.decode

    async def lose(source: Path, into: Path, limits: DecodeLimits, owner: str) -> Decoded:
        if lost == "the upload":
            source.unlink()
        else:
            shutil.rmtree(source.parent if lost == "its folder" else stage.parts.incoming)
        return await decode(source, into, limits, owner)

    monkeypatch.setattr(decoding, "decode", lose)
    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post(UPLOAD, files={"file": ("a.wav", tone())})
    assert (answer.status_code, answer.json()["error"]) == (503, "Unavailable")
    assert recordings(stage) == 0
    assert stage.leftovers() == []


async def test_place_for_uploads_that_can_not_be_written(sqlite_stage: Stage, served: Any) -> None:
    stage = sqlite_stage
    stage.parts.incoming.write_text("a file where the folder should be")
    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post(UPLOAD, files={"file": ("a.wav", tone())})
    assert (answer.status_code, answer.json()["error"]) == (503, "Unavailable")


async def test_speech_worker_that_is_killed(sqlite_stage: Stage, served: Any) -> None:
    stage = sqlite_stage
    async with served(stage) as url, stage.client(url=url) as client:
        for times, status in ((1000, 503), (1, 200)):
            async with killing("bitel.speech.worker", times=times) as killed:
                answer = await client.post("/api/v2/files/tts", json={"text": "hello"})
            assert (answer.status_code, len(killed)) == (status, min(times, 2)), answer.text


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_recording_whose_audio_the_storage_has_lost(
    sqlite_stage: Stage, served: Any, method: str
) -> None:
    stage = sqlite_stage
    async with served(stage) as url, stage.client(url=url) as client:
        made = await client.post(UPLOAD, files={"file": ("a.wav", tone())})
        path = f"{UPLOAD}/{made.json()['result']['id']}"
        for file in (stage.parts.settings.data_dir / "voices").iterdir():
            file.unlink()
        assert (await client.request(method, path)).status_code == 503
        assert (await client.delete(path)).status_code == 200
        assert (await client.request(method, path)).status_code == 404


async def test_an_upload_that_is_cut_off_while_it_is_decoded_leaves_nothing(
    sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage
    begun = asyncio.Event()

    async def endless(*_: Any) -> Decoded:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("bitel.recordings.decode.decode", endless)
    async with stage.client() as client:
        upload = asyncio.create_task(client.post(UPLOAD, files={"file": tone()}))
        await begun.wait()
        assert stage.leftovers()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
    assert stage.leftovers() == []


async def test_an_upload_without_a_token_is_not_read(sqlite_stage: Stage, served: Any) -> None:
    stage = sqlite_stage
    async with served(stage) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(UPLOAD, files={"file": b"x" * 5_000_000})
    assert (answer.status_code, answer.json()["error"]) == (401, "Unauthorized")
    assert not stage.parts.incoming.exists()


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    old, young = tmp_path / "old", tmp_path / "young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "upload").write_bytes(b"x")
    hours_ago = time.time() - 2 * uploads.STALE_SECONDS
    os.utime(old, (hours_ago, hours_ago))
    uploads.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["young"]
    uploads.sweep(tmp_path / "nowhere")


def test_what_else_is_in_the_folder_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a link, and what a second process sweeps at the same moment."""
    hours_ago = time.time() - 2 * uploads.STALE_SECONDS
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "file").touch()
    (incoming / "link").symlink_to(tmp_path / "elsewhere")
    (incoming / "gone").mkdir()
    (incoming / "locked").mkdir()
    for path in (*incoming.iterdir(), tmp_path / "elsewhere"):
        os.utime(path, (hours_ago, hours_ago))
    rmtree = shutil.rmtree

    def contended(path: Path) -> None:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        rmtree(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(shutil, "rmtree", contended)
    uploads.sweep(incoming)
    assert sorted(path.name for path in incoming.iterdir()) == ["locked"]
    assert (tmp_path / "elsewhere" / "kept").exists()
    uploads.sweep(incoming / "locked" / "none")
    (tmp_path / "a file").touch()
    uploads.sweep(tmp_path / "a file")


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def head(stage: Stage, framing: str) -> bytes:
    """The head of an upload whose body is up to the test."""
    return (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stage.token}\r\n"
        f"Content-Type: {MULTIPART}\r\n{framing}\r\n\r\n"
    ).encode()
