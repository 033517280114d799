"""Call plans: the callee's behaviour for a number, chosen by its last two digits.

Part of the callee, so it imports nothing of the service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple


class Step(NamedTuple):
    """The callee's behaviour for one invitation. Seconds count from the INVITE."""

    final_after: float | None = 0.4
    """Seconds until the final response; None: none is ever sent."""
    code: int = 200
    ring: int | None = 180
    """The provisional response sent 0.1 s after `quiet`; None: 100 only."""
    headers: Sequence[str] = ()
    """Header lines of the final response."""
    hang_up: float | None = None
    """Seconds from the answer until the callee sends BYE; None: it listens to the end."""
    quiet: float = 0.0
    """Seconds without any response; 100 comes at once where it is 0, and not at all otherwise."""
    silent: bool = False
    """No packet at all is answered."""
    ring_timeouts: int = 0
    """How many of the service's ring time-outs are added to `final_after`."""


class Plan(NamedTuple):
    """The behaviour for successive invitations to a number; the last step repeats."""

    name: str
    steps: Sequence[Step]

    def step(self, invitation: int) -> Step:
        """The step of the invitation with this number; the first is 0."""
        return self.steps[min(invitation, len(self.steps) - 1)]


ANSWER = Step()
BUSY = Step(final_after=0.3, code=486)
RING = Step(final_after=None)

_SHARES: Final[Sequence[tuple[int, Plan]]] = (
    (20, Plan("answer", [ANSWER])),
    (5, Plan("quiet, then answer", [Step(3.0, quiet=2.0)])),
    (5, Plan("quiet, then busy", [Step(2.5, 486, quiet=1.2)])),
    (9, Plan("answer, hang up early", [Step(hang_up=0.9)])),
    (5, Plan("answer slowly", [Step(final_after=1.5)])),
    (5, Plan("busy, then answer", [BUSY, ANSWER])),
    (5, Plan("busy", [BUSY])),
    (5, Plan("never answer", [RING])),
    (5, Plan("never answer, then answer", [RING, ANSWER])),
    (5, Plan("180, 480 with cause 41", [Step(1.0, 480, headers=["Reason: Q.850;cause=41"])])),
    (4, Plan("180, 503 with Retry-After", [Step(1.0, 503, headers=["Retry-After: 1"])])),
    (3, Plan("183, 500", [Step(1.0, 500, ring=183)])),
    (4, Plan("100, 504 after 4.5 s", [Step(4.5, 504, ring=None)])),
    (3, Plan("404", [Step(0.1, 404, ring=None)])),
    (3, Plan("answer just before the ring time-out", [Step(-0.05, ring_timeouts=1)])),
    (3, Plan("answer at the ring time-out", [Step(0.0, ring_timeouts=1)])),
    (3, Plan("503 at once, then answer", [Step(0.0, 503, ring=None)] * 2 + [ANSWER])),
    (2, Plan("silent, then answer", [Step(silent=True), ANSWER])),
    (2, Plan("486 with cause 34", [Step(0.3, 486, headers=["Reason: Q.850;cause=34"])])),
    (2, Plan("180, 480", [Step(1.0, 480)])),
    (1, Plan("180, 408 with cause 102", [Step(1.0, 408, headers=["Reason: Q.850;cause=102"])])),
    (1, Plan("603", [Step(0.5, 603)])),
)


def _by_digits() -> Mapping[str, Plan]:
    plans = [plan for share, plan in _SHARES for _ in range(share)]
    return {f"{digits:02}": plan for digits, plan in enumerate(plans)}


PLANS: Final = _by_digits()
"""The plan of every pair of last digits, "00" to "99"."""


def plan_of(number: str) -> Plan:
    """The plan of a number, in any notation that ends with its digits."""
    return PLANS[number[-2:]]
