"""Recordings kept and read back: the same promises for a folder, for memory and for S3."""

from __future__ import annotations

import asyncio
import http.server
import io
import os
import re
import shutil
import threading
import uuid
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
import obstore
import pytest
from obstore.store import LocalStore, MemoryStore
from pydantic import SecretStr

from bitel.errors import NotFoundError, SettingsError, UnavailableError
from bitel.g711 import alaw_decode
from bitel.recordings.decode import Decoded
from bitel.recordings.storage import VoiceStore
from tests.support.s3_server import BUCKET, KEY, SECRET, S3Server, s3_server

ID = "69b9e312e3b64b3880760639f5dfdffa"
ALAW = np.random.default_rng(1).integers(0, 256, 200_001, dtype=np.uint8)
ULAW = np.random.default_rng(2).integers(0, 256, 200_001, dtype=np.uint8)


class ObjectServer(http.server.BaseHTTPRequestHandler):
    """As much of S3 as we need (PUT, GET, HEAD, and POST ?delete), to count requests and refuse."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[tuple[str, str]]] = []
    broken: ClassVar[bool] = False

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append((self.command, path))
        if self.broken:
            return self.say(403, b"")
        assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256")
        if self.command == "PUT":
            self.objects[path] = body
            return self.say(200, b"")
        if self.command == "POST":
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.objects.pop(f"{path}/{key}", None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return self.say(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        if path not in self.objects:
            return self.say(404, b"")
        return self.say(200, self.objects[path])

    do_GET = do_PUT = do_HEAD = do_POST = answer

    def say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Tue, 01 Jan 2030 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ObjectServer]]:
    class Server(ObjectServer):
        objects: ClassVar[dict[str, bytes]] = {}
        requests: ClassVar[list[tuple[str, str]]] = []
        broken: ClassVar[bool] = False

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def s3_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "data") as server:
        yield server


def in_bucket(server: S3Server, data_dir: Path, url: str = "", **changes: Any) -> VoiceStore:
    """The store of a bucket; `changes` are to the settings of `[s3]`."""
    settings = server.settings.model_copy(update=changes)
    return VoiceStore.open(url or f"s3://{BUCKET}/{uuid.uuid4().hex}/pre", data_dir, settings)


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VoiceStore:
    if request.param == "local":
        return VoiceStore.open("", tmp_path / "data")
    if request.param == "memory":
        return VoiceStore(MemoryStore(), tmp_path / "data" / "clips", remote=True)
    return in_bucket(request.getfixturevalue("s3_bucket"), tmp_path / "data")


@pytest.fixture
def decoded(into: Path) -> Decoded:
    ALAW.tofile(into / "recording.alaw")
    ULAW.tofile(into / "recording.ulaw")
    return Decoded(into / "recording.alaw", into / "recording.ulaw", len(ALAW) / 8000, len(ALAW))


async def whole_wav(store: VoiceStore, recording_id: str) -> bytes:
    return b"".join([piece async for piece in store.wav(recording_id)])


async def test_both_laws_come_back(store: VoiceStore, decoded: Decoded) -> None:
    await store.put(ID, decoded)
    assert (await store.clip(ID, "PCMA")).read_bytes() == ALAW.tobytes()
    assert (await store.clip(ID, "PCMU")).read_bytes() == ULAW.tobytes()


async def test_the_wav_is_what_will_be_heard(store: VoiceStore, decoded: Decoded) -> None:
    await store.put(ID, decoded)
    content = await whole_wav(store, ID)
    assert len(content) == await store.wav_size(ID)
    with wave.open(io.BytesIO(content)) as file:
        assert file.getparams()[:4] == (1, 2, 8000, len(ALAW))
        assert file.readframes(len(ALAW)) == alaw_decode(ALAW).astype("<i2").tobytes()


async def test_deleted_is_gone(store: VoiceStore, decoded: Decoded) -> None:
    await store.put(ID, decoded)
    await store.clip(ID, "PCMA")
    await store.delete(ID)
    await store.delete(ID)
    await check_absent(store, ID)


async def check_absent(store: VoiceStore, recording_id: str) -> None:
    for law in ("PCMA", "PCMU"):
        with pytest.raises(NotFoundError):
            await store.clip(recording_id, law)
    with pytest.raises(NotFoundError):
        await store.wav_size(recording_id)
    with pytest.raises(NotFoundError):
        await whole_wav(store, recording_id)


@pytest.mark.parametrize("recording_id", ["0" * 32, "", "../../etc/passwd", "a/b", "x" * 65, "é\0"])
async def test_there_is_none_of_that_name(store: VoiceStore, recording_id: str) -> None:
    await check_absent(store, recording_id)


async def test_half_a_recording_is_none(store: VoiceStore, decoded: Decoded) -> None:
    decoded.ulaw.unlink()
    with pytest.raises(UnavailableError):
        await store.put(ID, decoded)
    await check_absent(store, ID)


async def test_a_local_put_is_on_the_disk(
    tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    await VoiceStore.open("", tmp_path).put(ID, decoded)
    folder = tmp_path / "voices"
    # The files in any order, then the folder that holds their names.
    assert sorted(synced[:-1]) == [folder / f"{ID}.alaw", folder / f"{ID}.ulaw"]
    assert synced[-1] == folder


async def test_many_callers_share_one_download(
    s3: type[ObjectServer], tmp_path: Path, decoded: Decoded
) -> None:
    store = VoiceStore.open("s3://bucket/some/prefix", tmp_path)
    await store.put(ID, decoded)
    assert sorted(s3.objects) == [
        f"/bucket/some/prefix/{ID}.alaw",
        f"/bucket/some/prefix/{ID}.ulaw",
    ]
    impatient = asyncio.create_task(store.clip(ID, "PCMA"))
    others = [asyncio.create_task(store.clip(ID, "PCMA")) for _ in range(20)]
    await asyncio.sleep(0)
    impatient.cancel()
    paths = await asyncio.gather(*others)
    assert set(paths) == {tmp_path / "clips" / f"{ID}.alaw"}
    assert paths[0].read_bytes() == ALAW.tobytes()
    await store.clip(ID, "PCMA")
    assert [command for command, _ in s3.requests].count("GET") == 1
    assert os.listdir(tmp_path / "clips") == [f"{ID}.alaw"]


async def test_a_storage_that_refuses_us(
    s3: type[ObjectServer], tmp_path: Path, decoded: Decoded
) -> None:
    store = VoiceStore.open("s3://bucket/some/prefix", tmp_path)
    s3.broken = True
    for attempt in (
        store.put(ID, decoded),
        store.clip(ID, "PCMU"),
        store.wav_size(ID),
        whole_wav(store, ID),
        store.delete(ID),
    ):
        with pytest.raises(UnavailableError):
            await attempt
    assert os.listdir(tmp_path / "clips") == []
    s3.broken = False
    await store.put(ID, decoded)
    assert (await store.clip(ID, "PCMU")).read_bytes() == ULAW.tobytes()


async def test_a_download_that_breaks_off_leaves_no_clip(
    tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VoiceStore(MemoryStore(), tmp_path / "clips", remote=True)
    await store.put(ID, decoded)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UnavailableError):
            await store.clip(ID, "PCMA")
    assert os.listdir(tmp_path / "clips") == []
    assert (await store.clip(ID, "PCMA")).read_bytes() == ALAW.tobytes()


async def test_object_that_is_not_there(s3: type[ObjectServer], tmp_path: Path) -> None:
    store = VoiceStore.open("s3://bucket/some/prefix", tmp_path)
    with pytest.raises(NotFoundError):
        await store.clip(ID, "PCMA")


async def test_copies_that_were_cleared_away_or_cut_short_are_fetched_again(
    s3: type[ObjectServer], tmp_path: Path, decoded: Decoded
) -> None:
    store = VoiceStore.open("s3://bucket/some/prefix", tmp_path)
    await store.put(ID, decoded)
    path = await store.clip(ID, "PCMA", len(ALAW))
    os.truncate(path, 100)
    assert (await store.clip(ID, "PCMA", len(ALAW))).read_bytes() == ALAW.tobytes()
    shutil.rmtree(tmp_path / "clips")
    assert (await store.clip(ID, "PCMA", len(ALAW))).read_bytes() == ALAW.tobytes()
    s3.broken = True
    # Here already, it needs no bucket.
    assert await store.clip(ID, "PCMA", len(ALAW)) == path


@pytest.mark.parametrize("kind", ["local", "memory"])
async def test_folder_that_is_replaced_by_a_file(
    tmp_path: Path, decoded: Decoded, kind: str
) -> None:
    if kind == "local":
        store, folder = VoiceStore.open("", tmp_path), tmp_path / "voices"
    else:
        folder = tmp_path / "clips"
        store = VoiceStore(MemoryStore(), folder, remote=True)
        await store.put(ID, decoded)
    folder.rmdir()
    folder.write_text("")
    with pytest.raises((UnavailableError, NotFoundError)):
        await store.clip(ID, "PCMA")
    with pytest.raises((UnavailableError, NotFoundError)):
        await whole_wav(store, ID)
    with pytest.raises(UnavailableError):
        await store.delete(ID)
    if kind == "local":
        with pytest.raises(UnavailableError):
            await store.put(ID, decoded)


async def test_another_process_sees_what_was_put(tmp_path: Path, decoded: Decoded) -> None:
    await VoiceStore.open("", tmp_path).put(ID, decoded)
    assert (await VoiceStore.open("", tmp_path).clip(ID, "PCMU")).read_bytes() == ULAW.tobytes()
    keys = [entry["path"] for entry in obstore.list(LocalStore(tmp_path / "voices")).collect()]
    assert sorted(keys) == [f"{ID}.alaw", f"{ID}.ulaw"]


@pytest.mark.parametrize("url", ["ftp://host/x", "http://host/x", "bucket", "s3://"])
def test_a_storage_url_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="storage_url"):
        VoiceStore.open(url, tmp_path)


# The check at the start, against a real server


async def test_a_bucket_that_can_be_used_is_left_as_it_was(
    s3_bucket: S3Server, tmp_path: Path
) -> None:
    before = s3_bucket.objects
    store = in_bucket(s3_bucket, tmp_path)
    await store.check()
    assert s3_bucket.objects == before
    await VoiceStore.open("", tmp_path).check()


@pytest.mark.parametrize(
    ("changes", "url", "says"),
    [
        (
            {"secret_access_key": SecretStr("wrong")},
            "",
            r"refuses these credentials, .*\(the server said SignatureDoesNotMatch\)\.$",
        ),
        ({"access_key_id": "other"}, "", "refuses these credentials"),
        ({}, "s3://no-such-bucket/x", r"knows no such bucket \(the server said NoSuchBucket\)\.$"),
        (
            {"endpoint": "http://127.0.0.1:9"},
            "",
            r"no connection to the server at http://127.0.0.1",
        ),
        ({"allow_http": False}, "", "its endpoint is plain HTTP; set allow_http = true"),
        ({"endpoint": "http://no-such-host.invalid"}, "", "no connection to the server at"),
    ],
)
async def test_a_bucket_that_can_not_be_used_is_one_sentence(
    s3_bucket: S3Server, tmp_path: Path, changes: dict[str, Any], url: str, says: str
) -> None:
    store = in_bucket(s3_bucket, tmp_path, url, **changes)
    with pytest.raises(UnavailableError, match=says) as raised:
        await store.check()
    assert str(raised.value).startswith("The storage_url can't be used: ")
    assert len(str(raised.value).splitlines()) == 1
    assert "test-secret" not in str(raised.value)


async def test_variables_serve_where_settings_are_empty(
    s3_bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_bucket.endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    await VoiceStore.open(f"s3://{BUCKET}/env", tmp_path).check()


async def test_settings_go_before_variables(
    s3_bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    await in_bucket(s3_bucket, tmp_path).check()
