"""The end of attempts and calls: the only place where a call becomes final, or due again.

The end of a call also releases what it had reserved, counts in its campaign, and writes an event
for its webhook. Each happens exactly once, since a final call does not end again.

Locks are taken in one order, so that transactions do not deadlock: calls, campaigns, projects.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.attempts import AttemptResult, Media, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_ids
from bitel.domain.menus import counted_keys
from bitel.domain.retry import Requeue, RetryAt
from bitel.domain.webhooks import CAMPAIGN_FINISHED
from bitel.store import balances, event_rows
from bitel.store.database import count_calls
from bitel.store.event_rows import Asking, has_webhook, project_events
from bitel.store.schema import (
    FINISHED,
    PENDING,
    attempt,
    call,
    campaign,
    cancel_request,
    ends_call,
    is_waiting,
    project,
    webhook_event,
)
from bitel.store.sql_batch import Statement, is_among, update_each, values_parameter

_NOTHING: Final = Decimal(0)
_Q850_CAUSES: Final = range(128)
_SIP_CODES: Final = range(100, 700)
_COUNTS: Final = range(2**31)


class CallEnd(NamedTuple):
    """A call that is over. Times in Unix seconds."""

    call_id: str
    status: CallStatus
    executed_at: float = 0.0
    bill_seconds: int = 0
    price: Decimal = _NOTHING
    reason: str = ""
    is_answered: bool = False
    """A person, or a machine, answered."""
    keys: str = ""
    """The keys that were pressed, of 0-9*#ABCD."""
    reports: tuple[str, ...] = ()
    """The words that they reported."""
    machine: str | None = None
    """human or machine; None: not known."""


class OpenCall(Protocol):
    """A row of a call that is locked and not final."""

    project_id: str
    campaign_id: str | None
    reserved: Decimal
    has_webhook: bool
    """Whether its end is posted to the project's webhook, if its request named none."""
    webhook_id: str | None
    webhook_events: tuple[str, ...] | None


class OpenAttempt(Protocol):
    """A row of an attempt that is not over. Times in Unix seconds."""

    id: str
    started_at: float
    answered_at: float | None


_ended = values_parameter(
    "ended",
    *attempt.c[
        "id", "outcome", "started_at", "ended_at", "answered_at", "sip_code", "q850", "ended_by",
        "detail", "packets_sent", "packets_received", "digits", "far_loss", "far_jitter_ms",
        "reports", "machine", "rang_at", "caller_id",
    ],
)  # fmt: skip
_END_ATTEMPTS: Final = Statement(
    sa.update(attempt)
    .where(attempt.c.id == _ended.c.id)
    .values(
        {
            "claim": FINISHED,
            **{each.name: each for each in _ended.c if each.name != "id"},
            # The time written while it rang stays, also where a take-over ends the attempt.
            "rang_at": sa.func.coalesce(attempt.c.rang_at, _ended.c.rang_at),
        }
    )
)
_FORGET_REQUESTS: Final = Statement(
    sa.delete(cancel_request).where(is_among(cancel_request.c.attempt_id, "over"))
)


def end_attempts(conn: Connection, ends: Iterable[tuple[str, AttemptResult]]) -> None:
    """Write the results of attempts, given by their ids; values out of range become NULL."""
    rows = [
        (
            attempt_id,
            end.outcome.value,
            end.started_at,
            end.ended_at,
            end.answered_at,
            # What a remote party sends must not break the transaction, which others share.
            _within(_SIP_CODES, end.sip_code),
            _within(_Q850_CAUSES, end.q850),
            end.ended_by,
            end.detail,
            *_media_values(end.media),
            end.rang_at,
            end.caller_id,
        )
        for attempt_id, end in ends
    ]
    if rows:
        _END_ATTEMPTS.run(conn, {"ended": rows})


def interrupt_attempts(conn: Connection, attempts: Iterable[OpenAttempt], now: float) -> None:
    """End attempts that a crash or a restored backup has cut off."""
    results = (
        (row.id, AttemptResult(Outcome.INTERRUPTED, row.started_at, now, row.answered_at))
        for row in attempts
    )
    end_attempts(conn, results)


_REQUESTED: Final = Statement(
    sa.select(cancel_request.c.attempt_id).where(is_among(cancel_request.c.attempt_id, "ids"))
)


