"""Groups of dialers in the database: which of their dialers are free, and what each has taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.dialer_groups import Membership, allowance
from bitel.store.schema import group_dialer, worker
from bitel.store.sql_batch import Statement, is_among, matches

PATIENCE: Final = 5.0
"""Seconds for which a dialer waits for another of its group to take a call."""
_NEVER: Final = -1.0
SEEN_WITHIN: Final = 10.0
"""Seconds since its last heartbeat for which a worker counts as free."""

_FREE: Final = Statement(
    sa.select(worker.c.dialer_id)
    .where(
        is_among(worker.c.dialer_id, "dialers"),
        worker.c.is_free,
        worker.c.up,
        worker.c.paused_reason.is_(None),
        worker.c.fenced.is_(sa.false()),
        worker.c.draining.is_(sa.false()),
        worker.c.seen_at >= sa.bindparam("since"),
    )
    .distinct()
)
_TAKEN: Final = Statement(
    sa.select(*group_dialer.c["dialer_id", "taken"]).where(*matches(group_dialer.c.group_id))
)
_NOTE: Final = sa.text(
    """
    INSERT INTO group_dialer (group_id, dialer_id, taken) VALUES (:group_id, :dialer_id, :taken)
    ON CONFLICT (group_id, dialer_id) DO UPDATE
        SET taken = CASE WHEN group_dialer.taken > :before THEN group_dialer.taken ELSE :before END
            + :calls
    """
)


class GroupTurn(NamedTuple):
    """What a dialer may take of its group's queue now."""

    of: Membership
    new: int
    """New calls, those without a caller id yet. Others it may take if it may show theirs."""
    takes_paced: bool
    """Whether it may take new calls of campaigns that have limits of their own. With weights these
    limits are shared by weight, so no dialer need wait for another."""
    overdue_before: float
    """New calls that were due before that it may take in any case."""
    before: float
    """What it has taken, to be noted with what it takes now."""

    @property
    def queue(self) -> str:
        """What calls of the group have as their dialer."""
        return self.of.group.id

    def parameters(self, *, is_paced: bool = False) -> dict[str, Any]:
        """Parameters of the queries that pick calls, which `fair_queue.may_take` uses."""
        return {
            "caller_ids": [(each,) for each in sorted(self.of.caller_ids)],
            "takes_new": self.takes_paced if is_paced else self.new > 0,
            # Calls of a paced campaign are due long before their turn.
            "overdue_before": _NEVER if is_paced else self.overdue_before,
        }


def turns(conn: Connection, groups: Sequence[Membership], now: float) -> list[GroupTurn]:
    """The turns of a dialer in its groups."""
    found = []
    for each in groups:
        dialers = [(one,) for one in each.group.dialers]
        rows = _FREE.rows(conn, {"dialers": dialers, "since": now - SEEN_WITHIN})
        taken: Mapping[str, float] = {}
        if each.group.weights:
            counts = _TAKEN.rows(conn, {"group_id": each.group.id})
            taken = {row.dialer_id: row.taken for row in counts}
        new, before = allowance(each, {row.dialer_id for row in rows}, taken)
        takes_paced = new > 0 or bool(each.group.weights)
        found.append(GroupTurn(each, new, takes_paced, now - PATIENCE, before))
    return found


def note_taken(conn: Connection, turn: GroupTurn, calls: int) -> None:
    """Count new calls that the dialer has taken."""
    group, mine = turn.of.group, turn.of.dialer_id
    if group.weights and calls:
        more = calls / group.weight(mine)
        conn.execute(
            _NOTE,
            {"group_id": group.id, "dialer_id": mine, "taken": turn.before + more,
             "before": turn.before, "calls": more},
        )  # fmt: skip
