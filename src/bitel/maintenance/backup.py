"""Backups: a consistent copy of database and recordings of a running service.

The copy of the database contains a pause, so a service that is started with it dials nothing until
the operator resumes it. Otherwise calls that were open at the time of the backup would be repeated.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import URL

from bitel.api.signing_keys import KEY_FILE
from bitel.errors import BitelError, ConflictError
from bitel.recordings.files import sync
from bitel.store import engines

VOICES: Final = "voices"
DATABASE: Final = "bitel.db"
DUMP: Final = "bitel.sql"

_BUSY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished backup."""

    folder: Path
    database: Path
    recordings: int
    """Number of files, two per recording; 0 if recordings are in an object store."""
    bytes: int


def make_backup(
    folder: Path, data_dir: Path, database: URL, *, local_recordings: bool, now: float
) -> Backup:
    """Copy a service, running or not, into `folder`, which must be new or empty.

    `now` is the Unix time of the pause. Files are readable by their owner only. The copy is made in
    `folder` + `.part`, and renamed when it is complete. Raises BitelError.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(f"{folder} is there already; name a folder that is new or empty")
    part = folder.with_name(f"{folder.name}.part")
    before = os.umask(0o077)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700, parents=True)
        voices = data_dir / VOICES
        # Copied before and after the database, so that recordings that are deleted or added
        # meanwhile are included.
        if local_recordings:
            _copy_recordings(voices, part / VOICES)
        date = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S")
        reason = f"restored from the backup of {date} UTC"
        if engines.is_sqlite(database):
            copy = part / DATABASE
            _copy_sqlite(Path(str(database.database)), copy, reason, now)
        else:
            copy = part / DUMP
            _dump_postgresql(database, copy, reason, now)
        if local_recordings:
            _copy_recordings(voices, part / VOICES)
        # Of an earlier version; since then the keys are in the database.
        key = data_dir / KEY_FILE
        if key.exists():
            _copy(key, part / KEY_FILE)
        files = [path for path in part.rglob("*") if path.is_file()]
        sync(*files, part)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
        sync(folder.parent)
    except OSError as fault:
        raise BitelError(f"the backup could not be made: {fault}") from fault
    finally:
        os.umask(before)
    return Backup(
        folder,
        folder / copy.name,
        sum(path.parent.name == VOICES for path in files),
        sum((folder / path.relative_to(part)).stat().st_size for path in files),
    )


def _copy_recordings(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700, exist_ok=True)
    for path in source.iterdir() if source.is_dir() else ():
        # Names that begin with a dot are incomplete files.
        if path.is_file() and path.name[0] != "." and not (target / path.name).exists():
            with suppress(FileNotFoundError):  # deleted meanwhile
                _copy(path, target / path.name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file that no longer changes; an incomplete copy has another name."""
    incomplete = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, incomplete)
    incomplete.rename(target)


def _copy_sqlite(source: Path, target: Path, reason: str, now: float) -> None:
    """Copy a snapshot of the database, while others may write it, and add the pause."""
    address = f"file:{quote(str(source))}?mode=ro"
    try:
        with (
            closing(sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS)) as running,
            closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            # One read transaction gives a snapshot.
            running.execute("BEGIN")
            running.execute("SELECT count(*) FROM sqlite_master").fetchone()
            running.backup(copy, pages=-1)
            running.execute("ROLLBACK")
            copy.execute(
                "INSERT OR REPLACE INTO pause (scope, target, reason, at, is_restored)"
                " VALUES ('service', '', ?, ?, 1)",
                (reason, now),
            )
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a WAL
            (fault,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise BitelError(f"the database {source} could not be copied: {error}") from error
    if fault != "ok":
        raise BitelError(f"the copy of the database {source} is damaged: {fault}")


def _dump_postgresql(database: URL, target: Path, reason: str, now: float) -> None:
    """Run pg_dump, and add the pause to its SQL."""
    program = shutil.which("pg_dump")
    if program is None:
        raise BitelError(
            "pg_dump is missing, which copies PostgreSQL; install PostgreSQL's client "
            "(Debian, Ubuntu: apt-get install postgresql-client)"
        )
    url = database.set(drivername="postgresql")
    # Not as an argument, since other users can see those.
    environment = {**os.environ, "PGPASSWORD": url.password or os.environ.get("PGPASSWORD", "")}
    place = (url.username, None, url.host, url.port, url.database, url.query)
    shown = URL.create("postgresql", *place).render_as_string()
    options = ("--format=plain", "--no-owner", "--no-privileges", f"--file={target}")
    done = subprocess.run(
        [program, *options, f"--dbname={shown}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise BitelError(f"pg_dump could not copy the database: {lines[0]}")
    with target.open("a") as file:
        file.write(
            "\n-- Nothing is dialled with this copy until `bitel resume`.\n"
            "INSERT INTO public.pause (scope, target, reason, at, is_restored)"
            f" VALUES ('service', '', '{reason}', {now!r}, true)"
            " ON CONFLICT (scope, target) DO UPDATE SET reason = excluded.reason,"
            " at = excluded.at, is_restored = true;\n"
        )
