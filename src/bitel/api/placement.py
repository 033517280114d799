"""Places calls: checks a request, prices its calls, and stores them, all or none.

The order of checks is fixed: idempotency key, numbers, dialer, audio, rate limits; in the
transaction: recording, frequency, budget.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import Connection

from bitel.api import recipients
from bitel.api.context import ApiContext
from bitel.api.menus import CheckedMenu, check_menu
from bitel.api.rate_limits import RateLimiter
from bitel.api.reading import IdempotencyKey
from bitel.api.recipients import Recipients, Skipped
from bitel.api.schemas import (
    BatchBody,
    BatchTerms,
    BatchTtsBody,
    OtpBody,
    PlacingBody,
    RequestTerms,
    SingleBody,
    SingleTtsBody,
)
from bitel.api.speech import PersonalTexts, Playback, SpeechService
from bitel.batcher import Batcher
from bitel.domain import templates
from bitel.domain.calling_hours import CallingWindow
from bitel.domain.calls import NewCall, NewCalls
from bitel.domain.ids import is_id, new_id, new_ids
from bitel.domain.machines import MachineDetection, longest_message
from bitel.domain.menus import RequestMenu, request_menu
from bitel.domain.number_policy import NumberChecker, policy_of
from bitel.domain.pricing import Tariff, longest_call
from bitel.domain.recipients import Recipient
from bitel.domain.retry import RetryWaits
from bitel.domain.schedule import Schedule, zones_of
from bitel.domain.webhooks import RequestWebhook, check_events, check_url, request_webhook
from bitel.errors import (
    BitelError,
    InvalidRequestError,
    InvalidServerError,
    NotFoundError,
    UnavailableError,
)
from bitel.settings import Settings
from bitel.store import (
    campaigns,
    event_rows,
    idempotency,
    large_batches,
    placing,
    recipient_lists,
    recordings,
)
from bitel.store.campaigns import Campaign
from bitel.store.placing import LimitsChangedError
from bitel.store.projects import Project

T = TypeVar("T")

MANY: Final = 50
"""Numbers in a request from which the work is done on a thread, not on the event loop."""
_MOST_REMEMBERED: Final = 4096
LONGEST_AHEAD: Final = 366 * 86_400.0
"""Seconds until a start or an end, at most."""


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
    skipped: Sequence[Skipped] | None = None
    """Recipients that were left out; None if the request does not allow that."""


_NO_LIST: Final = "listId names no list of this project"
_NO_AUDIO: Final = Playback(None, 0.0)
"""Of calls whose texts are rendered later."""

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
    """Rows of a small campaign, prepared for the store; else empty."""
    placed: Placed
    webhook: RequestWebhook | None = None
    """The webhook that it names."""
    menu: RequestMenu | None = None
    """The menu of its calls."""

    def answer(self, barred: Collection[str]) -> StoredAnswer:
        if not barred:
            return StoredAnswer(self.rendered)
        return StoredAnswer(self.render(replace(self.placed, barred=barred)))


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
        settings, tariff = self._context.settings, self._tariff
        found = await self._recipients(project, body, number_checker(project, settings, tariff))
        dialer_id = choose_dialer(settings, project, body.server_id)
        personal, found = await self._personal_texts(body, found)
        playback = _NO_AUDIO if personal else await self._playback(project, body)
        webhook = _webhook(self._context.settings, project, body)
        terms = self._terms(project, body, dialer_id, playback)
        if webhook is not None:
            terms = replace(terms, webhook_id=webhook.id)
        checked, menu = await self._menu(project, body), None
        if checked is not None:
            menu = request_menu(project.id, checked.menu)
            terms = replace(terms, menu_id=menu.id)
        to_machine = await self._message_to_machines(project, body)
        if isinstance(body, RequestTerms) and body.machine_detection not in (None, "off"):
            terms = replace(terms, machine_detection=body.machine_detection)
            if to_machine is not None:
                terms = replace(terms, machine_recording_id=to_machine.recording_id)
        count = len(found.e164)

        def longest_of(prompt: float) -> float:
            audio = prompt if checked is None else checked.longest(prompt)
            if terms.machine_detection != MachineDetection.MESSAGE:
                return audio
            return max(audio, longest_message(prompt if to_machine is None else to_machine.seconds))

        def build() -> _Request:
            seconds = longest_call(longest_of(playback.seconds), project.hold_seconds)
            longest: list[int] = []
            if personal is None:
                reserves: Sequence[Decimal] = tariff.price_each(found.e164, seconds)
            else:
                audios = map(longest_of, personal.seconds)
                longest = [longest_call(each, project.hold_seconds) for each in audios]
                reserves = _price_each(tariff, found.e164, longest)
            now = terms.requested_at
            campaign = _campaign(body, terms, count, self._context.system_clock(), personal)
            ids = new_ids(now, count) if count > 1 else [new_id(now)]
            template = replace(
                terms,
                id=ids[0],
                phone_number=found.phone_numbers[0],
                e164=found.e164[0],
                reserve=reserves[0],
                longest_seconds=seconds,
                campaign_id=campaign.id if campaign else None,
                is_personal=personal is not None,
            )
            if campaign is None:
                template = self._scheduled(project, body, template)
            calls = NewCalls(
                template, ids, found.phone_numbers, found.e164, reserves, found.people, longest
            )
            placed = Placed(
                ids, found.phone_numbers, self._context.date(now), template.campaign_id,
                skipped=found.skipped,
            )  # fmt: skip
            is_small = campaign is not None and count <= large_batches.PIECE
            prepared = placing.prepare(calls) if is_small else ()
            return _Request(
                calls, campaign, key, render, render(placed), prepared, placed, webhook, menu
            )

        self._limits.count_calls(project, count)
        placed = False
        try:
            answer = await self._store(await self._beside(count, build))
            placed = not answer.replayed
        finally:
            if not placed:
                self._limits.uncount_calls(project, count)
        self._context.on_placed(dialer_id)
        if personal is not None:
            self._context.on_texts_placed()
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

    async def _recipients(
        self, project: Project, body: PlacingBody, checker: NumberChecker
    ) -> Recipients:
        """The recipients of a request, checked. Raises BitelError for the first wrong one."""
        settings = self._context.settings
        if not isinstance(body, BatchTerms):
            return Recipients([body.phone_number], [checker.e164(body.phone_number)])
        numbers: Sequence[str]
        people: Sequence[Recipient]
        if body.list_id is not None:
            people = await self._list(project, body.list_id)
            numbers = [each.phone_number for each in people]
            field: Callable[[int], str] = partial(_number_of_list, people)
        else:
            numbers, people = recipients.written(body, settings.batch_limit)
            field = _number_of_recipient if people else _number
        return await self._beside(
            len(numbers),
            lambda: recipients.check(
                numbers,
                people,
                checker,
                field,
                skip_invalid=bool(body.skip_invalid),
            ),
        )

    async def _personal_texts(
        self, body: PlacingBody, found: Recipients
    ) -> tuple[PersonalTexts | None, Recipients]:
        """The texts of a batch whose text has variables, and the recipients that have them all.

        Raises InvalidRequestError, which names `text` or the row.
        """
        if not isinstance(body, BatchTtsBody) or not found.people:
            return None, found
        if not templates.parse(body.text).variables:
            return None, found
        faults: dict[int, str] | None = {} if body.skip_invalid else None
        texts = await self._speech.template(body.text, body.language, found.people, faults)
        if faults and len(faults) == len(found.people):
            raise InvalidRequestError(faults[0])
        return texts, recipients.without(found, faults or {})

    async def _list(self, project: Project, list_id: str) -> list[Recipient]:
        """The recipients of an uploaded list. Raises InvalidRequestError, naming `listId`."""
        if not is_id(list_id):
            raise InvalidRequestError(_NO_LIST)
        try:
            return await self._context.database.read(
                lambda conn: [
                    each
                    for piece in recipient_lists.recipients(conn, project.id, list_id)
                    for each in piece
                ]
            )
        except NotFoundError:
            raise InvalidRequestError(_NO_LIST) from None

    def _terms(
        self, project: Project, body: PlacingBody, dialer_id: str, playback: Playback
    ) -> NewCall:
        """The fields that all calls of a request share. Raises InvalidRequestError."""
        now = self._context.clock()
        reference = caller_id = waits = None
        if isinstance(body, RequestTerms):
            date = self._context.system_clock()
            check_date("startAt", body.start_at, date)
            check_date("endAt", body.end_at, date)
            _check_caller_id(self._context.settings, dialer_id, body.caller_id)
            reference, caller_id = body.reference, body.caller_id
            if body.retry is not None:
                waits = str(RetryWaits(tuple(body.retry.busy), tuple(body.retry.no_answer)))
        return NewCall(
            id="",
            project_id=project.id,
            dialer_id=dialer_id,
            phone_number="",
            e164="",
            recording_id=playback.recording_id,
            lane=body.lane,
            retry_count=body.retries,
            retry_interval=body.seconds_between,
            requested_at=now,
            expires_at=now + body.seconds_to_live,
            digits=playback.digits,
            repeat_count=playback.repeat_count,
            language=playback.language,
            reference=reference,
            retry_waits=waits,
            caller_id=caller_id,
        )

    def _scheduled(self, project: Project, body: PlacingBody, call: NewCall) -> NewCall:
        """The call of a request for one, with the times of its schedule."""
        if isinstance(body, OtpBody):
            return call
        if body.start_at is None and body.end_at is None and project.window is None:
            return call
        ahead = self._context.date(call.requested_at) - call.requested_at
        start_at = max(call.requested_at, (body.start_at or 0.0) - ahead)
        windows = () if project.window is None else (CallingWindow.parse(project.window),)
        end_at = None if body.end_at is None else body.end_at - ahead
        schedule = Schedule(start_at, body.seconds_to_live, end_at, windows, ahead=ahead)
        if schedule.is_local:
            schedule = schedule.in_zones(zones_of(call.e164, None))
        return replace(call, due_at=start_at, expires_at=schedule.expires_at())

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

    async def _menu(self, project: Project, body: PlacingBody) -> CheckedMenu | None:
        """The menu of a request, if it has one. Raises BitelError, naming the key."""
        if not isinstance(body, RequestTerms) or body.menu is None:
            return None
        language = body.language if isinstance(body, SingleTtsBody | BatchTtsBody) else None
        return await check_menu(
            body.menu,
            partial(self._recording, project),
            lambda text: self._speech.text(project.id, text, language),
        )

    async def _message_to_machines(self, project: Project, body: PlacingBody) -> Playback | None:
        """The recording that machines get, if the request names one. Raises InvalidRequestError."""
        if not isinstance(body, RequestTerms) or body.machine_voice_id is None:
            return None
        try:
            return await self._recording(project, body.machine_voice_id)
        except InvalidRequestError as fault:
            raise InvalidRequestError(str(fault).replace("voiceId", "machineVoiceId")) from None

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
        count = len(request.calls.ids)
        async with self._large if count >= MANY else nullcontext():
            if request.campaign is not None and count > large_batches.PIECE:
                with suppress(LimitsChangedError):
                    return await self._store_pieces(request, request.campaign.id, per_number)
            return await self._context.database.write(
                lambda conn: _place_one(conn, request, per_number)
            )

    async def _store_pieces(
        self, request: _Request, campaign_id: str, per_number: int
    ) -> StoredAnswer:
        """Write a large batch in several transactions, so that others need not wait for it.

        Raises BitelError, and LimitsChangedError; then nothing of it is left.
        """
        database, clock, calls = self._context.database, self._context.clock, request.calls

        def begin(conn: Connection) -> Sequence[Decimal]:
            reserves = placing.check_many(conn, calls, per_number, request.menu)
            large_batches.begin(conn, campaign_id, clock())
            return reserves

        is_complete = False
        try:
            reserves = await database.write(begin)
            pieces = await self._beside(len(calls.ids), lambda: placing.prepare(calls, reserves))
            for piece in pieces:
                await database.write(
                    partial(large_batches.write_piece, calls=calls, prepared=piece, now=clock())
                )
            answer = await database.write(
                lambda conn: _place_one(conn, request, per_number, reserves)
            )
            is_complete = not answer.replayed
        finally:
            if not is_complete:
                discard = partial(large_batches.discard, campaign_id=campaign_id)
                while not await database.write(discard):
                    pass
        return answer

    async def _store_small(
        self, requests: Sequence[_Request]
    ) -> Sequence[StoredAnswer | BitelError]:
        per_number = self._context.settings.otp.per_number
        calls = [[each.calls.template] for each in requests]
        webhooks = [each.webhook for each in requests if each.webhook is not None]
        menus = [each.menu for each in requests if each.menu is not None]
        results = await self._context.database.write(
            lambda conn: placing.place_each(conn, calls, per_number, webhooks, menus)
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
    """The ids of the dialers and groups that a project may use, in the order of the settings."""
    ids = settings.server_ids
    return [each for each in ids if project.dialers is None or each in project.dialers]


def number_checker(project: Project, settings: Settings, tariff: Tariff) -> NumberChecker:
    """Checks the numbers of a project, under the settings and the tariff in force."""
    allowed, forbidden = project.allowed_prefixes, project.forbidden_prefixes
    policy = policy_of(allowed, forbidden, settings.region)
    return NumberChecker(policy, tariff, settings.extra_prefixes)


def _number(at: int) -> str:
    return f"phoneNumbers[{at}]"


def _number_of_recipient(at: int) -> str:
    return f"recipients[{at}].phoneNumber"


def _number_of_list(people: Sequence[Recipient], at: int) -> str:
    line = people[at].line
    return f"recipient {at + 1} of listId" if line is None else f"line {line} of listId"


def check_date(field: str, at: float | None, now: float) -> None:
    """Check the end, or start, of calls; both in Unix seconds by the system clock.

    Raises InvalidRequestError, naming the field.
    """
    if at is None:
        return
    if at > now + LONGEST_AHEAD:
        raise InvalidRequestError(f"{field} must be within a year, in Unix seconds")
    if field == "endAt" and at <= now:
        raise InvalidRequestError(f"{field} must lie in the future, in Unix seconds")


def _webhook(settings: Settings, project: Project, body: PlacingBody) -> RequestWebhook | None:
    """The webhook that a request names. Raises InvalidRequestError."""
    if not isinstance(body, RequestTerms) or body.webhook is None:
        return None
    events = check_events(body.webhook.events or (), "webhook.events")
    try:
        check_url(body.webhook.url, allow_private=settings.webhook_allow_private)
    except InvalidRequestError as fault:
        message = str(fault).replace("the webhook URL", "webhook.url")
        raise InvalidRequestError(message) from None
    if project.webhook_secret is None:
        raise InvalidRequestError(
            "webhook needs a secret of the project, with which its events are signed; "
            "`bitel webhook secret PROJECT --rotate` makes one"
        )
    return request_webhook(project.id, body.webhook.url, events)


def _check_caller_id(settings: Settings, dialer_id: str, caller_id: str | None) -> None:
    if caller_id is None:
        return
    allowed = {each for one in settings.dialers_behind(dialer_id) for each in one.all_caller_ids}
    if caller_id not in allowed:
        known = ", ".join(sorted(filter(None, allowed))) or "none"
        raise InvalidRequestError(f"callerId must be one of the dialer's caller ids: {known}")


def _campaign(
    body: PlacingBody, terms: NewCall, count: int, now: float, personal: PersonalTexts | None
) -> Campaign | None:
    """The campaign of a batch; `now` is by the system clock. Raises InvalidRequestError."""
    if not isinstance(body, BatchTerms):
        return None
    if body.window is not None:
        CallingWindow.parse(body.window)
    return Campaign(
        new_id(terms.requested_at),
        terms.project_id,
        terms.dialer_id,
        terms.recording_id,
        terms.requested_at,
        count,
        name=body.name,
        reference=body.reference,
        start_at=body.start_at if body.start_at is not None and body.start_at > now else None,
        time_to_live=body.seconds_to_live,
        end_at=body.end_at,
        window=body.window,
        calls_per_second=body.calls_per_second,
        max_channels=body.max_channels,
        webhook_id=terms.webhook_id,
        template=personal.template if personal else None,
        language=personal.language if personal else None,
    )


def _price_each(tariff: Tariff, e164: Sequence[str], seconds: Sequence[int]) -> list[Decimal]:
    """The price of each number for as many seconds as stand at its place."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, each in enumerate(seconds):
        places[each].append(place)
    prices = [Decimal(0)] * len(e164)
    for each, same in places.items():
        for place, price in zip(
            same, tariff.price_each([e164[at] for at in same], each), strict=True
        ):
            prices[place] = price
    return prices


def _place_one(
    conn: Connection,
    request: _Request,
    otp_per_number: int,
    written: Sequence[Decimal] | None = None,
) -> StoredAnswer:
    """Place a request with a key or a campaign, in one transaction.

    `written` is what its calls reserve, if their rows are written already.
    """
    key, template = request.key, request.calls.template
    if key is not None:
        first = idempotency.first_answer(
            conn, template.project_id, key.key, key.body_hash, template.requested_at
        )
        if first is not None:
            return StoredAnswer(first, replayed=True)
    if request.webhook is not None:
        event_rows.name_webhooks(conn, [request.webhook])
    if request.campaign is not None:
        campaigns.add(conn, request.campaign)
    if written is None:
        barred = placing.place_many(
            conn, request.calls, request.prepared, otp_per_number, request.menu
        )
    else:
        large_batches.complete(conn, request.calls)
        barred = placing.place_written(conn, request.calls, written, otp_per_number, request.menu)
    answer = request.answer(barred)
    if key is not None:
        idempotency.keep(conn, template.project_id, key.key, answer.body)
    return answer
