"""Places calls: checks a request, prices its calls, and stores them, all or none.

The order of checks is fixed: idempotency key, numbers, dialer, audio, rate limits; in the
transaction: recording, frequency, budget.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import Connection

from bitel.api.context import ApiContext
from bitel.api.rate_limits import RateLimiter
from bitel.api.reading import IdempotencyKey
from bitel.api.schemas import (
    BatchBody,
    BatchTtsBody,
    OtpBody,
    PlacingBody,
    SingleBody,
    SingleTtsBody,
)
from bitel.api.speech import Playback, SpeechService
from bitel.batcher import Batcher
from bitel.domain.calls import Lane, NewCall, NewCalls
from bitel.domain.ids import is_id, new_id, new_ids
from bitel.domain.number_policy import NumberChecker, policy_of
from bitel.domain.pricing import Tariff, longest_call
from bitel.errors import (
    BitelError,
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
"""Numbers in a request from which the work is done on a thread, not on the event loop."""
_MOST_REMEMBERED: Final = 4096
_COMMA: Final = re.compile("[,،，]")
"""Commas of Latin, Arabic and full-width text."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Calls that were placed, in the order of the request."""

    ids: Sequence[str]
    phone_numbers: Sequence[str]
    requested_at: float
    """By the system clock, in Unix seconds."""
    campaign_id: str | None
    barred: Collection[str] = ()
    """Ids of calls whose numbers must not be called; these calls are final already."""


Render = Callable[[Placed], bytes]
"""Makes the body of the answer; may run on a thread. Bytes, which are stored with the key."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The body of an answer whose calls are durable."""

    body: bytes
    replayed: bool = False
    """Whether it is the answer to an earlier request with the same key."""


@dataclass(frozen=True, slots=True)
class _Request:
    """Calls, and what is stored in the same transaction."""

    calls: NewCalls
    campaign: Campaign | None
    key: IdempotencyKey | None
    render: Render
    rendered: bytes
    """The answer if no number is barred, made before the transaction."""
    prepared: Sequence[str]
    """Rows of a campaign, prepared for the store; else empty."""
    date: float
    """Time of the request, by the system clock."""

    def answer(self, barred: Collection[str]) -> StoredAnswer:
        if not barred:
            return StoredAnswer(self.rendered)
        return StoredAnswer(self.render(_placed(self.calls, self.date, barred)))


