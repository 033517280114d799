"""Recordings of several channels: each becomes as loud as it was, and none cancels another."""

from __future__ import annotations

import math
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitel.errors import UnsupportedMediaError
from bitel.g711 import alaw_decode
from bitel.recordings.decode import Decoded, decode
from bitel.recordings.limits import DecodeLimits
from bitel.recordings.transcoding import mix_weights
from tests.recordings.audio_files import Media, Samples

RATE = 44_100
SURROUND = ["FL", "FR", "FC", "LFE", "BL", "BR"]


def write(folder: Path, *channels: Samples, name: str = "channels.wav") -> Path:
    """A WAV by the standard library; six channels of it are 5.1 to FFmpeg."""
    path = folder / name
    pcm = (np.stack(channels, axis=1).clip(-1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm.tobytes())
    return path


def flac(folder: Path, layout: str, *channels: Samples) -> Path:
    """A FLAC by FFmpeg, which keeps the layout."""
    path = folder / f"{layout}.flac"
    pcm = (np.stack(channels, axis=1) * 32767).astype(np.int16).reshape(1, -1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("flac", rate=RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
        frame.sample_rate = RATE
        fifo = av.AudioFifo()
        fifo.write(frame)
        for piece in fifo.read_many(4096, partial=True):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return path


def level(decoded: Decoded) -> float:
    """Of the middle second, in dB of full scale."""
    pcm = alaw_decode(np.fromfile(decoded.alaw, dtype=np.uint8))[4000:12_000].astype(np.float64)
    return 10 * math.log10(max(float(np.mean(np.square(pcm / 32768))), 1e-12))


async def level_of(path: Path, into: Path) -> float:
    return level(await decode(path, into, DecodeLimits()))


def voice() -> Samples:
    return Media.sweep(RATE)


def noise(seed: int, height: float = 0.2) -> Samples:
    return height * np.random.default_rng(seed).standard_normal(2 * RATE)


@pytest.mark.parametrize(
    "right",
    [
        lambda left: -left,
        lambda left: -0.95 * left,
        lambda left: -0.5 * left,
        lambda left: -left + noise(1, 0.005),
        lambda left: -np.roll(left, 1),
        lambda left: 0 * left,
        lambda left: left,
        lambda left: 0.95 * left,
    ],
    ids=["R=-L", "R=-0.95L", "R=-0.5L", "with noise", "late", "R silent", "R=L", "R=0.95L"],
)
async def test_a_voice_in_two_channels_is_as_loud_as_in_one(
    media: Media, into: Path, right: Callable[[Samples], Samples]
) -> None:
    left = voice()
    path = write(media.folder, left, right(left))
    decoded = await decode(path, into, DecodeLimits())
    expected = 10 * np.log10(np.mean(np.square(left)))
    assert level(decoded) == pytest.approx(expected, abs=1.0)
    # Nobody hears which way round the sound is.
    likeness = [media.likeness(decoded, sign * media.sweep(8000)) for sign in (1, -1)]
    assert max(likeness) > 0.98


SILENCE = np.zeros(2 * RATE)


@pytest.mark.parametrize(
    "active", [(0, 1), (2,), (0, 1, 2), (0, 1, 2, 3, 4, 5), (4, 5), (0,)], ids=str
)
async def test_a_voice_in_six_channels_is_as_loud_as_in_two(
    media: Media, into: Path, active: tuple[int, ...]
) -> None:
    left = voice()
    two = await level_of(write(media.folder, left, left), into)
    channels = [left if n in active else SILENCE for n in range(6)]
    for path in (write(media.folder, *channels), flac(media.folder, "5.1", *channels)):
        assert await level_of(path, into) == pytest.approx(two, abs=0.5)


async def test_unrelated_sound_in_six_channels_is_as_loud_as_in_two(
    media: Media, into: Path
) -> None:
    two = await level_of(write(media.folder, noise(1), noise(2)), into)
    six = await level_of(write(media.folder, *map(noise, range(6))), into)
    assert six == pytest.approx(two, abs=1.0)


async def test_the_low_channel_is_not_part_of_the_mix(media: Media, into: Path) -> None:
    left = voice()
    two = await level_of(write(media.folder, left, left), into)
    rumble = Media.tone(RATE, 40, height=0.9)
    mixed = flac(media.folder, "5.1", left, left, SILENCE, rumble, SILENCE, SILENCE)
    assert await level_of(mixed, into) == pytest.approx(two, abs=0.5)


def products(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    return channels @ channels.T


@given(
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.floats(0.05, 1.0),
)
def test_a_mix_has_about_the_power_of_its_channels(count: int, seed: int, related: float) -> None:
    chance = np.random.default_rng(seed)
    common = chance.standard_normal(4000)
    signs = chance.choice([-1, 1], (count, 1))
    own = chance.standard_normal((count, 4000))
    channels = np.where(chance.random() < 0.5, signs, 1) * related * common + (1 - related) * own
    weights = np.array(mix_weights(products(channels), ["FC"] * count))
    mixed = np.mean(np.square(weights @ channels))
    mean = np.mean(np.square(channels))
    assert 0.15 * mean < mixed < 1.6 * mean
    assert (weights >= 0).all()
    assert weights.sum() <= np.sqrt(count) + 1e-9


def test_silence_has_weights_too() -> None:
    assert sum(mix_weights(np.zeros((6, 6)), SURROUND)) == 1


@pytest.mark.parametrize(
    ("height", "burst_ms", "is_silent"),
    [
        (0.0, 0, True),
        (0.004, 0, True),  # -51 dB
        (0.005, 0, False),  # -49 dB
        (0.0, 400, False),
        (0.0, 3, True),  # a click
    ],
)
async def test_silence_is_refused(
    media: Media, into: Path, height: float, burst_ms: int, is_silent: bool
) -> None:
    sound = Media.tone(RATE, 1000, height=height)
    start = RATE // 2
    burst = Media.tone(RATE, 1000, seconds=burst_ms / 1000, height=0.03)
    sound[start : start + len(burst)] += burst
    path = write(media.folder, sound)
    if is_silent:
        with pytest.raises(UnsupportedMediaError, match="silent: its loudest 400 ms"):
            await decode(path, into, DecodeLimits())
        assert list(into.iterdir()) == []
    else:
        assert (await decode(path, into, DecodeLimits())).warning == ""


async def test_a_short_recording_is_judged_as_a_whole(media: Media, into: Path) -> None:
    quiet = write(media.folder, Media.tone(RATE, 1000, seconds=0.1, height=0.003))
    with pytest.raises(UnsupportedMediaError, match="silent"):
        await decode(quiet, into, DecodeLimits())
    loud = write(media.folder, Media.tone(RATE, 1000, seconds=0.1, height=0.1))
    assert (await decode(loud, into, DecodeLimits())).duration == pytest.approx(0.1, abs=0.01)
