"""The `Dialer` protocol, through which the dispatcher places calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from bitel.domain.attempts import AttemptResult, DialRequest

OnAnswered = Callable[[float], Awaitable[bool]]
"""Called once, with the time of the answer (Unix seconds), before the first packet of audio.

True when it is durable that this person has heard us. False when the claim is lost: then the call
must be ended at once and in silence.
"""


OnRinging = Callable[[float], None]
"""Called with the time (Unix seconds) of an attempt's first 18x, at most once."""


def ignore_ringing(rang_at: float) -> None:
    """Record no ringing."""


class Dialer(Protocol):
    """Places calls, one attempt at a time per order, many orders at once."""

    @property
    def up(self) -> bool:
        """Whether calls placed now have a chance to succeed."""

    @property
    def probing(self) -> bool:
        """Whether a call placed now only tries out a trunk that has failed: one is enough."""

    @property
    def paused_reason(self) -> str:
        """Why no calls are placed although the trunks answer; "" while they are."""

    @property
    def has_worked(self) -> bool:
        """Whether any trunk has delivered a call."""

    def assume_worked(self) -> None:
        """Take it that the trunks have delivered calls, as an earlier process has recorded."""

    def assume_paused(self, reason: str) -> None:
        """Take it that the trunks refuse every call, as an earlier process has recorded; the next
        call tries one."""

    async def start(self) -> None:
        """Bind what needs binding. Raises BitelError in one sentence when that fails."""

    async def dial(
        self, request: DialRequest, on_answered: OnAnswered, on_ringing: OnRinging = ignore_ringing
    ) -> AttemptResult:
        """Make one attempt and say what became of it. Never raises for what a far end does."""

    def cancel(self, attempt_id: str) -> None:
        """End an attempt that is under way, by CANCEL or BYE; its `dial` then returns soon.

        Where nobody had answered it returns Outcome.CALLED_OFF. No-op for an unknown attempt.
        """

    def abandon(self, attempt_id: str) -> None:
        """End an attempt that another worker may have taken over, as `call_off` does.

        No INVITE is sent or repeated any more, so that no further phone begins to ring.
        """

    async def close(self) -> None:
        """Release everything. Attempts must be over by then."""
