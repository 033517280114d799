"""Real audio files of many kinds, made with FFmpeg's own encoders."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from bitel.g711 import alaw_decode, ulaw_decode
from bitel.recordings.audio_match import match
from bitel.recordings.decode import Decoded

Samples = NDArray[np.float64]


class Media:
    """Makes files in a folder of the test's own; all hold a chirp unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def sweep(rate: int, seconds: float = 2.0) -> Samples:
        """A chirp from 300 to 3000 Hz, half of full scale."""
        time = np.arange(int(rate * seconds)) / rate
        return 0.5 * np.sin(2 * np.pi * (300 * time + (3000 - 300) / (2 * seconds) * time**2))

    @staticmethod
    def tone(rate: int, frequency: float, seconds: float = 2.0, height: float = 0.5) -> Samples:
        """A sine of `frequency` Hz."""
        return height * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)

    @staticmethod
    def likeness(decoded: Decoded, expected: Samples) -> float:
        """The lower correlation of the two laws with what they should be, both at 8 kHz."""
        pcm = (expected * 32767).astype(np.int16)
        alaw = alaw_decode(np.fromfile(decoded.alaw, dtype=np.uint8))
        ulaw = ulaw_decode(np.fromfile(decoded.ulaw, dtype=np.uint8))
        return min(match(pcm, alaw).correlation, match(pcm, ulaw).correlation)

    def wav(
        self,
        samples: Samples | None = None,
        rate: int = 44100,
        channels: int = 1,
        width: int = 2,
        name: str = "recording.wav",
    ) -> Path:
        """A WAV of 8 or 16 bits by the standard library, so not by our own hand."""
        samples = self.sweep(rate) if samples is None else samples
        pcm = np.repeat((samples * {1: 127, 2: 32767}[width])[:, np.newaxis], channels, axis=1)
        raw = (pcm + 128).astype(np.uint8) if width == 1 else pcm.astype("<i2")
        path = self.folder / name
        with wave.open(str(path), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(width)
            file.setframerate(rate)
            file.writeframes(raw.tobytes())
        return path

    def encoded(
        self,
        name: str,
        codec: str | None,
        rate: int = 48000,
        seconds: float = 2.0,
        video: bool = False,
        subtitles: bool = False,
        samples: Samples | None = None,
    ) -> Path:
        """A file by FFmpeg's encoders; with moving pictures and without sound, if so asked."""
        path = self.folder / name
        samples = self.sweep(rate, seconds) if samples is None else samples
        with av.open(str(path), "w") as output:
            pictures = output.add_stream("mpeg4", rate=10) if video else None
            words = output.add_mux_stream("subrip") if subtitles else None
            sound = output.add_stream(codec, rate=rate, layout="mono") if codec else None
            if pictures is not None:
                self._draw(output, pictures, int(seconds * 10))
            if words is not None:
                line = av.Packet(b"a word")
                line.stream, line.pts, line.dts, line.duration = words, 0, 0, 1000
                output.mux(line)
            if sound is not None:
                self._sing(output, sound, samples, rate)
        return path

    @staticmethod
    def _draw(output: Any, pictures: Any, frames: int) -> None:
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        for number in range(frames):
            image = np.full((64, 64, 3), number * 5, dtype=np.uint8)
            output.mux(pictures.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(pictures.encode(None))

    @staticmethod
    def _sing(output: Any, sound: Any, samples: Samples, rate: int) -> None:
        pcm = (samples * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = rate
        # Encoders tell players by the time stamps what to skip at the start.
        frame.pts, frame.time_base = 0, Fraction(1, rate)
        fifo = av.AudioFifo()
        fifo.write(frame)
        for piece in fifo.read_many(sound.codec_context.frame_size or 1024, partial=True):
            output.mux(sound.encode(piece))
        output.mux(sound.encode(None))
