"""Spoken parts of personal texts, and the calls that wait for theirs.

A part is spoken once for each project, by its key; calls name the parts that they play. A part is
needed while a campaign with a template is unfinished that was requested before the part was last
used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from bitel.domain.calls import CallStatus
from bitel.domain.pricing import DAY, day_of
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import (
    call,
    campaign,
    is_unfinished,
    is_unrendered,
    speech_part,
)
from bitel.store.sql_batch import (
    Statement,
    in_chunks,
    is_among,
    loose_index_scan,
    matches,
    next_rows,
    update_each,
)

PIECE: Final = 300
"""Rows that one transaction of the retention reads."""


class SpeechPart(NamedTuple):
    """A spoken part. `duration` in seconds."""

    id: str
    project_id: str
    key: str
    duration: float


class WaitingCampaign(Protocol):
    """A campaign with calls whose texts are not rendered."""

    id: str
    project_id: str
    dialer_id: str
    template: str
    language: str | None
    due_at: float
    """When the first of these calls is due, in Unix seconds."""


class WaitingCall(Protocol):
    """A call whose text is not rendered."""

    id: str
    variables: str | None
    """JSON object."""


_found = loose_index_scan(call.c.campaign_id, is_unrendered)
_first_due = (
    sa.select(sa.func.min(call.c.due_at))
    .where(call.c.campaign_id == campaign.c.id, is_unrendered)
    .scalar_subquery()
)
_CAMPAIGNS: Final = Statement(
    sa.select(
        *campaign.c["id", "project_id", "dialer_id", "template", "language"],
        _first_due.label("due_at"),
    )
    .join(_found, _found.c.value == campaign.c.id)
    .where(campaign.c.canceled_at.is_(None), campaign.c.template.is_not(None))
)


def waiting_campaigns(conn: Connection) -> list[WaitingCampaign]:
    """The campaigns that have calls to render, paused ones included, in any order."""
    rows: list[WaitingCampaign] = _CAMPAIGNS.rows(conn, {"after": ""})
    return rows


_CALLS: Final = Statement(
    sa.select(*call.c["id", "variables"])
    .where(*matches(call.c.campaign_id), is_unrendered)
    .order_by(call.c.due_at, call.c.id)
    .limit(sa.bindparam("most"))
)


def waiting_calls(conn: Connection, campaign_id: str, most: int) -> list[WaitingCall]:
    """Up to `most` calls of the campaign whose texts are not rendered, the first due first."""
    rows: list[WaitingCall] = _CALLS.rows(conn, {"campaign_id": campaign_id, "most": most})
    return rows


_of_keys = (*matches(speech_part.c.project_id), is_among(speech_part.c.key, "keys"))
_NOTE_USE: Final = Statement(
    sa.update(speech_part)
    .where(*_of_keys, speech_part.c.used_on < sa.bindparam("today"))
    .values(used_on=sa.bindparam("today"))
)
_FIND: Final = Statement(sa.select(*speech_part.c[SpeechPart._fields]).where(*_of_keys))


def use(conn: Connection, project_id: str, keys: Collection[str], now: float) -> list[SpeechPart]:
    """The project's parts with these keys, as far as there are any; each is in use from now on."""
    wanted = {"project_id": project_id, "keys": [(key,) for key in sorted(keys)]}
    _NOTE_USE.run(conn, {**wanted, "today": day_of(now)})
    return [SpeechPart._make(row) for row in _FIND.rows(conn, wanted)]


def add(conn: Connection, parts: Sequence[SpeechPart], now: float) -> list[SpeechPart]:
    """Add parts of one project whose audio is stored.

    Returns the parts with their keys. Those that another process has added meanwhile are returned
    in place of the given ones, whose audio is not needed then.
    """
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    insert = dialect.insert(speech_part).on_conflict_do_nothing(
        index_elements=[speech_part.c.project_id, speech_part.c.key]
    )
    rows = [part._asdict() | {"used_on": day_of(now)} for part in parts]
    conn.execute(insert, sorted(rows, key=lambda row: str(row["key"])))
    return use(conn, parts[0].project_id, [part.key for part in parts], now)


