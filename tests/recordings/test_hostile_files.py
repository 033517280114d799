"""What a stranger may send instead of a recording: refused in a sentence, nothing left behind."""

from __future__ import annotations

import asyncio
import io
import random
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitel.errors import PayloadTooLargeError, UnsupportedMediaError
from bitel.recordings.decode import decode
from bitel.recordings.limits import MEBIBYTE, DecodeLimits, Verdict
from bitel.recordings.transcoding import transcode

if TYPE_CHECKING:
    from tests.recordings.audio_files import Media

LIMITS = DecodeLimits()
TEXT = b"Dear Sir or Madam, this is no recording at all. " * 50

MAGICS = {
    "wav": b"RIFF\x24\x10\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00",
    "mp3": b"\xff\xfb\x90\x64",
    "id3": b"ID3\x03\x00\x00\x00\x00\x00\x0a",
    "ogg": b"OggS\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00",
    "flac": b"fLaC\x00\x00\x00\x22",
    "mp4": b"\x00\x00\x00\x18ftypM4A \x00\x00\x00\x00M4A mp42",
    "matroska": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "amr": b"#!AMR\n",
    "aiff": b"FORM\x00\x00\x10\x00AIFFCOMM",
    "hls": b"#EXTM3U\n#EXTINF:10,\n",
    "concat": b"ffconcat version 1.0\nfile ",
    "png": b"\x89PNG\r\n\x1a\n",
}


async def refuse(source: Path, into: Path, content: bytes) -> str:
    """Decode `content` and return the sentence that it was refused with."""
    source.write_bytes(content)
    with pytest.raises(UnsupportedMediaError) as refused:
        await decode(source, into, LIMITS)
    assert list(into.iterdir()) == []
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.wav", b""),
        ("letter.mp4", TEXT),
        ("letter.txt", TEXT),
        ("noise.mp3", random.Random(1).randbytes(50_000)),
        ("zeros.wav", bytes(50_000)),
        ("header.wav", MAGICS["wav"]),
    ],
)
async def test_no_media(tmp_path: Path, into: Path, name: str, content: bytes) -> None:
    assert await refuse(tmp_path / name, into, content)