class Placement:
    """Places calls; concurrent small requests share a transaction."""

    def __init__(self, context: ApiContext, limits: RateLimiter, speech: SpeechService) -> None:
        self._context = context
        self._limits = limits
        self._speech = speech
        self._priced_by = context.settings
        self._tariff_of_settings = context.settings.price_list()
        self._small: Batcher[_Request, StoredAnswer] = Batcher(self._store_small)
        # One thread: more would compete with the event loop for the interpreter.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="placing")
        # One batch at a time; otherwise a single call would wait for all batches before it.
        self._large = asyncio.Lock()
        self._durations: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def place(
        self, project: Project, body: PlacingBody, key: IdempotencyKey | None, render: Render
    ) -> StoredAnswer:
        """Place the calls of a request; those of a batch are one campaign. Raises BitelError."""
        if key is not None and (stored := await self._replay(project, key)) is not None:
            return StoredAnswer(stored, replayed=True)
        settings, tariff, lane = self._context.settings, self._tariff, body.lane
        numbers = _numbers(body, settings.batch_limit)
        checker = number_checker(project, settings, tariff)
        e164 = await self._beside(
            len(numbers), lambda: _check(checker, numbers, in_batch=lane is Lane.BATCH)
        )
        dialer_id = choose_dialer(settings, project, body.server_id)
        playback = await self._playback(project, body)
        now = self._context.clock()
        date = self._context.date(now)

        def build() -> _Request:
            campaign = None
            if lane is Lane.BATCH:
                campaign = Campaign(
                    new_id(now), project.id, dialer_id, playback.recording_id, now, len(numbers)
                )
            campaign_id = campaign.id if campaign else None
            seconds = longest_call(playback.seconds, project.hold_seconds)
            reserves = tariff.price_each(e164, seconds)
            ids = new_ids(now, len(e164)) if len(e164) > 1 else [new_id(now)]
            template = NewCall(
                id=ids[0],
                project_id=project.id,
                dialer_id=dialer_id,
                phone_number=numbers[0],
                e164=e164[0],
                recording_id=playback.recording_id,
                lane=lane,
                retry_count=body.retries,
                retry_interval=body.seconds_between,
                requested_at=now,
                expires_at=now + body.seconds_to_live,
                campaign_id=campaign_id,
                digits=playback.digits,
                repeat_count=playback.repeat_count,
                language=playback.language,
                reserve=reserves[0],
                longest_seconds=seconds,
            )
            calls = NewCalls(template, ids, numbers, e164, reserves)
            rendered = render(_placed(calls, date))
            prepared = placing.prepare(calls) if campaign else ()
            return _Request(calls, campaign, key, render, rendered, prepared, date)

        self._limits.count_calls(project, len(e164))
        placed = False
        try:
            answer = await self._store(await self._beside(len(e164), build))
            placed = not answer.replayed
        finally:
            if not placed:
                self._limits.uncount_calls(project, len(e164))
        self._context.on_placed(dialer_id)
        return answer

    async def _replay(self, project: Project, key: IdempotencyKey) -> bytes | None:
        """The answer to an earlier request with this key, if there was one.

        Comes before all checks, whose results may have changed since. Raises ConflictError if the
        earlier request had another body.
        """
        now = self._context.clock()
        return await self._context.database.read(
            lambda conn: idempotency.find_answer(conn, project.id, key.key, key.body_hash, now)
        )

    async def _playback(self, project: Project, body: PlacingBody) -> Playback:
        match body:
            case SingleBody() | BatchBody():
                return await self._recording(project, body.voice_id)
            case SingleTtsBody() | BatchTtsBody():
                return await self._speech.text(project.id, body.text, body.language)
            case OtpBody():
                intro = None
                if body.voice_id is not None:
                    intro = await self._recording(project, body.voice_id)
                return await self._speech.code(body.text, body.language, body.repeats, intro)

    async def _recording(self, project: Project, recording_id: str) -> Playback:
        """A recording of the project. Raises InvalidRequestError, naming `voiceId`."""
        key = (project.id, recording_id)
        seconds = self._durations.get(key)
        if seconds is None:
            found = None
            if is_id(recording_id):
                found = await self._context.database.read(lambda conn: recordings.find(conn, *key))
            if found is None:
                raise InvalidRequestError("voiceId names no recording of this project")
            # Cached, since it never changes; the transaction checks that the recording exists.
            seconds = self._durations[key] = found.duration
            if len(self._durations) > _MOST_REMEMBERED:
                self._durations.popitem(last=False)
        return Playback(recording_id, seconds)

    @property
    def _tariff(self) -> Tariff:
        """The tariff of the settings in force."""
        settings = self._context.settings
        if settings is not self._priced_by:
            self._tariff_of_settings, self._priced_by = settings.price_list(), settings
        return self._tariff_of_settings

    async def _store(self, request: _Request) -> StoredAnswer:
        per_number = self._context.settings.otp.per_number
        if request.key is None and request.campaign is None:
            return await self._small.submit(request)
        async with self._large if len(request.calls.ids) >= MANY else nullcontext():
            return await self._context.database.write(
                lambda conn: _place_one(conn, request, per_number)
            )

    async def _store_small(
        self, requests: Sequence[_Request]
    ) -> Sequence[StoredAnswer | BitelError]:
        per_number = self._context.settings.otp.per_number
        calls = [[each.calls.template] for each in requests]
        results = await self._context.database.write(
            lambda conn: placing.place_each(conn, calls, per_number)
        )
        return [
            barred if isinstance(barred, BitelError) else request.answer(barred)
            for request, barred in zip(requests, results, strict=True)
        ]

    async def _beside(self, count: int, work: Callable[[], T]) -> T:
        """Run `work`, on the thread if it is for many numbers."""
        if count < MANY:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def choose_dialer(settings: Settings, project: Project, server_id: str | None) -> str:
    """The dialer for calls: the one that is named, else the project's default, else the first.

    Raises InvalidServerError if the project may not use the named one, UnavailableError if none is
    named and there is no default.
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


def _numbers(body: PlacingBody, most: int) -> Sequence[str]:
    if not isinstance(body, BatchBody | BatchTtsBody):
        return [body.phone_number]
    return listed_numbers(body.phone_numbers, most)


def listed_numbers(numbers: Sequence[str], most: int) -> Sequence[str]:
    """The numbers of a list, or of one string. Raises InvalidRequestError for none or too many."""
    if isinstance(numbers, str):
        numbers = [number.strip() for number in _COMMA.split(numbers)] if numbers.strip() else []
    if not 1 <= len(numbers) <= most:
        raise InvalidRequestError(f"phoneNumbers must hold 1 to {most} numbers, not {len(numbers)}")
    return numbers


def number_checker(project: Project, settings: Settings, tariff: Tariff) -> NumberChecker:
    """Checks the numbers of a project, under the settings and the tariff in force."""
    allowed, forbidden = project.allowed_prefixes, project.forbidden_prefixes
    policy = policy_of(allowed, forbidden, settings.region)
    return NumberChecker(policy, tariff, settings.extra_prefixes)


def _check(checker: NumberChecker, numbers: Sequence[str], *, in_batch: bool) -> list[str]:
    """The numbers in E.164; InvalidPhoneNumberError or ForbiddenError for the first bad one."""
    return [checker.e164(number, _field(place, in_batch)) for place, number in enumerate(numbers)]


def _field(place: int, in_batch: bool) -> str:
    return f"phoneNumbers[{place}]" if in_batch else "phoneNumber"


def _placed(calls: NewCalls, date: float, barred: Collection[str] = ()) -> Placed:
    return Placed(calls.ids, calls.phone_numbers, date, calls.template.campaign_id, barred)


def _place_one(conn: Connection, request: _Request, otp_per_number: int) -> StoredAnswer:
    """Place a request with a key or a campaign, in one transaction."""
    key, template = request.key, request.calls.template
    if key is not None:
        first = idempotency.first_answer(
            conn, template.project_id, key.key, key.body_hash, template.requested_at
        )
        if first is not None:
            return StoredAnswer(first, replayed=True)
    if request.campaign is not None:
        campaigns.add(conn, request.campaign)
    barred = placing.place_many(conn, request.calls, request.prepared, otp_per_number)
    answer = request.answer(barred)
    if key is not None:
        idempotency.keep(conn, template.project_id, key.key, answer.body)
    return answer
