"""What is late now, as told from reports that look back 10 s."""

from __future__ import annotations

import pytest

from bitel.dialers.lateness import SILENCE, Lateness
from bitel.rtp.streamer import StreamerStats

CALM = StreamerStats(running=5, ticks=500, late_ticks=2, p99_ms=1.5)


@pytest.mark.parametrize(
    ("then", "late"),
    [
        (StreamerStats(running=5, ticks=1000, late_ticks=3, p99_ms=1.5), 0.0),
        # Every second tick was late: it goes on.
        (StreamerStats(running=5, ticks=1000, late_ticks=252, p99_ms=45.0), 45.0),
        # p99 still remembers what is over: a pause of 100 ms, some seconds ago.
        (StreamerStats(running=5, ticks=1000, late_ticks=10, p99_ms=45.0), 0.0),
        (StreamerStats(running=0, ticks=1000, late_ticks=252, p99_ms=45.0), 0.0),
        # It does not even say how late it is.
        (StreamerStats(running=0, reported_ago=SILENCE + 1.0), 3500.0),
        (StreamerStats(running=5, ticks=500, late_ticks=2, reported_ago=SILENCE), 0.0),
    ],
)
def test_what_is_late(then: StreamerStats, late: float) -> None:
    lateness = Lateness()
    assert lateness.now(CALM) == 0.0
    assert lateness.now(then) == late


def test_between_two_reports_it_stays_as_it_was() -> None:
    lateness = Lateness()
    lateness.now(CALM)
    busy = StreamerStats(running=5, ticks=1000, late_ticks=400, p99_ms=30.0)
    assert [lateness.now(busy) for _ in range(3)] == [30.0] * 3
    over = StreamerStats(running=5, ticks=1500, late_ticks=401, p99_ms=30.0)
    assert lateness.now(over) == 0.0
