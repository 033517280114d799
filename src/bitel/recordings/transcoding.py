"""One file of any kind to two streams of G.711, holding a moment of it in memory at a time.

Runs in the decode worker only. What counts is what the bytes say: the file's name and the type
that the client claimed are never looked at. A file that is cut short or has damaged spots gives
the audio that is left, as long as at least half of its packets can be decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, BinaryIO, Final

import av

# PyAV would load these at the first stream of their kind, when no file can be opened any more.
import av.subtitles.codeccontext
import av.subtitles.stream
import av.video.codeccontext
import av.video.stream
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from bitel.g711 import SAMPLE_RATE, Pcm, alaw_encode, ulaw_encode
from bitel.recordings.mixdown import ChannelPowers
from bitel.recordings.resampling import Resampler, UnusableShapeError, Weights
from bitel.recordings.truncation import is_cut_short
from bitel.recordings.verdict import Verdict

FORMATS: Final = (
    *("wav", "w64", "aiff", "au", "caf", "voc", "nistsphere", "sox", "ircam"),
    *("mp3", "aac", "flac", "ogg", "mov", "matroska", "asf", "avi", "flv", "mpeg", "mpegts"),
    *("amr", "amrnb", "amrwb", "3gp", "gsm", "g722", "g729", "ac3", "eac3", "loas", "mp4"),
    *("wv", "ape", "tta", "tak", "mpc", "mpc8", "dts", "dtshd", "truehd", "dsf", "qcp", "webm"),
    *("aax", "ilbc", "oma", "rm", "wtv", "spdif", "s337m", "bit", "epaf", "iff", "shn", "dss"),
)
"""Names of FFmpeg's demuxers that may read a file: those of audio and of common containers. The
others, for playlists, games and images, are much code that nobody looks after."""
CODECS: Final = frozenset(
    {
        *("mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float", "aac", "aac_fixed", "aac_latm"),
        *("flac", "alac", "vorbis", "opus", "libopus", "speex"),
        *("wmav1", "wmav2", "wmapro", "wmalossless", "wmavoice", "wavpack", "ape", "tta", "tak"),
        *("amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "gsm", "gsm_ms"),
        *("g723_1", "g728", "g729", "g722", "g726", "g726le", "ilbc"),
        *("ac3", "ac3_fixed", "eac3", "dca", "mlp", "truehd", "mpc7", "mpc8", "qcelp", "evrc"),
        *("dsd_lsbf", "dsd_msbf", "dsd_lsbf_planar", "dsd_msbf_planar", "nellymoser", "cook"),
        *("atrac1", "atrac3", "atrac3plus", "real_144", "real_288", "sipr", "truespeech"),
        *("mace3", "mace6", "qdm2", "mp3on4", "mp3on4float", "als", "s302m", "shorten", "dss_sp"),
    }
)
"""Names of FFmpeg's decoders that may run, beside those that begin as in `CODEC_FAMILIES`."""
CODEC_FAMILIES: Final = ("pcm_", "adpcm_")

# Nested inputs (playlists, concat scripts, references) go through a protocol; none is allowed.
OPTIONS: Final = {"protocol_whitelist": "none", "format_whitelist": ",".join(FORMATS)}

SILENCE_DB: Final = -50.0
"""Level, in dB of full scale, below which the loudest 400 ms are silence."""
_STEP: Final = 400
"""Samples by which the window of 400 ms moves."""
_STEPS: Final = 8

# Tags that are not UTF-8 must not make a recording unreadable. PyAV before 19 raises for them
# unless it gets this argument; from 19 on it never does, and the argument is gone.
_METADATA: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)


def transcode(media: BinaryIO, alaw: BinaryIO, ulaw: BinaryIO, max_samples: int) -> Verdict:
    """Write `media`'s best audio stream as 8 kHz mono, one byte a sample, in both laws.

    Stops with `TOO_LONG` as soon as `max_samples` is passed, whatever the header promised.
    Raises MemoryError where the address space does not suffice.
    """
    try:
        weights = _weights(media, max_samples)
        with _opened(media) as (container, stream):
            packets = _Packets(container, stream)
            loudness = LoudestWindow()
            try:
                written = _encode(packets, weights, loudness, alaw, ulaw, max_samples)
            except (UnusableShapeError, av.error.FFmpegError):
                # Damaged packets are counted, so what comes here is the resampler's refusal.
                return Verdict.NO_DECODER
            if written > max_samples:
                return Verdict.TOO_LONG
            if packets.damaged > packets.decoded:
                return Verdict.DAMAGED
            if not written:
                return Verdict.NO_SAMPLES
            if loudness.level_db() < SILENCE_DB:
                return Verdict.SILENT
            is_cut = is_cut_short(media, container, stream, written / SAMPLE_RATE)
            return Verdict.CUT_SHORT if is_cut else Verdict.DECODED
    except _UnreadableError as error:
        return error.verdict


