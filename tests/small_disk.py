"""A small file system that can be filled, emptied and made read-only, for tests of full disks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int = 24) -> Iterator[Path]:
    """A file system of so many MB at `folder`. Needs root, which CI and containers are."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a small file system can't be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, how: str) -> None:
    """Make it read-only (`ro`), which no file open for writing may prevent, or writable (`rw`)."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True, capture_output=True)


def fill(disk: Path) -> None:
    """Leave not one byte free."""
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            block = bytes(size)
            try:
                while file.write(block):
                    pass
            except OSError:
                continue


def empty(disk: Path) -> None:
    """Give back what `fill` took."""
    (disk / "ballast").unlink()
