"""Health of trunks and their addresses: pings (OPTIONS), unanswered INVITEs, circuit breakers.

An address is down after an unanswered INVITE or unanswered pings, and up after any response;
addresses that are down are still tried last. Without pings it is up again after `DOWN_UNPINGED`
seconds. After 503 with Retry-After (RFC 3261 §21.5.4) it rests for that time, up to `LONGEST_REST`
seconds, or until it answers a ping.

A circuit breaker pauses calls after consecutive failures, then lets one call at a time probe.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from bitel.dialer.trunk import shown
from bitel.sip import OutgoingRequest, RequestDone
from bitel.sip.grammar import Address
from bitel.sip_transport.transport import SipTransport

log = structlog.get_logger(__name__)

PINGS_MISSED: Final = 2
"""Consecutive unanswered pings after which an address is down; one may be lost."""
DOWN_UNPINGED: Final = 30.0
"""Seconds for which an address is down if no pings are sent."""
LONGEST_REST: Final = 60.0
"""Longest rest in seconds, whatever Retry-After says: the 503 may concern one call only, or come
from behind the carrier, but a rest stops all calls."""
MAX_REMEMBERED: Final = 4096
"""Addresses that are remembered; DNS may name new ones each day."""
PING_TIMEOUT: Final = 5.0
"""Timeout of a ping in seconds; it is retransmitted at 0.5, 1.5 and 3.5 s."""
MAX_ADDRESSES: Final = 64
DOUBTED_PING_TIMEOUT: Final = 2.0
"""As `PING_TIMEOUT`, after an ICMP error: retransmissions at 0.5 and 1.5 s."""
UNPINGED: Final = 30.0
"""Seconds between look-ups of the addresses if no pings are sent."""


@dataclass(slots=True)
class _State:
    down_since: float | None = None
    rests_until: float = 0.0
    missed: int = 0
    answers_pings: bool = False
    answers_calls: bool = False
    answered_at: float | None = None


class AddressHealth:
    """The health of each address; `pinged`: whether pings are sent.

    `clock` gives Unix seconds, `monotonic` monotonic seconds (default: `clock`).
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
        """An INVITE got a response, provisional or final."""
        self._of(address).answers_calls = True
        self.answered(address)

    def failed_call(self, address: Address) -> None:
        """An INVITE got no response, or could not be sent."""
        self._down(address, "it answers no INVITE")

    def answered_ping(self, address: Address, *, ends_rest: bool = False) -> None:
        """A ping got a response of any code; `ends_rest`: it ends a rest after 503."""
        state = self._of(address)
        state.answers_pings = True
        if ends_rest:
            state.rests_until = 0.0
        self.answered(address)

    def missed_ping(self, address: Address) -> bool:
        """A ping got no response; returns whether that counts. It does not if calls are answered
        but pings never were: some carriers ignore OPTIONS."""
        state = self._of(address)
        state.missed += 1
        if state.answers_calls and not state.answers_pings:
            return False
        if state.missed >= PINGS_MISSED:
            self._down(address, "it answers no OPTIONS; if it never does, set ping_interval = 0")
        return True

    def answered(self, address: Address) -> None:
        """The address has responded: it is up."""
        state = self._of(address)
        state.missed = 0
        state.answered_at = self._monotonic()
        if state.down_since is not None:
            state.down_since = None
            log.info("trunk_address_up", address=shown(address))

    def rest(self, address: Address, seconds: float) -> None:
        """Rest the address for `seconds`, at most `LONGEST_REST`."""
        self._of(address).rests_until = self._monotonic() + min(max(seconds, 0.0), LONGEST_REST)

    def usable(self, address: Address) -> bool:
        """Whether it is neither down nor at rest."""
        return not self.is_down(address) and not self.rests(address)

    def rests(self, address: Address) -> bool:
        """Whether it rests after 503 with Retry-After."""
        return self._of(address).rests_until > self._monotonic()

    def is_down(self, address: Address) -> bool:
        """Whether it did not respond last."""
        since = self._of(address).down_since
        if since is None:
            return False
        return self._pinged or self._monotonic() - since < DOWN_UNPINGED

    def answered_at(self, address: Address) -> float | None:
        """Time of its last response of any kind, in Unix seconds; None: never."""
        state = self._states.get(address)
        if state is None or state.answered_at is None:
            return None
        return self._clock() - (self._monotonic() - state.answered_at)

    def _of(self, address: Address) -> _State:
        if address not in self._states:
            if len(self._states) >= MAX_REMEMBERED:
                del self._states[next(iter(self._states))]
            self._states[address] = _State()
        return self._states[address]

    def _down(self, address: Address, why: str) -> None:
        if not self.is_down(address):
            log.warning("trunk_address_down", address=shown(address), why=why)
        self._of(address).down_since = self._monotonic()


