"""`bitel attempts`: what the operator can know of a call's attempts."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Connection

from bitel.domain.attempts import AttemptResult, Media, Outcome
from bitel.steady_clock import SteadyClock
from bitel.store import endings
from bitel.store.database import Database
from tests.cli.shell import Shell

CALL = "c" * 32


def _fill(conn: Connection) -> None:
    for statement in (
        "INSERT INTO project (id, name, created_at, disabled) VALUES ('p', 'shop', 1, false)",
        "INSERT INTO call (id, project_id, dialer_id, phone_number, e164, digits, lane, status,"
        " retry_count, retries_left, retry_interval, requested_at, expires_at, trouble, attempts,"
        " executed_at, bill_seconds, price, reason)"
        f" VALUES ('{CALL}', 'p', 'main', '0912', '+98912', '12', 1, 0,"
        " 1, 1, 60, 1, 1000, 0, 3, 0, 0, 0, '')",
    ):
        conn.exec_driver_sql(statement)
    for number, so_far in (
        (1, "'settled', 100, 0"),
        (2, "'settled', 200, 0"),
        (3, "'held', 300, NULL"),
    ):
        conn.exec_driver_sql(
            "INSERT INTO attempt (id, call_id, number, dialer_id, epoch, claim, started_at,"
            f" ended_at, ended_by, detail) VALUES ('a{number}', '{CALL}', {number}, 'main', 1,"
            f" {so_far}, '', '')"
        )
    endings.end_attempts(
        conn,
        [
            (
                "a1",
                AttemptResult(
                    Outcome.BUSY, 100.0, 101.0, None, 486, detail="486 Busy Here", rang_at=100.25
                ),
            ),
            (
                "a2",
                AttemptResult(
                    Outcome.ANSWERED,
                    200.0,
                    210.0,
                    203.5,
                    200,
                    16,
                    "far",
                    media=Media(325, 300, "12#", 0.0125, 3.5),
                ),
            ),
        ],
    )


def _set_the_clock_forward(shell: Shell, at: float, seconds: float) -> None:
    """Leave the file of a service whose system clock was set at that time, and is right now."""
    SteadyClock.open(shell.data_dir)
    path = shell.data_dir / "clock"
    anchor = json.loads(path.read_text())
    anchor["gaps"].insert(0, [at, seconds])
    path.write_text(json.dumps(anchor))


def test_attempts_are_shown_with_how_they_were_heard(shell: Shell) -> None:
    shell.admin("project", "create", "other")
    with Database.open(f"sqlite:///{shell.data_dir / 'bitel.db'}") as database:
        database.write_now(_fill)
    busy, answered, heard, under_way = shell.admin("attempts", CALL).splitlines()
    assert busy == "1  1970-01-01 00:01:40  main  busy, rang after 0.2 s (486 Busy Here)"
    assert answered == "2  1970-01-01 00:03:20  main  answered for 6.5 s"
    assert heard == (
        "   325 packets sent, about 300 received, the callee missed 1.2%, jitter 3.5 ms, keyed 12#"
    )
    assert under_way == "3  1970-01-01 00:05:00  main  under way"
    first, second, third = json.loads(shell.admin("attempts", CALL, "--json"))
    assert (first["outcome"], first["packetsSent"], first["digits"]) == ("busy", None, None)
    assert (first["rangAt"], second["rangAt"]) == (100.25, None)
    assert (second["packetsSent"], second["packetsReceived"], second["digits"]) == (325, 300, "12#")
    assert (second["loss"], second["jitterMs"], second["endedBy"]) == (0.0125, 3.5, "far")
    assert (third["outcome"], third["endedAt"]) == (None, None)
    _set_the_clock_forward(shell, at=150.0, seconds=3600.0)
    first, second, third = json.loads(shell.admin("attempts", CALL, "--json"))
    assert (first["startedAt"], first["rangAt"], first["endedAt"]) == (100.0, 100.25, 101.0)
    assert second["startedAt"] == pytest.approx(3800.0, abs=1.0)
    assert third["endedAt"] is None
    assert "2  1970-01-01 01:03:19" in shell.admin("attempts", CALL)
    status, _, err = shell.run("attempts", "nothing", "--config", str(shell.config))
    assert (status, err) == (1, "bitel: no attempt of a call 'nothing' is known\n")


def test_packets_that_nobody_counted_are_no_zero(shell: Shell) -> None:
    """The process that sent them, and counted them, was lost."""
    lost = AttemptResult(
        Outcome.INTERRUPTED, 200.0, 210.0, 203.5, 200, 16, "us", media=Media(None, 0, "12#")
    )
    shell.admin("project", "create", "other")
    with Database.open(f"sqlite:///{shell.data_dir / 'bitel.db'}") as database:
        database.write_now(_fill)
        database.write_now(lambda conn: endings.end_attempts(conn, [("a3", lost)]))
    assert shell.admin("attempts", CALL).splitlines()[-1] == (
        "   packets were not counted, as the process that sent them was lost, keyed 12#"
    )
    *_, third = json.loads(shell.admin("attempts", CALL, "--json"))
    assert (third["packetsSent"], third["digits"]) == (None, "12#")
