"""Registration with a trunk (RFC 3261 §10.2): REGISTER, refresh and removal."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote

import structlog

from bitel.dialer.resolver import Resolver
from bitel.dialer.trunk import Trunk, shown
from bitel.dialer.trunk_health import AddressHealth, Ask
from bitel.sip import Credentials, OutgoingRequest, RequestDone
from bitel.sip.grammar import (
    Address,
    GrammarError,
    Transport,
    parameter,
    split_address,
    split_list,
    transport_parameter,
)

log = structlog.get_logger(__name__)

EXPIRY: Final = 600
"""The first Expires, in seconds."""
LONGEST_EXPIRY: Final = 86_400
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0
"""First and longest pause after a failure, in seconds; doubled each time."""
NEXT_ADDRESS_PAUSE: Final = 0.5
"""Seconds before the next address is tried, until all have been."""
SPENT: Final = 4
"""Sequence numbers that one REGISTER may use, as challenges send it again."""
TURN_INTERVAL: Final = 1.0
"""Seconds between two checks whether it is the turn of this worker to register."""
LEAVING_TIMEOUT: Final = 2.0
"""Timeout in seconds for the removal of a binding."""
_FROM_USER: Final = "-_.!~*'()&=+$,;?/"


class Registration:
    """The state of one binding, without I/O.

    `sent_by` gives our current `HOST:PORT` for a transport; `proxy` is the outbound proxy. `clock`
    is in seconds and monotonic.
    """

    def __init__(
        self,
        trunk: Trunk,
        credentials: Credentials,
        sent_by: Callable[[Transport], str],
        clock: Callable[[], float],
        proxy: Trunk | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.trunk = trunk
        self.next_hop = proxy or trunk
        """Where REGISTER is sent."""
        self._credentials = credentials
        self._user = quote(credentials.username, safe=_FROM_USER)
        self._sent_by = sent_by
        self._headers = (("Route", proxy.route),) if proxy else ()
        self._clock = clock
        self._rng = rng or random.Random()
        self._expiry = EXPIRY
        self._valid_until = 0.0
        self._call_id: str | None = None
        self._from_tag: str | None = None
        self._cseq: int | None = None
        self._asked = ""
        self._bound = ""
        self.stale = ""
        """A former Contact of ours that may still be bound."""
        self.failures = 0
        """Consecutive failures."""

    @property
    def valid(self) -> bool:
        """Whether there is a binding that has not expired."""
        return self._clock() < self._valid_until

    def request(self, destination: Address) -> OutgoingRequest:
        """The next REGISTER, for our current address."""
        transport = destination.transport
        at = self._sent_by(transport) + transport_parameter(transport)
        self._asked = f"sip:{self._user}@{at}"
        return self._register(destination, self._asked, self._expiry)

    def leave(self, destination: Address) -> OutgoingRequest:
        """The REGISTER that removes the binding."""
        return self._register(destination, self._bound, 0)

    def drop_stale(self, destination: Address) -> OutgoingRequest:
        """The REGISTER that removes the `stale` Contact, which is then forgotten."""
        contact, self.stale = self.stale, ""
        request = self._register(destination, contact, 0)
        # It may use up so many numbers, answered or not.
        self._cseq = (self._cseq or 1) + SPENT
        return request

    def _register(self, destination: Address, contact: str, expiry: int) -> OutgoingRequest:
        """A REGISTER with the Call-ID of the binding (§10.2)."""
        address_of_record = f"sip:{self._user}@{self.trunk.authority}"
        return OutgoingRequest(
            "REGISTER",
            self.trunk.uri,
            destination,
            address_of_record,
            address_of_record,
            headers=(*self._headers, ("Contact", f"<{contact}>"), ("Expires", str(expiry))),
            credentials=self._credentials,
            call_id=self._call_id,
            from_tag=self._from_tag,
            cseq=self._cseq,
        )

    def receive(self, done: RequestDone) -> float:
        """Process the response to a REGISTER; returns the seconds until the next."""
        self._call_id, self._from_tag = done.call_id, done.from_tag
        self._cseq = done.cseq + 1
        if 200 <= done.code <= 299:
            granted = self._granted(done)
            if granted == 0:
                self._valid_until = 0.0
                return self.fail()
            self.failures = 0
            if self.valid and self._bound != self._asked:
                self.stale = self._bound
            self._bound = self._asked
            self._valid_until = self._clock() + granted
            return max(1.0, granted * self._rng.uniform(0.8, 0.9))
        if done.code == 423:
            least = _seconds(done.header("min-expires"))
            if least is not None and self._expiry < least <= LONGEST_EXPIRY:
                self._expiry = least
                return 0.0
            if least is None:
                # 423 without Min-Expires, against §10.3: request a longer time after a pause.
                self._expiry = min(2 * self._expiry, LONGEST_EXPIRY)
        if done.why == "response":
            # Refused. Without a response, the binding may be valid until it expires.
            self._valid_until = 0.0
        return max(self.fail(), min(_seconds(done.header("retry-after")) or 0, LONGEST_PAUSE))

    def fail(self) -> float:
        """Count a failure; returns the seconds until the next try."""
        pause = min(FIRST_PAUSE * 2.0 ** min(self.failures, 16), LONGEST_PAUSE)
        self.failures += 1
        return pause

    def _granted(self, done: RequestDone) -> int:
        """Seconds granted: in our Contact, else in Expires, else what we requested."""
        contacts = [
            contact
            for name, line in done.headers
            if name == "contact"
            for contact in split_list(line)
        ]
        for contact in contacts:
            try:
                uri, parameters = split_address(contact)
            except GrammarError:
                continue  # may be the binding of another device
            same = uri.partition(";")[0] == self._asked.partition(";")[0]
            if not same and len(contacts) > 1:
                continue
            seconds = _seconds(parameter(parameters, "expires") or "")
            if seconds is not None:
                return min(seconds, LONGEST_EXPIRY)
        seconds = _seconds(done.header("expires"))
        return self._expiry if seconds is None else min(seconds, LONGEST_EXPIRY)


class RegistrationClient:
    """Keeps one binding registered: `run`, then `leave`.

    `registers` says whether that is the task of this worker; of several, one does it.
    """

    def __init__(
        self,
        registration: Registration,
        resolver: Resolver,
        health: AddressHealth,
        ask: Ask,
        registers: Callable[[], bool],
    ) -> None:
        self._registration = registration
        self._trunk = registration.trunk
        self._resolver = resolver
        self._health = health
        self._ask = ask
        self._registers = registers
        self._at: Address | None = None
        self._moved = asyncio.Event()

    @property
    def valid(self) -> bool:
        """Whether there is a binding that has not expired, or another worker sees to it."""
        return self._registration.valid or not self._registers()

    async def run(self) -> None:
        """Register, refresh and retry until cancelled."""
        while True:
            pause = await self._register() if self._registers() else TURN_INTERVAL
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._moved.wait()
            self._moved.clear()

    def move(self) -> None:
        """Register at once: our address has changed."""
        self._moved.set()

    async def leave(self) -> None:
        """Remove the binding, if any, within `LEAVING_TIMEOUT` seconds."""
        if self._registration.valid and self._at is not None:
            await self._ask_briefly(self._registration.leave(self._at))

    async def _register(self) -> float:
        try:
            addresses = await self._resolver.find(self._registration.next_hop)
        except OSError as fault:
            log.warning("registration_failed", trunk=self._trunk.host, why=str(fault))
            return self._registration.fail()
        address = self._choose(addresses)
        done = await self._ask(self._registration.request(address))
        pause = self._registration.receive(done)
        if 200 <= done.code <= 299:
            self._at = address
            self._health.answered(address)
            if self._registration.stale:
                await self._ask_briefly(self._registration.drop_stale(address))
            log.debug("registered", trunk=self._trunk.host, refresh_in=round(pause))
            return pause
        if done.why != "response" and self._registration.failures < len(addresses):
            pause = NEXT_ADDRESS_PAUSE  # another address may respond (RFC 3263 §4.3)
        if pause:
            log.warning(
                "registration_failed",
                trunk=self._trunk.host,
                address=shown(address),
                why=f"{done.code} {done.reason}",
                again_in=round(pause, 1),
            )
        return pause

    async def _ask_briefly(self, request: OutgoingRequest) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVING_TIMEOUT):
                await self._ask(request)

    def _choose(self, addresses: Sequence[Address]) -> Address:
        usable = [each for each in addresses if self._health.usable(each)] or list(addresses)
        return usable[self._registration.failures % len(usable)]


def _seconds(text: str) -> int | None:
    """The delta-seconds at the start of a header value (§20.19); None if invalid."""
    digits = text.strip().partition(" ")[0].partition(";")[0].partition("(")[0]
    if not digits.isascii() or not digits.isdigit() or len(digits) > 10:
        return None
    return int(digits)
