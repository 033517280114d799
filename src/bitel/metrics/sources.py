"""Where the figures come from: the parts of this process that keep them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bitel.dialer.trunk_monitor import TrunkState
from bitel.dialing.backpressure import OverloadReason
from bitel.dialing.figures import Figures
from bitel.domain.attempts import Outcome
from bitel.observability.histogram import Histogram
from bitel.rtp.streamer import StreamerStats
from bitel.store.database import Database
from bitel.store.queue_depth import Waiting
from bitel.store.storage_state import StorageState

__all__ = ["DialerFigures", "DialerSource", "Figures", "Outcome", "Snapshot", "Sources"]


@dataclass(frozen=True, slots=True)
class DialerFigures:
    """One dialer of this process, at this moment."""

    dialer_id: str
    up: bool
    is_paused: bool
    """Whether its trunks refuse all calls, so that calls wait."""
    channels: int
    """In use."""
    max_channels: int
    figures: Figures
    invites: int
    signs: frozenset[OverloadReason]
    held_back: float
    """Seconds for which the machine had no room for more calls."""
    trunks: Sequence[TrunkState]
    streams: StreamerStats
    messages_dropped: tuple[int, int] = (0, 0)
    """SIP messages from sources that are not accepted: all, and those that name a running call."""
    recordings_unreachable: int = 0
    """Recordings, and languages that digits are spoken in, that calls need and can't have."""


DialerSource = Callable[[], DialerFigures]


class Deliverer(Protocol):
    """What delivers webhooks."""

    @property
    def running(self) -> int:
        """Tries under way."""


class Storage(Protocol):
    """What watches the sizes of database and disk."""

    @property
    def state(self) -> StorageState:
        """Of the database."""

    @property
    def disk_free(self) -> int:
        """Bytes on the disk of `data_dir`."""


@dataclass(slots=True)
class Sources:
    """All that this process can say; `dialers` grows while it starts."""

    database: Database
    dialer_ids: Sequence[str]
    """Those of the settings, wherever they run."""
    clock: Callable[[], float]
    """Unix seconds of all stored times."""
    lag: Histogram
    """How late the event loop was."""
    collector: Histogram
    """How long the collector of cyclic garbage kept it."""
    clock_gap: Callable[[], float] = lambda: 0.0
    """Seconds by which the system clock is ahead of `clock`."""
    storage: Storage | None = None
    """Sizes of database and disk."""
    deliverer: Deliverer | None = None
    """None where others deliver."""
    dialers: list[DialerSource] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the database says about all processes."""

    at: float
    waiting: Waiting
    up: dict[str, bool]
    """By dialer, those that ever ran."""
