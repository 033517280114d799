"""The lease of each dialer: one worker at a time runs it, and only its holder writes attempts.

Each take-over gives the dialer's row a higher epoch. Everything a worker writes about attempts
first checks that its own epoch is still the row's, in the same transaction, and keeps it so until
the commit; so a worker that was paused or cut off finds out before it can do harm.

The holder renews `seen_at` every few seconds, whether or not its trunks can be reached, which `up`
says. Who may take over, and when, is decided in `bitel.dialing.standby`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select, text, update

from bitel.store.schema import dialer
from bitel.store.sql_batch import Statement


class LostLease(Exception):
    """Another worker has taken over the dialer: this one must stop."""


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
    """What a worker that takes over holds, and what it knows of the former one."""

    installation: str | None = None
    """Of the data_dir whose lock file it holds; None: it holds none, so others need not wait."""
    former: Holder | None = None
    """The holder that was seen: the take-over fails if the row names another by then. None: it is
    taken over from any holder."""
    former_ended: bool = True
    """The former worker's process has ended, so none of its INVITEs leaves after this moment."""
    former_ahead: float = 0.0
    """Seconds by which the former worker's clock is ahead of ours, at least; negative: behind."""


def holder(conn: Connection, dialer_id: str) -> Holder:
    """The dialer's row as it is."""
    row = conn.execute(_HOLDER, {"id": dialer_id}).one_or_none()
    return Holder(*row) if row else Holder()


def probe(conn: Connection, dialer_id: str) -> Holder:
    """As `holder`, by a write that changes nothing: it fails where the database can only read."""
    conn.execute(_PROBE, {"id": dialer_id})
    return holder(conn, dialer_id)


def fence(conn: Connection, dialer_id: str, worker: str, installation: str, now: float) -> Holder:
    """Take the lease from a worker that may be alive, and leave its attempts as they are.

    The worker can write nothing any more and stops when it finds out. The row then names `worker`,
    which takes over once the other is gone. Returns the row before.
    """
    before = holder(conn, dialer_id)
    conn.execute(
        _FENCE, {"id": dialer_id, "worker": worker, "installation": installation, "now": now}
    )
    return before


def take(conn: Connection, dialer_id: str, worker: str, now: float, terms: TakeOverTerms) -> int:
    """Raise the epoch of the dialer's row for `worker`; the new epoch.

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
    """Say that the worker is alive, and whether a carrier can be reached. False: it is replaced."""
    seen = conn.execute(
        update(dialer)
        .where(dialer.c.id == lease.dialer_id, dialer.c.epoch == lease.epoch)
        .values(seen_at=now, up=up)
    )
    return seen.rowcount == 1


def release(conn: Connection, lease: Lease) -> None:
    """Give the lease back, so that the next worker need not wait; none of another is touched."""
    conn.execute(
        update(dialer)
        .where(dialer.c.id == lease.dialer_id, dialer.c.epoch == lease.epoch)
        .values(installation=None, up=False)
    )


def holds(conn: Connection, lease: Lease) -> bool:
    """Whether the lease is still good; if so, it stays good until this transaction ends."""
    wanted = {"id": lease.dialer_id, "epoch": lease.epoch}
    return bool(_HOLDS.rows(conn, wanted))


@dataclass(frozen=True, slots=True)
class TrunkHistory:
    """What a dialer's worker knows of its trunks, for the API and for the next worker."""

    paused_reason: str = ""
    """Why no calls are placed although the trunks answer; empty while they are."""
    has_worked: bool = False
    """Whether the trunks have ever delivered a call."""


def record_trunks(conn: Connection, lease: Lease, history: TrunkHistory, now: float) -> None:
    """Write what the worker knows of its trunks, if it still holds the lease."""
    values: dict[str, Any] = {"paused_reason": history.paused_reason or None}
    if history.has_worked:
        values["worked_at"] = now
    conn.execute(
        update(dialer)
        .where(dialer.c.id == lease.dialer_id, dialer.c.epoch == lease.epoch)
        .values(values)
    )


def trunk_history(conn: Connection, dialer_id: str) -> TrunkHistory:
    """What the last worker has written with `record_trunks`."""
    columns = (dialer.c.paused_reason, dialer.c.worked_at)
    row = conn.execute(select(*columns).where(dialer.c.id == dialer_id)).one_or_none()
    if row is None:
        return TrunkHistory()
    return TrunkHistory(row.paused_reason or "", row.worked_at is not None)


def paused_reasons(conn: Connection) -> dict[str, str]:
    """Why dialers place no calls although their trunks answer, for those that do not."""
    rows = conn.execute(
        select(dialer.c.id, dialer.c.paused_reason).where(dialer.c.paused_reason.is_not(None))
    )
    return {row.id: row.paused_reason for row in rows}


def dialers_up(conn: Connection, now: float, within: float) -> dict[str, bool]:
    """Each dialer that ever ran, and whether it can place calls.

    It can where its worker was alive in the last `within` seconds and then reached a carrier.
    """
    rows = conn.execute(select(dialer.c.id, dialer.c.seen_at, dialer.c.up))
    return {row.id: row.up and row.seen_at >= now - within for row in rows}


_HOLDER = select(dialer.c.epoch, dialer.c.worker, dialer.c.installation, dialer.c.seen_at).where(
    dialer.c.id == bindparam("id")
)

_PROBE = text("UPDATE dialer SET epoch = epoch WHERE id = :id")

_FENCE = text(
    """
    UPDATE dialer SET epoch = epoch + 1, worker = :worker, installation = :installation,
        seen_at = :now, up = false
    WHERE id = :id
    """
)

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

# FOR SHARE: a take-over, which updates the row, waits for our commit, and we for its.
_HOLDS: Final = Statement(
    select(dialer.c.epoch)
    .where(dialer.c.id == bindparam("id"), dialer.c.epoch == bindparam("epoch"))
    .with_for_update(read=True)
)
