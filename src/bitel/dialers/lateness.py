"""By how much RTP leaves late now, from what the senders report each second."""

from __future__ import annotations

from typing import Final

from bitel.rtp.streamer import StreamerStats

SILENCE: Final = 2.5
"""Seconds without a report after which a sender hangs, or is gone: it sends nothing by then."""

GOES_ON: Final = 0.1
"""The part of the last second's ticks that must have been late, lest it be over already."""


class Lateness:
    """Remembers the last report, to tell what still goes on from what the last 10 s have seen."""

    def __init__(self) -> None:
        self._ticks = 0
        self._late_ticks = 0
        self._part = 0.0

    def now(self, stats: StreamerStats) -> float:
        """Milliseconds by which packets are late at p99; 0 where they no longer are."""
        if stats.reported_ago > SILENCE:
            return stats.reported_ago * 1000
        ticks, late = stats.ticks - self._ticks, stats.late_ticks - self._late_ticks
        if ticks > 0:
            self._part = late / ticks
            self._ticks, self._late_ticks = stats.ticks, stats.late_ticks
        if not stats.running:
            self._part = 0.0
        return stats.p99_ms if self._part >= GOES_ON else 0.0
