"""From a checked body to calls that are placed: the rules that every such endpoint shares.

`reach` says whom to call over which dialer, `sound` and `speaking` what is played, `Placing.place`
stores it all. Checks come in that order, so a client hears of a bad number first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeVar

from sqlalchemy import Connection
from starlette.requests import Request

from bitel.api.context import ApiContext
from bitel.api.idempotency import IdempotencyKey
from bitel.api.micro_batcher import MicroBatcher
from bitel.api.rate_limits import RateLimiter
from bitel.api.schemas import CallTerms
from bitel.domain.calls import Lane, NewCall, NewCalls
from bitel.domain.ids import is_id, new_id, new_ids
from bitel.domain.number_policy import policy_of
from bitel.domain.phone_numbers import country_code_of, to_e164
from bitel.domain.pricing import Rate, Tariff, longest_call
from bitel.errors import (
    BitelError,
    ForbiddenError,
    InvalidPhoneNumberError,
    InvalidRequestError,
    InvalidServerError,
    UnavailableError,
)
from bitel.settings import Settings
from bitel.store import campaigns, idempotency, placing, recordings
from bitel.store.campaigns import Campaign
from bitel.store.projects import Project

T = TypeVar("T")

MANY: Final = 50
"""Numbers from which on a thread does the work, so that others are answered meanwhile."""
_MOST_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Destinations:
    """Whom to call, each as the client wrote it and in E.164, and the dialer that does it."""

    phone_numbers: Sequence[str]
    e164: Sequence[str]
    dialer_id: str


@dataclass(frozen=True, slots=True)
class Playback:
    """What a call plays: a recording, digits, or one and then the other; `seconds` at most."""

    recording_id: str | None
    seconds: float
    digits: str = ""
    repeat_count: int = 1
    language: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """Calls the moment they are placed, in the order asked for.

    Those whose ids are in `barred` have numbers that must not be called: they are over already.
    """

    ids: Sequence[str]
    phone_numbers: Sequence[str]
    requested_at: float
    """As clients are shown it: by the system clock, in Unix seconds."""
    campaign_id: str | None
    barred: Collection[str] = ()


Answering = Callable[[Placed], bytes]
"""Makes the body of the answer. Runs on a thread: bytes, since a key's answer is kept as such."""


