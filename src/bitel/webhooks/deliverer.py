"""Delivers webhook events from the outbox (`store/webhooks.py`), for all projects.

An event is written to the outbox in the transaction of what it says. A claim is a lease for one
try: if this process ends before it has written the result, the event becomes due again when the
lease expires. So delivery is at least once, always with the same id, by which receivers can drop
repetitions. A try does not begin when too little of its lease is left, as after a pause of the
process: another one may have begun it.

Each round is one transaction, which writes the results of finished tries and claims due events.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import httpx
import structlog
from sqlalchemy import Connection

from bitel.errors import InvalidRequestError, UnavailableError
from bitel.store import webhooks as outbox
from bitel.store.database import Database
from bitel.store.webhooks import Delivery, DeliveryAttempt
from bitel.webhooks import payload, retry_policy, signing
from bitel.webhooks.http_client import DEFAULT_LIMITS, DeliveryResponse, HttpClient, TimeLimits
from bitel.webhooks.resolver import Resolver

log = structlog.get_logger(__name__)

GONE: Final = "its receiver answered 410 Gone"
"""Why a URL gets no more events."""

ORDER_TIMEOUT: Final = 10.0
"""Seconds that an event waits for the try of an earlier event of its call, at most."""

_POLL = 1.0
_AFTER_FAULT = 0.5


class ConcurrencyLimiter:
    """Limits concurrent tries: `most` in total, `most_each` for one project.

    A project whose last try failed has one at a time until one succeeds, so that receivers that
    hang leave room for the others.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._running: Counter[str] = Counter()
        self._failing: set[str] = set()

    @property
    def free(self) -> int:
        """How many tries may begin now."""
        return self._most - self._running.total()

    @property
    def taken(self) -> dict[str, int]:
        """By project, how many of its `most_each` tries can't begin now; 0 if it is missing."""
        taken = dict(self._running)
        for project_id in self._failing:
            taken[project_id] = self._most_each - (0 if self._running[project_id] else 1)
        return taken

    def begin(self, project_id: str) -> None:
        """Count a try."""
        self._running[project_id] += 1

    def end(self, project_id: str, *, failed: bool) -> None:
        """Count a try as finished."""
        self._running[project_id] -= 1
        if not self._running[project_id]:
            del self._running[project_id]
        if failed:
            self._failing.add(project_id)
        else:
            self._failing.discard(project_id)


@dataclass(frozen=True, slots=True)
class _Finished:
    """A try whose result is not written yet."""

    delivery: Delivery
    attempt: DeliveryAttempt
    written: asyncio.Event


class _Turn(NamedTuple):
    before: asyncio.Event | None
    """Set when the try before, of the same call, is over."""
    over: asyncio.Event


