"""Transcodes a media file of any format to 8 kHz mono G.711, in constant memory.

Runs in the decode worker only. The format is detected from the content, never from the name or the
declared type. Truncated and damaged files are accepted if at least half of their packets can be
decoded.

The file is read twice: first to compute the weight of each channel in the mix, then to mix,
resample and encode it in both laws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, BinaryIO, Final

import av

# PyAV would import these at the first such stream, when the sandbox forbids opening files.
import av.subtitles.codeccontext
import av.subtitles.stream
import av.video.codeccontext
import av.video.stream
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter.context import FilterContext
from av.filter.graph import Graph
from numpy.typing import NDArray

from bitel.g711 import SAMPLE_RATE, Pcm, alaw_encode, ulaw_encode
from bitel.recordings.limits import Verdict
from bitel.recordings.truncation import is_cut_short

FORMATS: Final = (
    *("wav", "w64", "aiff", "au", "caf", "voc", "nistsphere", "sox", "ircam"),
    *("mp3", "aac", "flac", "ogg", "mov", "matroska", "asf", "avi", "flv", "mpeg", "mpegts"),
    *("amr", "amrnb", "amrwb", "3gp", "gsm", "g722", "g729", "ac3", "eac3", "loas", "mp4"),
    *("wv", "ape", "tta", "tak", "mpc", "mpc8", "dts", "dtshd", "truehd", "dsf", "qcp", "webm"),
    *("aax", "ilbc", "oma", "rm", "wtv", "spdif", "s337m", "bit", "epaf", "iff", "shn", "dss"),
)
"""FFmpeg's demuxers that may be used: audio formats and common containers. The others, for
playlists, games and images, are badly maintained."""
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
"""FFmpeg's decoders that may be used, besides those of `CODEC_FAMILIES`."""
CODEC_FAMILIES: Final = ("pcm_", "adpcm_")

# Nested inputs (playlists, concat scripts, references) need a protocol; none is allowed.
OPTIONS: Final = {"protocol_whitelist": "none", "format_whitelist": ",".join(FORMATS)}

# Steep enough that nothing above 4 kHz is aliased below 3.4 kHz, and in floating point, so that a
# loud mix is clipped only at the end.
RESAMPLER: Final = {
    "sample_rate": str(SAMPLE_RATE),
    "filter_size": "64",
    "cutoff": "0.95",
    "internal_sample_fmt": "fltp",
}
TELEPHONE: Final = {
    "sample_fmts": "s16",
    "channel_layouts": "mono",
    "sample_rates": str(SAMPLE_RATE),
}

SILENT_CHANNEL: Final = 1e-3
"""Relative power (-30 dB) to the loudest channel below which a channel is silent."""
CANCELS: Final = 0.5
"""Power of the average, relative to uncorrelated channels, below which channels cancel out."""
_SUBWOOFER: Final = frozenset({"LFE", "LFE2"})
"""Channels of frequencies below the telephone band."""

SILENCE_DB: Final = -50.0
"""Level, in dB of full scale, below which the loudest 400 ms are silence."""
_STEP: Final = 400
"""Samples by which the window of 400 ms is moved."""
_STEPS: Final = 8

# PyAV before 19 raises for tags that are not UTF-8 without this argument, which 19 removed.
_METADATA: Final[dict[str, Any]] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)

Weights = Mapping[str, Sequence[float]]
"""Weights of the channels in the mix, by FFmpeg's name of the layout."""


def transcode(media: BinaryIO, alaw: BinaryIO, ulaw: BinaryIO, max_samples: int) -> Verdict:
    """Write `media`'s best audio stream as 8 kHz mono, one byte a sample, in both laws.

    Stops with `TOO_LONG` after `max_samples`. Raises MemoryError.
    """
    try:
        weights = _weights(media, max_samples)
        with _opened(media) as (container, stream):
            packets = _Packets(container, stream)
            loudness = LoudestWindow()
            written = 0
            for pcm in _resampled(packets.frames(), weights):
                written += len(pcm)
                if written > max_samples:
                    return Verdict.TOO_LONG
                loudness.add(pcm)
                alaw.write(alaw_encode(pcm).data)
                ulaw.write(ulaw_encode(pcm).data)
            if packets.damaged > packets.decoded:
                return Verdict.DAMAGED
            if not written:
                return Verdict.NO_SAMPLES
            if loudness.level_db() < SILENCE_DB:
                return Verdict.SILENT
            is_cut = is_cut_short(media, container, stream, written / SAMPLE_RATE)
            return Verdict.CUT_SHORT if is_cut else Verdict.DONE
    except _UnreadableError as error:
        return error.verdict


class _UnreadableError(Exception):
    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.name)
        self.verdict = verdict


@contextmanager
def _opened(media: BinaryIO) -> Iterator[tuple[InputContainer, AudioStream]]:
    """Open the container and its best audio stream; raises _UnreadableError."""
    media.seek(0)
    # Without a name, from whose extension FFmpeg would guess the format.
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
        codec = stream.codec_context.codec.name if stream.codec_context else ""
        if codec not in CODECS and not codec.startswith(CODEC_FAMILIES):
            raise _UnreadableError(Verdict.NO_DECODER)
        # More threads would need more memory, and cores of other uploads.
        stream.codec_context.thread_count = 1
        yield container, stream


class _Packets:
    """The frames of a stream, and the numbers of decoded and damaged packets."""

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


# The mix


