"""Synthetic audio for tests of the detection: words, tones and noise, as 20 ms of A-law each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bitel.answering_machine import Detector, DetectorSettings, FrameWindow, measure
from bitel.g711 import SAMPLE_RATE, Pcm, alaw_encode

FRAME = 160
Payload = bytes | None


def silence(seconds: float) -> list[Payload]:
    """Digital silence."""
    return [b"\xd5" * FRAME] * round(seconds / 0.02)


def lost(seconds: float) -> list[Payload]:
    """Packets that did not arrive."""
    return [None] * round(seconds / 0.02)


def noise(seconds: float, level: float, seed: int = 1) -> list[Payload]:
    """White noise of a level in dBov."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))
    return packets(samples * 10 ** (level / 20))


def word(seconds: float, level: float = -20.0, seed: int = 1) -> list[Payload]:
    """A buzz of changing pitch and many harmonics, as a voice makes."""
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(120 + 25 * np.sin(2 * np.pi * (3 * at + seed / 7))) / SAMPLE_RATE
    made = sum(np.sin(n * phase) / n for n in range(2, 20))
    made = np.asarray(made)
    return packets(made / np.sqrt(np.mean(made**2)) * 10 ** (level / 20))


def sentence(words: int) -> list[Payload]:
    """Words with short pauses, as in a greeting."""
    spoken: list[Payload] = []
    for number in range(words):
        spoken += word(0.32, seed=number) + silence(0.12)
    return spoken


def tone(seconds: float, *hertz: float, level: float = -20.0) -> list[Payload]:
    """Steady sines, each of that level."""
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    made = np.zeros(len(at))
    for each in hertz:
        made += np.sin(2 * np.pi * each * at) * 10 ** (level / 20) * np.sqrt(2)
    return packets(made)


def packets(samples: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[Payload]:
    """Samples from -1 to 1 as packets."""
    pcm: Pcm = np.clip(samples * 32767, -32768, 32767).astype(np.int16)
    codes = alaw_encode(pcm).tobytes()
    return [codes[at : at + FRAME] for at in range(0, len(codes) // FRAME * FRAME, FRAME)]


def detector_after(
    payloads: Iterable[Payload], settings: DetectorSettings | None = None
) -> Detector:
    """A detector that has taken all of them."""
    window, detector = FrameWindow("A"), Detector(settings)
    for payload in payloads:
        if payload is None:
            window.lose()
            detector.push(None)
        else:
            for frame in measure(window.push(payload)):
                detector.push(frame)
    return detector
