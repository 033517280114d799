"""The service's clock: steps of the system clock, restarts, several processes, damaged files."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.errors import BitelError
from bitel.steady_clock import SAVED_EVERY, SLEW, STEP, SteadyClock
from tests.support.clocks import STEPS, Machine

HOUR = 3600.0


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_first_start_takes_the_time_from_the_system_clock(machine: Machine) -> None:
    clock = machine.open()
    assert clock() == machine.system_time
    machine.passes(12.5)
    assert clock() == pytest.approx(machine.system_time)
    assert clock.gap == 0.0


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_system_clock_changes_no_interval(machine: Machine, step: float) -> None:
    clock = machine.open()
    begun = clock()
    machine.passes(4.0)
    machine.system_time += step
    assert clock() - begun == pytest.approx(4.0)
    machine.passes(8.0)
    assert clock() - begun == pytest.approx(12.0, abs=8 * SLEW * 1.01)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_reported_and_then_closed_slowly(machine: Machine, step: float) -> None:
    clock = machine.open()
    machine.system_time += step
    clock()
    assert clock.gap == pytest.approx(step)
    machine.passes(1000.0)
    assert abs(clock.gap) == pytest.approx(abs(step) - 1000 * SLEW, abs=0.05)
    machine.passes(abs(step) / SLEW * (1 + SLEW))
    assert clock.gap == 0.0
    assert clock() == pytest.approx(machine.system_time)


def test_a_drift_that_is_no_step_is_left_alone(machine: Machine) -> None:
    clock = machine.open()
    machine.system_time += STEP * 0.9
    clock()
    assert clock.gap == 0.0
    machine.system_time += STEP * 0.9
    clock()
    assert clock.gap == pytest.approx(STEP * 1.8)


def test_the_date_of_a_stored_time_stays_what_the_system_clock_showed(machine: Machine) -> None:
    clock = machine.open()
    before, shown_before = clock(), machine.system_time
    machine.passes(60.0)
    machine.system_time += HOUR
    after, shown_after = clock(), machine.system_time
    machine.passes(7200.0)
    clock()
    machine.system_time -= HOUR
    last, shown_last = clock(), machine.system_time
    assert clock.date(before) == pytest.approx(shown_before)
    assert clock.date(after) == pytest.approx(shown_after)
    assert clock.date(last) == pytest.approx(shown_last)
    assert clock.date(0.0) == 0.0


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 50_000.0),
            st.sampled_from([0.0, 0.3, -0.3, 30.0, -30.0, HOUR, -HOUR, 86_400.0, -86_400.0]),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_the_clock_never_goes_back_and_keeps_its_rate(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[float, float, bool]]
) -> None:
    machine = Machine(tmp_path_factory.mktemp("clock"))
    clock = machine.open()
    for passed, step, reopened in history:
        before = clock()
        machine.passes(passed)
        machine.system_time += step
        if reopened:
            clock = machine.open()
        now = clock()
        assert abs(now - before - passed) <= passed * SLEW * 1.01 + 1e-3
        assert abs(clock.date(now) - machine.system_time) <= STEP


def test_a_process_started_after_a_step_continues(machine: Machine) -> None:
    clock = machine.open()
    machine.passes(10.0)
    machine.system_time += HOUR
    later = machine.open()
    assert later() == pytest.approx(clock())
    assert later.gap == pytest.approx(HOUR)


def test_a_step_that_only_a_restart_of_the_process_has_seen_changes_no_interval(
    machine: Machine,
) -> None:
    begun = machine.open()()
    machine.passes(20.0)
    machine.system_time -= HOUR
    assert machine.open()() - begun == pytest.approx(20.0)


def test_two_processes_agree_after_a_step_that_both_notice(machine: Machine) -> None:
    one, other = machine.open(), machine.open()
    machine.system_time += 30.0
    one()
    machine.passes(500.0)
    assert other() == pytest.approx(one(), abs=1e-6)
    assert other.gap == pytest.approx(one.gap, abs=1e-6)
    assert len(json.loads((machine.folder / "clock").read_text())["gaps"]) == 2


@pytest.mark.parametrize("step", [0.0, *STEPS])
def test_a_restart_of_the_machine_keeps_due_times(machine: Machine, step: float) -> None:
    clock = machine.open()
    machine.system_time += step
    due_at = clock() + 120.0
    machine.restart(down=60.0)
    assert due_at - machine.open()() == pytest.approx(60.0, abs=60 * SLEW * 1.01)


def test_a_machine_that_starts_with_a_clock_that_is_behind_does_not_go_back(
    machine: Machine,
) -> None:
    clock = machine.open()
    machine.passes(SAVED_EVERY)
    clock.save()
    saved = clock()
    machine.restart(down=60.0)
    right, machine.system_time = machine.system_time, 0.0
    clock = machine.open()
    assert clock() == pytest.approx(saved)
    machine.system_time = right  # set by NTP
    assert clock() == pytest.approx(saved)
    assert clock.gap == pytest.approx(60.0)


def test_a_damaged_file_is_replaced(machine: Machine) -> None:
    for content in ("", "{", "[]", '{"boot": "x"}', '{"boot":"x","since":1,"gaps":[],"seen":1}',
                    '{"boot":"first","since":NaN,"gaps":[[1,1]],"seen":1}', "\0\0\0"):  # fmt: skip
        (machine.folder / "clock").write_text(content)
        assert machine.open()() == pytest.approx(machine.system_time)


def test_a_file_that_vanishes_is_written_again(machine: Machine) -> None:
    clock = machine.open()
    (machine.folder / "clock").unlink()
    machine.system_time += HOUR
    begun = clock()
    assert machine.open()() == pytest.approx(begun)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(BitelError, match="clock can't be used"):
        SteadyClock.open(tmp_path / "missing")


def test_without_room_on_the_disk_the_time_goes_on(machine: Machine) -> None:
    clock = machine.open()
    machine.folder.joinpath("clock.new").mkdir()  # nothing can be written there
    begun = clock()
    machine.system_time += HOUR
    machine.boot_time += 5.0
    assert clock() - begun == pytest.approx(5.0)
    machine.folder.joinpath("clock.new").rmdir()
    machine.boot_time += 5.0
    assert clock() - begun == pytest.approx(10.0)
    assert clock.gap == pytest.approx(HOUR - 10.0)


def test_a_start_without_room_on_the_disk_is_no_failure(machine: Machine) -> None:
    begun = machine.open()()
    machine.restart(down=60.0)
    machine.folder.joinpath("clock.new").mkdir()  # nothing can be written there
    clock = machine.open()
    assert clock() - begun == pytest.approx(60.0)
    machine.folder.joinpath("clock.new").rmdir()
    machine.passes(SAVED_EVERY)
    clock.save()
    assert json.loads((machine.folder / "clock").read_text())["boot"] == "second"
    machine.system_time += HOUR
    assert machine.open()() == pytest.approx(clock())


def test_a_reading_that_was_held_up_is_no_step(machine: Machine) -> None:
    clock = machine.open()
    held_up = 0.4

    def stop_once() -> None:
        nonlocal held_up
        machine.passes(held_up)
        held_up = 0.0

    machine.read_system = stop_once
    clock()
    assert clock.gap == 0.0


def test_a_command_reads_the_clock_and_writes_nothing(machine: Machine) -> None:
    assert SteadyClock.read(machine.folder)() == pytest.approx(time.time(), abs=5.0)
    assert list(machine.folder.iterdir()) == []
    clock = SteadyClock.open(machine.folder)
    assert SteadyClock.read(machine.folder)() == pytest.approx(clock(), abs=1.0)


def test_the_time_counts_on_a_machine_without_test_clocks(tmp_path: Path) -> None:
    clock = SteadyClock.open(tmp_path)
    assert clock() == pytest.approx(time.time(), abs=5.0)
    assert clock() <= clock()
    assert (tmp_path / "clock").stat().st_mode & 0o077 == 0


def test_a_date_is_right_in_a_process_that_has_not_asked_for_the_time_since_a_step(
    machine: Machine,
) -> None:
    one, other = machine.open(), machine.open()
    machine.system_time += HOUR
    placed_at = one()
    assert other.date(placed_at) == pytest.approx(machine.system_time)
    assert machine.open().gap == other.gap == pytest.approx(HOUR)


def test_the_gap_is_known_the_moment_that_the_clock_is_set(machine: Machine) -> None:
    clock = machine.open()
    machine.system_time -= HOUR
    assert clock.gap == pytest.approx(-HOUR)


def test_threads_that_notice_a_step_at_once_record_one(machine: Machine) -> None:
    clock = machine.open()
    machine.system_time += HOUR
    seen: list[float] = []
    threads = [threading.Thread(target=lambda: seen.append(clock())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(seen) - min(seen) < 1e-6
    assert len(json.loads((machine.folder / "clock").read_text())["gaps"]) == 2


def _first_time(folder: str) -> float:
    machine = Machine(Path(folder), system_time=1_700_000_000.0 + os.getpid())
    return machine.open()()


def test_processes_that_start_at_once_share_one_anchor(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        times = pool.map(_first_time, [str(tmp_path)] * 6)
    # Each would have another time by its own system clock.
    assert max(times) - min(times) < 1e-6
