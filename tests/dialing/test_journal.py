"""The journal of unwritten ends: what it holds survives, what is damaged harms nothing."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from pathlib import Path

import pytest
import structlog

from bitel.dialing.journal import Journal
from bitel.domain.attempts import Outcome
from bitel.store.settling import Settlement
from tests.support.factories import some_settlement as settlement
from tests.support.small_disk import fill, small_disk

MOST = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "unsettled-main.journal"


def opened(path: Path, most: int = MOST) -> tuple[Journal, list[Settlement]]:
    journal = Journal(path, most)
    return journal, journal.open()


def left_in(path: Path) -> list[Settlement]:
    journal, found = opened(path)
    journal.close()
    return found


def test_what_was_written_is_read_by_the_next_process(path: Path) -> None:
    journal, found = opened(path)
    assert found == []
    assert journal.append([settlement(0), settlement(1)]) == []
    assert journal.append([settlement(2), settlement(3)]) == []
    journal.close()
    assert left_in(path) == [settlement(n) for n in range(4)]
    # Reading takes nothing away, and what comes later stands behind it.
    journal, _ = opened(path)
    journal.append([settlement(4)])
    journal.close()
    assert left_in(path) == [settlement(n) for n in range(5)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_cleared_is_gone(path: Path) -> None:
    journal, _ = opened(path)
    size = path.stat().st_size
    journal.append([settlement(n) for n in range(MOST)])
    journal.clear()
    assert journal.is_empty
    journal.append([settlement(7)])
    journal.close()
    assert left_in(path) == [settlement(7)]
    assert path.stat().st_size == size


@pytest.mark.parametrize("detail", ["\ud83d half", "\0", "x" * 5000, "شلوغ" * 100, "😀" * 200])
def test_as_many_fit_as_it_was_made_for_whatever_their_words(path: Path, detail: str) -> None:
    journal, _ = opened(path)
    assert journal.append([settlement(n, detail) for n in range(MOST)]) == []
    journal.close()
    found = left_in(path)
    assert [one.attempt_id for one in found] == [settlement(n).attempt_id for n in range(MOST)]
    assert {one.bill for one in found} == {settlement(0).bill}


def test_what_has_no_room_is_said(path: Path) -> None:
    journal, _ = opened(path, most=1)
    left = journal.append([settlement(n) for n in range(10)])
    kept = 10 - len(left)
    assert 0 < kept < 10
    assert left == [settlement(n) for n in range(kept, 10)]
    journal.close()
    assert left_in(path) == [settlement(n) for n in range(kept)]


def test_it_is_written_on_a_disk_that_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        journal, _ = opened(disk / "journal")
        fill(disk)
        assert journal.append([settlement(n) for n in range(MOST)]) == []
        journal.clear()
        assert journal.append([settlement(n) for n in range(MOST)]) == []
        journal.close()
        assert len(left_in(disk / "journal")) == MOST


def test_where_it_can_not_be_made_the_start_goes_on(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        journal, found = opened(tmp_path / "nowhere" / "journal")
    assert found == []
    assert [line["event"] for line in logs] == ["journal_unavailable"]
    assert journal.append([settlement(1)]) == [settlement(1)]
    journal.clear()
    journal.close()


def test_a_journal_of_before_caller_ids_were_kept_is_read(path: Path) -> None:
    entry = (
        b'{"attempt_id":"%032x","call_id":"%032x","attempted":{"outcome":"busy","started_at":1.5,'
        b'"ended_at":20.25,"answered_at":null,"sip_code":486,"q850":17,"ended_by":"far",'
        b'"detail":"busy here","media":null,"rang_at":null,"is_pending":false,"irregularities":[]},'
        b'"verdict":["final",{"status":3,"reason":""}],"bill":[0,"0"]}' % (1, 2)
    )
    path.write_bytes(
        b"bitel-unsettled1" + struct.pack(">II", len(entry), zlib.crc32(entry)) + entry
    )
    [found] = left_in(path)
    assert (found.attempt_id, found.call_id) == (f"{1:032x}", f"{2:032x}")
    assert (found.result.outcome, found.result.caller_id) == (Outcome.BUSY, None)


def test_two_processes_do_not_write_one_journal(path: Path) -> None:
    first, _ = opened(path)
    first.append([settlement(1)])
    second, found = opened(path)
    assert found == []
    assert second.append([settlement(2)]) == [settlement(2)]
    first.close()
    assert second.open() == [settlement(1)]
    second.close()


@pytest.mark.parametrize("at", [0, 17, 20, 25, 300, 420, 900])
@pytest.mark.parametrize("junk", [b"\xff", b"\0" * 8, b"\xff" * 64], ids=["bit", "zeros", "long"])
def test_a_damaged_journal_gives_what_can_be_read_and_stops_nothing(
    path: Path, at: int, junk: bytes
) -> None:
    whole = [settlement(n) for n in range(4)]
    journal, _ = opened(path)
    journal.append(whole)
    journal.close()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(junk)
    found = left_in(path)
    assert found == whole[: len(found)]
    journal, _ = opened(path)
    journal.clear()
    journal.append([settlement(9)])
    journal.close()
    assert left_in(path)[-1:] == [settlement(9)]


def test_a_torn_file_is_said_and_grown_again(path: Path) -> None:
    journal, _ = opened(path)
    size = path.stat().st_size
    journal.append([settlement(1), settlement(2)])
    journal.close()
    os.truncate(path, 600)
    with structlog.testing.capture_logs() as logs:
        journal, found = opened(path)
    assert found == [settlement(1)]
    assert [line["event"] for line in logs] == ["journal_damaged"]
    assert path.stat().st_size == size
    journal.close()