Ask = Callable[[OutgoingRequest], Awaitable[RequestDone]]
"""Sends a request and waits for its final response; code 408 or 503 without one."""


class PendingRequests:
    """Sends requests over `transport`, whose RequestDone events go to `receive`."""

    def __init__(self, transport: SipTransport) -> None:
        self._transport = transport
        self._waiting: dict[str, tuple[int, asyncio.Future[RequestDone]]] = {}

    async def ask(self, request: OutgoingRequest) -> RequestDone:
        """Send `request` and wait for its final response: up to 64 × T1, longer if challenged."""
        call_id = self._transport.agent.request(request, self._transport.now())
        done: asyncio.Future[RequestDone] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = request.cseq or 1, done
        self._transport.flush()
        try:
            return await done
        finally:
            del self._waiting[call_id]

    def receive(self, event: RequestDone) -> None:
        """Complete the request that waits for this response, if any."""
        cseq, waiting = self._waiting.get(event.call_id, (0, None))
        # A lower CSeq belongs to an earlier request with the same Call-ID.
        if waiting is not None and event.cseq >= cseq and not waiting.done():
            waiting.set_result(event)


class Pinger:
    """Pings the addresses that `find` gives every `interval` seconds, and reports to `health`.

    With interval 0 it only looks up the addresses. `options_to` makes the OPTIONS for an address.
    `on_silence` is called with a doubted address that answers no ping, unless it never does.
    """

    def __init__(
        self,
        ask: Ask,
        health: AddressHealth,
        find: Callable[[], Awaitable[Iterable[Address]]],
        interval: float,
        options_to: Callable[[Address], OutgoingRequest],
        on_silence: Callable[[Address], None],
    ) -> None:
        self._ask = ask
        self._health = health
        self._find = find
        self._interval = interval
        self._options_to = options_to
        self._on_silence = on_silence
        self._doubted: set[Address] = set()
        self._deadlines: dict[Address, asyncio.Timeout] = {}
        self._under_way: dict[Address, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Ping until cancelled; the first time after one interval."""
        try:
            while True:
                addresses = await self._find()
                # Jitter, so that many dialers do not ping at the same time.
                await asyncio.sleep((self._interval or UNPINGED) * random.uniform(0.9, 1.0))
                for address in list(addresses)[:MAX_ADDRESSES]:
                    self.ping_soon(address)
        finally:
            for task in list(self._under_way.values()):
                task.cancel()

    def ping_soon(self, address: Address) -> None:
        """Ping now, unless a ping is pending or the interval is 0."""
        if self._interval:
            self._begin(address)

    def doubt(self, address: Address) -> None:
        """Ping now, whatever the interval, after an ICMP error about `address`.

        The timeout of a pending ping is shortened accordingly.
        """
        if address in self._under_way or len(self._under_way) < MAX_ADDRESSES:
            self._doubted.add(address)
            self._begin(address)
        deadline = self._deadlines.get(address)
        soon = asyncio.get_running_loop().time() + DOUBTED_PING_TIMEOUT
        if deadline and not deadline.expired() and (deadline.when() or soon) > soon:
            deadline.reschedule(soon)

    def _begin(self, address: Address) -> None:
        if address not in self._under_way:
            task = asyncio.create_task(self.ping(address))
            self._under_way[address] = task
            task.add_done_callback(partial(self._finished, address))

    def _finished(self, address: Address, task: asyncio.Task[None]) -> None:
        del self._under_way[address]
        self._doubted.discard(address)
        if not task.cancelled() and task.exception() is not None:
            log.error("ping_failed", address=shown(address), exc_info=task.exception())

    async def ping(self, address: Address) -> None:
        """Send OPTIONS and report the result to `health`."""
        request = self._options_to(address)
        # The response does not end a rest that began after the ping was sent.
        rested = self._health.rests(address)
        timeout = DOUBTED_PING_TIMEOUT if address in self._doubted else PING_TIMEOUT
        try:
            async with asyncio.timeout(timeout) as deadline:
                self._deadlines[address] = deadline
                done = await self._ask(request)
        except TimeoutError:
            done = None
        finally:
            self._deadlines.pop(address, None)
        if done is None or done.why in {"timeout", "transport"}:
            if self._health.missed_ping(address) and address in self._doubted:
                self._on_silence(address)
        else:
            self._health.answered_ping(address, ends_rest=rested and done.code != 503)


class BreakerState(enum.Enum):
    """Whether calls may be placed."""

    CLOSED = "closed"
    """Calls are placed; `threshold` failures in a row open it."""
    OPEN = "open"
    """No calls, for `first_wait` seconds, doubled each time up to `longest_wait`."""
    HALF_OPEN = "half open"
    """One call runs as a probe: success closes, failure opens again."""


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a breaker opens, and for how long.

    `threshold` consecutive failures open it, 0: never. With `must_have_worked` only after a
    success: without one the settings are wrong, which should show at once.
    """

    threshold: int
    first_wait: float
    longest_wait: float
    must_have_worked: bool = False


class CircuitBreaker:
    """A circuit breaker for calls.

    The result of a call that began before the last change of state does not count, so results carry
    the begin time of their call. Times are monotonic seconds.
    """

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._failures = 0
        self._wait = limits.first_wait
        self._changed_at = self._retry_at = 0.0
        self.state = BreakerState.CLOSED
        self.worked = False
        """Whether any call has succeeded; may be restored from an earlier process."""

    @property
    def is_closed(self) -> bool:
        """Whether calls are placed without limit."""
        return self.state is BreakerState.CLOSED

    def admits(self, now: float) -> bool:
        """Whether a call may begin now: any while closed, else one after the wait."""
        return self.is_closed or (self.state is BreakerState.OPEN and now >= self._retry_at)

    def open(self, now: float) -> None:
        """Restore the open state of an earlier process; a probe is admitted at once."""
        self.worked = True
        self._retry_at = now
        self._enter(BreakerState.OPEN, now)

    def is_probed_since(self, begun_at: float) -> bool:
        """Whether the call that began at `begun_at` is the current probe."""
        return self.state is BreakerState.HALF_OPEN and begun_at >= self._changed_at

    def begin(self, now: float) -> None:
        """Record the begin of an admitted call."""
        if self.state is BreakerState.OPEN:
            self._enter(BreakerState.HALF_OPEN, now)

    def succeeded(self, begun_at: float, now: float) -> bool:
        """Record a success; returns whether it closes the breaker."""
        self.worked = True
        if self.is_closed:
            self._failures = 0
            return False
        if not self.is_probed_since(begun_at):
            return False
        self._failures = 0
        self._wait = self._limits.first_wait
        self._enter(BreakerState.CLOSED, now)
        return True

    def failed(self, begun_at: float, now: float) -> bool:
        """Record a failure; returns whether it opens the breaker."""
        limits = self._limits
        if begun_at < self._changed_at or self.state is BreakerState.OPEN:
            return False
        if self.state is BreakerState.HALF_OPEN:
            self._wait = min(self._wait * 2, limits.longest_wait)
        else:
            self._failures += 1
            if not limits.threshold or self._failures < limits.threshold:
                return False
            if limits.must_have_worked and not self.worked:
                return False
        self._open(now)
        return True

    def inconclusive(self, begun_at: float, now: float) -> None:
        """Record a call without a result; another probe follows after the wait."""
        if self.is_probed_since(begun_at):
            self._open(now)

    def _open(self, now: float) -> None:
        self._retry_at = now + self._wait
        self._enter(BreakerState.OPEN, now)

    def _enter(self, state: BreakerState, now: float) -> None:
        self.state = state
        self._changed_at = now
