"""By how much RTP leaves late now, from what the senders report four times a second."""

from __future__ import annotations

from typing import Final

from bitel.rtp.streamer import StreamerStats

SILENCE: Final = 2.5
"""Seconds without a report after which a sender hangs, or is gone: it sends nothing by then."""


def packets_late(stats: StreamerStats) -> float:
    """Milliseconds that a tenth of the last half second's packets were later than.

    0 where nothing plays. A tenth, since a machine that carries too much is late again and again. A
    pause in which it did something else for a moment (its host, or a disk) is over by the time that
    it is heard of.
    """
    if stats.reported_ago > SILENCE:
        return stats.reported_ago * 1000
    return stats.p90_ms if stats.running else 0.0