def cancel_requested(conn: Connection, attempts: Collection[str]) -> set[str]:
    """The attempts for which a cancel was requested, of those given.

    To be read after their calls are locked: a cancel that held the lock is seen then.
    """
    if not attempts:
        return set()
    rows = _REQUESTED.rows(conn, {"ids": [(each,) for each in attempts]})
    return {row.attempt_id for row in rows}


def forget_requests(conn: Connection, attempts: Collection[str]) -> None:
    """Delete the cancel requests of these attempts, which are over."""
    if attempts:
        _FORGET_REQUESTS.run(conn, {"over": [(attempt_id,) for attempt_id in attempts]})


def _within(allowed: range, code: int | None) -> int | None:
    # None first: `in` walks through a range to find a value that is not an int.
    return code if code is not None and code in allowed else None


def _media_values(media: Media | None) -> tuple[Any, ...]:
    if media is None:
        return (None,) * 7
    return (
        _within(_COUNTS, media.sent),
        _within(_COUNTS, media.received),
        media.digits,
        _finite(media.loss),
        _finite(media.jitter_ms),
        media.reports or None,
        media.machine,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


_TO_END: Final = Statement(
    sa.select(
        *call.c["id", "project_id", "campaign_id", "reserved", "webhook_id"],
        has_webhook.label("has_webhook"),
        project_events,
    )
    .join(project)
    .where(is_among(call.c.id, "ids"), is_waiting)
    .order_by(call.c.id)
    .with_for_update(key_share=True, of=call)
)
_END_CALLS: Final = update_each(
    "ended",
    call.c.id,
    *call.c["status", "executed_at", "bill_seconds", "price", "reason"],
    due_at=None,
    finished_at=sa.bindparam("now"),
    reserved=_NOTHING,
)


_events = values_parameter("events", *webhook_event.c["id", "project_id", "webhook_id", "call_id"])
_now = sa.bindparam("now", type_=webhook_event.c.created_at.type)
_WRITE_EVENTS: Final = Statement(
    sa.insert(webhook_event).from_select(
        [*_events.c.keys(), "created_at", "due_at", "tries", "state"],
        # A call has one such event: a second insert would fail and keep the call from ending.
        sa.select(*_events.c, _now, _now, sa.literal(0), sa.literal(PENDING)).where(
            ~sa.exists().where(webhook_event.c.call_id == _events.c.call_id, ends_call)
        ),
    )
)


def end_calls(conn: Connection, ends: Sequence[CallEnd], now: float) -> None:
    """Give calls their final status; those that have one already stay as they are."""
    by_call = {end.call_id: end for end in ends}
    if by_call:
        waiting = _TO_END.rows(conn, {"ids": [(call_id,) for call_id in by_call]})
        end_waiting(conn, [(row, by_call[row.id]) for row in waiting], now)


def end_waiting(conn: Connection, ends: Sequence[tuple[OpenCall, CallEnd]], now: float) -> None:
    """End calls that are locked and have no final status, each once, with their rows."""
    if not ends:
        return
    # The first fields of `CallEnd` are in the order of the statement's columns.
    _END_CALLS.run(conn, {"ended": [end[:6] for _, end in ends], "now": now})
    in_campaigns = [(row.campaign_id, end) for row, end in ends if row.campaign_id is not None]
    if in_campaigns:
        _count_in_campaigns(conn, in_campaigns, now)
    for status, calls in Counter(end.status for _, end in ends).items():
        count_calls("ended", status.name, calls)
    released: defaultdict[str, Decimal] = defaultdict(Decimal)
    for row, _ in ends:
        released[row.project_id] -= row.reserved
    balances.reserve(conn, released)
    asking = [row for row, _ in ends if may_ask_for_events(row)]
    own = event_rows.own_types(conn, asking) if asking else {}
    to_post = [
        (row.project_id, row.webhook_id, end.call_id)
        for row, end in ends
        if (row.has_webhook if row.webhook_id is None else row.webhook_id in own)
    ]
    if to_post:
        ids = new_ids(now, len(to_post))
        events = [(event_id, *each) for event_id, each in zip(ids, to_post, strict=True)]
        _WRITE_EVENTS.run(conn, {"events": events, "now": now})
    campaigns = {
        row.campaign_id
        for row in asking
        if row.campaign_id is not None and CAMPAIGN_FINISHED in event_rows.types_of(row, own)
    }
    if campaigns:
        event_rows.write_finished(conn, campaigns, now)


def may_ask_for_events(row: Asking) -> bool:
    """Whether a call may ask for events besides that of its end at its project's webhook."""
    return row.webhook_id is not None or bool(row.webhook_events)


_STATUSES: Final = tuple(status for status in CallStatus if status.final)
_counted = values_parameter(
    "counted",
    campaign.c.id,
    *(campaign.c[status.name.lower()] for status in _STATUSES),
    *campaign.c["answered", "humans", "machines", "price"],
    ended=sa.Integer(),
)
_LOCK_CAMPAIGNS: Final = Statement(
    sa.select(campaign.c.id)
    .where(is_among(campaign.c.id, "campaigns"))
    .order_by(campaign.c.id)
    .with_for_update(key_share=True)
)
_left = campaign.c.waiting - _counted.c.ended
_COUNT: Final = Statement(
    sa.update(campaign)
    .where(campaign.c.id == _counted.c.id)
    .values(
        {
            **{
                each.name: campaign.c[each.name] + each
                for each in _counted.c
                if each.name not in ("id", "ended")
            },
            "waiting": _left,
            "finished_at": sa.case(
                (_left == sa.literal_column("0"), sa.bindparam("now", type_=sa.Double())),
                else_=campaign.c.finished_at,
            ),
        }
    )
)
_COUNT_KEYS: Final = sa.text(
    """
    INSERT INTO campaign_key (campaign_id, key, calls) VALUES (:campaign_id, :key, :calls)
    ON CONFLICT (campaign_id, key) DO UPDATE SET calls = campaign_key.calls + excluded.calls
    """
)


def _count_in_campaigns(conn: Connection, ends: Sequence[tuple[str, CallEnd]], now: float) -> None:
    """Add the ends of calls, given with their campaigns, to the counts of these."""
    by_campaign: defaultdict[str, list[CallEnd]] = defaultdict(list)
    for campaign_id, end in ends:
        by_campaign[campaign_id].append(end)
    ids = sorted(by_campaign)
    if len(ids) > 1:
        _LOCK_CAMPAIGNS.rows(conn, {"campaigns": [(each,) for each in ids]})
    rows = []
    for campaign_id in ids:
        of_campaign = by_campaign[campaign_id]
        statuses = Counter(end.status for end in of_campaign)
        rows.append(
            (
                campaign_id,
                *(statuses[status] for status in _STATUSES),
                sum(end.is_answered for end in of_campaign),
                sum(end.machine == "human" for end in of_campaign),
                sum(end.machine == "machine" for end in of_campaign),
                sum((end.price for end in of_campaign), _NOTHING),
                len(of_campaign),
            )
        )
    _COUNT.run(conn, {"counted": rows, "now": now})
    pressed = Counter(
        (campaign_id, key)
        for campaign_id, end in ends
        for key in sorted(counted_keys(end.keys, end.reports))
    )
    if pressed:
        conn.execute(
            _COUNT_KEYS,
            [
                {"campaign_id": campaign_id, "key": key, "calls": calls}
                for (campaign_id, key), calls in sorted(pressed.items())
            ],
        )


_DUE_AGAIN: Final = update_each("again", call.c.id, call.c.due_at)
_again = values_parameter(
    "again", *call.c["id", "due_at", "retries_left", "trouble", "uncertain", "retry_waits"]
)
_DUE_AGAIN_COUNTED: Final = Statement(
    sa.update(call)
    .where(call.c.id == _again.c.id)
    .values(
        due_at=_again.c.due_at,
        retries_left=call.c.retries_left - _again.c.retries_left,
        trouble=_again.c.trouble,
        uncertain=_again.c.uncertain,
        retry_waits=sa.func.coalesce(_again.c.retry_waits, call.c.retry_waits),
    )
)


def requeue_calls(conn: Connection, again: Iterable[tuple[str, RetryAt | Requeue]]) -> None:
    """Make calls, given by their ids, due for another attempt."""
    same: list[tuple[str, float]] = []
    counted: list[tuple[str, float, int, int, int, str | None]] = []
    for call_id, next_try in again:
        if isinstance(next_try, Requeue):
            same.append((call_id, next_try.due_at))
        else:
            spent = int(next_try.spends_retry)
            waits = None if next_try.waits is None else str(next_try.waits)
            counted.append(
                (call_id, next_try.due_at, spent, next_try.trouble, next_try.uncertain, waits)
            )
    if same:
        _DUE_AGAIN.run(conn, {"again": same})
    if counted:
        _DUE_AGAIN_COUNTED.run(conn, {"again": counted})