class Deliverer:
    """Delivers events until it is drained. Run it once.

    Args:
        clock: gives the Unix seconds of stored times.
        date: turns a time of `clock` into one of the system clock, for the dates of events and the
            timestamps that receivers check.
        allow_private: whether receivers may have addresses that are not public, including those of
            this machine.
        concurrency: maximum concurrent tries.
        per_project: the same for one project.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        date: Callable[[float], float] = float,
        *,
        allow_private: bool = False,
        concurrency: int = 128,
        per_project: int = 8,
        limits: TimeLimits = DEFAULT_LIMITS,
    ) -> None:
        self._database = database
        self._clock = clock
        self._date = date
        self._per_project = per_project
        # httpx reads SSL_CERT_FILE, which may name an internal certificate authority.
        tls = httpx.create_ssl_context()
        self._client = HttpClient(Resolver(), tls, allow_private=allow_private, limits=limits)
        self._longest_try = limits.answer + limits.body
        self._limiter = ConcurrencyLimiter(concurrency, per_project)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leased: set[str] = set()
        self._finished: list[_Finished] = []
        # By call or campaign, the end of the last try that was begun.
        self._posting: dict[str, asyncio.Event] = {}
        self._last_project = ""
        self._wake = asyncio.Event()
        self._draining = False
        self._drained = False

    @property
    def running(self) -> int:
        """Running tries, including those whose result is not written yet."""
        return len(self._tasks)

    def wake(self) -> None:
        """Claim due events at once."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver due events until `drain` has ended."""
        try:
            while not self._drained:
                self._wake.clear()
                try:
                    await self._round()
                except Exception:
                    log.exception("webhook_round_broke")
                    await asyncio.sleep(_AFTER_FAULT)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL):
                        await self._wake.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._client.close()

    async def drain(self, timeout: float) -> None:
        """Begin no more tries, give the running ones `timeout` seconds, and let `run` end.

        A try that is cut off is repeated when its lease has expired, by any process.
        """
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        self._drained = True
        self.wake()

    async def _round(self) -> None:
        """Write results, claim due events, and start their tries."""
        finished, self._finished = self._finished, []
        free = 0 if self._draining else self._limiter.free
        if not finished and free <= 0:
            return
        taken, after, own = self._limiter.taken, self._last_project, frozenset(self._leased)

        def work(conn: Connection) -> tuple[set[str], Sequence[Delivery]]:
            turned_off = _write(conn, finished)
            if free <= 0:
                return turned_off, ()
            now, most = self._clock(), self._per_project
            return turned_off, outbox.claim_due(
                conn, now, most, free, in_flight=taken, own=own, after_project=after
            )

        try:
            turned_off, due = await self._database.write(work)
        except UnavailableError as fault:
            log.warning("webhook_round_failed", fault=str(fault))
            self._finished = finished + self._finished
            await asyncio.sleep(_AFTER_FAULT)
            return
        except Exception:
            # A bug must not stop delivery. These events are tried again after their leases.
            events = [one.attempt.event_id for one in finished]
            log.exception("webhook_round_broke", ended=events)
            for one in finished:
                one.written.set()
            await asyncio.sleep(_AFTER_FAULT)
            return
        for one in finished:
            _log(one, turned_off=one.attempt.event_id in turned_off)
            one.written.set()
        for delivery in due:
            self._last_project = delivery.project_id
            self._limiter.begin(delivery.project_id)
            self._leased.add(delivery.event_id)
            task = asyncio.create_task(self._deliver(delivery, self._turn(delivery)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _turn(self, delivery: Delivery) -> _Turn:
        """The place of an event among those of its call, or of its campaign."""
        turn = _Turn(self._posting.get(delivery.about), asyncio.Event())
        self._posting[delivery.about] = turn.over
        return turn

    async def _deliver(self, delivery: Delivery, turn: _Turn) -> None:
        """Make one try, and return when its result is written."""
        try:
            await self._try(delivery, turn)
        finally:
            self._leased.discard(delivery.event_id)

    async def _try(self, delivery: Delivery, turn: _Turn) -> None:
        if turn.before is not None:
            # So the events of a call arrive in order, while their receiver answers.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ORDER_TIMEOUT):
                    await turn.before.wait()
        begun = self._clock()
        failed = True
        response = None
        try:
            if begun + self._longest_try < delivery.leased_until:
                response = await self._post(delivery, self._date(begun))
                failed = not response.delivered
        finally:
            self._limiter.end(delivery.project_id, failed=failed)
            turn.over.set()
            if self._posting.get(delivery.about) is turn.over:
                del self._posting[delivery.about]
        if response is None:
            log.warning("webhook_lease_over", event_id=delivery.event_id)
            return  # it is due again when its lease ends
        next_due = None
        if failed:
            ended = begun + response.seconds
            next_due = retry_policy.next_try(
                delivery.tries, ended, random.random(), response.retry_after
            )
        attempt = DeliveryAttempt(
            event_id=delivery.event_id,
            at=begun,
            seconds=response.seconds,
            delivered=not failed,
            status_code=response.status,
            error=response.error,
            next_due=next_due,
            number=delivery.tries,
        )
        finished = _Finished(delivery, attempt, asyncio.Event())
        self._finished.append(finished)
        self.wake()
        await finished.written.wait()

    async def _post(self, delivery: Delivery, now: float) -> DeliveryResponse:
        try:
            body = payload.body(delivery, self._date)
        except (ValueError, KeyError, TypeError):
            log.exception("webhook_try_broke", event_id=delivery.event_id)
            return DeliveryResponse(None, "its stored values can't be read", 0.0)
        try:
            headers = signing.headers(delivery.secret, delivery.event_id, int(now), body)
        except InvalidRequestError as fault:
            return DeliveryResponse(None, str(fault), 0.0)
        headers["content-type"] = payload.CONTENT_TYPE
        try:
            return await self._client.post(delivery.url, headers, body, now)
        except Exception:
            # A bug; the event is retried by the usual schedule.
            log.exception("webhook_try_broke", event_id=delivery.event_id)
            return DeliveryResponse(None, "a fault inside the deliverer", 0.0)


def _write(conn: Connection, finished: Sequence[_Finished]) -> set[str]:
    """Write results; returns the events that turned off their URL."""
    turned_off: set[str] = set()
    attempts: list[DeliveryAttempt] = []
    for one in finished:
        attempt, delivery = one.attempt, one.delivery
        # Not turned off if the project has a new URL; then the event is retried there.
        if (
            attempt.status_code is not None
            and retry_policy.is_gone(attempt.status_code)
            and outbox.turn_off(conn, delivery.project_id, delivery.url, GONE, delivery.webhook_id)
        ):
            turned_off.add(attempt.event_id)
            attempt = replace(attempt, next_due=None)
        attempts.append(attempt)
    outbox.record(conn, attempts)
    return turned_off


def _log(one: _Finished, *, turned_off: bool) -> None:
    """Log a result, without data of the call, the secret, or the URL, whose path may be secret."""
    attempt = one.attempt
    about = log.bind(
        event_id=attempt.event_id,
        project=one.delivery.project_id,
        tries=one.delivery.tries,
        status=attempt.status_code,
        seconds=round(attempt.seconds, 3),
    )
    if attempt.delivered:
        about.debug("webhook_delivered")
    elif turned_off:
        about.warning("webhook_turned_off", reason=GONE)
    elif attempt.next_due is None:
        about.warning("webhook_given_up", error=attempt.error)
    else:
        again_in = round(attempt.next_due - attempt.at)
        about.info("webhook_failed", error=attempt.error, again_in=again_in)
