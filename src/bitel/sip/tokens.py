"""Random digits for what must never be guessed or met twice: tags, branches, Call-IDs, cnonces."""

from __future__ import annotations

import random

_POOL = 4096
"""Bytes drawn at a time: a system call for each token costs more than all else about it."""


class Tokens:
    """Hands out hexadecimal digits of `rng`, each digit once."""

    __slots__ = ("_at", "_digits", "_rng")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._digits = ""
        self._at = 0

    def take(self, digits: int) -> str:
        """So many random hexadecimal digits, of 4 bits each; at most 2 * 4096."""
        start, end = self._at, self._at + digits
        if end > len(self._digits):
            self._digits = self._rng.randbytes(_POOL).hex()
            start, end = 0, digits
        self._at = end
        return self._digits[start:end]
