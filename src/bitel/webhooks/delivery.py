"""From events that are due to events that were taken, for all projects at once.

The outbox in the store is the queue: an event is written there with the end of its call, and
claimed here for the time of one try. A claim is a lease: if this process ends before it has written
what became of the try, the event is due again when the lease runs out. So every event is delivered
at least once, always with the same id; a receiver that has seen the id already may pass over it.

Work goes in rounds of one transaction each: it writes what has ended and claims what is due. What
ends while a round is written goes with the next, so the database sees few transactions however
many tries there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import httpx
import structlog
from sqlalchemy import Connection

from bitel.errors import InvalidRequestError, UnavailableError
from bitel.store import webhooks as outbox
from bitel.store.database import Database
from bitel.store.webhooks import Delivery, DeliveryAttempt
from bitel.webhooks import payload, retry_policy, signing
from bitel.webhooks.concurrency_limiter import ConcurrencyLimiter
from bitel.webhooks.connecting import Resolver
from bitel.webhooks.posting import Answer, Poster, TimeLimits

log = structlog.get_logger(__name__)

GONE: Final = "its receiver answered 410 Gone"
"""Why a project gets no events any more."""

_POLL = 1.0
_AFTER_FAULT = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """How events are delivered."""

    allow_private: bool = False
    """Whether receivers may have addresses that are not public, this machine's own included."""
    concurrency: int = 128
    """Tries under way at once."""
    per_project: int = 8
    """Of these, for one project; for one whose last try failed, one."""
    limits: TimeLimits = field(default_factory=TimeLimits)


def build(
    options: Options,
    database: Database,
    clock: Callable[[], float],
    date: Callable[[float], float] = float,
) -> Deliverer:
    """A deliverer with the system's resolver and certificates; `clock` and `date` as there."""
    # SSL_CERT_FILE may name the authority of an inner network.
    tls: ssl.SSLContext = httpx.create_ssl_context()
    poster = Poster(Resolver(), tls, allow_private=options.allow_private, limits=options.limits)
    return Deliverer(options, database, poster, clock, date=date)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A try that is over, and who waits for it to be written."""

    delivery: Delivery
    tried: DeliveryAttempt
    written: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Round:
    """What one transaction did."""

    due: Sequence[Delivery]
    turned_off: frozenset[str]
    """Events whose answer turned their project's URL off."""


