"""G.711: conversion between 16-bit linear PCM and A-law or µ-law, by tables; bit-exact.

Linear samples are signed 16-bit, with the 13 bits (A-law) and 14 bits (µ-law) of the companding
laws left-justified, as in the ITU-T Software Tool Library (G.191). The magnitude of a negative
sample is its one's complement, so that both signs have the same decision values. Even bits of A-law
codes and all bits of µ-law codes are inverted, as in transmission.

Codes are one byte per sample at 8000 samples per second, so 160 bytes are 20 ms.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]
"""Linear samples, -32768 to 32767."""

Codes = NDArray[np.uint8]
"""Companded samples, one byte each."""

SAMPLE_RATE: Final = 8000
"""Samples per second; one byte each."""

ALAW_SILENCE: Final = 0xD5
"""The A-law code of a zero sample."""

ULAW_SILENCE: Final = 0xFF
"""The µ-law code of a zero sample."""

_ALAW_EVEN_BITS: Final = 0x55
_ULAW_BIAS: Final = 33
_ULAW_CLIP: Final = 0x1FFF


def _segment(magnitude: NDArray[np.int32], first: int) -> NDArray[np.int32]:
    """Count the doublings of `first` that `magnitude` has reached, 0 to 7."""
    edges = first << np.arange(7)
    return np.searchsorted(edges, magnitude, side="right").astype(np.int32)


def _build_alaw_encoder() -> Codes:
    linear = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)
    magnitude = np.where(linear < 0, ~linear, linear) >> 4
    segment = _segment(magnitude, 16)
    # The two lowest segments share a step, so the second is not shifted.
    step = np.maximum(segment - 1, 0)
    codes = (segment << 4) | ((magnitude >> step) & 0x0F)
    codes |= np.where(linear < 0, 0, 0x80)
    line: Codes = (codes ^ _ALAW_EVEN_BITS).astype(np.uint8)
    return line


def _build_ulaw_encoder() -> Codes:
    linear = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)
    magnitude = (np.where(linear < 0, ~linear, linear) >> 2) + _ULAW_BIAS
    magnitude = np.minimum(magnitude, _ULAW_CLIP)
    segment = _segment(magnitude, 64)
    codes = (segment << 4) | ((magnitude >> (segment + 1)) & 0x0F)
    codes |= np.where(linear < 0, 0x80, 0)
    line: Codes = (codes ^ 0xFF).astype(np.uint8)
    return line


def _build_alaw_decoder() -> Pcm:
    codes = np.arange(256, dtype=np.int32) ^ _ALAW_EVEN_BITS
    segment = (codes >> 4) & 0x07
    mantissa = (codes & 0x0F) + np.where(segment > 0, 16, 0)
    magnitude = ((mantissa << 4) + 8) << np.maximum(segment - 1, 0)
    linear: Pcm = np.where(codes & 0x80, magnitude, -magnitude).astype(np.int16)
    return linear


def _build_ulaw_decoder() -> Pcm:
    codes = np.arange(256, dtype=np.int32) ^ 0xFF
    segment = (codes >> 4) & 0x07
    mantissa = ((codes & 0x0F) << 1) + _ULAW_BIAS
    magnitude = ((mantissa << segment) - _ULAW_BIAS) << 2
    linear: Pcm = np.where(codes & 0x80, -magnitude, magnitude).astype(np.int16)
    return linear


_ALAW_ENCODER: Final = _build_alaw_encoder()
_ULAW_ENCODER: Final = _build_ulaw_encoder()
_ALAW_DECODER: Final = _build_alaw_decoder()
_ULAW_DECODER: Final = _build_ulaw_decoder()


def alaw_encode(pcm: Pcm) -> Codes:
    """Compress linear samples to A-law codes (RFC 3551 PCMA)."""
    return _ALAW_ENCODER[pcm.view(np.uint16)]


def ulaw_encode(pcm: Pcm) -> Codes:
    """Compress linear samples to µ-law codes (RFC 3551 PCMU)."""
    return _ULAW_ENCODER[pcm.view(np.uint16)]


def alaw_decode(codes: Codes) -> Pcm:
    """Expand A-law codes to linear samples, -32256 to 32256."""
    return _ALAW_DECODER[codes]


def ulaw_decode(codes: Codes) -> Pcm:
    """Expand µ-law codes to linear samples, -32124 to 32124."""
    return _ULAW_DECODER[codes]
