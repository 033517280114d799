"""Leases of dialers, with fencing: one worker at a time runs a dialer and writes its attempts.

Each take-over increments the epoch in the dialer's row. A worker that writes about attempts checks
in the same transaction that the row still has its epoch, and locks the row until the commit. So a
worker that was suspended or disconnected can't write after another has taken over.

The holder renews `seen_at` every few seconds; `up` says whether its trunks can be reached. The
take-over itself is decided in `bitel.dialing.standby`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, select, text, update

from bitel.store.schema import dialer
from bitel.store.sql_batch import Statement, matches


class LostLease(Exception):
    """Another worker has taken over the dialer; this one must stop."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a dialer, until another worker takes over."""

    dialer_id: str
    worker: str
    epoch: int


class Holder(NamedTuple):
    """A dialer's row: the worker that holds the lease, or held it last. The default: no row."""

    epoch: int = 0
    worker: str = ""
    installation: str | None = None
    """Of the data_dir whose lock file the worker holds; None: the lease is free."""
    seen_at: float = 0.0
    """The last renewal, in Unix seconds by the worker's clock."""


class TakeOverTerms(NamedTuple):
    """The conditions of a take-over, and what is known of the former worker."""

    installation: str | None = None
    """Of the data_dir whose lock file it holds; None: it holds none, so others need not wait."""
    former: Holder | None = None
    """The expected holder: the take-over fails if the row names another. None: any holder."""
    former_ended: bool = True
    """The former worker's process has ended, so none of its INVITEs leaves after this moment."""
    former_ahead: float = 0.0
    """Seconds by which the former worker's clock is ahead of ours, at least; negative: behind."""


_HOLDER = select(*dialer.c["epoch", "worker", "installation", "seen_at"]).where(
    *matches(dialer.c.id)
)


def holder(conn: Connection, dialer_id: str) -> Holder:
    """The dialer's row."""
    row = conn.execute(_HOLDER, {"id": dialer_id}).one_or_none()
    return Holder(*row) if row else Holder()


def probe(conn: Connection, dialer_id: str) -> Holder:
    """As `holder`, with a write that changes nothing: it fails on a read-only database."""
    conn.execute(update(dialer).where(dialer.c.id == dialer_id).values(epoch=dialer.c.epoch))
    return holder(conn, dialer_id)


def fence(conn: Connection, dialer_id: str, worker: str, installation: str, now: float) -> Holder:
    """Take the lease from a worker that may be alive, without changing its attempts.

    That worker can't write any more, and stops when it notices. The row then names `worker`, which
    takes over once the other has ended. Returns the previous row.
    """
    before = holder(conn, dialer_id)
    fenced = update(dialer).where(dialer.c.id == dialer_id)
    conn.execute(
        fenced.values(epoch=dialer.c.epoch + 1, worker=worker, installation=installation,
                      seen_at=now, up=False)
    )  # fmt: skip
    return before


_INSERT = """
    INSERT INTO dialer (id, epoch, worker, seen_at, installation)
    VALUES (:id, 1, :worker, :now, :installation)
    ON CONFLICT (id) DO UPDATE
        SET epoch = dialer.epoch + 1, worker = excluded.worker, seen_at = excluded.seen_at,
            installation = excluded.installation, up = true
"""
_TAKE_OVER = text(f"{_INSERT} RETURNING epoch")
_TAKE_OVER_FROM = text(
    f"{_INSERT} WHERE dialer.epoch = :epoch AND dialer.seen_at = :seen_at RETURNING epoch"
)


def take(conn: Connection, dialer_id: str, worker: str, now: float, terms: TakeOverTerms) -> int:
    """Increment the epoch of the dialer's row for `worker`; returns the new epoch.

    Raises LostLease where the row is no longer what `terms` expect.
    """
    values: dict[str, Any] = {
        "id": dialer_id, "worker": worker, "now": now, "installation": terms.installation,
    }  # fmt: skip
    former = terms.former
    if former is None:
        epoch: int = conn.execute(_TAKE_OVER, values).scalar_one()
        return epoch
    values |= {"epoch": former.epoch, "seen_at": former.seen_at}
    taken: int | None = conn.execute(_TAKE_OVER_FROM, values).scalar_one_or_none()
    if taken is None:
        raise LostLease(f"another worker took over the dialer {dialer_id!r}")
    return taken


def renew(conn: Connection, lease: Lease, now: float, up: bool = True) -> bool:
    """Store that the worker is alive, and whether a carrier can be reached. False: lease lost."""
    return _update(conn, lease, seen_at=now, up=up)


def release(conn: Connection, lease: Lease) -> None:
    """Release the lease, so that the next worker need not wait; no effect if it is lost."""
    _update(conn, lease, installation=None, up=False)


def _update(conn: Connection, lease: Lease, **values: object) -> bool:
    """Change the row if the lease still holds; whether it does."""
    is_held = (dialer.c.id == lease.dialer_id) & (dialer.c.epoch == lease.epoch)
    return conn.execute(update(dialer).where(is_held).values(values)).rowcount == 1


# FOR SHARE: a take-over, which updates the row, waits for our commit, and we for its.
_HOLDS: Final = Statement(
    select(dialer.c.epoch).where(*matches(dialer.c.id, dialer.c.epoch)).with_for_update(read=True)
)


def holds(conn: Connection, lease: Lease) -> bool:
    """Whether the lease is still valid; if so, it stays valid until this transaction ends."""
    wanted = {"id": lease.dialer_id, "epoch": lease.epoch}
    return bool(_HOLDS.rows(conn, wanted))


@dataclass(frozen=True, slots=True)
class TrunkHistory:
    """State of a dialer's trunks, for the API and for the next worker."""

    paused_reason: str = ""
    """Why no calls are placed although the trunks answer; empty: calls are placed."""
    has_worked: bool = False
    """Whether the trunks have ever delivered a call."""


def record_trunks(conn: Connection, lease: Lease, history: TrunkHistory, now: float) -> None:
    """Store the state of the trunks, if the worker still holds the lease."""
    worked_at = {"worked_at": now} if history.has_worked else {}
    _update(conn, lease, paused_reason=history.paused_reason or None, **worked_at)


def trunk_history(conn: Connection, dialer_id: str) -> TrunkHistory:
    """The state that the last worker stored with `record_trunks`."""
    columns = (dialer.c.paused_reason, dialer.c.worked_at)
    row = conn.execute(select(*columns).where(dialer.c.id == dialer_id)).one_or_none()
    if row is None:
        return TrunkHistory()
    return TrunkHistory(row.paused_reason or "", row.worked_at is not None)


def paused_reasons(conn: Connection) -> dict[str, str]:
    """The dialers that place no calls although their trunks answer, and why."""
    rows = conn.execute(
        select(dialer.c.id, dialer.c.paused_reason).where(dialer.c.paused_reason.is_not(None))
    )
    return {row.id: row.paused_reason for row in rows}


def dialers_up(conn: Connection, now: float, within: float) -> dict[str, bool]:
    """Whether each dialer that ever ran can place calls.

    It can if its worker was alive in the last `within` seconds and reached a carrier then.
    """
    rows = conn.execute(select(dialer.c.id, dialer.c.seen_at, dialer.c.up))
    return {row.id: row.up and row.seen_at >= now - within for row in rows}
