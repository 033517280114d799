"""Any audio frames to 8 kHz mono: the narrow band that a telephone carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.filter.context import FilterContext
from av.filter.graph import Graph

from bitel.g711 import SAMPLE_RATE, Pcm

# Steep enough that what lies above 4 kHz is gone before it could fold back below 3.4 kHz, and
# in floating point, so that a loud mix is clipped once, at the end, and never wraps.
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


class UnusableShapeError(Exception):
    """Frames of a rate, a sample format or a number of channels that FFmpeg can't convert."""


Weights = Mapping[str, Sequence[float]]
"""The weight of each channel in the mix, by the name of the layout."""


class Resampler:
    """Frames in, blocks of 16-bit samples at 8000 Hz out; feed None last to get the tail.

    `weights` says how channels are mixed; those of a layout that is not in it count the same.

    A stream may change its rate, format or channels on the way (chained Ogg does): then the
    tail of the old shape comes out and a new filter begins.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self._weights = weights or {}
        self._graph: Graph | None = None
        self._shape: tuple[str, str, int] | None = None

    def feed(self, frame: AudioFrame | None) -> Iterator[Pcm]:
        """Yield what is ready now; a block holds at least one sample.

        Raises UnusableShapeError.
        """
        if frame is None:
            yield from self._finish()
            return
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:
            yield from self._finish()
            self._graph, self._shape = _graph_for(frame, self._weights), shape
        assert self._graph is not None
        # Time stamps of damaged or cut files jump; only the order of the samples counts here.
        frame.pts = None
        self._graph.push(frame)
        yield from _pull(self._graph)

    def _finish(self) -> Iterator[Pcm]:
        if self._graph is not None:
            self._graph.push(None)
            yield from _pull(self._graph)
        self._graph, self._shape = None, None


def _graph_for(frame: AudioFrame, weights: Weights) -> Graph:
    graph = Graph()
    try:
        graph.link_nodes(
            graph.add_abuffer(
                sample_rate=frame.sample_rate,
                format=frame.format.name,
                layout=frame.layout.name,
            ),
            *_mixdown(graph, frame, weights),
            graph.add("aresample", **RESAMPLER),
            graph.add("aformat", **TELEPHONE),
            graph.add("abuffersink"),
        ).configure()
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise UnusableShapeError(frame.layout.name) from error
    return graph


def _mixdown(graph: Graph, frame: AudioFrame, weights: Weights) -> list[FilterContext]:
    channels = frame.layout.nb_channels
    if channels == 1:
        return []
    chosen = weights.get(frame.layout.name) or [1 / channels] * channels
    mix = "+".join(f"{weight:.6f}*c{n}" for n, weight in enumerate(chosen))
    # In floating point, where a mix that is too loud is not clipped.
    return [graph.add("aformat", sample_fmts="fltp"), graph.add("pan", f"mono|c0={mix}")]


def _pull(graph: Graph) -> Iterator[Pcm]:
    while True:
        try:
            frame: Any = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if frame.samples:
            yield np.ascontiguousarray(frame.to_ndarray().reshape(-1))
