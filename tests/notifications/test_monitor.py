"""When the begin and the end of a condition are reported."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitel.notifications.conditions import CLEAR_AFTER, HOLD, Condition, ConditionMonitor, Kind


def condition(kind: Kind = Kind.TRUNK_DOWN, subject: str = "main") -> Condition:
    return Condition(kind, subject, f"{subject} is wrong")


def test_a_trunk_is_reported_once_it_has_been_down_for_a_while() -> None:
    monitor, hold = ConditionMonitor(), HOLD[Kind.TRUNK_DOWN]
    down = condition()
    assert monitor.update([down], Kind, 100.0) == []
    assert monitor.update([down], Kind, 100.0 + hold - 0.1) == []
    [change] = monitor.update([down], Kind, 100.0 + hold)
    assert (change.condition, change.began) == (down, True)
    assert monitor.update([down], Kind, 100.0 + 10 * hold) == []


def test_a_short_outage_is_not_reported() -> None:
    monitor, hold = ConditionMonitor(), HOLD[Kind.TRUNK_DOWN]
    monitor.update([condition()], Kind, 0.0)
    monitor.update([], Kind, hold / 2)
    assert monitor.update([condition()], Kind, hold) == []


def test_the_end_is_reported_after_a_quiet_while_and_with_what_was_last_seen() -> None:
    monitor = ConditionMonitor()
    monitor.update([condition(Kind.DISK_LOW)], Kind, 0.0)
    later = Condition(Kind.DISK_LOW, "main", "even less is free")
    monitor.update([later], Kind, 5.0)
    assert monitor.update([], Kind, 5.0 + CLEAR_AFTER - 1) == []
    [change] = monitor.update([], Kind, 5.0 + CLEAR_AFTER)
    assert (change.condition, change.began) == (later, False)
    assert monitor.update([], Kind, 500.0) == []


def test_a_condition_that_comes_and_goes_is_one_report() -> None:
    monitor, reports = ConditionMonitor(), []
    for second in range(0, 600, 5):
        found = [condition(Kind.DIALER_PAUSED)] if second % 10 else []
        reports += monitor.update(found, Kind, float(second))
    assert [change.began for change in reports] == [True]


def test_what_was_not_looked_at_has_not_ended() -> None:
    monitor = ConditionMonitor()
    low = condition(Kind.BALANCE_LOW)
    assert len(monitor.update([low], Kind, 0.0)) == 1
    assert monitor.update([], [Kind.TRUNK_DOWN], 10 * CLEAR_AFTER) == []
    [ended] = monitor.update([], Kind, 10 * CLEAR_AFTER)
    assert not ended.began


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 100)), max_size=60), st.sampled_from(Kind))
def test_begins_and_ends_alternate(looks: list[tuple[bool, float]], kind: Kind) -> None:
    monitor, now, reports = ConditionMonitor(), 0.0, []
    for present, pause in looks:
        now += pause
        reports += monitor.update([condition(kind)] if present else [], Kind, now)
    assert [change.began for change in reports] == [n % 2 == 0 for n in range(len(reports))]
