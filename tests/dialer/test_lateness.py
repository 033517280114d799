"""What is late now, as told from the reports of the senders."""

from __future__ import annotations

import pytest

from bitel.dialer.sip_dialer import SILENCE, packets_late
from bitel.rtp.sender.tick_schedule import TickLateness
from bitel.rtp.streamer import StreamerStats

TICKS = 125  # in a turn


@pytest.mark.parametrize(
    ("stats", "late"),
    [
        (StreamerStats(running=5, p99_ms=1.5, p90_ms=0.3), 0.3),
        (StreamerStats(running=5, p99_ms=45.0, p90_ms=30.0), 30.0),
        (StreamerStats(running=0, p99_ms=45.0, p90_ms=30.0), 0.0),
        # It does not even say how late it is.
        (StreamerStats(running=0, reported_ago=SILENCE + 1.0), 3500.0),
        (StreamerStats(running=5, p90_ms=0.3, reported_ago=SILENCE), 0.3),
    ],
)
def test_what_is_late(stats: StreamerStats, late: float) -> None:
    assert packets_late(stats) == late


def turn(punctuality: TickLateness, late: int, by: float) -> float:
    """Milliseconds that are late after a turn in which so many ticks were `by` seconds late."""
    for tick in range(TICKS):
        punctuality.record(by if tick < late else 0.0002)
    said = punctuality.report()
    return packets_late(said._replace(running=5))


def test_late_is_who_is_late_again_and_again() -> None:
    punctuality = TickLateness()
    assert turn(punctuality, TICKS // 5, 0.03) == pytest.approx(30.0)
    assert turn(punctuality, TICKS // 5, 0.03) == pytest.approx(30.0)
    assert turn(punctuality, TICKS, 0.025) >= 25.0
    assert turn(punctuality, TICKS, 0.025) == pytest.approx(25.0)


def test_what_is_over_is_not_late_now() -> None:
    punctuality = TickLateness()
    assert turn(punctuality, 0, 0.0) < 1.0
    # A pause of 40 ms, in which 20 ticks were due.
    assert turn(punctuality, 20, 0.04) < 1.0
    assert turn(punctuality, 0, 0.0) < 1.0
    assert turn(punctuality, TICKS, 0.03) == pytest.approx(30.0)
    # Of ten seconds it is still one tick in a hundred and more that was late.
    assert [turn(punctuality, 0, 0.0) < 1.0 for _ in range(3)] == [False, True, True]
