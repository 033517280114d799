"""The results of a campaign's calls, with their attempts, in pages of few calls.

Each page is a read of its own: a transaction that is open as long as a client needs to take a
million results would keep the database from truncating its log and removing dead rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select

from bitel.domain.calls import Call
from bitel.store import calls
from bitel.store.schema import attempt, call, in_campaign
from bitel.store.sql_batch import in_chunks


class AttemptOutcome(NamedTuple):
    """An attempt. Times are Unix seconds, None if it has not happened."""

    number: int
    """1 is the first."""
    outcome: str | None
    """A value of `Outcome`; None: it is under way."""
    sip_code: int | None
    started_at: float
    rang_at: float | None
    answered_at: float | None
    ended_at: float | None
    keys: str
    machine: str | None
    """`human` or `machine`; None: not detected."""


class CallResult(NamedTuple):
    """A call, and what its attempts have met, the first one first."""

    call: Call
    reference: str | None
    attempts: Sequence[AttemptOutcome]


_PAGE: Final = (
    select(*calls.CALL_COLUMNS, call.c.reference)
    .where(
        call.c.campaign_id == bindparam("campaign_id"),
        in_campaign,
        call.c.id > bindparam("after"),
    )
    .order_by(call.c.id)
    .limit(bindparam("most"))
)
_ATTEMPTS: Final = (
    select(
        *attempt.c[
            "call_id", "number", "outcome", "sip_code", "started_at", "rang_at", "answered_at",
            "ended_at", "digits", "machine",
        ]
    )
    .where(attempt.c.call_id.in_(bindparam("ids", expanding=True)))
    .order_by(attempt.c.call_id, attempt.c.number)
)  # fmt: skip


def page(conn: Connection, campaign_id: str, after: str, limit: int) -> list[CallResult]:
    """Up to `limit` calls of a campaign, by id; `after` is the last id of the page before, or "".

    The caller has checked that the project may see the campaign.
    """
    rows = conn.execute(_PAGE, {"campaign_id": campaign_id, "after": after, "most": limit}).all()
    attempts: defaultdict[str, list[AttemptOutcome]] = defaultdict(list)
    for ids in in_chunks([row.id for row in rows]):
        for row in conn.execute(_ATTEMPTS, ids):
            attempts[row.call_id].append(_attempt(row))
    return [CallResult(calls.from_row(row[:-1]), row.reference, attempts[row.id]) for row in rows]


def _attempt(row: Row[*tuple[Any, ...]]) -> AttemptOutcome:
    _, number, outcome, sip_code, started, rang, answered, ended, digits, machine = row
    return AttemptOutcome(
        number, outcome, sip_code, started, rang, answered, ended, digits or "", machine
    )
