"""Detects truncated media files by the length in their header, index or last page.

Placeholders in headers (0 or the largest number), as written to a pipe, are ignored, and so are
durations that FFmpeg estimates from the bit rate.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from av.audio.stream import AudioStream
from av.container import InputContainer

TOLERANCE_SECONDS: Final = 0.25
"""A file that lacks less than this, or less than 1 %, is complete."""

_DECLARING: Final = frozenset(("flac", "aiff", "mov", "mp4", "m4a", "matroska", "webm", "asf"))
"""FFmpeg's names of formats that declare their length."""
_PLACEHOLDER: Final = 0x7FFF_0000
"""Sizes from here on are placeholders: 0xFFFFFFFF of FFmpeg, about 0x7FFFFFFF of SoX."""
_TAIL: Final = 65_536 + 282
"""Size of the largest Ogg page in bytes."""
_MOST_CHUNKS: Final = 1000


def is_cut_short(
    media: BinaryIO, container: InputContainer, stream: AudioStream, seconds: float
) -> bool:
    """Whether `media`, of which `seconds` of audio were decoded, is truncated."""
    names = set(container.format.name.split(","))
    if "wav" in names:
        return _wav_lacks_bytes(media)
    if "ogg" in names:
        return _ogg_lacks_its_end(media)
    declared: float | None = None
    if "mp3" in names:
        declared = _declared_by_mp3(media, stream.sample_rate or 0)
    elif names & _DECLARING:
        if stream.duration is not None and stream.time_base is not None:
            declared = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            declared = container.duration / 1_000_000
    return declared is not None and _lacks(declared, seconds)


def _lacks(declared: float, seconds: float) -> bool:
    return declared - seconds > max(TOLERANCE_SECONDS, declared / 100)


def _size(media: BinaryIO) -> int:
    return media.seek(0, 2)


def _wav_lacks_bytes(media: BinaryIO) -> bool:
    """Whether the chunk `data` is longer than the file."""
    total = _size(media)
    at, rate = 12, 0
    for _ in range(_MOST_CHUNKS):
        media.seek(at)
        head = media.read(24)
        if len(head) < 8:
            return False
        name, size = struct.unpack("<4sI", head[:8])
        if name == b"data":
            has = total - at - 8
            is_placeholder = size == 0 or size >= _PLACEHOLDER
            return not is_placeholder and size - has > TOLERANCE_SECONDS * max(rate, 1)
        if name == b"fmt " and len(head) >= 20:
            (rate,) = struct.unpack("<I", head[16:20])
        at += 8 + size + size % 2
    return False


def _ogg_lacks_its_end(media: BinaryIO) -> bool:
    """Whether the last page is incomplete, or not marked as the end of a stream (RFC 3533 §6)."""
    total = _size(media)
    start = max(0, total - _TAIL)
    media.seek(start)
    tail = media.read()
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return True
    segments = tail[at + 26]
    table = tail[at + 27 : at + 27 + segments]
    is_whole = len(table) == segments and len(tail) >= at + 27 + segments + sum(table)
    return not is_whole or not tail[at + 5] & 4


def _declared_by_mp3(media: BinaryIO, rate: int) -> float | None:
    """The duration in seconds by the Xing or Info header of an MP3 file, if it has one."""
    media.seek(0)
    head = media.read(10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:
        # The size of an ID3v2 tag has 7 bits per byte.
        shifts = zip(head[6:], (21, 14, 7, 0), strict=True)
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in shifts)
    media.seek(start)
    first = media.read(4096)
    at = max(first.find(b"Xing"), first.find(b"Info"))
    if at < 0 or len(first) < at + 12 or not rate:
        return None
    flags, frames = struct.unpack(">II", first[at + 4 : at + 12])
    if not flags & 1 or not 0 < frames < 2**31:
        return None
    # A frame has 1152 samples in MPEG-1 (32 kHz and more), and half in MPEG-2 and 2.5.
    return float(frames * (1152 if rate >= 32_000 else 576)) / rate
