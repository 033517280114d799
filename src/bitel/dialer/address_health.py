"""Which of the carriers' addresses can be expected to take a call now.

An address is down after an unanswered INVITE or unanswered pings. Any response brings it back, to a
ping or to an INVITE, as addresses that are down are still tried last. Without pings it comes back
after `DOWN_UNPINGED` seconds. An address that sent 503 with Retry-After rests for that time (RFC
3261 §21.5.4), for `LONGEST_REST` seconds at most, since the 503 may be about the one call, and only
until it answers a ping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from bitel.dialer.trunk import shown
from bitel.sip.grammar import Address

log = structlog.get_logger(__name__)

PINGS_MISSED: Final = 2
"""Pings in a row that must stay unanswered: one may be lost on the way."""
DOWN_UNPINGED: Final = 30.0
"""Seconds for which an address is down where no pings are sent."""
LONGEST_REST: Final = 60.0
"""Longest rest of an address in seconds, whatever Retry-After says: the 503 may be about one call,
or come from behind the carrier, but a rest stops all calls."""
MOST_REMEMBERED: Final = 4096
"""Addresses that are remembered; DNS may name others each day."""


@dataclass(slots=True)
class _State:
    down_since: float | None = None
    rests_until: float = 0.0
    missed: int = 0
    answers_pings: bool = False
    answers_calls: bool = False
    answered_at: float | None = None


class Health:
    """What is known of each address; `pinged` says whether addresses are pinged.

    `clock` gives Unix seconds, `monotonic` seconds that never go back (default: `clock`).
    """

    def __init__(
        self,
        clock: Callable[[], float],
        pinged: bool,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic or clock
        self._pinged = pinged
        self._states: dict[Address, _State] = {}

    def answered_call(self, address: Address) -> None:
        """An INVITE got an answer there, provisional or final."""
        self._of(address).answers_calls = True
        self.answered(address)

    def failed_call(self, address: Address) -> None:
        """An INVITE got no answer there, or could not even be sent."""
        self._down(address, "it answers no INVITE")

    def answered_ping(self, address: Address, *, ends_rest: bool = False) -> None:
        """A ping got a response of any code; `ends_rest`: one that ends a rest after 503."""
        state = self._of(address)
        state.answers_pings = True
        if ends_rest:
            state.rests_until = 0.0
        self.answered(address)

    def missed_ping(self, address: Address) -> bool:
        """A ping got no response; whether that counts. It does not where calls are answered and
        pings never are: some carriers ignore OPTIONS."""
        state = self._of(address)
        state.missed += 1
        if state.answers_calls and not state.answers_pings:
            return False
        if state.missed >= PINGS_MISSED:
            self._down(address, "it answers no OPTIONS; if it never does, set ping_interval = 0")
        return True

    def answered(self, address: Address) -> None:
        """The address has responded, and is no longer down."""
        state = self._of(address)
        state.missed = 0
        state.answered_at = self._monotonic()
        if state.down_since is not None:
            state.down_since = None
            log.info("trunk_address_up", address=shown(address))

    def rest(self, address: Address, seconds: float) -> None:
        """Rest the address for so many seconds, `LONGEST_REST` at most."""
        self._of(address).rests_until = self._monotonic() + min(max(seconds, 0.0), LONGEST_REST)

    def usable(self, address: Address) -> bool:
        """Whether it is neither down nor at rest."""
        return not self.is_down(address) and not self.rests(address)

    def rests(self, address: Address) -> bool:
        """Whether it asked to be left alone, and that time is not over."""
        return self._of(address).rests_until > self._monotonic()

    def is_down(self, address: Address) -> bool:
        """Whether it gave no answer when it was last tried."""
        since = self._of(address).down_since
        if since is None:
            return False
        return self._pinged or self._monotonic() - since < DOWN_UNPINGED

    def answered_at(self, address: Address) -> float | None:
        """When it last gave an answer of any kind, in Unix seconds; None: never."""
        state = self._states.get(address)
        if state is None or state.answered_at is None:
            return None
        return self._clock() - (self._monotonic() - state.answered_at)

    def _of(self, address: Address) -> _State:
        state = self._states.get(address)
        if state is None:
            if len(self._states) >= MOST_REMEMBERED:
                del self._states[next(iter(self._states))]
            state = self._states[address] = _State()
        return state

    def _down(self, address: Address, why: str) -> None:
        if not self.is_down(address):
            log.warning("trunk_address_down", address=shown(address), why=why)
        self._of(address).down_since = self._monotonic()
