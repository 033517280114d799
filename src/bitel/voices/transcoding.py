"""One file of any kind to two streams of G.711, holding a moment of it in memory at a time.

Runs in the decode worker only. What counts is what the bytes say: the file's name and the type
that the client claimed are never looked at. A file that is cut short or has damaged spots gives
the audio that is left, as long as at least half of its packets can be decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, BinaryIO, Final

import av

# PyAV would load these at the first stream of their kind, when no file can be opened any more.
import av.subtitles.codeccontext
import av.subtitles.stream
import av.video.codeccontext
import av.video.stream
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from bitel.g711 import alaw_encode, ulaw_encode
from bitel.voices.resampling import Resampler, UnusableShapeError
from bitel.voices.verdict import Verdict

# Nested inputs (playlists, concat scripts, references) go through a protocol; none is allowed.
OPTIONS: Final = {"protocol_whitelist": "none"}

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
    # Only the three methods are handed on: a name would tell FFmpeg what to take the file for.
    nameless = SimpleNamespace(read=media.read, seek=media.seek, tell=media.tell)
    try:
        container = av.open(nameless, "r", options=OPTIONS, **_METADATA)
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return Verdict.NOT_MEDIA
    with container:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream):
            return Verdict.NO_AUDIO_STREAM
        if stream.codec_context is None:
            return Verdict.NO_DECODER
        # One thread: more would map more memory and take the cores of other uploads.
        stream.codec_context.thread_count = 1
        packets = _Packets(container, stream)
        try:
            written = _encode(packets, alaw, ulaw, max_samples)
        except MemoryError:
            raise
        except (UnusableShapeError, av.error.FFmpegError):
            # Damaged packets are counted, so what comes here is the resampler's refusal.
            return Verdict.NO_DECODER
    if written > max_samples:
        return Verdict.TOO_LONG
    if packets.damaged > packets.decoded:
        return Verdict.DAMAGED
    return Verdict.DECODED if written else Verdict.NO_SAMPLES


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


def _encode(packets: _Packets, alaw: BinaryIO, ulaw: BinaryIO, max_samples: int) -> int:
    """Return the samples written, or `max_samples` + 1 once they would be more than that."""
    resampler = Resampler()
    written = 0
    for frame in _and_the_end(packets.frames()):
        for pcm in resampler.feed(frame):
            written += len(pcm)
            if written > max_samples:
                return max_samples + 1
            alaw.write(alaw_encode(pcm).data)
            ulaw.write(ulaw_encode(pcm).data)
    return written


def _and_the_end(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame | None]:
    yield from frames
    yield None
