"""Staying registered with a trunk (RFC 3261 §10.2): REGISTER, refresh, and leaving at the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import structlog

from bitel.dialers.asking import Ask
from bitel.dialers.health import Health
from bitel.dialers.targets import Targets
from bitel.dialers.trunk import Trunk, shown
from bitel.sip import Credentials, OutgoingRequest, RequestDone
from bitel.sip.grammar import Address, split_address, split_list

log = structlog.get_logger(__name__)

EXPIRY: Final = 600
"""Seconds that are asked for at first."""
LONGEST_EXPIRY: Final = 86_400
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0
"""Seconds before the first try after a failure, and at most, doubled each time."""
LEAVING_PATIENCE: Final = 2.0
"""Seconds that the far end may take to let us go."""
_FROM_USER: Final = "-_.!~*'()&=+$,;?/"


@dataclass(frozen=True, slots=True)
class Account:
    """Whom we register, where, and at which of our addresses (`HOST:PORT`) we are reached."""

    trunk: Trunk
    credentials: Credentials
    sent_by: str

    @property
    def address_of_record(self) -> str:
        return f"sip:{self._user}@{self.trunk.authority}"

    @property
    def contact(self) -> str:
        return f"sip:{self._user}@{self.sent_by}"

    @property
    def _user(self) -> str:
        return quote(self.credentials.username, safe=_FROM_USER)


class Registration:
    """One binding, without I/O: what to send, what an answer means, and when to come back.

    `clock` is in seconds and never goes back.
    """

    def __init__(
        self, account: Account, clock: Callable[[], float], rng: random.Random | None = None
    ) -> None:
        self._account = account
        self._clock = clock
        self._rng = rng or random.Random()
        self._expiry = EXPIRY
        self._valid_until = 0.0
        self._call_id: str | None = None
        self._from_tag: str | None = None
        self._cseq: int | None = None
        self.failures = 0
        """How many REGISTERs in a row came to nothing."""

    @property
    def valid(self) -> bool:
        """Whether the carrier knows where we are."""
        return self._clock() < self._valid_until

    def request(self, destination: Address, leaving: bool = False) -> OutgoingRequest:
        """The next REGISTER: to be bound, or bound no longer. All share one Call-ID (§10.2)."""
        account = self._account
        expiry = 0 if leaving else self._expiry
        return OutgoingRequest(
            "REGISTER",
            account.trunk.uri,
            destination,
            account.address_of_record,
            account.address_of_record,
            headers=(("Contact", f"<{account.contact}>"), ("Expires", str(expiry))),
            credentials=account.credentials,
            call_id=self._call_id,
            from_tag=self._from_tag,
            cseq=self._cseq,
        )

    def receive(self, done: RequestDone) -> float:
        """Take the answer to a REGISTER; the seconds until the next is due."""
        self._call_id, self._from_tag = done.call_id, done.from_tag
        self._cseq = done.cseq + 1
        if 200 <= done.code <= 299:
            granted = self._granted(done)
            if granted == 0:
                self._valid_until = 0.0
                return self.fail()
            self.failures = 0
            self._valid_until = self._clock() + granted
            return max(1.0, granted * self._rng.uniform(0.8, 0.9))
        if done.code == 423:
            least = _seconds(_header(done, "min-expires"))
            if least is not None and self._expiry < least <= LONGEST_EXPIRY:
                self._expiry = least
                return 0.0
        if done.why == "response":
            # Refused. Where nobody answers, the binding may well be alive until it expires.
            self._valid_until = 0.0
        return max(self.fail(), min(_seconds(_header(done, "retry-after")) or 0, LONGEST_PAUSE))

    def fail(self) -> float:
        """Count a try that came to nothing; the seconds to wait before the next."""
        pause = min(FIRST_PAUSE * 2.0 ** min(self.failures, 16), LONGEST_PAUSE)
        self.failures += 1
        return pause

    def _granted(self, done: RequestDone) -> int:
        """For how many seconds we are bound: our Contact's word, or Expires, or what we asked."""
        contacts = [
            contact
            for name, line in done.headers
            if name.lower() == "contact"
            for contact in split_list(line)
        ]
        for contact in contacts:
            uri, parameters = split_address(contact)
            if uri.partition(";")[0] != self._account.contact and len(contacts) > 1:
                continue
            for parameter in parameters.lower().split(";"):
                name, _, value = parameter.partition("=")
                seconds = _seconds(value)
                if name.strip() == "expires" and seconds is not None:
                    return min(seconds, LONGEST_EXPIRY)
        seconds = _seconds(_header(done, "expires"))
        return self._expiry if seconds is None else min(seconds, LONGEST_EXPIRY)


class Registrar:
    """Keeps one account registered while `run` runs, then takes it back with `leave`."""

    def __init__(
        self,
        account: Account,
        registration: Registration,
        targets: Targets,
        health: Health,
        ask: Ask,
    ) -> None:
        self._trunk = account.trunk
        self._registration = registration
        self._targets = targets
        self._health = health
        self._ask = ask
        self._at: Address | None = None

    @property
    def trunk(self) -> Trunk:
        return self._trunk

    @property
    def valid(self) -> bool:
        """Whether the carrier knows where we are."""
        return self._registration.valid

    async def run(self) -> None:
        """Register, refresh, and try again after failures, until cancelled."""
        while True:
            pause = await self._register()
            await asyncio.sleep(pause)

    async def leave(self) -> None:
        """Tell the carrier that we are gone, if it knew, within `LEAVING_PATIENCE` seconds."""
        if not self.valid or self._at is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVING_PATIENCE):
                await self._ask(self._registration.request(self._at, leaving=True))

    async def _register(self) -> float:
        try:
            addresses = await self._targets.find(self._trunk)
        except OSError as fault:
            log.warning("registration_failed", trunk=self._trunk.host, why=str(fault))
            return self._registration.fail()
        address = self._choose(addresses)
        done = await self._ask(self._registration.request(address))
        pause = self._registration.receive(done)
        if 200 <= done.code <= 299:
            self._at = address
            log.debug("registered", trunk=self._trunk.host, refresh_in=round(pause))
        elif pause:
            why = f"{done.code} {done.reason}"
            log.warning(
                "registration_failed",
                trunk=self._trunk.host,
                address=shown(address),
                why=why,
                again_in=round(pause),
            )
        return pause

    def _choose(self, addresses: Sequence[Address]) -> Address:
        usable = [each for each in addresses if self._health.usable(each)] or list(addresses)
        return usable[self._registration.failures % len(usable)]


def _header(done: RequestDone, wanted: str) -> str:
    return next((value for name, value in done.headers if name.lower() == wanted), "")


def _seconds(text: str) -> int | None:
    """A delta-seconds at the front of a header's value, up to 2^32 (§20.19)."""
    digits = text.strip().partition(" ")[0].partition(";")[0].partition("(")[0]
    if not digits.isascii() or not digits.isdigit() or len(digits) > 10:
        return None
    return int(digits)
