"""What a telephone line makes of a greeting: tones, noise, level, clipping, G.711 and loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.greetings import Audio, Greeting, Spoken
from bitel.g711 import SAMPLE_RATE, alaw_encode, ulaw_encode

LISTENED = 9.0  # seconds of a human's call
AFTER_BEEP = 2.0  # seconds
PACKET = 160  # bytes

BEEPS = (400.0, 440.0, 500.0, 620.0, 850.0, 950.0, 1000.0, 1200.0, 1400.0, 1633.0, 2000.0)
SPECIAL_INFORMATION = (950.0, 1400.0, 1800.0)  # Hz, 330 ms each (ITU-T E.180)
NOISES = ("white", "pink", "babble", "street", "none")


@dataclass(frozen=True, slots=True)
class Call:
    """A call's first seconds. `packets` are G.711 of 20 ms, None if lost; times in seconds."""

    greeting: Greeting
    law: str
    packets: Sequence[bytes | None]
    speech_ended: float
    beep: tuple[float, float, float] | None
    """Its begin, end and frequency."""
    noise: str
    snr: float

    def without_loss(self) -> bytes:
        """All payloads, silence in place of lost ones."""
        silence = (b"\xd5" if self.law == "A" else b"\xff") * PACKET
        return b"".join(packet or silence for packet in self.packets)


def call(
    greeting: Greeting, speech: Mapping[Spoken, Audio], babble: Sequence[Audio], seed: int
) -> Call:
    """Make the call of a greeting."""
    chance = np.random.default_rng(seed)
    level = 10 ** (chance.uniform(-32, -12) / 20)
    parts: list[Audio] = [_silence(chance.uniform(0.1, 0.9))]
    if chance.random() < 0.2:
        ring = chance.choice([425.0, 440.0])
        tone = _tone(ring, chance.uniform(0.3, 1.0), 0.08)
        if ring == 440.0:
            tone = tone + _tone(480.0, len(tone) / SAMPLE_RATE, 0.08)
        parts[:0] = [tone, _silence(chance.uniform(0.05, 0.2))]
    if greeting.is_network:
        parts += [_tone(each, 0.33, level) for each in SPECIAL_INFORMATION]
        parts.append(_silence(chance.uniform(0.1, 0.6)))
    for number, each in enumerate(greeting.sentences):
        if number:
            parts.append(_silence(chance.uniform(0.2, 0.8)))
        voice = speech[each]
        parts.append(voice * (level / np.sqrt(np.mean(voice**2))))
    ended = sum(map(len, parts)) / SAMPLE_RATE
    beep = None
    if greeting.is_machine and not greeting.is_network and chance.random() < 0.85:
        parts.append(_silence(chance.uniform(0.15, 1.0)))
        began = sum(map(len, parts)) / SAMPLE_RATE
        hertz, length = float(chance.choice(BEEPS)), chance.uniform(0.16, 0.9)
        parts.append(_tone(hertz, length, level * chance.uniform(0.5, 1.2)))
        beep = (began, began + length, hertz)
        parts.append(_silence(AFTER_BEEP))
    else:
        parts.append(_silence(max(AFTER_BEEP, LISTENED - ended)))
    audio = np.concatenate(parts)
    noise = str(chance.choice(NOISES, p=[0.25, 0.2, 0.15, 0.2, 0.2]))
    snr = float(chance.uniform(10, 32))
    background = _noise(noise, len(audio), babble, chance)
    audio = audio + background * (level * 10 ** (-snr / 20))
    if chance.random() < 0.1:
        audio = audio * chance.uniform(2.0, 4.0)  # clipped below
    pcm = np.clip(audio * 32767, -32768, 32767).astype(np.int16)
    pcm = pcm[: len(pcm) // PACKET * PACKET]
    law = str(chance.choice(["A", "U"]))
    codes = (alaw_encode(pcm) if law == "A" else ulaw_encode(pcm)).tobytes()
    whole = [codes[at : at + PACKET] for at in range(0, len(codes), PACKET)]
    lost = _loss(len(whole), chance)
    packets = [None if lost[n] else packet for n, packet in enumerate(whole)]
    return Call(greeting, law, packets, ended, beep, noise, snr)


def _silence(seconds: float) -> Audio:
    return np.zeros(round(seconds * SAMPLE_RATE))


def _tone(hertz: float, seconds: float, level: float) -> Audio:
    """A sine of the level (root mean square), faded over 4 ms at both ends."""
    at = np.arange(round(seconds * SAMPLE_RATE))
    made: Audio = np.sin(2 * np.pi * hertz * at / SAMPLE_RATE) * level * np.sqrt(2)
    fade = np.minimum(1.0, np.minimum(at, at[::-1]) / 32)
    faded: Audio = made * fade
    return faded


def _noise(kind: str, length: int, babble: Sequence[Audio], chance: np.random.Generator) -> Audio:
    """Noise of root mean square 1; "none" is 30 dB softer."""
    if kind == "babble":
        made = np.zeros(length)
        for _ in range(6):
            voice = np.roll(
                np.resize(babble[int(chance.integers(len(babble)))], length),
                chance.integers(length),
            )
            made += voice / np.sqrt(np.mean(voice**2))
    else:
        spectrum = np.fft.rfft(chance.standard_normal(length))
        hertz = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 50.0)
        slope = {"pink": 0.5, "street": 0.9}.get(kind, 0.0)
        made = np.fft.irfft(spectrum / hertz**slope, length)
        if kind == "street":
            # Passing cars: the level rises and falls by several dB within seconds.
            at = np.arange(length) / SAMPLE_RATE
            waves = sum(
                np.sin(2 * np.pi * (rate * at + chance.random())) for rate in (0.17, 0.41, 0.83)
            )
            made = made * 10 ** (2.5 * waves / 20)
    made = made / np.sqrt(np.mean(made**2))
    scaled: Audio = made * (10**-1.5 if kind == "none" else 1.0)
    return scaled


def _loss(packets: int, chance: np.random.Generator) -> list[bool]:
    """Lost packets: none in half of the calls, else up to 6 %, in bursts (Gilbert's model)."""
    if chance.random() < 0.5:
        return [False] * packets
    rate, burst = chance.uniform(0.005, 0.06), chance.uniform(1.0, 4.0)
    lost, is_lost = [], False
    for _ in range(packets):
        is_lost = bool(chance.random() < (1 - 1 / burst if is_lost else rate / burst / (1 - rate)))
        lost.append(is_lost)
    return lost