async def test_a_picture(tmp_path: Path, into: Path) -> None:
    with av.open(str(tmp_path / "a.png"), "w", format="image2") as output:
        stream = output.add_stream("png", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        image = np.zeros((16, 16, 3), dtype=np.uint8)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    picture = (tmp_path / "a.png").read_bytes()
    message = await refuse(tmp_path / "a.mp3", into, picture)
    assert message == "The file is in no audio format that can be read."


async def test_a_silent_film(media: Media, into: Path) -> None:
    film = media.encoded("film.mp4", None, video=True)
    assert await refuse(film, into, film.read_bytes()) == "The file holds no audio."


async def test_no_samples(media: Media, into: Path) -> None:
    source = media.wav(np.zeros(0))
    assert await refuse(source, into, source.read_bytes())


async def test_an_unknown_codec(media: Media, into: Path) -> None:
    content = bytearray(media.wav().read_bytes())
    content[20:22] = struct.pack("<H", 0x7A21)
    assert "codec" in await refuse(media.folder / "a.wav", into, bytes(content))


async def test_scrambled_audio_in_a_sound_container(media: Media, into: Path) -> None:
    content = bytearray(media.encoded("a.m4a", "aac").read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    content[start:end] = random.Random(2).randbytes(end - start)
    assert "encrypted or too damaged" in await refuse(media.folder / "b.m4a", into, bytes(content))


async def test_a_header_that_claims_four_gigabytes(media: Media, into: Path) -> None:
    content = bytearray(media.wav(rate=8000).read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    source = media.folder / "huge.wav"
    source.write_bytes(content)
    assert (await decode(source, into, LIMITS)).duration == pytest.approx(2.0, abs=0.02)


async def test_one_sample_a_second_expands_without_end(media: Media, into: Path) -> None:
    content = bytearray(media.wav(rate=8000).read_bytes())
    content[24:28] = struct.pack("<I", 1)
    source = media.folder / "slow.wav"
    source.write_bytes(content)
    with pytest.raises(PayloadTooLargeError):
        await decode(source, into, LIMITS)
    assert list(into.iterdir()) == []


async def test_more_memory_than_granted(media: Media, into: Path) -> None:
    # A cover picture is held whole: 12 of them, each as large as FLAC allows.
    content = media.encoded("a.flac", "flac").read_bytes()
    picture = struct.pack(">II9sI4xI4xI", 3, 9, b"image/png", 0, 0, 15 * MEBIBYTE)
    picture += bytes(15 * MEBIBYTE)
    block = bytes([6]) + len(picture).to_bytes(3, "big") + picture
    source = media.folder / "picture.flac"
    source.write_bytes(content[:42] + block * 12 + content[42:])
    assert (await decode(source, into, LIMITS)).duration == 2.0
    with pytest.raises(PayloadTooLargeError, match="more memory to decode than the 220 MiB"):
        await decode(source, into, DecodeLimits(memory_bytes=220 * MEBIBYTE))


@pytest.fixture
async def listener() -> socket.socket:
    """A TCP port on which nobody should ever call."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    return listening


@pytest.mark.parametrize(
    "template",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
        "ffconcat version 1.0\nfile '{url}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static">'
        '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1">'
        "<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    ],
)
@pytest.mark.parametrize(
    "way", ["secret.mp3", "{path}", "file://{path}", "subfile,,start,0,end,0,,:{path}"]
)
async def test_a_playlist_reaches_no_other_file(
    media: Media, into: Path, template: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(media.folder)
    other = media.encoded("secret.mp3", "mp3")
    content = template.format(url=way.format(path=other))
    await refuse(media.folder / "list.m3u8", into, content.encode())


@pytest.mark.parametrize("scheme", ["http", "tcp", "rtsp", "hls+http"])
async def test_a_playlist_reaches_no_other_machine(
    media: Media, into: Path, listener: socket.socket, scheme: str
) -> None:
    port = listener.getsockname()[1]
    url = f"{scheme}://127.0.0.1:{port}/a.ts"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n"
    await refuse(media.folder / "list.m3u8", into, playlist.encode())
    with listener, pytest.raises(BlockingIOError):
        listener.accept()


def in_process(content: bytes) -> Verdict:
    """Decode without a process of its own, for speed: nothing but a verdict may come out."""
    return transcode(io.BytesIO(content), io.BytesIO(), io.BytesIO(), 8000 * 60)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(MAGICS)), st.binary(max_size=4096))
def test_anything_after_a_known_magic_is_judged(magic: str, rest: bytes) -> None:
    assert in_process(MAGICS[magic] + rest) in Verdict


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp3", "mp3"), ("a.m4a", "aac"), ("a.ogg", "libopus"), ("a.flac", "flac")],
)
def test_any_damage_to_a_sound_file_is_judged(
    media: Media, data: st.DataObject, name: str, codec: str
) -> None:
    path = media.folder / name
    if not path.exists():
        media.encoded(name, codec, seconds=0.5)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    assert in_process(bytes(content[:cut])) in Verdict


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(magic=st.sampled_from(sorted(MAGICS)), rest=st.binary(max_size=4096))
def test_the_worker_turns_any_bytes_into_one_of_two_errors(
    tmp_path: Path, magic: str, rest: bytes
) -> None:
    source, into = tmp_path / "source", tmp_path / "into"
    into.mkdir(exist_ok=True)
    source.write_bytes(MAGICS[magic] + rest)
    try:
        decoded = asyncio.run(decode(source, into, LIMITS))
    except (UnsupportedMediaError, PayloadTooLargeError):
        assert list(into.iterdir()) == []
    else:
        assert decoded.samples > 0
