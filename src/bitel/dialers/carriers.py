"""The carriers of one dialer: where they are, which of them can be reached, registered or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence

import structlog

from bitel.calls.outcome import Outcome
from bitel.dialers.asking import Asker
from bitel.dialers.config import SipTrunkConfig
from bitel.dialers.health import Health
from bitel.dialers.hops import Hop, after, in_order, redirected
from bitel.dialers.pinger import Pinger
from bitel.dialers.registrar import Account, Registrar, Registration
from bitel.dialers.targets import Targets
from bitel.dialers.trunk import Trunk
from bitel.dialers.trunk_state import TrunkState
from bitel.sip import Answered, Failed, RequestDone
from bitel.sip.grammar import Address
from bitel.transports.sip_transport import SipTransport

log = structlog.get_logger(__name__)


class Carriers:
    """Knows the trunks of `config`; once started, keeps an eye on them. `clock` is in seconds."""

    def __init__(
        self, config: SipTrunkConfig, clock: Callable[[], float], targets: Targets | None = None
    ) -> None:
        self._config = config
        self._clock = clock
        self._targets = targets or Targets(clock, ipv6=":" in config.bind[0])
        self._health = Health(clock, pinged=config.ping_interval > 0)
        self._registrars: dict[Trunk, Registrar] = {}
        self._asker: Asker | None = None
        self._pinger: Pinger | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def up(self) -> bool:
        """Whether a call placed now has a chance with one of them."""
        return any(self._reachable(trunk) for trunk in self._config.trunks)

    def trunks(self) -> Sequence[TrunkState]:
        """How each address of each trunk stands; asks nobody."""
        return [state for trunk in dict.fromkeys(self._config.trunks) for state in self._of(trunk)]

    async def any_address(self) -> Address:
        """An address of one of them. Raises OSError where none has any."""
        fault: OSError | None = None
        for trunk in self._config.trunks:
            try:
                return (await self._targets.find(trunk))[0]
            except OSError as failed:
                fault = fault or failed
        assert fault is not None, "a dialer has at least one trunk"
        raise fault

    def start(self, transport: SipTransport) -> None:
        """Register where that is wanted, and ping."""
        config, agent = self._config, transport.agent
        asker = self._asker = Asker(transport)
        self._pinger = Pinger(
            asker.ask,
            self._health,
            self._all_addresses,
            config.ping_interval,
            lambda: f"sip:{agent.config.sent_by}",
        )
        self._begin(self._pinger.run())
        if not config.register or config.credentials is None:
            return
        for trunk in dict.fromkeys(config.trunks):
            account = Account(trunk, config.credentials, lambda by: agent.config.sent_by_for(by))
            registrar = self._registrars[trunk] = Registrar(
                account,
                Registration(account, self._clock),
                self._targets,
                self._health,
                asker.ask,
            )
            self._begin(registrar.run())

    def move(self) -> None:
        """Register anew: our address has changed."""
        for registrar in self._registrars.values():
            registrar.move()

    async def stop(self) -> None:
        """Take registrations back; takes 2 s at most."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(registrar.leave() for registrar in self._registrars.values()))

    def receive(self, done: RequestDone) -> None:
        """Take the answer to a REGISTER or an OPTIONS."""
        if self._asker is not None:
            self._asker.receive(done)

    async def hops(self, number_of: Callable[[Trunk], str]) -> list[Hop]:
        """The ways to a number, best first; `number_of` gives the Request-URI at a trunk.

        Raises OSError where no trunk's name can be found.
        """
        ways: list[Hop] = []
        fault: OSError | None = None
        for trunk in self._config.trunks:
            try:
                addresses = await self._targets.find(trunk)
            except OSError as failed:
                fault = failed
                continue
            ways += [Hop(trunk, address, number_of(trunk)) for address in addresses]
        if not ways and fault is not None:
            raise fault
        ordered = in_order(ways, self._health)
        if self._config.register:
            # Stable: among those that are registered, the healthy ones stay in front.
            ordered.sort(key=lambda hop: not self._registered(hop.trunk))
        return ordered

    def hosts(self, trunk: Trunk) -> frozenset[str]:
        """The IP addresses that are known to be the trunk's."""
        return frozenset(address.host for address in self._targets.known(trunk) or ())

    def learn(self, hop: Hop, decided: Answered | Failed) -> None:
        """Take note of how an INVITE fared."""
        health, address = self._health, hop.address
        if isinstance(decided, Answered) or decided.why in {"response", "auth", "media"}:
            health.answered_call(address)
        if isinstance(decided, Answered):
            return
        if decided.code == 503 and decided.why == "response" and decided.retry_after:
            health.rest(address, decided.retry_after)
        if decided.why in {"timeout", "transport"}:
            health.failed_call(address)
        if self._pinger and (decided.why in {"timeout", "transport"} or _was_silent(decided)):
            self._pinger.ping_soon(address)

    def next_hops(self, hop: Hop, failed: Failed, outcome: Outcome, left: list[Hop]) -> list[Hop]:
        """What is still worth trying after `hop` failed: where a 3xx sends us, or the others."""
        onward = redirected(hop, failed, self._targets.known(hop.trunk) or [])
        if onward is not None:
            return [onward, *(other for other in left if other.trunk != hop.trunk)]
        return in_order(after(hop, failed, outcome, left), self._health)

    def _of(self, trunk: Trunk) -> list[TrunkState]:
        registered = self._registered(trunk) if self._config.register else None
        health = self._health
        return [
            TrunkState(
                trunk.text,
                address,
                health.usable(address),
                health.rests(address),
                registered,
                health.answered_at(address),
            )
            for address in self._targets.known(trunk) or []
        ] or [TrunkState(trunk.text, None, False, False, registered, None)]

    def _reachable(self, trunk: Trunk) -> bool:
        addresses = self._targets.known(trunk)
        if not self._registered(trunk):
            return False
        return addresses is None or any(self._health.usable(each) for each in addresses)

    def _registered(self, trunk: Trunk) -> bool:
        return not self._config.register or (
            trunk in self._registrars and self._registrars[trunk].valid
        )

    async def _all_addresses(self) -> list[Address]:
        found: list[Address] = []
        for trunk in self._config.trunks:
            try:
                found += await self._targets.find(trunk)
            except OSError:
                continue  # `Targets` has said so in the log
        return list(dict.fromkeys(found))

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_report)
        self._tasks.append(task)


def _was_silent(failed: Failed) -> bool:
    """Whether a call was given up without a sign from the far end that it rang."""
    return failed.why == "canceled" and not failed.rang


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("trunk_watch_failed", exc_info=task.exception())
