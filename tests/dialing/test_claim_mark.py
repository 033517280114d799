"""The mark of the newest claim, in a file, and what a dispatcher makes of it."""

from __future__ import annotations

import os
from pathlib import Path

from bitel.dialing.lease_keeper import ClaimMark

OLD, NEW = "0" * 31 + "1", "0" * 31 + "2"


def test_the_newest_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    mark = ClaimMark(path)
    assert mark.read() == ""
    mark.note(NEW)
    mark.note(OLD)
    mark.sync()
    assert ClaimMark(path).read() == NEW
    assert path.stat().st_mode & 0o777 == 0o600
    mark.close()
    mark.close()


def test_what_is_no_mark_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    for content in (b"", b"\0" * 40, b"nonsense", b"0" * 31):
        path.write_bytes(content)
        assert ClaimMark(path).read() == ""
    path.unlink()
    path.mkdir()
    assert ClaimMark(path).read() == ""


def test_a_disk_that_can_not_be_written_stops_nothing(tmp_path: Path) -> None:
    mark = ClaimMark(tmp_path / "away" / "mark")
    mark.note(NEW)
    mark.sync()
    mark.close()
    assert os.listdir(tmp_path) == []
