"""A worker's shares in the limits of its dialer and of campaigns.

Where a dialer has one worker, its limits are the whole ones. Where several may share a database,
each limit is a resource of which every worker has a share: see `bitel.domain.limit_shares`. The
dispatcher reports what it uses and wants a few times a second, between its claims, so that what it
uses never exceeds what it has. Dialers that share a trunk share its limits in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bitel.domain.limit_shares import Demand
from bitel.store.number_exclusion import Occupied
from bitel.store.worker_shares import Need
from bitel.token_bucket import Rate


@dataclass(frozen=True, slots=True)
class Limits:
    """A dialer's limits: channels in use, calls started per second, seconds of ringing.

    `otp_channels` of the channels are reserved for the OTP lane. `uncertain_redials` is how often a
    call is redialled beyond its retries after failures in which a phone may have rung.
    """

    max_channels: int
    calls_per_second: float
    ring_timeout: float
    otp_channels: int = 0
    uncertain_redials: int = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker uses at one moment."""

    running: int
    """Attempts under way."""
    otp_running: int
    """Those of one-time passwords."""
    is_hungry: bool
    """More calls are due than it may begin."""
    is_able: bool
    """It may begin calls: it is not stopping, and reaches a carrier."""


@dataclass(frozen=True, slots=True)
class LimitGroup:
    """The dialers that have their limits in common."""

    name: str
    dialer_ids: tuple[str, ...]

    @classmethod
    def of_one(cls, dialer_id: str) -> LimitGroup:
        """A dialer that has its limits for itself."""
        return cls(dialer_id, (dialer_id,))


class LimitShares:
    """The limits of one worker; `is_shared` if other processes may serve the same dialer, or other
    dialers the same campaigns.

    `monotonic` gives seconds.
    """

    def __init__(
        self, group: LimitGroup, limits: Limits, monotonic: Callable[[], float], is_shared: bool
    ) -> None:
        self.limits = limits
        self.group = group
        self.is_shared = is_shared or len(group.dialer_ids) > 1
        self.occupied = Occupied()
        """Calls whose worker is gone: their channels count as in use."""
        self.rate = Rate(limits.calls_per_second, monotonic())
        self._monotonic = monotonic
        self._usable: Mapping[str, int] = {}
        self._channels = f"channels:{group.name}"
        self._otp_channels = f"otp-channels:{group.name}"
        self._calls = f"calls:{group.name}"

    def change(self, limits: Limits) -> None:
        """Use other limits from now on."""
        self.limits, self.rate.per_second = limits, limits.calls_per_second

    @property
    def channels(self) -> int:
        """Channels for calls of any kind."""
        most = self.limits.max_channels - self.limits.otp_channels
        if self.is_shared:
            return min(most, self.usable(self._channels))
        return max(0, most - self.occupied.channels)

    @property
    def otp_channels(self) -> int:
        """Channels that are reserved for one-time passwords."""
        most = self.limits.otp_channels
        return min(most, self.usable(self._otp_channels)) if self.is_shared else most

    def may_begin(self, now: float) -> int:
        """How many calls the rate allows to begin now."""
        return self.rate.room(now, self.usable(self._calls) if self.is_shared else None)

    def usable(self, resource: str) -> int:
        """The places of a shared resource that this worker may use."""
        return self._usable.get(resource, 0)

    def needs(self, usage: Usage) -> dict[str, Need]:
        """What the worker needs of the dialer's limits, by resource."""
        limits = self.limits
        otp_used = min(usage.otp_running, self.otp_channels)
        used = usage.running - otp_used
        is_able = usage.is_able
        wants_all = usage.is_hungry and is_able

        def need(limit: int, used: int) -> Need:
            return Need(limit, Demand(used, limit if wants_all else used, is_able))

        return {
            self._channels: need(limits.max_channels - limits.otp_channels, used),
            self._otp_channels: need(limits.otp_channels, otp_used),
            self._calls: need(self.rate.places, self.rate.used(self._monotonic())),
        }

    def taken(self) -> dict[str, int]:
        """Places of shared resources that calls take which no worker has."""
        return {self._channels: self.occupied.channels}

    def apply(self, usable: Mapping[str, int]) -> None:
        """Use these places from now on, by resource; without any, no call may begin."""
        self._usable = usable
