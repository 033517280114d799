"""The trunks of a dialer: addresses, health, registrations, routes, and accepted sources."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import structlog

from bitel.dialer.config import AcceptFrom, SipTrunkConfig
from bitel.dialer.failover import Dialled, Proxy, Route, after, in_order, redirected
from bitel.dialer.registration import Registration, RegistrationClient
from bitel.dialer.resolver import Resolver
from bitel.dialer.trunk import Trunk, shown, uri_of
from bitel.dialer.trunk_health import (
    MAX_REMEMBERED,
    AddressHealth,
    BreakerLimits,
    CircuitBreaker,
    PendingRequests,
    Pinger,
)
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.sip import Answered, Failed, OutgoingRequest, RequestDone
from bitel.sip.grammar import Address, host_in_uri, ip_literal
from bitel.sip_transport.transport import SipTransport
from bitel.supervision import keep_running

log = structlog.get_logger(__name__)

REFUSALS: Final = frozenset({401, 402, 403, 407, 488})
"""Codes by which a trunk refuses all calls if credentials, credit or codecs are wrong; several in a
row are not about the numbers called."""
REFUSALS_PROBED: Final = 300.0
"""Seconds between probe calls to a trunk that refuses all calls."""

UNCERTAIN_IN_A_ROW: Final = 10
"""Consecutive uncertain failures after which an address rests: an outage behind the carrier."""
UNCERTAIN_REST: Final = 30.0
UNCERTAIN_LONGEST: Final = 60.0
"""First and longest rest in seconds; doubled after each failed probe call."""

_DECIDED: Final = frozenset(
    {
        Outcome.ANSWERED,
        Outcome.BUSY,
        Outcome.NO_ANSWER,
        Outcome.RANG_THEN_FAILED,
        Outcome.BAD_NUMBER,
        Outcome.REFUSED_FOR_GOOD,
    }
)
"""Outcomes that prove that the trunk delivers calls."""
_UNCERTAIN: Final = BreakerLimits(UNCERTAIN_IN_A_ROW, UNCERTAIN_REST, UNCERTAIN_LONGEST)
_REFUSED: Final = frozenset({Outcome.REFUSED, Outcome.MEDIA_MISMATCH})

RESTART_PAUSE: Final = 5.0
"""Seconds before the restart of a background task after an unexpected error."""

Passed = dict[CircuitBreaker, float]
"""The circuit breakers that one call has passed, with the time."""


@dataclass(frozen=True, slots=True)
class TrunkState:
    """The state of one address of a trunk.

    `trunk` is in the form of the settings; `address` is None until it is resolved. `rests`: it sent
    Retry-After; `usable`: it takes calls. `registered` is None without registration. `answered_at`
    is the time of its last response, in Unix seconds.
    """

    trunk: str
    address: Address | None
    usable: bool
    rests: bool
    registered: bool | None
    answered_at: float | None


class TrunkMonitor:
    """Tracks the trunks of `config`; once started, registers with them and pings them.

    `clock` gives Unix seconds, `monotonic` monotonic seconds.
    """

    def __init__(
        self,
        config: SipTrunkConfig,
        clock: Callable[[], float],
        resolver: Resolver | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._monotonic = monotonic
        refusals = BreakerLimits(
            config.refusals_before_pause, REFUSALS_PROBED, REFUSALS_PROBED, must_have_worked=True
        )
        self._refusals = {trunk: CircuitBreaker(refusals) for trunk in config.trunks}
        self._uncertain: dict[Address, CircuitBreaker] = {}
        self._paused_reason = ""
        self._resolver = resolver or Resolver(monotonic, ipv6=":" in config.bind[0])
        self.find_host = self._resolver.find_host
        next_hops = [*config.trunks, *map(config.next_hop, config.trunks)]
        self._literal_hosts = {
            ip_literal(hop.address.host) for hop in next_hops if hop.address is not None
        }
        self._health = AddressHealth(clock, config.ping_interval > 0, monotonic)
        self._registrations: dict[Trunk, RegistrationClient] = {}
        self.registers: Callable[[], bool] = lambda: True
        """Whether it is the task of this worker to register; of several, one does."""
        self._requests: PendingRequests | None = None
        self._pinger: Pinger | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def up(self) -> bool:
        """Whether any trunk takes calls, at least as a probe."""
        return any(self._reachable(trunk) for trunk in self._config.trunks)

    @property
    def probing(self) -> bool:
        """Whether a call can only be a probe: one at a time is enough."""
        return self.up and not any(
            self._reachable(trunk, untried=False) for trunk in self._config.trunks
        )

    @property
    def paused_reason(self) -> str:
        """Why the breakers of all trunks are open; "" if one is closed."""
        is_open = any(breaker.is_closed for breaker in self._refusals.values())
        return "" if is_open else self._paused_reason

    @property
    def has_worked(self) -> bool:
        """Whether any trunk has delivered a call."""
        return any(breaker.worked for breaker in self._refusals.values())

    def assume_worked(self) -> None:
        """Restore from an earlier process that the trunks have delivered calls."""
        for breaker in self._refusals.values():
            breaker.worked = True

    def assume_paused(self, reason: str) -> None:
        """Restore from an earlier process that the trunks refuse all calls.

        The next call is a probe, because the settings may be corrected.
        """
        if self._config.refusals_before_pause:
            self._paused_reason = reason
            for breaker in self._refusals.values():
                breaker.open(self._monotonic())

    def trunks(self) -> Sequence[TrunkState]:
        """The state of each address of each trunk, from memory."""
        return [state for trunk in dict.fromkeys(self._config.trunks) for state in self._of(trunk)]

    async def any_address(self) -> Address:
        """An address of any trunk. Raises OSError without one."""
        fault: OSError | None = None
        for hop in self._next_hops():
            try:
                return (await self._resolver.find(hop))[0]
            except OSError as failed:
                fault = fault or failed
        assert fault is not None, "a dialer has at least one trunk"
        raise fault

    def start(self, transport: SipTransport, on_silence: Callable[[Address], None]) -> None:
        """Start pings, and registrations if configured; `on_silence` as in `Pinger`."""
        config, agent = self._config, transport.agent
        requests = self._requests = PendingRequests(transport)
        self._pinger = Pinger(
            requests.ask,
            self._health,
            self._all_addresses,
            config.ping_interval,
            lambda address: self._options_to(address, agent.config.sent_by),
            on_silence,
        )
        self._begin("ping trunks", self._pinger.run)
        if not config.register or config.credentials is None:
            return
        for trunk in dict.fromkeys(config.trunks):
            registration = Registration(
                trunk,
                config.credentials,
                lambda by: agent.config.sent_by_for(by),
                self._monotonic,
                config.outbound_proxy,
            )
            client = self._registrations[trunk] = RegistrationClient(
                registration, self._resolver, self._health, requests.ask, lambda: self.registers()
            )
            self._begin(f"register with {trunk.text}", client.run)

    def move(self) -> None:
        """Register again: our address has changed."""
        for client in self._registrations.values():
            client.move()

    async def stop(self) -> None:
        """Stop, and remove registrations, within 2 s."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(client.leave() for client in self._registrations.values()))

    def doubt(self, address: Address) -> None:
        """Ping `address` after an ICMP error, which may be forged."""
        if self._pinger is not None:
            self._pinger.doubt(address)

    def receive(self, done: RequestDone) -> None:
        """Process the response to a REGISTER or OPTIONS."""
        if self._requests is not None:
            self._requests.receive(done)

    async def routes(self, uri_for: Callable[[Trunk], str]) -> list[Route]:
        """The routes to a number, best first; `uri_for` gives the Request-URI at a trunk.

        Raises OSError if no trunk can be resolved.
        """
        routes: list[Route] = []
        fault: OSError | None = None
        for trunk in self._config.trunks:
            try:
                addresses = await self._resolver.find(self._config.next_hop(trunk))
            except OSError as failed:
                fault = failed
                continue
            routes += [Route(trunk, address, uri_for(trunk)) for address in addresses]
        if not routes and fault is not None:
            raise fault
        ordered = in_order(routes, self._health, self._rests)
        if self._config.register:
            # Stable: healthy ones stay in front.
            ordered.sort(key=lambda route: not self._registered(route.trunk))
        return ordered

    def is_of_trunk(self, host: str) -> bool:
        """Whether an IP address belongs to a trunk or its proxy, or did within 24 hours."""
        return host in self._literal_hosts or self._resolver.is_of_trunk(host)

    def hosts(self, trunk: Trunk) -> frozenset[str]:
        """The known IP addresses of the trunk and its outbound proxy."""
        known = self._resolver.known
        both = [*(known(trunk) or ()), *(known(self._config.next_hop(trunk)) or ())]
        return frozenset(address.host for address in both)

    def begin(self, route: Route, passed: Passed) -> float | None:
        """Record that an INVITE is sent to `route`; returns the time, or None if it must not be.

        While a breaker is not closed, it admits one call at a time as a probe. A probe may try all
        addresses of its trunk, and follow a redirection. `passed` belongs to the call, is empty at
        first, and is passed to `leave` at the end.
        """
        now = self._monotonic()
        begun: list[CircuitBreaker] = []
        for breaker in (self._refusals[route.trunk], self._breaker_of(route.address)):
            if breaker.is_probed_since(passed.get(breaker, -math.inf)):
                continue  # this call is the probe
            if not breaker.admits(now):
                return None
            begun.append(breaker)
        for breaker in begun:
            breaker.begin(now)
            passed[breaker] = now
        return now

    def leave(self, passed: Passed) -> None:
        """Record that a call sends no further INVITE; a probe without a result is inconclusive."""
        now = self._monotonic()
        for breaker, begun_at in passed.items():
            breaker.inconclusive(begun_at, now)

    def record_outcome(
        self, route: Route, result: AttemptResult, begun_at: float, *, picked_up: bool = False
    ) -> AttemptResult:
        """Count the result of an INVITE that was sent at `begun_at`; returns the final result.

        A refusal while the trunk refuses all calls becomes TRUNK_TROUBLE, so that the call waits,
        unless it was `picked_up` with an unusable answer: retries must be limited.
        """
        now, refusals = self._monotonic(), self._refusals[route.trunk]
        uncertain = self._breaker_of(route.address)
        address = shown(route.address)
        is_refused = result.outcome in _REFUSED and result.sip_code in REFUSALS
        if result.outcome in _DECIDED:
            if refusals.succeeded(begun_at, now):
                log.warning("trunk_takes_calls_again", trunk=route.trunk.text)
            if uncertain.succeeded(begun_at, now):
                log.warning("trunk_address_delivers_again", address=address)
        elif is_refused:
            uncertain.succeeded(begun_at, now)
            if refusals.failed(begun_at, now):
                self._paused_reason = (
                    f"the trunk refuses every call ({result.detail}); "
                    f"one call is tried every {REFUSALS_PROBED / 60:.0f} minutes"
                )
                log.error(
                    "trunk_refuses_all_calls",
                    trunk=route.trunk.text,
                    last=result.detail,
                    in_a_row=self._config.refusals_before_pause,
                    next_call_in=REFUSALS_PROBED,
                )
        elif result.outcome is Outcome.UNCERTAIN and uncertain.failed(begun_at, now):
            log.error("trunk_address_loses_calls", address=address, last=result.detail)
        if is_refused and not picked_up and not refusals.is_closed:
            return result._replace(outcome=Outcome.TRUNK_TROUBLE)
        return result

    def learn(self, route: Route, decided: Answered | Failed) -> None:
        """Update the health of the address by the result of an INVITE."""
        health, address = self._health, route.address
        if isinstance(decided, Answered) or decided.why in {"response", "auth", "media"}:
            health.answered_call(address)
        if isinstance(decided, Answered):
            return
        # After ringing, a 503 comes from behind the carrier and concerns the callee.
        is_overloaded = decided.code == 503 and decided.why == "response" and not decided.rang
        if is_overloaded and decided.retry_after:
            health.rest(address, decided.retry_after)
        is_unanswered = decided.why in {"timeout", "transport"}
        if is_unanswered and not decided.udp_untried:
            health.failed_call(address)
        was_silent = decided.why == "canceled" and not decided.rang
        if self._pinger and (is_unanswered or was_silent):
            self._pinger.ping_soon(address)

    def next_routes(
        self,
        route: Route,
        failed: Failed,
        result: AttemptResult,
        left: list[Route],
        dialled: Dialled,
    ) -> tuple[list[Route], AttemptResult]:
        """The routes to try after `route` failed: the target of a 3xx, or the other addresses.

        Also returns the result of the attempt if none is tried.
        """
        known, proxy = self._resolver.known, self._config.outbound_proxy
        onward = redirected(
            route,
            failed,
            dialled,
            known(route.trunk) or [],
            Proxy(proxy, known(proxy) or []) if proxy else None,
            follow_private=self._config.follow_private,
        )
        if isinstance(onward, Route):
            # If the redirection can't be followed now, the call waits.
            others = [other for other in left if other.trunk != route.trunk]
            return [onward, *others], result._replace(outcome=Outcome.TRUNK_TROUBLE)
        if onward:
            result = result._replace(detail=f"{result.detail}: {onward}")
        return in_order(
            after(route, failed, result.outcome, left), self._health, self._rests
        ), result

    def _of(self, trunk: Trunk) -> list[TrunkState]:
        registered = self._registered(trunk) if self._config.register else None
        health = self._health
        return [
            TrunkState(
                trunk.text,
                address,
                self._is_usable(address) and self._breakers_closed(trunk, address),
                self._rests(address),
                registered,
                health.answered_at(address),
            )
            for address in self._known(trunk) or []
        ] or [TrunkState(trunk.text, None, False, False, registered, None)]

    def _reachable(self, trunk: Trunk, *, untried: bool = True) -> bool:
        """Whether a call may be placed there; without `untried`, not only as a probe."""
        now = self._monotonic()

        def admits(breaker: CircuitBreaker) -> bool:
            return breaker.admits(now) if untried else breaker.is_closed

        addresses = self._known(trunk)
        if not self._registered(trunk) or not admits(self._refusals[trunk]):
            return False
        return addresses is None or any(
            self._is_usable(each) and admits(self._breaker_of(each)) for each in addresses
        )

    def _is_usable(self, address: Address) -> bool:
        return not self._health.is_down(address) and not self._rests(address)

    def _rests(self, address: Address) -> bool:
        """Whether no call is sent to `address` because of its Retry-After.

        False if no other address takes calls: the 503 of one call must not stop the dialer.
        """
        return self._health.rests(address) and any(
            other != address
            and self._health.usable(other)
            and self._registered(trunk)
            and self._breakers_closed(trunk, other)
            for trunk in dict.fromkeys(self._config.trunks)
            for other in self._known(trunk) or ()
        )

    def _breakers_closed(self, trunk: Trunk, address: Address) -> bool:
        return self._refusals[trunk].is_closed and self._breaker_of(address).is_closed

    def _breaker_of(self, address: Address) -> CircuitBreaker:
        breaker = self._uncertain.get(address)
        if breaker is None:
            while len(self._uncertain) >= MAX_REMEMBERED:
                del self._uncertain[next(iter(self._uncertain))]
            breaker = self._uncertain[address] = CircuitBreaker(_UNCERTAIN)
        return breaker

    def _registered(self, trunk: Trunk) -> bool:
        return not self._config.register or (
            trunk in self._registrations and self._registrations[trunk].valid
        )

    async def _all_addresses(self) -> list[Address]:
        found: list[Address] = []
        for hop in self._next_hops():
            try:
                found += await self._resolver.find(hop)
            except OSError:
                continue  # logged by `Resolver`
        return list(dict.fromkeys(found))

    def _next_hops(self) -> list[Trunk]:
        """The outbound proxy, or each of the trunks."""
        return list(dict.fromkeys(map(self._config.next_hop, self._config.trunks)))

    def _known(self, trunk: Trunk) -> list[Address] | None:
        """The known next hops of `trunk`; None before the look-up."""
        return self._resolver.known(self._config.next_hop(trunk))

    def _options_to(self, address: Address, sent_by: str) -> OutgoingRequest:
        """The OPTIONS for `address`; with an outbound proxy its Request-URI is the trunk."""
        config = self._config
        uri = config.trunks[0].uri if config.outbound_proxy else uri_of(address)
        from_uri = f"sip:{host_in_uri(config.from_domain) or sent_by}"
        return OutgoingRequest("OPTIONS", uri, address, from_uri, uri, headers=config.route)

    def _begin(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._tasks.append(asyncio.create_task(keep_running(name, work, RESTART_PAUSE)))


class AcceptedSources:
    """The `SourcePolicy` of a dialer; `is_of_trunk` is true for addresses of trunks."""

    def __init__(self, accept_from: AcceptFrom, is_of_trunk: Callable[[str], bool]) -> None:
        self._is_of_trunk = is_of_trunk
        self.accept_from(accept_from)

    def accept_from(self, accept_from: AcceptFrom) -> None:
        """Change the accepted sources."""
        self.is_open = accept_from == "any"
        self._networks = () if isinstance(accept_from, str) else accept_from
        self._is_within = lru_cache(maxsize=4096)(self._look_up)

    def accepts(self, host: str) -> bool:
        """Whether all messages from the IP address `host` are accepted."""
        return self._is_of_trunk(host) or (bool(self._networks) and self._is_within(host))

    def _look_up(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return any(
            address in network for network in self._networks if network.version == address.version
        )
