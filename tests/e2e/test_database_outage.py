"""SIGTERM while the database is away ends in time, and a call that was heard is billed later."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.e2e.campaigns import (
    begin,
    check_events,
    check_money,
    check_nobody_called_wrongly,
    check_statuses,
    finish,
    stage_at,
)
from tests.support import phone_log
from tests.support.postgres_server import own_postgres
from tests.support.service_calls import token, upload
from tests.support.small_disk import empty, fill, small_disk
from tests.support.waiting import wait_until
from tests.support.webhook_recorder import receiver

DRAIN_TIMEOUT = 2
TARIFF = '[[tariff]]\nprefix = "+98"\nper_minute = 60\nincrement = 1\n'
CALLS = 10


@contextlib.contextmanager
def frozen_server(
    folder: Path,
) -> Iterator[tuple[str, Path, Callable[[], None], Callable[[], None]]]:
    with own_postgres() as own:
        yield own.url, folder / "data", own.freeze, own.thaw


@contextlib.contextmanager
def killed_server(
    folder: Path,
) -> Iterator[tuple[str, Path, Callable[[], None], Callable[[], None]]]:
    with own_postgres() as own:
        yield own.url, folder / "data", own.kill, own.start


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[tuple[str, Path, Callable[[], None], Callable[[], None]]]:
    with small_disk(folder / "disk") as disk:
        yield "", disk / "data", lambda: fill(disk), lambda: empty(disk)


@contextlib.contextmanager
def locked_file(folder: Path) -> Iterator[tuple[str, Path, Callable[[], None], Callable[[], None]]]:
    held: list[sqlite3.Connection] = []

    def lock() -> None:
        held.append(sqlite3.connect(folder / "data" / "bitel.db", isolation_level=None))
        held[0].execute("BEGIN IMMEDIATE")

    yield "", folder / "data", lock, lambda: held[0].close()


@pytest.mark.parametrize(
    "away",
    [
        frozen_server,
        killed_server,
        full_disk,
        pytest.param(locked_file, marks=pytest.mark.soak),
    ],
)
def test_sigterm_ends_in_time_and_what_was_heard_is_billed(
    tmp_path: Path,
    away: Callable[
        [Path],
        contextlib.AbstractContextManager[tuple[str, Path, Callable[[], None], Callable[[], None]]],
    ],
) -> None:
    with away(tmp_path) as (url, data_dir, take_away, give_back):
        settings = f"drain_timeout = {DRAIN_TIMEOUT}\n"
        if url:
            settings += f"database_url = {json.dumps(url)}\n"
        stage = Stage(
            tmp_path / "stage",
            rules=["*=answer:after=0"],
            record=False,
            extra=settings + TARIFF,
            data_dir=data_dir,
        )
        with stage:
            stage.start_phone()
            stage.start_service()
            assert stage.service is not None
            secret = token(stage)
            with Client(secret, stage.url) as client:
                voice = upload(stage, client, 2.5)
                placed = [client.call(f"0912000001{n}", voice) for n in range(CALLS)]
                wait_until(lambda: stage.phone_log.read_text().count('"audio"') == CALLS)
            take_away()
            stage.service.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            assert stage.service.wait(DRAIN_TIMEOUT + 40) == 0
            took = time.monotonic() - begun
            assert took < DRAIN_TIMEOUT + 40
            give_back()
            stage.start_service()
            with Client(secret, stage.url) as client:
                ended = [client.wait(call["id"], timeout=30.0) for call in placed]
            assert [call["status"] for call in ended] == ["NORMAL"] * CALLS
            assert all(call["price"] == -call["billSec"] < 0 for call in ended)
            assert stage.stop_service() == 0
        log = (tmp_path / "stage" / "serve.log").read_text()
        # On a full disk SQLite may still find room in the log that it has.
        assert "settlements_applied" in log or away is full_disk
        assert "settlement_lost" not in log
        # Nobody was called twice.
        numbers = [json.loads(line) for line in stage.phone_log.read_text().splitlines()]
        rung = Counter(line["number"] for line in numbers if line["event"] == "invite")
        assert set(rung.values()) == {1}


@pytest.mark.soak
def test_a_disk_that_is_full_for_ten_seconds_with_the_log_on_it(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", megabytes=48) as disk,
        receiver() as events,
        stage_at(tmp_path / "stage", disk / "data", calls_per_second=50) as stage,
    ):
        # Its log, and not the phone's, which is the truth here.
        (stage.folder / "serve.log").symlink_to(disk / "serve.log")
        secret, campaign = begin(stage, events)
        for seconds in (8.0, 14.0):
            time.sleep(2.0)  # for so long calls run, and the disk is full for ten seconds
            fill(disk)
            time.sleep(seconds)
            assert stage.service is not None
            assert stage.service.poll() is None
            before = _settled(disk / "data" / "bitel.db")
            empty(disk)
            wait_until(partial(_settled_more, disk / "data" / "bitel.db", before), 1.0)
        calls = finish(stage, secret, campaign, 180.0)
        check_money(stage, secret, calls)
        events.wait_for(len(calls), 90.0)
        assert stage.stop_service() == 0
        check_nobody_called_wrongly(phone_log.read(stage.phone_log))
        check_events(events, calls)
        check_statuses(calls)


def _settled_more(path: Path, than: int) -> bool:
    return _settled(path) > than


def _settled(path: Path) -> int:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        query = "SELECT count(*) FROM attempt WHERE claim = 'settled'"
        [[count]] = connection.execute(query).fetchall()
        return int(count)
    finally:
        connection.close()
