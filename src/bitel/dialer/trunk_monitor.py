"""The trunks of one dialer: their addresses and health, registrations, and routes for calls."""

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
    MOST_REMEMBERED,
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
"""Codes by which a trunk refuses every call once credentials, credit or codecs are no longer right;
in a row they say nothing about the numbers called."""
REFUSALS_PROBED: Final = 300.0
"""Seconds between two calls to a trunk that refuses all of them."""

UNCERTAIN_IN_A_ROW: Final = 10
"""Uncertain failures in a row after which an address rests: an outage behind the carrier's edge."""
UNCERTAIN_REST: Final = 30.0
UNCERTAIN_LONGEST: Final = 60.0
"""Seconds of rest, doubled each time a single call shows that the outage lasts."""

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
"""Outcomes that show that the trunk delivers calls."""
_UNCERTAIN: Final = BreakerLimits(UNCERTAIN_IN_A_ROW, UNCERTAIN_REST, UNCERTAIN_LONGEST)
_REFUSED: Final = frozenset({Outcome.REFUSED, Outcome.MEDIA_MISMATCH})

RESTART_PAUSE: Final = 5.0
"""Seconds from an unexpected error of a background task to its restart."""

Passed = dict[CircuitBreaker, float]
"""The circuit breakers that one call has passed, and when."""


@dataclass(frozen=True, slots=True)
class TrunkState:
    """One address of one trunk, or a trunk that has none yet.

    `trunk` is the trunk as the settings name it, `address` None until DNS has named one. `rests`:
    it sent Retry-After; `usable`: it neither rests nor has it stopped answering. `registered` is
    None without registration. `answered_at` is when it last answered anything, in Unix seconds.
    """

    trunk: str
    address: Address | None
    usable: bool
    rests: bool
    registered: bool | None
    answered_at: float | None


