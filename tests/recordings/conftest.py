"""Real audio files, and a folder to decode them into."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recordings.audio_files import Media


@pytest.fixture
def media(tmp_path: Path) -> Media:
    """A maker of files, in a folder beside the one that the test decodes into."""
    folder = tmp_path / "media"
    folder.mkdir()
    return Media(folder)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty folder to decode into."""
    folder = tmp_path / "decoded"
    folder.mkdir()
    return folder