class Deliverer:
    """Delivers events until it is drained. Run it once.

    `clock` gives the Unix seconds of all stored times. `date` turns one into what the system clock
    showed then: for the dates of events, and for timestamps that receivers check.
    """

    def __init__(
        self,
        options: Options,
        database: Database,
        poster: Poster,
        clock: Callable[[], float],
        luck: Callable[[], float] = random.random,
        date: Callable[[float], float] = float,
    ) -> None:
        self._database = database
        self._poster = poster
        self._clock = clock
        self._luck = luck
        self._date = date
        self._per_project = options.per_project
        self._load = ConcurrencyLimiter(options.concurrency, options.per_project)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: list[_Ended] = []
        self._last_project = ""
        self._doorbell = asyncio.Event()
        self._draining = False
        self._drained = False

    @property
    def running(self) -> int:
        """Tries under way, those included that are over and not yet written."""
        return len(self._tasks)

    def ring(self) -> None:
        """Something may be due now: look at once."""
        self._doorbell.set()

    async def run(self) -> None:
        """Deliver what is due, until `drain` is over."""
        try:
            while not self._drained:
                self._doorbell.clear()
                try:
                    await self._round()
                except Exception:
                    log.exception("webhook_round_broke")
                    await asyncio.sleep(_AFTER_FAULT)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL):
                        await self._doorbell.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._poster.close()

    async def drain(self, timeout: float) -> None:
        """Begin no more tries, give those under way `timeout` seconds, and let `run` end.

        A try that is cut off is made again when its lease has run out, here or elsewhere.
        """
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        self._drained = True
        self.ring()

    async def _round(self) -> None:
        """Write what has ended, and begin what is due and has room."""
        ended, self._ended = self._ended, []
        free = 0 if self._draining else self._load.free
        if not ended and free <= 0:
            return
        taken, after = self._load.taken, self._last_project

        def work(conn: Connection) -> _Round:
            turned_off = _write(conn, ended)
            if free <= 0:
                return _Round((), turned_off)
            now, most = self._clock(), self._per_project
            due = outbox.claim_due(conn, now, most, free, in_flight=taken, after_project=after)
            return _Round(due, turned_off)

        try:
            done = await self._database.write(work)
        except UnavailableError as fault:
            log.warning("webhook_round_failed", fault=str(fault))
            self._ended = ended + self._ended
            await asyncio.sleep(_AFTER_FAULT)
            return
        except Exception:
            # A fault of our own must not end all delivery. What was not written is tried again
            # when its lease has run out.
            log.exception("webhook_round_broke", ended=[one.tried.event_id for one in ended])
            _release(ended)
            await asyncio.sleep(_AFTER_FAULT)
            return
        for one in ended:
            _tell(one, turned_off=one.delivery.event_id in done.turned_off)
        _release(ended)
        for delivery in done.due:
            self._begin(delivery)

    def _begin(self, delivery: Delivery) -> None:
        self._last_project = delivery.project_id
        self._load.begin(delivery.project_id)
        task = asyncio.create_task(self._deliver(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery) -> None:
        begun = self._clock()
        failed = True
        try:
            answer = await self._try(delivery, self._date(begun))
            failed = not _was_taken(answer)
        finally:
            self._load.end(delivery.project_id, failed=failed)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended.append(_Ended(delivery, self._tried(delivery, answer, begun), written))
        self.ring()
        await written

    async def _try(self, delivery: Delivery, now: float) -> Answer:
        body = _body(delivery, self._date(delivery.requested_at))
        try:
            headers = signing.headers(delivery.secret, delivery.event_id, int(now), body)
        except InvalidRequestError as fault:
            return Answer(None, str(fault), 0.0)
        headers["content-type"] = payload.CONTENT_TYPE
        try:
            return await self._poster.post(delivery.url, headers, body, now)
        except Exception:
            # A fault of our own; the schedule keeps it from coming back at once.
            log.exception("webhook_try_broke", event_id=delivery.event_id)
            return Answer(None, "a fault inside the deliverer", 0.0)

    def _tried(self, delivery: Delivery, answer: Answer, begun: float) -> DeliveryAttempt:
        taken = _was_taken(answer)
        ended, asked_for = begun + answer.seconds, answer.retry_after
        again = retry_policy.next_try(delivery.tries, ended, self._luck(), asked_for)
        return DeliveryAttempt(
            event_id=delivery.event_id,
            at=begun,
            seconds=answer.seconds,
            delivered=taken,
            status_code=answer.status,
            error=answer.error,
            next_due=None if taken else again,
        )


def _was_taken(answer: Answer) -> bool:
    return answer.status is not None and retry_policy.is_success(answer.status)


def _write(conn: Connection, ended: Sequence[_Ended]) -> frozenset[str]:
    """Write what became of tries; the events among them that turned their project's URL off."""
    turned_off = {
        one.delivery.event_id
        for one in ended
        if one.tried.status_code is not None
        and retry_policy.is_gone(one.tried.status_code)
        # Not if its URL is another by now; then the event is for that one.
        and outbox.turn_off(conn, one.delivery.project_id, one.delivery.url, GONE)
    }
    tried = [
        replace(one.tried, next_due=None) if one.delivery.event_id in turned_off else one.tried
        for one in ended
    ]
    outbox.record(conn, tried)
    return frozenset(turned_off)


def _release(ended: Sequence[_Ended]) -> None:
    for one in ended:
        if not one.written.done():
            one.written.set_result(None)


def _tell(one: _Ended, *, turned_off: bool) -> None:
    """Log a try: nothing of the call, and neither secret nor URL, whose path may be one."""
    tried = one.tried
    about = log.bind(
        event_id=tried.event_id,
        project=one.delivery.project_id,
        tries=one.delivery.tries,
        status=tried.status_code,
        seconds=round(tried.seconds, 3),
    )
    if tried.delivered:
        about.debug("webhook_delivered")
    elif turned_off:
        about.warning("webhook_turned_off", reason=GONE)
    elif tried.next_due is None:
        about.warning("webhook_given_up", error=tried.error)
    else:
        about.info("webhook_failed", error=tried.error, again_in=round(tried.next_due - tried.at))


def _body(delivery: Delivery, requested_at: float) -> bytes:
    return payload.body(
        call_id=delivery.call_id,
        campaign_id=delivery.campaign_id,
        status=delivery.status,
        bill_seconds=delivery.bill_seconds,
        phone_number=delivery.phone_number,
        requested_at=requested_at,
        price=delivery.price,
    )
