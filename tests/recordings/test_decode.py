"""What people upload, decoded: the right length, the right sound, without holding anyone up."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bitel.errors import PayloadTooLargeError
from bitel.g711 import alaw_decode
from bitel.recordings.decode import Decoded, decode
from bitel.recordings.limits import MEBIBYTE, DecodeLimits
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.recordings.audio_files import Media, Samples

LIMITS = DecodeLimits()


def heard(decoded: Decoded) -> Samples:
    return alaw_decode(np.fromfile(decoded.alaw, dtype=np.uint8)) / 32768


def level(samples: Samples) -> float:
    """Root mean square, the edges left out, in dB of full scale."""
    return float(20 * np.log10(np.sqrt(np.mean(samples[800:-800] ** 2)) + 1e-9))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", "mp3"),
        ("a.ogg", "libopus"),
        ("a.flac", "flac"),
        ("a.m4a", "aac"),
        ("a.3gp", "aac"),
        ("a.webm", "libopus"),
        ("a.aiff", "pcm_s16be"),
        ("a.caf", "alac"),
        ("float.wav", "pcm_f32le"),
    ],
)
async def test_formats(media: Media, into: Path, name: str, codec: str) -> None:
    decoded = await decode(media.encoded(name, codec), into, LIMITS)
    assert decoded.duration == pytest.approx(2.0, abs=0.020)
    assert decoded.samples == decoded.alaw.stat().st_size == decoded.ulaw.stat().st_size
    assert decoded.duration == decoded.samples / 8000
    assert media.likeness(decoded, media.sweep(8000)) >= 0.98


async def test_tags_that_are_not_utf_8_do_not_matter(media: Media, into: Path) -> None:
    plain = media.wav(rate=8000)
    tags = b"INFOINAM" + (6).to_bytes(4, "little") + "café!".encode("latin-1") + b"\0"
    body = plain.read_bytes()[8:] + b"LIST" + len(tags).to_bytes(4, "little") + tags
    plain.write_bytes(b"RIFF" + len(body).to_bytes(4, "little") + body)
    decoded = await decode(plain, into, LIMITS)
    assert media.likeness(decoded, media.sweep(8000)) >= 0.98


@pytest.mark.parametrize(
    ("rate", "channels", "width"),
    [(44100, 2, 2), (8000, 1, 1), (8000, 1, 2), (11025, 1, 1), (96000, 6, 2), (16000, 9, 2)],
)
async def test_wav(media: Media, into: Path, rate: int, channels: int, width: int) -> None:
    source = media.wav(rate=rate, channels=channels, width=width)
    decoded = await decode(source, into, LIMITS)
    assert decoded.duration == pytest.approx(2.0, abs=0.020)
    assert media.likeness(decoded, media.sweep(8000)) >= 0.98


async def test_the_sound_of_a_film_is_taken(media: Media, into: Path) -> None:
    source = media.encoded("film.mkv", "aac", video=True, subtitles=True)
    decoded = await decode(source, into, LIMITS)
    assert media.likeness(decoded, media.sweep(8000)) >= 0.98


async def test_a_name_says_nothing(media: Media, into: Path) -> None:
    source = media.encoded("a.mp3", "mp3").rename(media.folder / "holiday.png")
    decoded = await decode(source, into, LIMITS)
    assert media.likeness(decoded, media.sweep(8000)) >= 0.98


async def test_a_tone_keeps_its_pitch_and_its_level(media: Media, into: Path) -> None:
    decoded = await decode(media.wav(media.tone(44100, 1000)), into, LIMITS)
    assert media.likeness(decoded, media.tone(8000, 1000)) >= 0.98
    assert level(heard(decoded)) == pytest.approx(level(media.tone(44100, 1000)), abs=0.2)


@pytest.mark.parametrize("frequency", [4500, 5000, 6000, 7000, 12000])
async def test_nothing_above_the_band_folds_back(media: Media, into: Path, frequency: int) -> None:
    # Something that is heard follows, or the recording would be refused as silent.
    sound = np.concatenate((media.tone(44100, frequency), media.tone(44100, 1000, 0.5)))
    decoded = await decode(media.wav(sound), into, LIMITS)
    assert level(heard(decoded)[:15_000]) < -60


async def test_too_loud_is_clipped_and_does_not_wrap(media: Media, into: Path) -> None:
    square = np.sign(media.tone(44100, 500, height=1.0))
    decoded = await decode(media.wav(square, channels=2), into, LIMITS)
    # The filter overshoots at each edge, by 18 % of full scale; wrapped, that would be a spike.
    assert media.likeness(decoded, np.sign(media.tone(8000, 500, height=1.0))) > 0.9
    assert np.abs(heard(decoded)).max() > 0.98


async def test_a_file_cut_short_gives_what_there_is(media: Media, into: Path) -> None:
    whole = media.encoded("a.mp3", "mp3").read_bytes()
    source = media.folder / "cut.mp3"
    source.write_bytes(whole[: len(whole) // 2])
    decoded = await decode(source, into, LIMITS)
    assert 0.8 < decoded.duration < 1.1


async def test_a_damaged_spot_costs_no_more_than_itself(media: Media, into: Path) -> None:
    whole = bytearray(media.encoded("a.mp3", "mp3").read_bytes())
    whole[8000:8400] = bytes(400)
    source = media.folder / "scratched.mp3"
    source.write_bytes(whole)
    decoded = await decode(source, into, LIMITS)
    assert decoded.duration > 1.8


async def test_a_stream_that_changes_its_rate(media: Media, into: Path) -> None:
    first = media.encoded("a.ogg", "flac", rate=48000).read_bytes()
    second = media.encoded("b.ogg", "flac", rate=16000).read_bytes()
    source = media.folder / "chained.ogg"
    source.write_bytes(first + second)
    decoded = await decode(source, into, LIMITS)
    assert decoded.duration == pytest.approx(4.0, abs=0.15)


async def test_the_loop_goes_on_and_the_cores_are_shared(media: Media, into: Path) -> None:
    source = media.wav(media.sweep(44100, 60.0), channels=2)
    folders = [into / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    late = 0.0

    async def tick() -> None:
        nonlocal late
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late = max(late, time.perf_counter() - before - 0.005)

    ticker = asyncio.create_task(tick())
    results = await asyncio.gather(*(decode(source, folder, LIMITS) for folder in folders))
    ticker.cancel()
    assert [result.duration for result in results] == [60.0] * 4
    assert late < 0.25


async def test_longer_than_allowed(media: Media, into: Path) -> None:
    source = media.wav(rate=8000)
    assert (await decode(source, into, DecodeLimits(max_seconds=2.0))).samples == 16000
    with pytest.raises(PayloadTooLargeError, match=r"longer than 1\.99 s"):
        await decode(source, into, DecodeLimits(max_seconds=1.99))
    assert list(into.iterdir()) == []


async def test_an_hour_of_silence_in_a_small_file(media: Media, into: Path) -> None:
    source = media.encoded("silence.flac", "flac", samples=np.zeros(3600 * 8000), rate=8000)
    assert source.stat().st_size < MEBIBYTE
    before = time.perf_counter()
    with pytest.raises(PayloadTooLargeError, match="longer than 600 s"):
        await decode(source, into, DecodeLimits(memory_bytes=320 * MEBIBYTE))
    assert time.perf_counter() - before < 15
    assert list(into.iterdir()) == []


async def test_too_much_processor_time(media: Media, into: Path) -> None:
    minute = media.encoded("a.mp3", "mp3", rate=8000, seconds=60.0).read_bytes()
    source = media.folder / "hours.mp3"
    source.write_bytes(minute * 240)
    with pytest.raises(PayloadTooLargeError, match="1 s of processor time"):
        await decode(source, into, DecodeLimits(max_seconds=1e5, cpu_seconds=1))
    assert list(into.iterdir()) == []


async def test_too_much_time(media: Media, into: Path) -> None:
    source = media.wav()
    with pytest.raises(PayloadTooLargeError, match=r"longer than 0\.01 s to decode"):
        await decode(source, into, DecodeLimits(wall_seconds=0.01))
    assert list(into.iterdir()) == []


async def test_called_off(media: Media, into: Path) -> None:
    source = media.wav(media.sweep(44100, 300.0), channels=2)
    decoding = asyncio.create_task(decode(source, into, LIMITS))
    await until(lambda: any(path.stat().st_size for path in into.iterdir()))
    decoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await decoding
    assert list(into.iterdir()) == []
