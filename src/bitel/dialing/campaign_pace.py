"""Pace of campaigns: how many calls of each may begin now, by its own rate and channels.

A dispatcher has one. Where several workers share a database, a campaign's limits are shared as
those of the dialer are: see `bitel.dialing.limit_shares`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from bitel.dialing.limit_shares import LimitShares
from bitel.domain.limit_shares import Demand
from bitel.store.worker_shares import Need
from bitel.token_bucket import Rate

FORGOTTEN_AFTER: Final = 10.0
"""Seconds after which a campaign that has no calls due gives up its shares."""

_MOST_RATES: Final = 4096
_NO_LIMIT: Final = 1_000_000_000


class _Limited(NamedTuple):
    """A campaign with limits whose turn it was."""

    max_channels: int | None
    seen_at: float
    queue_id: str


class CampaignPace:
    """Counts the calls of campaigns that have begun; see `store.campaign_schedules.Pace`."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        shares: LimitShares,
        weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`weights` are those of the dialer in its groups, by group."""
        self._weights = weights
        self.workers = 1
        """Of the dialer: they share its weight."""
        self._monotonic = monotonic
        self._shares = shares
        self._running: Counter[str] = Counter()
        self._rates: dict[str, Rate] = {}
        self._limited: dict[str, _Limited] = {}
        self.has_new = False
        """A campaign waits for its first share in a limit."""

    def room(
        self,
        campaign_id: str,
        calls_per_second: float | None,
        max_channels: int | None,
        queue_id: str = "",
    ) -> int:
        """How many calls of the campaign may begin now; a limit of None does not apply."""
        now, shares = self._monotonic(), self._shares
        if calls_per_second is None:
            self._rates.pop(campaign_id, None)
        elif (rate := self._rates.get(campaign_id)) is None:
            self._forget_full(now)
            self._rates[campaign_id] = Rate(calls_per_second, now)
        else:
            rate.per_second = calls_per_second
        is_limited = calls_per_second is not None or max_channels is not None
        if shares.is_shared and is_limited:
            self.has_new |= campaign_id not in self._limited
            self._limited[campaign_id] = _Limited(max_channels, now, queue_id)
        room = _NO_LIMIT
        if max_channels is not None:
            if shares.is_shared:
                most = min(max_channels, shares.usable(_channels(campaign_id)))
            else:
                most = max_channels - shares.occupied.by_campaign.get(campaign_id, 0)
            room = max(0, most - self._running[campaign_id])
        if calls_per_second is not None:
            places = shares.usable(_calls(campaign_id)) if shares.is_shared else None
            room = min(room, self._rates[campaign_id].room(now, places))
        return room

    def needs(self, *, is_able: bool) -> dict[str, Need]:
        """What the worker needs of the limits of campaigns, by resource.

        A campaign whose calls are due wants all it can get.
        """
        now = self._monotonic()
        needs: dict[str, Need] = {}
        self.has_new = False
        for campaign_id, limited in list(self._limited.items()):
            is_due = is_able and now - limited.seen_at < FORGOTTEN_AFTER
            running, rate = self._running[campaign_id], self._rates.get(campaign_id)
            if not is_due and not running and (rate is None or not rate.used(now)):
                del self._limited[campaign_id]
                continue
            most = limited.max_channels
            weight = self._weights.get(limited.queue_id, 1.0) / max(1, self.workers)
            if most is not None:
                demand = Demand(running, most if is_due else running, False, weight)
                needs[_channels(campaign_id)] = Need(most, demand)
            if rate is not None:
                used = rate.used(now)
                demand = Demand(used, rate.places if is_due else used, False, weight)
                needs[_calls(campaign_id)] = Need(rate.places, demand)
        return needs

    def taken(self) -> dict[str, int]:
        """Places of campaigns' channels that calls take which no worker has."""
        occupied = self._shares.occupied.by_campaign
        return {_channels(campaign_id): count for campaign_id, count in occupied.items()}

    def begin(self, campaign_id: str) -> None:
        """Count a call that begins."""
        self._running[campaign_id] += 1
        rate = self._rates.get(campaign_id)
        if rate is not None:
            rate.take(self._monotonic())

    def end(self, campaign_id: str) -> None:
        """Count a call as over."""
        self._running[campaign_id] -= 1
        if not self._running[campaign_id]:
            del self._running[campaign_id]

    def _forget_full(self, now: float) -> None:
        """Remove the rates that are as good as new, once there are many."""
        if len(self._rates) < _MOST_RATES:
            return
        for key in [key for key, rate in self._rates.items() if rate.is_full(now)]:
            del self._rates[key]


def _channels(campaign_id: str) -> str:
    return f"campaign-channels:{campaign_id}"


def _calls(campaign_id: str) -> str:
    return f"campaign-calls:{campaign_id}"
