"""The `Dialer` protocol, through which the dispatcher places calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from bitel.domain.attempts import AttemptResult, DialRequest

OnAnswered = Callable[[float], Awaitable[bool]]
"""Called once, with the time of the answer (Unix seconds), before the first packet of audio.

Returns True when the answer is durable. False: the call must be ended at once, without audio.
"""

OnRinging = Callable[[float], None]
"""Called with the time (Unix seconds) of an attempt's first 18x, at most once."""


def ignore_ringing(rang_at: float) -> None:
    """An `OnRinging` that does nothing."""


class Dialer(Protocol):
    """Places calls; each `dial` makes one attempt, many may run at once."""

    @property
    def up(self) -> bool:
        """Whether calls placed now may succeed."""

    @property
    def probing(self) -> bool:
        """Whether a call placed now would be a probe of a failed trunk: one is enough."""

    @property
    def paused_reason(self) -> str:
        """Why no calls are placed although the trunks answer; "" while they are."""

    @property
    def has_worked(self) -> bool:
        """Whether any trunk has delivered a call."""

    def assume_worked(self) -> None:
        """Assume that the trunks have delivered calls, as an earlier process recorded."""

    def assume_paused(self, reason: str) -> None:
        """Assume that the trunks refuse every call, as an earlier process recorded.

        The next call probes one.
        """

    async def start(self) -> None:
        """Bind sockets. Raises BitelError if that fails."""

    async def dial(
        self, request: DialRequest, on_answered: OnAnswered, on_ringing: OnRinging = ignore_ringing
    ) -> AttemptResult:
        """Make one attempt and return its result. Never raises for what the remote side does."""

    def cancel(self, attempt_id: str) -> None:
        """End a running attempt by CANCEL or BYE; its `dial` then returns soon.

        Its outcome is Outcome.CANCELED if it was not answered. No-op for an unknown attempt.
        """

    def abandon(self, attempt_id: str) -> None:
        """End an attempt that another worker may have taken over, as `cancel` does, soon.

        What has arrived by now still counts, as does the end of its ring time. No INVITE is sent or
        retransmitted any more, so that no other phone begins to ring.
        """

    async def close(self) -> None:
        """Release all resources, after the last attempt has ended."""
