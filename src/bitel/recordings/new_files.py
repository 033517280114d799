"""The files that a worker writes: made by us, given to it as descriptors, removed if it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def new_file(opened: ExitStack, path: Path) -> int:
    """A descriptor of an empty file at `path`, closed with `opened`. A link there is not followed.

    Raises OSError.
    """
    descriptor = os.open(path, _FLAGS, 0o600)
    opened.callback(os.close, descriptor)
    return descriptor


@contextmanager
def removed_on_failure(*paths: Path) -> Iterator[None]:
    """Remove the files if the block raises."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
