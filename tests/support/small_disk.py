"""A small file system that can be filled, emptied and made read-only, for tests of full disks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.prerequisites import need


@contextmanager
def small_disk(folder: Path, megabytes: int = 24) -> Iterator[Path]:
    """A file system of so many MB at `folder`. Needs root, as in CI and containers."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    need(made.returncode == 0, f"no small file system can be mounted: {made.stderr.strip()}")
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