_WRITE_PARTS: Final = update_each("rendered", call.c.id, call.c.parts, where=[is_unrendered])


def finish(
    conn: Connection,
    rendered: Sequence[tuple[str, tuple[str, ...]]],
    refused: Sequence[tuple[str, str]],
    now: float,
) -> None:
    """Write the parts of calls, and end others, whose texts can't be spoken, with a reason.

    Calls that are rendered already, or over, stay as they are.
    """
    if rendered:
        _WRITE_PARTS.run(conn, {"rendered": sorted(rendered)})
    if refused:
        ends = [
            CallEnd(call_id, CallStatus.ERROR, reason=reason) for call_id, reason in sorted(refused)
        ]
        end_calls(conn, ends, now)


_STORED: Final = sa.select(sa.func.coalesce(sa.func.sum(speech_part.c.duration), 0.0)).where(
    *matches(speech_part.c.project_id)
)


def stored_seconds(conn: Connection, project_id: str) -> float:
    """The seconds of all parts of the project."""
    seconds: float = conn.execute(_STORED, {"project_id": project_id}).scalar_one()
    return float(seconds)


_DURATION: Final = Statement(sa.select(speech_part.c.duration).where(*matches(speech_part.c.id)))


def duration(conn: Connection, part_id: str) -> float | None:
    """Duration of a part in seconds; None when unknown or deleted."""
    rows = _DURATION.rows(conn, {"id": part_id})
    return rows[0].duration if rows else None


_LIVE: Final = sa.select(speech_part.c.id).where(
    speech_part.c.id.in_(sa.bindparam("ids", expanding=True))
)


def live(conn: Connection, ids: Collection[str]) -> set[str]:
    """The ids of parts that exist, of those given."""
    found = (conn.execute(_LIVE, some).scalars() for some in in_chunks(ids))
    return {each for some in found for each in some}


_rows = sa.select(*speech_part.c["id", "project_id", "used_on"])
_NEXT: Final = next_rows(_rows, speech_part.c.id)
_NEXT_OF_PROJECT: Final = next_rows(
    _rows.where(*matches(speech_part.c.project_id)), speech_part.c.id
)
_FIRST_REQUEST: Final = sa.select(sa.func.min(campaign.c.requested_at)).where(
    *matches(campaign.c.project_id), campaign.c.template.is_not(None), is_unfinished
)
_DELETE: Final = (
    sa.delete(speech_part)
    .where(
        speech_part.c.id.in_(sa.bindparam("ids", expanding=True)),
        # It may have been used since it was read.
        speech_part.c.used_on < sa.bindparam("day"),
    )
    .returning(speech_part.c.id)
)


def remove_unneeded(
    conn: Connection, before: float, after: str, project_id: str | None = None
) -> tuple[str, list[str]]:
    """Remove parts that were last used on a day before `before` and that no campaign needs.

    Of one project or of all, in a window of ids that begins behind `after`. Returns the last id of
    the window, empty at the end, and the ids of those removed, whose audio may be deleted once this
    is durable.
    """
    wanted = {"after": after, "most": PIECE, "project_id": project_id}
    rows = conn.execute(_NEXT if project_id is None else _NEXT_OF_PROJECT, wanted).all()
    day = day_of(before)
    old = [row for row in rows if row.used_on < day]
    needed_from = {each: _first_request(conn, each) for each in {row.project_id for row in old}}
    ids = [row.id for row in old if (row.used_on + 1) * DAY <= needed_from[row.project_id]]
    removed: list[str] = []
    for some in in_chunks(ids):
        removed += conn.execute(_DELETE, {**some, "day": day}).scalars()
    return rows[-1].id if rows else "", removed


def _first_request(conn: Connection, project_id: str) -> float:
    first = conn.execute(_FIRST_REQUEST, {"project_id": project_id}).scalar_one()
    return float("inf") if first is None else float(first)