class _UnreadableError(Exception):
    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.name)
        self.verdict = verdict


@contextmanager
def _opened(media: BinaryIO) -> Iterator[tuple[InputContainer, AudioStream]]:
    """The container and its best audio stream; raises _UnreadableError where there is none."""
    media.seek(0)
    # Only the three methods are handed on: a name would tell FFmpeg what to take the file for.
    nameless = SimpleNamespace(read=media.read, seek=media.seek, tell=media.tell)
    try:
        container = av.open(nameless, "r", options=OPTIONS, **_METADATA)
    except MemoryError:
        raise
    except av.error.FFmpegError:
        raise _UnreadableError(Verdict.NOT_MEDIA) from None
    with container:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream):
            raise _UnreadableError(Verdict.NO_AUDIO_STREAM)
        if stream.codec_context is None or not _is_used(stream.codec_context.codec.name):
            raise _UnreadableError(Verdict.NO_DECODER)
        # One thread: more would map more memory and take the cores of other uploads.
        stream.codec_context.thread_count = 1
        yield container, stream


def _is_used(codec: str) -> bool:
    return codec in CODECS or codec.startswith(CODEC_FAMILIES)


def _weights(media: BinaryIO, max_samples: int) -> Weights:
    """How the channels of each layout in the file are mixed; a file of one channel is not read."""
    powers: dict[str, tuple[ChannelPowers, Sequence[str]]] = {}
    with _opened(media) as (container, stream):
        if stream.codec_context.layout.nb_channels == 1:
            return {}
        left = max_samples / SAMPLE_RATE
        for frame in _Packets(container, stream).frames():
            layout = frame.layout
            if layout.name not in powers:
                names = [channel.name for channel in layout.channels]
                powers[layout.name] = (ChannelPowers(layout.nb_channels), names)
            try:
                powers[layout.name][0].add(_as_channels(frame))
            except ValueError:
                continue  # of a format that the resampler is to judge
            left -= frame.samples / max(frame.sample_rate, 1)
            if left < 0:
                break
    return {name: counted.weights(names) for name, (counted, names) in powers.items()}


def _as_channels(frame: AudioFrame) -> NDArray[np.float32]:
    """The samples of a frame, of shape (channels, samples); their scale does not matter."""
    samples: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    centre = 128 if samples.dtype == np.uint8 else 0
    return samples.astype(np.float32) - centre


class LoudestWindow:
    """The root mean square of the loudest 400 ms of a stream of 8 kHz samples."""

    def __init__(self) -> None:
        self._powers: list[float] = []
        self._left = np.zeros(0, np.int16)
        self._samples = 0
        self._total = 0.0

    def add(self, pcm: Pcm) -> None:
        """Add the next samples."""
        samples = np.concatenate((self._left, pcm))
        whole = len(samples) // _STEP * _STEP
        steps = samples[:whole].astype(np.float64).reshape(-1, _STEP)
        self._powers += np.square(steps).sum(axis=1).tolist()
        self._left = samples[whole:]

    def level_db(self) -> float:
        """Its level in dB of full scale; of all samples where they are fewer than that."""
        powers = [*self._powers, float(np.square(self._left.astype(np.float64)).sum())]
        sums = np.convolve(powers, np.ones(_STEPS)) if powers else np.zeros(1)
        count = min(_STEPS * _STEP, len(self._powers) * _STEP + len(self._left))
        mean = float(sums.max()) / max(count, 1) / 32768**2
        return 10 * math.log10(max(mean, 1e-12))


class _Packets:
    """The frames of a stream, and how many packets gave some and how many were damaged."""

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        self._container = container
        self._stream = stream
        self.decoded = 0
        self.damaged = 0

    def frames(self) -> Iterator[AudioFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except MemoryError:
                raise
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            self.decoded += bool(frames)
            yield from frames


def _encode(
    packets: _Packets,
    weights: Weights,
    loudness: LoudestWindow,
    alaw: BinaryIO,
    ulaw: BinaryIO,
    max_samples: int,
) -> int:
    """Return the samples written, or `max_samples` + 1 once they would be more than that."""
    resampler = Resampler(weights)
    written = 0
    for frame in _and_the_end(packets.frames()):
        for pcm in resampler.feed(frame):
            written += len(pcm)
            if written > max_samples:
                return max_samples + 1
            loudness.add(pcm)
            alaw.write(alaw_encode(pcm).data)
            ulaw.write(ulaw_encode(pcm).data)
    return written


def _and_the_end(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame | None]:
    yield from frames
    yield None
