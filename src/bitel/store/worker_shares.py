"""Shares of workers in limits: see `bitel.domain.limit_shares`.

Only workers that share a PostgreSQL have rows here. With SQLite a dialer has one worker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.limit_shares import Demand, Share, next_share
from bitel.store import leases
from bitel.store.leases import Lease
from bitel.store.schema import worker_share
from bitel.store.sql_batch import Statement, insert_rows, update_each, values_parameter


class Need(NamedTuple):
    """What one worker uses and wants of a limit."""

    limit: int
    """The places of all workers together, as this worker's settings say."""
    demand: Demand


_SHARES: Final = Statement(
    sa.select(*worker_share.c).where(
        worker_share.c.resource.in_(
            sa.select(values_parameter("resources", worker_share.c.resource).c.resource)
        )
    )
)
_KEY: Final = worker_share.c["resource", "dialer_id", "epoch"]
_VALUES: Final = worker_share.c["most", "used", "wanted", "held", "is_able", "weight"]
_given = values_parameter("shares", worker_share.c.resource, *_VALUES)
_INSERT: Final = insert_rows(
    _given,
    worker_share,
    dialer_id=sa.bindparam("the_dialer", type_=worker_share.c.dialer_id.type),
    epoch=sa.bindparam("the_epoch", type_=worker_share.c.epoch.type),
)
_mine = (
    worker_share.c.dialer_id == sa.bindparam("the_dialer"),
    worker_share.c.epoch == sa.bindparam("the_epoch"),
)
_UPDATE: Final = update_each("shares", worker_share.c.resource, *_VALUES, where=_mine)
_FORGET: Final = Statement(
    sa.delete(worker_share).where(
        *_mine,
        worker_share.c.resource.not_in(
            sa.select(values_parameter("resources", worker_share.c.resource).c.resource)
        ),
    )
)


# One lock for all resources, as dialers may share one. It is held for a few milliseconds.
_LOCK: Final = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('bitel worker shares', 0))")


def update(
    conn: Connection,
    lease: Lease,
    needs: Mapping[str, Need],
    find_taken: Callable[[Connection], Mapping[str, int]],
) -> dict[str, int] | None:
    """Store what a worker needs and holds; returns what it may use. None: its lease has ended.

    Args:
        needs: by resource; of other resources the worker gives its places up.
        find_taken: returns places of resources that are taken by calls which no worker has. It runs
            after the shares are read: the end of a lease removes shares, and may leave such calls.
    """
    if conn.dialect.name == "postgresql":  # SQLite has one writer
        conn.execute(_LOCK)
    if not leases.holds(conn, lease):
        return None
    wanted = [(resource,) for resource in needs]
    mine = {"the_dialer": lease.dialer_id, "the_epoch": lease.epoch}
    rows: defaultdict[str, list[Any]] = defaultdict(list)
    for row in _SHARES.rows(conn, {"resources": wanted}):
        rows[row.resource].append(row)
    taken = find_taken(conn)
    usable: dict[str, int] = {}
    new: list[tuple[Any, ...]] = []
    known: list[tuple[Any, ...]] = []
    for resource, need in needs.items():
        own, share = _share(lease, need, rows[resource], taken.get(resource, 0))
        usable[resource] = share.usable
        demand = need.demand
        values = (resource, need.limit, demand.used, demand.wanted, share.held, demand.is_able,
                  demand.weight)  # fmt: skip
        if own is None:
            new.append(values)
        elif values[1:] != tuple(getattr(own, column.name) for column in _VALUES):
            known.append(values)
    if new:
        _INSERT.run(conn, {"shares": new, **mine})
    if known:
        _UPDATE.run(conn, {"shares": known, **mine})
    _FORGET.run(conn, {"resources": wanted, **mine})
    return usable


def _share(lease: Lease, need: Need, rows: Sequence[Any], taken: int) -> tuple[Any | None, Share]:
    """The worker's row, if it has one, and its share from now on."""
    me = (lease.dialer_id, lease.epoch)
    own = next((row for row in rows if (row.dialer_id, row.epoch) == me), None)
    others = sorted(
        (row for row in rows if row is not own), key=lambda row: (row.dialer_id, row.epoch)
    )
    mine = sum((row.dialer_id, row.epoch) < me for row in others)
    places = max(0, min([need.limit, *(row.most for row in others)]) - taken)
    demands = [Demand(row.used, row.wanted, row.is_able, row.weight) for row in others]
    demands.insert(mine, need.demand)
    held = [row.held for row in others]
    held.insert(mine, 0 if own is None else own.held)
    return own, next_share(places, held, demands, mine)
