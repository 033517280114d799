"""A backup of a service at work, restored: nobody is called a second time."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitel.client import Client
from bitel.demo.stage import Stage, StageError
from tests.support import phone_log
from tests.support.service_calls import started
from tests.support.waiting import wait_until

CALLS = 45
# More channels than calls at once: those that were open at the backup count as in use for a while.
DIALER = {"ring_timeout": 5, "max_channels": 12, "calls_per_second": 8}


def stage_at(folder: Path) -> Stage:
    return Stage(folder, ["*=answer:after=0.05"], record=False, dialer=DIALER, log_level="info")


def by_command(stage: Stage, folder: Path) -> None:
    stage.command("backup", str(folder))


def by_vacuum(stage: Stage, folder: Path) -> None:
    """As any tool would copy the file: without a stamp."""
    folder.mkdir()
    with sqlite3.connect(stage.folder / "data" / "bitel.db") as database:
        database.execute("VACUUM INTO ?", (str(folder / "bitel.db"),))


@pytest.mark.parametrize("choice", ["--drop-open", "--keep-open"])
@pytest.mark.parametrize("back_up", [by_command, by_vacuum])
def test_a_restored_database_dials_nothing_until_it_is_resumed(
    tmp_path: Path, back_up: Callable[[Stage, Path], None], choice: str
) -> None:
    copy = tmp_path / "copy"
    numbers = [f"0912{n:07}" for n in range(CALLS)]
    with stage_at(tmp_path / "stage") as stage:
        with started(stage, 0.3) as (token, client, voice):
            campaign = client.batch(numbers, voice, retry_count=0)["campaignId"]
            wait_until(lambda: client.campaign(campaign)["byStatus"].get("NORMAL", 0) >= 2)
            back_up(stage, copy)
            client.wait_campaign(campaign, 60)
            assert client.campaign(campaign)["byStatus"]["NORMAL"] == CALLS
        stage.kill_service()
        before = {number: len(seen) for number, seen in phone_log.read(stage.phone_log).items()}
        assert set(before.values()) == {1}

        data = stage.folder / "data"
        for name in ("bitel.db", "bitel.db-wal", "bitel.db-shm"):
            (data / name).unlink(missing_ok=True)
        shutil.copy(copy / "bitel.db", data / "bitel.db")
        stage.start_service()
        wait_until(lambda: "paused" in stage.service_log.read_text())
        with Client(token, stage.url) as client:
            counts = client.campaign(campaign)["byStatus"]
            waiting, unknown = counts["WAITING"], counts["UNKNOWN"]
            assert waiting > 0
            [pause] = json.loads(stage.command("pause", "--list", "--json"))
            assert (pause["scope"], pause["isRestored"]) == ("service", True)
            assert client.servers()[0]["paused"] == pause["reason"]
            new = client.call("09129999999", voice)["id"]
            with pytest.raises(StageError, match=r"choose --drop-open .* or --keep-open"):
                stage.command("resume")
            # A second is what a dialer takes at most to look for calls.
            time.sleep(2.5)
            after = {number: len(seen) for number, seen in phone_log.read(stage.phone_log).items()}
            assert after == before, "nobody was called"

            stage.command("resume", choice)
            assert client.wait(new, 30)["status"] == "NORMAL", "it was placed after the restart"
            client.wait_campaign(campaign, 60)
            counts = client.campaign(campaign)["byStatus"]
        assert stage.stop_service() == 0
    seen = phone_log.read(stage.phone_log)
    again = sum(len(each) for each in seen.values()) - CALLS - 1
    if choice == "--drop-open":
        assert (counts["UNKNOWN"], again) == (waiting + unknown, 0)
    else:
        assert counts["NORMAL"] + counts["UNKNOWN"] == CALLS
        assert again > 0


def test_a_backup_is_whole_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    copy = tmp_path / "backups" / "today"
    with stage_at(tmp_path / "stage") as stage:
        with started(stage, 0.3) as (token, client, voice):
            said = stage.command("backup", str(copy))
            assert said.startswith(f"{copy}: bitel.db and 2 files of recordings, ")
            with pytest.raises(StageError, match="is there already; name a folder that is new"):
                stage.command("backup", str(copy))
            heard = client.recording(voice)
        assert stage.stop_service() == 0
    names = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert names == {"bitel.db", f"voices/{voice}.alaw", f"voices/{voice}.ulaw"}
    for path in (copy, *copy.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, path
    assert [path.name for path in copy.parent.iterdir()] == ["today"], "nothing half done is left"

    with Stage(tmp_path / "new", ["*=answer"], record=False, data_dir=copy) as moved:
        moved.start_phone()
        moved.start_service()
        with Client(token, moved.url) as client:
            assert client.recording(voice) == heard
            moved.command("resume", "--keep-open")
            assert client.wait(client.call("09121234567", voice)["id"], 30)["status"] == "NORMAL"
        assert moved.stop_service() == 0


def test_pauses_hold_over_restarts_and_name_their_reason(tmp_path: Path) -> None:
    with stage_at(tmp_path / "stage") as stage:
        with started(stage, 0.3) as (_, client, voice):
            stage.command("pause", "--dialer", "main", "--reason", "carrier at work")
            wait_until(lambda: client.servers()[0]["paused"] == "carrier at work")
            assert stage.stop_service() == 0
            stage.start_service()
            call = client.call("09121234567", voice)["id"]
            time.sleep(1.5)  # longer than a dialer waits until it looks for calls again
            assert client.status(call)["status"] == "WAITING"
            begun = time.monotonic()
            stage.command("resume", "--dialer", "main")
            assert client.wait(call, 30)["status"] == "NORMAL"
            assert time.monotonic() - begun < 10
            with pytest.raises(StageError, match="it is not paused"):
                stage.command("resume", "--dialer", "main")
            with pytest.raises(StageError, match="have no dialer 'other'; there are: main"):
                stage.command("pause", "--dialer", "other")
        assert stage.stop_service() == 0
