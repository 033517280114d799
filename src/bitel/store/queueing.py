"""The rows of many new calls: what differs from one to the next goes over as one JSON text."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from json.encoder import encode_basestring_ascii as as_json
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    String,
    bindparam,
    insert,
    select,
)
from sqlalchemy.engine.default import DefaultDialect

from bitel.domain.calls import NewCall, NewCalls
from bitel.store.schema import UNTRIED, FreeText, Money, call
from bitel.store.sql_batch import Statement, values_parameter

CHUNK: Final = 2500
"""Calls in one statement."""

_LONGEST: Final = 64
_money, _written = Money(), FreeText(_LONGEST)
_ANY: Final = DefaultDialect()
"""These types store the same in every kind of database."""


def written_rows(calls: NewCalls, reserves: Sequence[Decimal]) -> Sequence[str]:
    """What `insert_calls` takes: a text for every `CHUNK` calls. Needs no database.

    `reserves` is what each call keeps back, in order.
    """
    amounts = {amount: _money.process_bind_param(amount, _ANY) for amount in set(reserves)}
    texts = []
    for at in range(0, len(calls.ids), CHUNK):
        some = slice(at, at + CHUNK)
        numbers = _storable(calls.phone_numbers[some])
        columns = zip(calls.ids[some], numbers, calls.e164[some], reserves[some], strict=True)
        rows = [
            f'["{call_id}",{as_json(number)},{as_json(e164)},{amounts[reserve]}]'
            for call_id, number, e164, reserve in columns
        ]
        texts.append(f"[{','.join(rows)}]")
    return texts


def insert_calls(conn: Connection, like: NewCall, rows: Sequence[str]) -> None:
    """Insert calls that wait, each due at once: `like` has their terms, `rows` what differs."""
    alike = {
        "project_id": like.project_id,
        "campaign_id": like.campaign_id,
        "dialer_id": like.dialer_id,
        "recording_id": like.recording_id,
        "lane": int(like.lane),
        "retry_count": like.retry_count,
        "retry_interval": like.retry_interval,
        "requested_at": like.requested_at,
        "expires_at": like.expires_at,
        "digits": like.digits or None,
        "repeat_count": like.repeat_count,
        "language": like.language,
        "longest_seconds": like.longest_seconds,
    }
    for text in rows:
        _INSERT.run(conn, {**alike, "rows": text})


def _storable(numbers: Sequence[str]) -> Sequence[str]:
    """As the column's type would have them; nearly always that is as they are."""
    together = "".join(numbers)
    if together.isascii() and together.isprintable() and max(map(len, numbers)) <= _LONGEST:
        return numbers
    return [_written.process_bind_param(number, _ANY) or "" for number in numbers]


# As the database stores them: whatever these columns' types convert is converted above.
_rows = values_parameter(
    "rows", id=String(), phone_number=String(), e164=String(), reserved=BigInteger()
)


def _same(column: Column[Any]) -> Any:
    return bindparam(column.name, type_=column.type)


_values: dict[str, Any] = {
    **{name: _same(call.c[name]) for name in (
        "project_id", "campaign_id", "dialer_id", "recording_id", "lane", "retry_count",
        "retry_interval", "requested_at", "expires_at", "digits", "repeat_count", "language",
        "longest_seconds",
    )},
    **{name: _rows.c[name] for name in ("id", "phone_number", "e164", "reserved")},
    "retries_left": _same(call.c.retry_count),
    "due_at": _same(call.c.requested_at),
    **UNTRIED,
}  # fmt: skip
_INSERT: Final = Statement(insert(call).from_select(list(_values), select(*_values.values())))
