"""Files that end before they should, and those that only look so."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import av
import pytest

from bitel.recordings.decode import decode
from bitel.recordings.limits import DecodeLimits
from tests.recordings.audio_files import Media
from tests.recordings.test_channels import voice, write

KINDS = [
    ("a.wav", "pcm_s16le"),
    ("a.mp3", "libmp3lame"),
    ("a.flac", "flac"),
    ("a.oga", "flac"),
    ("a.opus", "libopus"),
    ("a.mka", "libopus"),
    ("a.webm", "libopus"),
    ("a.aiff", "pcm_s16be"),
    ("a.m4a", "aac"),
    ("a.aac", "aac"),
    ("a.caf", "pcm_s16le"),
    ("a.w64", "pcm_s16le"),
]


UNDECLARED = ("a.aac", "a.mka", "a.caf", "a.w64")
"""Of these FFmpeg tells no length but that of what is there."""


def made(media: Media, name: str, codec: str) -> Path:
    """Six seconds of sound."""
    if not name.endswith(".m4a"):
        return media.encoded(name, codec, seconds=6.0)
    # Its index before its sound: with the index at the end, a file that is cut can't be read.
    whole = media.encoded("whole.m4a", codec, seconds=6.0)
    path = media.folder / name
    with (
        av.open(str(whole)) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return path


@pytest.mark.parametrize(("name", "codec"), KINDS)
async def test_a_whole_file_has_no_warning(media: Media, into: Path, name: str, codec: str) -> None:
    decoded = await decode(made(media, name, codec), into, DecodeLimits())
    assert decoded.warning == ""
    assert decoded.duration == pytest.approx(6.0, abs=0.15)


@pytest.mark.parametrize(("name", "codec"), [kind for kind in KINDS if kind[0] not in UNDECLARED])
@pytest.mark.parametrize("part", [0.5, 0.9])
async def test_a_file_that_is_cut_short_is_taken_with_a_warning(
    media: Media, into: Path, name: str, codec: str, part: float
) -> None:
    path = made(media, name, codec)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    decoded = await decode(path, into, DecodeLimits())
    assert "cut short" in decoded.warning
    assert f"{decoded.duration:.1f} s" in decoded.warning
    assert 0 < decoded.duration < 6


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x7FFFFFDB])
async def test_a_size_that_was_not_known_promises_nothing(
    media: Media, into: Path, size: int
) -> None:
    path = write(media.folder, voice())
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[4:8] = struct.pack("<I", size)
    data[at + 4 : at + 8] = struct.pack("<I", size)
    path.write_bytes(data)
    decoded = await decode(path, into, DecodeLimits())
    assert decoded.warning == ""
    assert decoded.duration == pytest.approx(2.0, abs=0.01)


async def test_a_file_that_ffmpeg_wrote_to_a_pipe(media: Media, into: Path) -> None:
    path = media.folder / "piped.wav"
    with path.open("wb") as file:

        class Pipe:
            def write(self, data: bytes) -> int:
                return file.write(data)

        with av.open(Pipe(), "w", format="wav") as output:
            stream = output.add_stream("pcm_s16le", rate=48_000, layout="mono")
            media._sing(output, stream, media.sweep(48_000), 48_000)
    assert b"\xff\xff\xff\xff" in path.read_bytes()[:100]
    assert (await decode(path, into, DecodeLimits())).warning == ""


async def test_a_file_that_sox_wrote_to_a_pipe(media: Media, into: Path) -> None:
    path = media.folder / "piped.wav"
    with path.open("wb") as file:
        command = [
            "sox",
            "-n",
            "-r",
            "44100",
            "-c",
            "1",
            "-t",
            "wav",
            "-",
            "synth",
            "2",
            "sine",
            "440",
        ]
        subprocess.run(command, stdout=file, check=True)
    decoded = await decode(path, into, DecodeLimits())
    assert decoded.warning == ""
    assert decoded.duration == pytest.approx(2.0, abs=0.01)


async def test_an_mp3_with_a_large_tag(media: Media, into: Path) -> None:
    path = made(media, "a.mp3", "libmp3lame")
    data = path.read_bytes()
    length = 200_000
    picture = b"APIC" + struct.pack(">I", length) + b"\0\0" + b"\0image/png\0\3\0"
    frame = picture.ljust(10 + length, b"\x01")
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    tag = b"ID3\x03\0\0" + size + frame
    old = data.index(b"\xff\xfb") if b"\xff\xfb" in data[:4096] else 0
    path.write_bytes(tag + data[old:])
    assert (await decode(path, into, DecodeLimits())).warning == ""
    path.write_bytes((tag + data[old:])[: len(tag) + len(data) // 2])
    assert "cut short" in (await decode(path, into, DecodeLimits())).warning


@pytest.mark.parametrize("rate", [8000, 12_000, 16_000, 24_000, 48_000])
async def test_opus_of_other_rates_is_whole(media: Media, into: Path, rate: int) -> None:
    path = media.encoded("a.opus", "libopus", rate=rate)
    decoded = await decode(path, into, DecodeLimits())
    assert decoded.warning == ""
    assert decoded.duration == pytest.approx(2.0, abs=0.05)
