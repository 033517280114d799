"""Commands for campaigns, lists and do-not-call numbers, against the real HTTP API."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openpyxl
import pytest

from bitel.api import campaign_events
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.cli.shell import Shell
    from tests.support.api_stage import Stage

PEOPLE = "phone,reference,name\n09121234567,a-1,Sara\n0912,a-2,Ali\n09350000001,a-3,Nima\n"
GOOD = "phone,reference,name\n09121234567,a-1,Sara\n09350000001,a-3,Nima\n09121234567,a-4,Ali\n"

Run = Callable[..., Any]


@pytest.fixture
def run(shell: Shell, live: Stage) -> Run:
    """Runs a command that must succeed with --json; returns what it prints."""

    def ran(*arguments: str, status: int = 0) -> Any:
        found, out, err = shell.run(*arguments, "--json")
        assert found == status, err
        return json.loads(out)

    return ran


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    file = tmp_path / "numbers.txt"
    file.write_text("09121234567\n09350000001\n")
    return str(file)


def test_a_batch_takes_every_option(run: Run, live: Stage, numbers: str) -> None:
    live.change(webhook_url="https://example.com/usual", webhook_secret="whsec_x")
    at = int(live.clock())
    later = datetime.fromtimestamp(at + 7200, UTC).isoformat()
    placed = run(
        "batch", numbers, "--voice", live.recording_id, "--name", "reminders",
        "--reference", "2026-11", "--start-at", str(at + 3600), "--end-at", later,
        "--window", "sat-fri 00:00-24:00 local", "--calls-per-second", "2.5",
        "--max-channels", "7", "--busy-waits", "60,300", "--no-answer-waits", "600",
        "--webhook", "https://example.com/hook", "--event", "call.answered",
        "--event", "campaign.finished",
    )  # fmt: skip
    assert (placed["name"], placed["reference"], placed["state"]) == (
        "reminders", "2026-11", "SCHEDULED",
    )  # fmt: skip
    assert (placed["startAt"], placed["endAt"]) == (at + 3600, at + 7200)
    assert (placed["callsPerSecond"], placed["maxChannels"]) == (2.5, 7)
    assert placed["window"] == "sat-fri 00:00-24:00 local"
    assert {row.retry_waits for row in live.rows()} == {"60,300;600"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--voice or --text"),
        (("--voice", "v", "--text", "hello"), "--voice or --text"),
        (("--voice", "v", "--start-at", "2026-11-28 09:00"), "time zone"),
        (("--voice", "v", "--end-at", "tomorrow"), "--end-at"),
        (("--voice", "v", "--busy-waits", "60,soon"), "--busy-waits"),
        (("--voice", "v", "--event", "call.answered"), "--webhook"),
    ],
)
def test_wrong_options_are_wrong_usage(
    shell: Shell, live: Stage, numbers: str, options: tuple[str, ...], says: str
) -> None:
    status, out, err = shell.run("batch", numbers, *options)
    assert (status, out) == (2, "")
    assert says in err
    assert live.queued() == 0


def test_a_dry_run_shows_each_bad_row(shell: Shell, run: Run, live: Stage, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text(PEOPLE)
    status, out, err = shell.run("batch", str(file), "--dry-run")
    assert status == 1
    assert out == "not stored  3 recipients of 3 rows  1 invalid  columns: name\n"
    heading, row = err.splitlines()
    assert heading.split() == ["line", "value", "message"]
    assert row.split()[:2] == ["3", "0912"]
    assert "not the number of a subscriber" in row
    found = run("batch", str(file), "--dry-run", status=1)
    assert [(each["line"], each["value"]) for each in found["invalid"]] == [(3, "0912")]
    assert run("batch", str(file), "--dry-run", "--skip-invalid")["recipients"] == 2
    assert live.queued() == 0
    assert run("list", "show") == []


def test_a_dry_run_checks_the_variables_of_the_text(
    shell: Shell, live: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "people.csv"
    file.write_text(GOOD)
    status, out, err = shell.run("batch", str(file), "--text", "Dear {nam}.", "--dry-run")
    assert (status, out.split()[:2]) == (1, ["not", "stored"])
    assert err == (
        f"bitel: {file} has no column 'nam', which the text needs; its columns for texts "
        "are: name\n"
    )
    assert shell.run("batch", str(file), "--text", "Dear {name}.", "--dry-run")[0] == 0
    status, _, err = shell.run("batch", str(file), "--text", "Dear {name", "--dry-run")
    assert (status, "without its counterpart" in err) == (1, True)


def test_a_file_with_references_is_called_as_a_list(
    shell: Shell, run: Run, live: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "people.csv"
    file.write_text(GOOD)
    status, out, err = shell.run("batch", str(file), "--voice", live.recording_id)
    assert (status, "2 calls  WAITING 2" in out) == (0, True), err
    assert err == "bitel: 1 number is called once only\n"
    assert [row.reference for row in live.rows()] == ["a-1", "a-3"]
    assert run("list", "show") == []  # the calls have copies of its rows


def test_a_bad_row_of_a_list_places_nothing(
    shell: Shell, run: Run, live: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "people.csv"
    file.write_text(PEOPLE)
    status, out, err = shell.run("batch", str(file), "--voice", live.recording_id)
    assert (status, out) == (1, "")
    assert "bitel: line 3 of the file can't be called" in err
    assert live.queued() == 0
    assert run("list", "show") == []
    placed = run("batch", str(file), "--voice", live.recording_id, "--skip-invalid")
    assert placed["total"] == 2


def test_a_workbook_is_called_as_a_list(run: Run, live: Stage, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in csv.reader(io.StringIO(GOOD)):
        book.active.append(row)
    book.save(tmp_path / "people.xlsx")
    placed = run("batch", str(tmp_path / "people.xlsx"), "--voice", live.recording_id)
    assert placed["total"] == 2


def test_a_list_may_come_on_the_standard_input(
    run: Run, live: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(GOOD.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("batch", "-", "--voice", live.recording_id)["total"] == 2


def test_bad_numbers_of_a_plain_list_are_left_out_by_their_line(
    shell: Shell, live: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("09121234567\n\n0912\n")
    status, out, err = shell.run("batch", str(file), "--voice", live.recording_id, "--skip-invalid")
    assert (status, "1 calls" in out) == (0, True), err
    assert err.startswith("bitel: left out line 3: ")


def test_a_text_is_spoken_in_place_of_a_recording(run: Run, live: Stage, numbers: str) -> None:
    assert run("batch", numbers, "--text", "hello", "--language", "en")["total"] == 2
    assert {row.recording_id for row in live.rows()}.isdisjoint({live.recording_id})


def test_a_campaign_is_paused_changed_and_canceled(
    shell: Shell, run: Run, live: Stage, numbers: str
) -> None:
    placed = run("batch", numbers, "--voice", live.recording_id, "--name", "reminders")
    id_ = placed["id"]
    assert run("campaign", "pause", id_)["state"] == "PAUSED"
    status, out, _ = shell.run("campaign", id_)
    assert (status, out) == (
        0, f"{id_}  2 calls  WAITING 2  paused\n   name: reminders\n",
    )  # fmt: skip
    assert run("campaign", "resume", id_)["state"] == "RUNNING"
    end = str(int(live.clock()) + 3600)
    changed = run("campaign", "set", id_, "--calls-per-second", "2.5", "--max-channels", "3",
                  "--end-at", end, "--name", "none")  # fmt: skip
    assert (changed["callsPerSecond"], changed["maxChannels"]) == (2.5, 3)
    assert (str(changed["endAt"]), changed["name"]) == (end, None)
    lifted = run("campaign", "set", id_, "--calls-per-second", "none", "--end-at", "none")
    assert (lifted["callsPerSecond"], lifted["endAt"], lifted["maxChannels"]) == (None, None, 3)
    for wrong in ((), ("--max-channels", "many")):
        assert shell.run("campaign", "set", id_, *wrong)[0] == 2
    assert run("campaign", "cancel", id_)["state"] == "CANCELED"
    for action in ("show", "pause", "resume", "cancel", "watch", "results"):
        status, out, err = shell.run("campaign", action, "0" * 32)
        assert (status, out) == (1, ""), action
        assert "no campaign of that id" in err
    assert list(Path.cwd().glob("*.csv")) == []


def test_a_campaign_is_watched_to_its_end(
    shell: Shell, run: Run, live: Stage, numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_events, "POLL_SECONDS", 0.02)
    id_ = run("batch", numbers, "--voice", live.recording_id)["id"]
    topics = live.app.state.services.campaign_events._topics

    def end() -> None:
        wait_until(lambda: topics)
        live.answer(*live.take(), price="2")

    ending = threading.Thread(target=end)
    ending.start()
    status, out, err = shell.run("campaign", "watch", id_, "--json")
    ending.join()
    assert status == 0, err
    states = [json.loads(line) for line in out.splitlines()]
    assert [each["state"] for each in states] == ["RUNNING", "FINISHED"]
    assert states[-1]["byStatus"]["NORMAL"] == 2
    status, out, _ = shell.run("campaign", "watch", id_)
    assert (status, out) == (0, f"{id_}  2 calls  NORMAL 2  -4\n")


def test_results_become_a_file(run: Run, live: Stage, numbers: str, tmp_path: Path) -> None:
    id_ = run("batch", numbers, "--voice", live.recording_id)["id"]
    live.answer(*live.take())
    written = run("campaign", "results", id_)
    file = Path(f"campaign-{id_}.csv")
    assert written == {"file": str(file), "size": file.stat().st_size}
    rows = list(csv.DictReader(file.read_text("utf-8-sig").splitlines()))
    assert [row["status"] for row in rows] == ["NORMAL", "NORMAL"]
    other = tmp_path / "other.csv"
    assert run("campaign", "results", id_, "-o", str(other))["file"] == str(other)
    assert other.read_bytes() == file.read_bytes()


def test_calls_are_listed_and_shown_in_detail(
    shell: Shell, run: Run, live: Stage, numbers: str
) -> None:
    placed = run("batch", numbers, "--voice", live.recording_id, "--reference", "r-1")
    live.answer(*live.take(), price="2")
    call = run("call", "09121234567", "--voice", live.recording_id)
    assert [each["id"] for each in run("calls", "--status", "waiting")] == [call["id"]]
    assert len(run("calls", "--campaign", placed["id"])) == 2
    assert len(run("calls", "--number", "0912 123 4567")) == 2
    assert len(run("calls", "--limit", "1")) == 1
    assert run("calls", "--since", str(int(live.clock()) + 60)) == []
    (first,) = run("calls", "--number", "09350000001", "--reference", "r-1")
    status, out, _ = shell.run("calls", "--reference", "r-1")
    assert (status, len(out.splitlines())) == (0, 2)
    assert "09350000001  r-1" in out
    details = run("status", first["id"], "--details")
    assert [each["outcome"] for each in details["attempts"]] == ["ANSWERED"]
    status, out, _ = shell.run("status", first["id"], "--details")
    assert status == 0
    assert f"campaign: {placed['id']}" in out
    assert "ANSWERED" in out.splitlines()[-1]
    assert shell.run("calls", "--status", "unknown-one")[0] == 1


def test_lists_are_uploaded_shown_and_removed(
    shell: Shell, run: Run, live: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "people.csv"
    file.write_text(GOOD)
    found = run("list", "upload", str(file), "--column", "phone", "--skip-duplicates")
    assert (found["recipients"], found["duplicates"]) == (2, 1)
    assert [each["id"] for each in run("list", "show")] == [found["id"]]
    status, out, _ = shell.run("list", "show", found["id"])
    assert (status, "2 recipients  people.csv  columns: name" in out) == (0, True)
    run("list", "remove", found["id"])
    assert shell.run("list", "show", found["id"])[0] == 1
    file.write_text(PEOPLE)
    assert run("list", "upload", str(file), status=1)["invalidCount"] == 1
    assert run("list", "upload", str(file), "--skip-invalid")["recipients"] == 2
    assert shell.run("list", "upload", str(file), "--column", "tel")[0] == 1


def test_numbers_are_not_called_without_a_project_by_the_api(
    shell: Shell, run: Run, live: Stage, tmp_path: Path
) -> None:
    assert run("dnc", "add", "0912 123 4567") == {"added": 1, "alreadyListed": 0}
    status, _, err = shell.run("dnc", "add", "09121234567")
    assert (status, err) == (1, "bitel: 09121234567 is on the list already\n")
    file = tmp_path / "people.csv"
    file.write_text(PEOPLE)
    imported = run("dnc", "import", str(file), "--column", "phone", status=1)
    assert (imported["added"], imported["alreadyListed"], imported["invalidCount"]) == (1, 1, 1)
    assert run("dnc", "list") == ["+989121234567", "+989350000001"]
    assert run("dnc", "remove", "09121234567") == {"phoneNumber": "+989121234567"}
    assert shell.run("dnc", "remove", "09121234567")[0] == 1
    assert shell.run("dnc", "list")[1] == "+989350000001\n"
    assert shell.run("dnc", "add", "a", "b", "c")[0] == 2


def test_a_text_holds_columns_of_the_file(run: Run, live: Stage, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text("phone,name\n09121234567,Sara\n09350000001,Nima\n")
    placed = run("batch", str(file), "--text", "Hello {name}", "--language", "en")
    assert placed["total"] == 2
    assert [json.loads(row.variables) for row in live.rows()] == [
        {"name": "Sara"}, {"name": "Nima"},
    ]  # fmt: skip
    assert run("list", "show") == []


def test_progress_is_shown_on_a_terminal(
    run: Run, live: Stage, numbers: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    id_ = run("batch", numbers, "--voice", live.recording_id)["id"]
    live.answer(*live.take())
    for action, expected in (("watch", "answered"), ("results", "bytes")):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "bitel.cli", "campaign", action, id_]
        with open(ours, "rb", buffering=0) as screen:
            process = subprocess.Popen(
                command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, text=True
            )
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # EIO: the other end is closed
                while piece := screen.read(4096):
                    shown += piece
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, shown
        assert id_ in out
        assert expected in shown.decode(), action
