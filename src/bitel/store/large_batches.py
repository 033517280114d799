"""Large batches: written in pieces, and placed at once when the last piece is written.

One transaction for ten thousand calls would make every other request wait for it. So the rows are
written in several, without a row for their campaign: calls of a campaign that has none are not
dialled, and lists leave out the calls of `incomplete_batch`. The last transaction admits the calls
as any others, and adds the campaign.

The writer discards what can't be placed. What a process has left behind is discarded by
housekeeping, `ABANDONED_AFTER` seconds after its last piece; a writer that was only slow finds its
batch abandoned then.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.calls import NewCalls
from bitel.errors import UnavailableError
from bitel.store import placing, retention
from bitel.store.schema import call, in_campaign, incomplete_batch

PIECE: Final = placing.CHUNK
"""Calls that are written, or discarded, in one transaction."""
ABANDONED_AFTER: Final = 600.0
"""Seconds after its last piece from which a batch is discarded."""

_is_it = incomplete_batch.c.campaign_id == sa.bindparam("the_campaign")
_MARK: Final = (
    sa.update(incomplete_batch)
    .where(_is_it, incomplete_batch.c.is_abandoned.is_(sa.false()))
    .values(written_at=sa.bindparam("now"))
)
_ABANDON: Final = sa.update(incomplete_batch).where(_is_it).values(is_abandoned=sa.true())
_END: Final = sa.delete(incomplete_batch).where(_is_it)
_COMPLETE: Final = _END.where(incomplete_batch.c.is_abandoned.is_(sa.false()))
_CALLS: Final = (
    sa.select(call.c.id)
    .where(call.c.campaign_id == sa.bindparam("the_campaign"), in_campaign)
    .order_by(call.c.campaign_id, call.c.id)
    .limit(sa.bindparam("most"))
)
_OLD: Final = (
    sa.select(incomplete_batch.c.campaign_id)
    .where(
        sa.or_(
            incomplete_batch.c.written_at < sa.bindparam("before"), incomplete_batch.c.is_abandoned
        )
    )
    .order_by(incomplete_batch.c.campaign_id)
    .limit(1)
)


def begin(conn: Connection, campaign_id: str, now: float) -> None:
    """Begin a batch; its calls name this campaign, which is added when all are written."""
    row = {"campaign_id": campaign_id, "written_at": now, "is_abandoned": False}
    conn.execute(sa.insert(incomplete_batch).values(row))


def write_piece(conn: Connection, calls: NewCalls, prepared: str, now: float) -> None:
    """Write some of the calls, as `placing.prepare` encodes them.

    Raises UnavailableError if the batch was abandoned meanwhile.
    """
    _require(conn.execute(_MARK, _batch_of(calls) | {"now": now}).rowcount)
    placing.write_rows(conn, calls, [prepared])


def complete(conn: Connection, calls: NewCalls) -> None:
    """Have the calls dialled and listed, in the transaction that adds their campaign.

    Raises UnavailableError if the batch was abandoned meanwhile.
    """
    _require(conn.execute(_COMPLETE, _batch_of(calls)).rowcount)


def _batch_of(calls: NewCalls) -> dict[str, object]:
    return {"the_campaign": calls.template.campaign_id}


def _require(batches: int) -> None:
    if not batches:
        raise UnavailableError("the batch took too long to write; nothing of it is placed")


def discard(conn: Connection, campaign_id: str, most: int = PIECE) -> bool:
    """Delete up to `most` calls of a batch that is not complete; False: call it again.

    Of a batch that is complete, or of which nothing is left, nothing is deleted.
    """
    wanted = {"the_campaign": campaign_id, "most": most}
    if not conn.execute(_ABANDON, wanted).rowcount:
        return True
    ids = list(conn.execute(_CALLS, wanted).scalars())
    retention.delete_by_call(conn, {"ids": ids})
    if len(ids) == most:
        return False
    conn.execute(_END, wanted)
    return True


def discard_abandoned(conn: Connection, now: float, most: int = PIECE) -> None:
    """Discard up to `most` calls of a batch that a process has left behind."""
    campaign_id = conn.execute(_OLD, {"before": now - ABANDONED_AFTER}).scalar_one_or_none()
    if campaign_id is not None:
        discard(conn, campaign_id, most)
