"""JSON of campaigns, as clients see them in answers and webhooks."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from bitel.domain.call_json import DateOf, balance_change
from bitel.domain.calls import CallStatus


class CampaignPhase(enum.StrEnum):
    """What a campaign is doing; clients see it as `state`."""

    SCHEDULED = "SCHEDULED"
    """Its start has not come."""
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    """All of its calls are over."""
    CANCELED = "CANCELED"


@dataclass(frozen=True, slots=True)
class CampaignState:
    """The current state of a campaign."""

    id: str
    total: int
    by_status: Mapping[CallStatus, int]
    """The number of calls by status, without zeros."""
    requested_at: float
    finished_at: float
    """When the last call was over, 0 while one is not."""
    price: Decimal
    """The total price of its calls: zero or positive."""
    canceled_at: float | None = None
    name: str | None = None
    reference: str | None = None
    start_at: float | None = None
    end_at: float | None = None
    window: str | None = None
    calls_per_second: float | None = None
    max_channels: int | None = None
    paused_at: float | None = None
    answered: int = 0
    """Calls that were answered, and are over."""
    humans: int = 0
    machines: int = 0
    keys: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """The number of calls in which each key was pressed, without zeros."""

    def phase(self, date: float) -> CampaignPhase:
        """What it is doing at `date`, by the system clock."""
        if self.canceled_at is not None:
            return CampaignPhase.CANCELED
        if self.finished_at:
            return CampaignPhase.FINISHED
        if self.paused_at is not None:
            return CampaignPhase.PAUSED
        if self.start_at is not None and date < self.start_at:
            return CampaignPhase.SCHEDULED
        return CampaignPhase.RUNNING


def campaign_answer(state: CampaignState, date: DateOf, now: float) -> dict[str, Any]:
    """The JSON of a campaign, in the order of `CampaignAnswer`; every status is listed.

    `now` is in Unix seconds of the system clock.
    """
    return {
        "id": state.id,
        "total": state.total,
        "byStatus": {status.name: state.by_status.get(status, 0) for status in CallStatus},
        "requestDate": int(date(state.requested_at)),
        "finishedDate": int(date(state.finished_at)),
        "price": balance_change(state.price),
        "name": state.name,
        "reference": state.reference,
        "state": str(state.phase(now)),
        "answered": state.answered,
        "keys": dict(sorted(state.keys.items())),
        "machines": {"human": state.humans, "machine": state.machines},
        "startAt": _seconds(state.start_at),
        "endAt": _seconds(state.end_at),
        "window": state.window,
        "callsPerSecond": state.calls_per_second,
        "maxChannels": state.max_channels,
    }


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
