"""Call detail records: calls together with the ledger entries that billed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, select

from bitel.domain.calls import Call
from bitel.store import calls, campaigns
from bitel.store.schema import attempt, ledger_entry

_CHUNK: Final = 1000
"""Identifiers in one IN list."""


@dataclass(frozen=True, slots=True)
class Cdr:
    """A call, and the id of the ledger entry that billed it; None where none has."""

    call: Call
    transaction_id: str | None


def of_call(conn: Connection, project_id: str, call_id: str) -> Cdr | None:
    """The record of the project's call of that id, if there is one."""
    found = calls.find(conn, project_id, call_id)
    return _records(conn, [found])[0] if found else None


def of_campaign(conn: Connection, project_id: str, campaign_id: str) -> list[Cdr] | None:
    """The records of a campaign's calls, by id; None for an unknown campaign."""
    if campaigns.find(conn, project_id, campaign_id) is None:
        return None
    return _records(conn, campaigns.all_calls(conn, project_id, campaign_id))


def _records(conn: Connection, found: Sequence[Call]) -> list[Cdr]:
    billed: dict[str, str] = {}
    ids = [call.id for call in found]
    for start in range(0, len(ids), _CHUNK):
        for row in conn.execute(_BILLED, {"ids": ids[start : start + _CHUNK]}):
            billed[row.call_id] = row.id
    return [Cdr(call, billed.get(call.id)) for call in found]


# By way of the attempts: the ledger itself is not indexed by call.
_BILLED = (
    select(attempt.c.call_id, ledger_entry.c.id)
    .join_from(attempt, ledger_entry, ledger_entry.c.attempt_id == attempt.c.id)
    .where(attempt.c.call_id.in_(bindparam("ids", expanding=True)))
)
