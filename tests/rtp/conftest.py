from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def recording(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a raw G.711 file of so many random bytes."""

    def make(size: int) -> Path:
        path = tmp_path / f"{random.randrange(1 << 48):x}.g711"
        path.write_bytes(random.randbytes(size))
        return path

    return make