class TrunkMonitor:
    """Knows the trunks of `config`; once started, registers with them and pings them.

    `clock` gives Unix seconds, `monotonic` seconds that never go back.
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
        next_hops = [*config.trunks, *map(config.next_hop, config.trunks)]
        self._literal_hosts = {
            ip_literal(hop.address.host) for hop in next_hops if hop.address is not None
        }
        self._health = AddressHealth(clock, config.ping_interval > 0, monotonic)
        self._registrations: dict[Trunk, RegistrationClient] = {}
        self._requests: PendingRequests | None = None
        self._pinger: Pinger | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def up(self) -> bool:
        """Whether a call placed now has a chance with one of them."""
        return any(self._reachable(trunk) for trunk in self._config.trunks)

    @property
    def probing(self) -> bool:
        """Whether a call placed now only tries out what has failed: one is enough."""
        return self.up and not any(
            self._reachable(trunk, untried=False) for trunk in self._config.trunks
        )

    @property
    def paused_reason(self) -> str:
        """Why every trunk's breaker holds calls back; "" while one of them takes calls."""
        is_open = any(breaker.is_closed for breaker in self._refusals.values())
        return "" if is_open else self._paused_reason

    @property
    def has_worked(self) -> bool:
        """Whether any trunk has delivered a call."""
        return any(breaker.worked for breaker in self._refusals.values())

    def assume_worked(self) -> None:
        """Take it that the trunks have delivered calls, as an earlier process has recorded."""
        for breaker in self._refusals.values():
            breaker.worked = True

    def assume_paused(self, reason: str) -> None:
        """Take it that the trunks refuse every call, as an earlier process has recorded.

        The next call tries one: that process is over, and its settings may be mended by now.
        """
        if self._config.refusals_before_pause:
            self._paused_reason = reason
            for breaker in self._refusals.values():
                breaker.open(self._monotonic())

    def trunks(self) -> Sequence[TrunkState]:
        """The state of each address of each trunk, from memory."""
        return [state for trunk in dict.fromkeys(self._config.trunks) for state in self._of(trunk)]

    async def any_address(self) -> Address:
        """An address of one of them. Raises OSError where none has any."""
        fault: OSError | None = None
        for hop in self._next_hops():
            try:
                return (await self._resolver.find(hop))[0]
            except OSError as failed:
                fault = fault or failed
        assert fault is not None, "a dialer has at least one trunk"
        raise fault

    async def find_host(self, host: str) -> str:
        """An IP address of `host`, as `Resolver.find_host` finds it."""
        return await self._resolver.find_host(host)

    def start(self, transport: SipTransport, on_silence: Callable[[Address], None]) -> None:
        """Register where that is wanted, and ping.

        `on_silence` is called with an address that was doubted and does not answer.
        """
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
                registration, self._resolver, self._health, requests.ask
            )
            self._begin(f"register with {trunk.text}", client.run)

    def move(self) -> None:
        """Register anew: our address has changed."""
        for client in self._registrations.values():
            client.move()

    async def stop(self) -> None:
        """Take registrations back; takes 2 s at most."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(client.leave() for client in self._registrations.values()))

    def doubt(self, address: Address) -> None:
        """Ask whether `address` is there: an ICMP error, perhaps forged, says that it is not."""
        if self._pinger is not None:
            self._pinger.doubt(address)

    def receive(self, done: RequestDone) -> None:
        """Take the answer to a REGISTER or an OPTIONS."""
        if self._requests is not None:
            self._requests.receive(done)

    async def routes(self, uri_for: Callable[[Trunk], str]) -> list[Route]:
        """The routes to a number, best first; `uri_for` gives the Request-URI at a trunk.

        Raises OSError where no trunk's name can be found.
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
            # Stable: among those that are registered, the healthy ones stay in front.
            ordered.sort(key=lambda route: not self._registered(route.trunk))
        return ordered

    def is_of_trunk(self, host: str) -> bool:
        """Whether an IP address is one of the trunks' or the outbound proxy's, or was within the
        last 24 hours."""
        return host in self._literal_hosts or self._resolver.is_of_trunk(host)

    def hosts(self, trunk: Trunk) -> frozenset[str]:
        """The IP addresses that are known to be the trunk's, or its outbound proxy's."""
        known = self._resolver.known
        both = [*(known(trunk) or ()), *(known(self._config.next_hop(trunk)) or ())]
        return frozenset(address.host for address in both)

    def begin(self, route: Route, passed: Passed) -> float | None:
        """Note that an INVITE is sent to `route`; the time, or None where it must not be sent.

        While a breaker is not closed, one call at a time is let through as a probe. A call that
        probes a trunk may try all its addresses, and go where one of them redirects it. `passed`
        is the call's own, empty at first, and goes to `leave` when it is over.
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
        """Note that a call sends no further INVITE.

        A probe that has shown neither success nor failure by then is followed by another after the
        wait.
        """
        now = self._monotonic()
        for breaker, begun_at in passed.items():
            breaker.inconclusive(begun_at, now)

    def record_outcome(
        self, route: Route, result: AttemptResult, begun_at: float, *, picked_up: bool = False
    ) -> AttemptResult:
        """Count the result of an INVITE that left at `begun_at`; the result that then applies.

        A refusal while the trunk refuses all calls says nothing about this one: it becomes trunk
        trouble, so that the call waits. Not so where the call was `picked_up` with an answer of no
        use: it must not be repeated without limit.
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
        """Take note of how an INVITE fared."""
        health, address = self._health, route.address
        if isinstance(decided, Answered) or decided.why in {"response", "auth", "media"}:
            health.answered_call(address)
        if isinstance(decided, Answered):
            return
        # After ringing a 503 comes from behind the carrier, and is about who was called.
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

        Also returns the result of the attempt if none of them is tried.
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
            # The redirection is no result: if it can't be followed now, the call waits.
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
        """Whether a call may be placed there; without `untried`, not merely as a probe."""
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

        False if no other address takes calls either: the 503 of one call must not stop a dialer.
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
            while len(self._uncertain) >= MOST_REMEMBERED:
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
                continue  # `Resolver` has said so in the log
        return list(dict.fromkeys(found))

    def _next_hops(self) -> list[Trunk]:
        """Where requests are sent: the outbound proxy, or each of the trunks."""
        return list(dict.fromkeys(map(self._config.next_hop, self._config.trunks)))

    def _known(self, trunk: Trunk) -> list[Address] | None:
        """The known addresses that requests for `trunk` are sent to; None before the look-up."""
        return self._resolver.known(self._config.next_hop(trunk))

    def _options_to(self, address: Address, sent_by: str) -> OutgoingRequest:
        """The OPTIONS that pings `address`; with an outbound proxy its Request-URI is the trunk."""
        config = self._config
        uri = config.trunks[0].uri if config.outbound_proxy else uri_of(address)
        from_uri = f"sip:{host_in_uri(config.from_domain) or sent_by}"
        return OutgoingRequest("OPTIONS", uri, address, from_uri, uri, headers=config.route)

    def _begin(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._tasks.append(asyncio.create_task(keep_running(name, work, RESTART_PAUSE)))


class AcceptedSources:
    """The `SourcePolicy` of a dialer; `is_of_trunk` tells the trunks' addresses."""

    def __init__(self, accept_from: AcceptFrom, is_of_trunk: Callable[[str], bool]) -> None:
        self._is_of_trunk = is_of_trunk
        self.accept_from(accept_from)

    def accept_from(self, accept_from: AcceptFrom) -> None:
        """Accept from there from now on."""
        self.is_open = accept_from == "any"
        self._networks = () if isinstance(accept_from, str) else accept_from
        self._is_within = lru_cache(maxsize=4096)(self._look_up)

    def accepts(self, host: str) -> bool:
        """Whether everything that comes from `host`, an IP address, is accepted."""
        return self._is_of_trunk(host) or (bool(self._networks) and self._is_within(host))

    def _look_up(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return any(
            address in network for network in self._networks if network.version == address.version
        )
