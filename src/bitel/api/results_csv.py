"""Streams the results of a campaign as CSV (RFC 4180), for spreadsheets.

The text is UTF-8 with a byte order mark, by which Excel knows the encoding. What clients and remote
parties have written must not become a formula in the spreadsheet (CWE-1236): cells that begin as a
formula get an apostrophe, which spreadsheets do not show.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bitel.api.context import ApiContext
from bitel.api.rate_limits import ConcurrencyQuota
from bitel.domain.call_json import AttemptDetails, CallDetails, DateOf, balance_change
from bitel.exact_json import number
from bitel.store import call_details

CALLS_AT_ONCE: Final = 500
"""Calls that are read, rendered and sent in one piece."""
MOST_DOWNLOADS: Final = 2
"""Downloads of one project at once, in one process."""

COLUMNS: Final = (
    "id", "phoneNumber", "reference", "status", "reason", "billSec", "requestDate",
    "executionDate", "price", "attempts", "keys", "machine", "lastOutcome", "lastSipCode",
    "attemptDetails", "reports",
)  # fmt: skip
UNDER_WAY: Final = "UNDER_WAY"
"""In place of an outcome, for an attempt that is not over."""

_BYTE_ORDER_MARK: Final = "\N{BYTE ORDER MARK}"
_FORMULA: Final = frozenset("=+-@\t\r\n＝＋－＠")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


class ResultsResponse(StreamingResponse):
    """The results of a campaign, page by page. A client that reads slowly holds one page.

    Sending it raises TooManyRequestsError if the project has too many downloads under way.
    """

    def __init__(
        self, context: ApiContext, quota: ConcurrencyQuota, project_id: str, campaign_id: str
    ) -> None:
        name = f"campaign-{campaign_id}.csv"
        super().__init__(
            _pieces(context, campaign_id),
            media_type="text/csv",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )
        self._quota = quota
        self._project_id = project_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        with self._quota.one_more(self._project_id):
            await super().__call__(scope, receive, send)


async def _pieces(context: ApiContext, campaign_id: str) -> AsyncIterator[str]:
    yield _BYTE_ORDER_MARK + _lines([COLUMNS])
    after = ""
    while True:
        found = await context.database.read(
            lambda conn: call_details.page_of_campaign(conn, campaign_id, after, CALLS_AT_ONCE)  # noqa: B023
        )
        if found:
            # On a thread, since the event loop also places calls.
            yield await asyncio.to_thread(render, found, context.date)
        if len(found) < CALLS_AT_ONCE:
            return
        after = found[-1].call.id


def render(results: Sequence[CallDetails], date: DateOf) -> str:
    """The lines of these calls."""
    return _lines([_row(each, date) for each in results])


def _lines(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue()


def _row(result: CallDetails, date: DateOf) -> list[str]:
    call, attempts = result.call, result.attempts
    last = attempts[-1] if attempts else None
    machines = [each.machine for each in attempts if each.machine]
    return [
        call.id,
        safe_cell(call.phone_number),
        safe_cell(result.reference or ""),
        call.status.name,
        safe_cell(result.reason or ""),
        str(call.bill_seconds),
        iso_date(call.requested_at, date),
        iso_date(call.executed_at, date),
        number(balance_change(call.price)),
        str(len(attempts)),
        safe_cell("".join(each.keys for each in attempts)),
        machines[-1] if machines else "",
        "" if last is None else _outcome(last),
        "" if last is None or last.sip_code is None else str(last.sip_code),
        "; ".join(_attempt(each, date) for each in attempts),
        safe_cell(" ".join(word for each in attempts for word in each.reports)),
    ]


def _attempt(attempt: AttemptDetails, date: DateOf) -> str:
    """An attempt in one text, such as `1: BUSY 486, dialled 2026-11-27T08:00:00Z, ended …`."""
    code = "" if attempt.sip_code is None else f" {attempt.sip_code}"
    steps = {
        "dialled": attempt.started_at,
        "rang": attempt.rang_at,
        "answered": attempt.answered_at,
        "ended": attempt.ended_at,
    }
    parts = [f"{attempt.number}: {_outcome(attempt)}{code}"]
    parts += [f"{name} {iso_date(at, date)}" for name, at in steps.items() if at]
    if attempt.keys:
        parts.append(f"keys {attempt.keys}")
    return ", ".join(parts)


def _outcome(attempt: AttemptDetails) -> str:
    return UNDER_WAY if attempt.outcome is None else attempt.outcome.name


def safe_cell(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula; numbers stay as they are."""
    begins_formula = text[:1] in _FORMULA or text.lstrip()[:1] in _FORMULA
    return f"'{text}" if text and begins_formula and not _NUMBER.fullmatch(text) else text


def iso_date(at: float | None, date: DateOf) -> str:
    """A stored time in UTC (ISO 8601), to the second; empty for what has not happened."""
    if not at:
        return ""
    return f"{datetime.fromtimestamp(int(date(at)), UTC):%Y-%m-%dT%H:%M:%SZ}"