@dataclass(frozen=True, slots=True)
class _Order:
    """Calls, and all that is stored with them or not at all."""

    project: Project
    calls: NewCalls
    campaign: Campaign | None
    once: IdempotencyKey | None
    answering: Answering
    usual: bytes
    """The answer where no number is barred."""
    prepared: Sequence[str]
    """A campaign's calls as the store takes them; empty where there is none."""
    now: float
    date: float
    """`now` by the system clock."""

    def answer(self, barred: Collection[str]) -> StoredAnswer:
        if not barred:
            return StoredAnswer(self.usual)
        return StoredAnswer(self.answering(_as_placed(self.calls, self.date, barred)))


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The body of an answer, durable with what it tells of."""

    body: bytes
    replayed: bool = False
    """Whether it is that to an earlier request with the same key."""


class Placing:
    """Stores calls, those of many small requests at a time: one transaction, one wait for disk."""

    def __init__(self, parts: ApiContext, limits: RateLimiter) -> None:
        self._parts = parts
        self._limits = limits
        self._priced_by = parts.settings
        self._tariff_of_settings = parts.settings.price_list()
        self._rounds: MicroBatcher[_Order, StoredAnswer] = MicroBatcher(self._place_round)
        # One thread: it and the event loop take turns with the interpreter, more would crowd it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="placing")
        # One batch at a time, or a single call would wait until all that came before it are stored.
        self._batch = asyncio.Lock()
        self._seconds: OrderedDict[tuple[str, str], float] = OrderedDict()

    @property
    def _tariff(self) -> Tariff:
        """That of the settings that hold now."""
        settings = self._parts.settings
        if settings is not self._priced_by:
            self._tariff_of_settings, self._priced_by = settings.price_list(), settings
        return self._tariff_of_settings

    async def answer_again(self, project: Project, once: IdempotencyKey | None) -> bytes | None:
        """The answer to an earlier request with this key, if there was one.

        Asked before anything else is checked: what has changed since makes no difference to it.
        Raises ConflictError where the key came with another body.
        """
        if once is None:
            return None
        now = self._parts.clock()
        try:
            return await self._parts.database.write(
                lambda conn: _only_read(conn, project.id, once, now)
            )
        except _FirstTime:
            return None

    async def reach(
        self,
        project: Project,
        numbers: Sequence[str],
        server_id: str | None,
        *,
        in_batch: bool = False,
    ) -> Destinations:
        """The numbers and the dialer, checked.

        Raises InvalidPhoneNumberError or ForbiddenError for the first number that can't or may
        not be called, with its place where it is one of a batch's; then InvalidServerError or
        UnavailableError where no dialer can take them.
        """
        settings = self._parts.settings
        e164 = await self._beside(
            len(numbers), lambda: _check(project, numbers, settings, self._tariff, in_batch)
        )
        return Destinations(numbers, e164, choose_dialer(settings, project, server_id))

    async def sound(self, project: Project, recording_id: str) -> Playback:
        """A recording of the project. Raises InvalidRequestError, naming `voiceId`."""
        key = (project.id, recording_id)
        seconds = self._seconds.get(key)
        if seconds is None:
            found = None
            if is_id(recording_id):
                found = await self._parts.database.read(lambda conn: recordings.find(conn, *key))
            if found is None:
                raise _unknown_recording()
            # How long a recording lasts never changes; whether it is there is asked once more.
            seconds = self._seconds[key] = found.duration
            if len(self._seconds) > _MOST_REMEMBERED:
                self._seconds.popitem(last=False)
        return Playback(recording_id, seconds)

    async def place(
        self,
        project: Project,
        reach: Destinations,
        sound: Playback,
        terms: CallTerms,
        lane: Lane,
        answering: Answering,
        once: IdempotencyKey | None = None,
    ) -> StoredAnswer:
        """Store the calls, all or none of them; the answer, durable when this returns.

        Calls of the batch lane become a campaign. Raises InvalidRequestError where the recording
        is gone, InsufficientBalanceError, TooManyRequestsError, and ConflictError as
        `answer_again` does.
        """
        count = len(reach.e164)
        now = self._parts.clock()
        date = self._parts.date(now)
        campaign = None
        if lane is Lane.BATCH:
            campaign = Campaign(
                new_id(now), project.id, reach.dialer_id, sound.recording_id, now, count
            )

        def order() -> _Order:
            campaign_id = campaign.id if campaign else None
            prices = _Prices(self._tariff, longest_call(sound.seconds, project.hold_seconds))
            calls = _new_calls(project, reach, sound, terms, lane, campaign_id, prices, now)
            usual = answering(_as_placed(calls, date))
            prepared = placing.prepare(calls) if campaign else ()
            return _Order(project, calls, campaign, once, answering, usual, prepared, now, date)

        self._limits.count_calls(project, count)
        placed = False
        try:
            answer = await self._store(await self._beside(count, order))
            placed = not answer.replayed
        finally:
            if not placed:
                self._limits.uncount_calls(project, count)
        self._parts.on_placed(reach.dialer_id)
        return answer

    async def _store(self, order: _Order) -> StoredAnswer:
        per_number = self._parts.settings.otp.per_number
        if order.once is None and order.campaign is None:
            return await self._rounds.ask(order)
        async with self._batch if len(order.calls.ids) >= MANY else nullcontext():
            return await self._parts.database.write(lambda conn: _place(conn, order, per_number))

    async def _place_round(self, asked: Sequence[_Order]) -> Sequence[StoredAnswer | BitelError]:
        per_number = self._parts.settings.otp.per_number
        return await self._parts.database.write(lambda conn: _place_many(conn, asked, per_number))

    async def _beside(self, count: int, work: Callable[[], T]) -> T:
        """Do `work`, on the thread where it is for many numbers."""
        if count < MANY:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def placing_of(request: Request) -> Placing:
    """What stores the calls of the application that `request` reached."""
    placing: Placing = request.app.state.placing
    return placing


def choose_dialer(settings: Settings, project: Project, server_id: str | None) -> str:
    """The dialer that takes the calls: the one named, else the project's default, else the first.

    Raises InvalidServerError for a name that no dialer of this project has. Where the client named
    none and there is none to fall back on, that is the operator's to mend: UnavailableError.
    """
    usable = dialers_of(settings, project)
    if server_id is not None:
        if server_id not in usable:
            raise InvalidServerError(
                "serverId names no dialer that this project may use; GET /api/v2/servers lists them"
            )
        return server_id
    if project.default_dialer is not None:
        if project.default_dialer not in usable:
            raise UnavailableError("the project's default dialer is not among those it may use")
        return project.default_dialer
    if not usable:
        raise UnavailableError("the service has no dialer to place this project's calls with")
    return usable[0]


def dialers_of(settings: Settings, project: Project) -> list[str]:
    """The ids of the dialers that a project may use, in the order of the settings."""
    ids = (dialer.id for dialer in settings.dialers)
    return [each for each in ids if project.dialers is None or each in project.dialers]


def _check(
    project: Project,
    numbers: Sequence[str],
    settings: Settings,
    tariff: Tariff,
    in_batch: bool,
) -> list[str]:
    """The numbers in E.164; InvalidPhoneNumberError or ForbiddenError for the first bad one."""
    region, extra = settings.region, settings.extra_prefixes
    policy = policy_of(project.allowed_prefixes, project.forbidden_prefixes, region)
    checked = []
    for place, number in enumerate(numbers):
        try:
            e164 = to_e164(number, region, extra)
        except InvalidPhoneNumberError as fault:
            named = str(fault).replace("phoneNumber", _field(place, in_batch), 1)
            raise InvalidPhoneNumberError(named) from None
        refused = policy.why_refused(e164) or _why_unpriced(tariff, e164)
        if refused is not None:
            raise ForbiddenError(f"{_field(place, in_batch)} {number!r} {refused}")
        checked.append(e164)
    return checked


def _why_unpriced(tariff: Tariff, e164: str) -> str | None:
    if tariff.prices(e164):
        return None
    code = country_code_of(e164)
    return (
        f"has no price, since no line of the tariff begins with {code}; the operator can add one "
        f'with prefix = "{code}", or prefix = "+" for all numbers'
    )


def _field(place: int, in_batch: bool) -> str:
    return f"phoneNumbers[{place}]" if in_batch else "phoneNumber"


def _new_calls(
    project: Project,
    reach: Destinations,
    sound: Playback,
    terms: CallTerms,
    lane: Lane,
    campaign_id: str | None,
    prices: _Prices,
    now: float,
) -> NewCalls:
    count = len(reach.e164)
    ids = new_ids(now, count) if count > 1 else [new_id(now)]
    reserves = prices.of_all(reach.e164)
    first = NewCall(
        id=ids[0],
        project_id=project.id,
        dialer_id=reach.dialer_id,
        phone_number=reach.phone_numbers[0],
        e164=reach.e164[0],
        recording_id=sound.recording_id,
        lane=lane,
        retry_count=terms.retries,
        retry_interval=terms.seconds_between,
        requested_at=now,
        expires_at=now + terms.seconds_to_live,
        campaign_id=campaign_id,
        digits=sound.digits,
        repeat_count=sound.repeat_count,
        language=sound.language,
        reserve=reserves[0],
        longest_seconds=prices.seconds,
    )
    return NewCalls(first, ids, reach.phone_numbers, reach.e164, reserves)


def _as_placed(calls: NewCalls, date: float, barred: Collection[str] = ()) -> Placed:
    return Placed(calls.ids, calls.phone_numbers, date, calls.template.campaign_id, barred)


class _Prices:
    """What calls of one length cost, worked out once per rate."""

    def __init__(self, tariff: Tariff, seconds: int) -> None:
        self._tariff = tariff
        self.seconds = seconds
        self._known: dict[Rate | None, Decimal] = {None: Decimal(0)}

    def of_all(self, numbers: Sequence[str]) -> Sequence[Decimal]:
        if not self._tariff.rates:
            return [Decimal(0)] * len(numbers)
        return [self._of(e164) for e164 in numbers]

    def _of(self, e164: str) -> Decimal:
        rate = self._tariff.rate_for(e164)
        price = self._known.get(rate)
        if price is None and rate is not None:
            price = self._known[rate] = rate.price(self.seconds)
        return price or Decimal(0)


class _FirstTime(Exception):
    """A key that was not used before. Raised, so that nothing of the look-up is stored."""


def _only_read(conn: Connection, project_id: str, once: IdempotencyKey, now: float) -> bytes:
    answer = idempotency.first_answer(conn, project_id, once.key, once.body_hash, now)
    if answer is None:
        raise _FirstTime
    return answer


def _place_many(
    conn: Connection, asked: Sequence[_Order], otp_per_number: int
) -> list[StoredAnswer | BitelError]:
    """Place what nothing speaks against; for each order its answer, or what speaks against it."""
    each = placing.place_each(conn, [[order.calls.template] for order in asked], otp_per_number)
    return [
        barred if isinstance(barred, BitelError) else order.answer(barred)
        for order, barred in zip(asked, each, strict=True)
    ]


def _place(conn: Connection, order: _Order, otp_per_number: int) -> StoredAnswer:
    """Place an order that has a key or is a campaign. Whatever raises leaves no trace of it."""
    once, project_id = order.once, order.project.id
    if once is not None:
        first = idempotency.first_answer(conn, project_id, once.key, once.body_hash, order.now)
        if first is not None:
            return StoredAnswer(first, replayed=True)
    if order.campaign is not None:
        campaigns.add(conn, order.campaign)
    answer = order.answer(placing.place_many(conn, order.calls, order.prepared, otp_per_number))
    if once is not None:
        idempotency.keep(conn, project_id, once.key, answer.body)
    return answer


def _unknown_recording() -> InvalidRequestError:
    return InvalidRequestError("voiceId names no recording of this project")