def _weights(media: BinaryIO, max_samples: int) -> Weights:
    """Compute the weights for each layout in the file; empty for one channel."""
    products: dict[str, NDArray[np.float64]] = {}
    names: dict[str, list[str]] = {}
    with _opened(media) as (container, stream):
        if stream.codec_context.layout.nb_channels == 1:
            return {}
        left = max_samples / SAMPLE_RATE
        for frame in _Packets(container, stream).frames():
            layout = frame.layout
            names[layout.name] = [channel.name for channel in layout.channels]
            try:
                samples = _as_channels(frame)
                products[layout.name] = products.get(layout.name, 0) + samples @ samples.T
            except ValueError:
                continue  # an unknown format, which the resampler will accept or reject
            left -= frame.samples / max(frame.sample_rate, 1)
            if left < 0:
                break
    return {name: mix_weights(each, names[name]) for name, each in products.items()}


def _as_channels(frame: AudioFrame) -> NDArray[np.float64]:
    """The samples of a frame, of shape (channels, samples), in any scale."""
    samples: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    centre = 128 if samples.dtype == np.uint8 else 0
    return samples.astype(np.float64) - centre


def mix_weights(products: NDArray[np.float64], names: Sequence[str]) -> tuple[float, ...]:
    """Return the weight of each channel in the mix.

    Channels that are not silent are averaged, so that a voice is equally loud in two channels, in
    six, or in one of them. If they cancel out (inverted phase, as of a miswired microphone), only
    the loudest is used.

    Args:
        products: sums of products of the samples of each pair of channels, of shape (channels,
            channels); the diagonal has their powers.
        names: FFmpeg's names of the channels, such as `FL` and `LFE`.
    """
    powers = np.diag(products)
    count = len(powers)
    voices = [n for n in range(count) if n >= len(names) or names[n] not in _SUBWOOFER]
    loudest = max(voices or range(count), key=lambda n: powers[n])
    used = [n for n in voices if powers[n] > SILENT_CHANNEL * powers[loudest]] or [loudest]
    mean = float(powers[used].mean())
    mixed = float(products[np.ix_(used, used)].sum()) / len(used) ** 2
    if mixed < CANCELS * mean / len(used):
        used = [loudest]
    weight = 1 / len(used)
    if len(used) > 2 and mixed > 0:
        # Averaging uncorrelated channels loses power: half of it with two channels.
        weight *= math.sqrt(min(max(1.0, mean / 2 / mixed), len(used) / 2))
    return tuple(weight if n in used else 0.0 for n in range(count))


# Resampling


def _resampled(frames: Iterable[AudioFrame], weights: Weights) -> Iterator[Pcm]:
    """Yield non-empty blocks of 16-bit samples at 8000 Hz.

    Channels of a layout that is not in `weights` have equal weight. If the rate, format or layout
    changes (as in chained Ogg), the filter is flushed and replaced. Raises _UnreadableError if
    FFmpeg can't convert the frames.
    """
    graph: Graph | None = None
    shape: tuple[str, str, int] | None = None
    try:
        for frame in itertools.chain(frames, [None]):
            new_shape = None if frame is None else _shape(frame)
            if graph is not None and new_shape != shape:
                graph.push(None)
                yield from _pull(graph)
                graph = None
            if frame is None:
                return
            if graph is None:
                graph, shape = _graph_for(frame, weights), new_shape
            # Timestamps of damaged files jump, and only the order of the samples matters.
            frame.pts = None
            graph.push(frame)
            yield from _pull(graph)
    except MemoryError:
        raise
    except av.error.FFmpegError:
        # `_Packets` handles errors of the decoder, so this is one of the resampler.
        raise _UnreadableError(Verdict.NO_DECODER) from None


def _shape(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _graph_for(frame: AudioFrame, weights: Weights) -> Graph:
    graph = Graph()
    layout, sample_format = frame.layout.name, frame.format.name
    try:
        graph.link_nodes(
            graph.add_abuffer(sample_rate=frame.sample_rate, format=sample_format, layout=layout),
            *_mixdown(graph, frame, weights),
            graph.add("aresample", **RESAMPLER),
            graph.add("aformat", **TELEPHONE),
            graph.add("abuffersink"),
        ).configure()
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError):
        raise _UnreadableError(Verdict.NO_DECODER) from None
    return graph


def _mixdown(graph: Graph, frame: AudioFrame, weights: Weights) -> list[FilterContext]:
    channels = frame.layout.nb_channels
    if channels == 1:
        return []
    chosen = weights.get(frame.layout.name) or [1 / channels] * channels
    mix = "+".join(f"{weight:.6f}*c{n}" for n, weight in enumerate(chosen))
    # In floating point, so that a loud mix is not clipped.
    return [graph.add("aformat", sample_fmts="fltp"), graph.add("pan", f"mono|c0={mix}")]


def _pull(graph: Graph) -> Iterator[Pcm]:
    while True:
        try:
            frame: Any = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if frame.samples:
            yield np.ascontiguousarray(frame.to_ndarray().reshape(-1))


# Loudness


class LoudestWindow:
    """Measures the loudest 400 ms of a stream of 8 kHz samples."""

    def __init__(self) -> None:
        self._powers: list[float] = []
        self._left = np.zeros(0, np.int16)

    def add(self, pcm: Pcm) -> None:
        """Add the next samples."""
        samples = np.concatenate((self._left, pcm))
        whole = len(samples) // _STEP * _STEP
        steps = samples[:whole].astype(np.float64).reshape(-1, _STEP)
        self._powers += np.square(steps).sum(axis=1).tolist()
        self._left = samples[whole:]

    def level_db(self) -> float:
        """Its RMS level in dB of full scale; of all samples if they are fewer than 400 ms."""
        powers = [*self._powers, float(np.square(self._left.astype(np.float64)).sum())]
        loudest = float(np.convolve(powers, np.ones(_STEPS)).max())
        count = min(_STEPS * _STEP, len(self._powers) * _STEP + len(self._left))
        mean = loudest / max(count, 1) / 32768**2
        return 10 * math.log10(max(mean, 1e-12))
