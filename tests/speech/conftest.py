"""The folder that texts are rendered into."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty folder to render into."""
    folder = tmp_path / "rendered"
    folder.mkdir()
    return folder
