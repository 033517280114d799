"""Pace of campaigns: how many calls of each may begin now, by its own rate and channels.

A dispatcher has one. Rates are enforced by a token bucket for each campaign that has one, channels
by the number of its attempts under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from bitel.token_bucket import TokenBucket

BURST_SECONDS: Final = 0.1
"""Calls of so many seconds may start at once after a pause, and at least one."""

_MOST_BUCKETS: Final = 4096
_NO_LIMIT: Final = 1_000_000_000


class CampaignPace:
    """Counts the calls of campaigns that have begun; see `store.campaign_schedules.Pace`."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._running: Counter[str] = Counter()
        self._buckets: dict[str, TokenBucket] = {}

    def room(
        self, campaign_id: str, calls_per_second: float | None, max_channels: int | None
    ) -> int:
        """How many calls of the campaign may begin now; a limit of None does not apply."""
        room = _NO_LIMIT
        if max_channels is not None:
            room = max(0, max_channels - self._running[campaign_id])
        if calls_per_second is None:
            self._buckets.pop(campaign_id, None)
            return room
        now = self._monotonic()
        burst = max(1.0, calls_per_second * BURST_SECONDS)
        bucket = self._buckets.get(campaign_id)
        if bucket is None:
            self._forget_full(now)
            bucket = self._buckets[campaign_id] = TokenBucket(calls_per_second, burst, now)
        available = bucket.available(now)
        bucket.per_second, bucket.burst = calls_per_second, burst
        return min(room, int(min(available, burst)))

    def begin(self, campaign_id: str) -> None:
        """Count a call that begins."""
        self._running[campaign_id] += 1
        bucket = self._buckets.get(campaign_id)
        if bucket is not None:
            bucket.take(self._monotonic())

    def end(self, campaign_id: str) -> None:
        """Count a call as over."""
        self._running[campaign_id] -= 1
        if not self._running[campaign_id]:
            del self._running[campaign_id]

    def _forget_full(self, now: float) -> None:
        """Remove the buckets that are as good as new, once there are many."""
        if len(self._buckets) < _MOST_BUCKETS:
            return
        full = [key for key, one in self._buckets.items() if one.available(now) >= one.burst]
        for key in full:
            del self._buckets[key]
