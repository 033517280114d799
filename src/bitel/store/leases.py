"""Leases of workers, with fencing: a dialer is run by any number of workers, on any machines.

A worker's lease is its row in the table `worker`, named by the dialer and an epoch that no other
worker of the dialer ever has. Its attempts have the same epoch. A worker that writes about attempts
checks in the same transaction that its row is still there, and locks it until the commit. Another
process that ends the lease removes the row, so a worker that was suspended or disconnected can't
write any more.

Each worker renews `seen_at` in intervals and reads the rows of the others with it. When a lease has
ended is decided in `bitel.dialing.standby` and `bitel.dialing.dispatcher`.

The version before this one has one worker for each dialer, whose lease is the row in `dialer`. That
row also counts the epochs, and names one of the workers, so that such a process waits for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, insert, select, text, update

from bitel.store.schema import dialer, worker, worker_share
from bitel.store.sql_batch import Statement, matches


class LostLease(Exception):
    """The lease has ended: the worker must begin no more calls."""

    def __init__(self, message: str, is_fenced: bool = False) -> None:
        super().__init__(message)
        self.is_fenced = is_fenced
        """Another process waits for the end of this one, so its calls must end too."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to begin calls of a dialer, and to write about them."""

    dialer_id: str
    worker: str
    epoch: int


class Slot(NamedTuple):
    """The place of a worker: one process at a time holds its lock file."""

    dialer_id: str
    installation: str = ""
    """The `data_dir` with the lock file."""
    number: int = 1


class Worker(NamedTuple):
    """A worker's row. Times in Unix seconds by its own clock."""

    dialer_id: str
    epoch: int
    name: str
    installation: str
    slot: int
    address: str
    started_at: float
    seen_at: float
    up: bool
    paused_reason: str | None
    channels: int
    calls_per_second: float
    late_ms: float
    fenced: bool
    draining: bool
    is_free: bool

    @property
    def is_placing(self) -> bool:
        """Whether calls may succeed: a carrier can be reached, and does not refuse every call."""
        return self.up and not self.paused_reason


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker reports with each renewal."""

    up: bool = True
    """Whether a carrier can be reached."""
    paused_reason: str = ""
    """Why no calls are placed although the trunks answer; empty: calls are placed."""
    has_worked: bool = False
    """Whether the trunks have ever delivered a call."""
    channels: int = 0
    """In use."""
    calls_per_second: float = 0.0
    """Begun, on average."""
    late_ms: float = 0.0
    """Lateness of RTP packets in milliseconds, the 90th percentile."""
    is_free: bool = True
    """Whether it could begin further calls."""


class Holder(NamedTuple):
    """A dialer's row: one of its workers, or the only one of the version before. Default: none."""

    epoch: int = 0
    worker: str = ""
    installation: str | None = None
    """None: no worker runs the dialer."""
    seen_at: float = 0.0
    """The last renewal, in Unix seconds by the worker's clock."""


_COLUMNS: Final = worker.c[Worker._fields]
_WORKERS: Final = Statement(
    select(*_COLUMNS).where(*matches(worker.c.dialer_id)).order_by(worker.c.epoch)
)
_ALL_WORKERS: Final = select(*_COLUMNS).order_by(worker.c.dialer_id, worker.c.epoch)
_HOLDER: Final = Statement(
    select(*dialer.c["epoch", "worker", "installation", "seen_at"]).where(*matches(dialer.c.id))
)


def workers(conn: Connection, dialer_id: str) -> list[Worker]:
    """The workers of a dialer, the oldest first."""
    return [Worker(*row) for row in _WORKERS.rows(conn, {"dialer_id": dialer_id})]


def all_workers(conn: Connection) -> list[Worker]:
    """The workers of all dialers, by dialer."""
    return [Worker(*row) for row in conn.execute(_ALL_WORKERS)]


def holder(conn: Connection, dialer_id: str) -> Holder:
    """The dialer's row."""
    rows = _HOLDER.rows(conn, {"id": dialer_id})
    return Holder(*rows[0]) if rows else Holder()


def blocking_holder(conn: Connection, dialer_id: str) -> Holder | None:
    """The dialer's row, if its worker lets no other begin, and has not released it.

    In SQLite that is any worker, in PostgreSQL one of the version before this one.
    """
    row = holder(conn, dialer_id)
    if row.installation is None:
        return None
    if conn.dialect.name != "postgresql":
        return row
    known = select(worker.c.epoch).where(worker.c.dialer_id == dialer_id)
    is_known = conn.execute(known.where(worker.c.name == row.worker).limit(1)).first() is not None
    return None if is_known else row


def probe(conn: Connection, dialer_id: str) -> Holder | None:
    """As `blocking_holder`, with a write that changes nothing: it fails where none is possible."""
    conn.execute(update(dialer).where(dialer.c.id == dialer_id).values(epoch=dialer.c.epoch))
    return blocking_holder(conn, dialer_id)


def lock(conn: Connection, dialer_id: str) -> None:
    """Let other processes change the workers of the dialer only after this transaction."""
    conn.execute(select(dialer.c.epoch).where(dialer.c.id == dialer_id).with_for_update())


_NEXT_EPOCH: Final = text(
    """
    INSERT INTO dialer (id, epoch, worker, seen_at, installation)
    VALUES (:id, 1, :worker, :now, :installation)
    ON CONFLICT (id) DO UPDATE
        SET epoch = dialer.epoch + 1, worker = excluded.worker, seen_at = excluded.seen_at,
            installation = excluded.installation, up = true
    RETURNING epoch
    """
)


def take(
    conn: Connection,
    slot: Slot,
    name: str,
    now: float,
    address: str = "",
    seen: Holder | None = None,
) -> Lease:
    """Begin a lease for the worker `name`; ends those of the slot before, which must be over.

    In SQLite, where a dialer has one worker, it ends all others. The attempts of the ended leases
    stay open.

    Args:
        address: where the worker speaks SIP from.
        seen: the dialer's row as it must still be. None: it may be any.

    Raises LostLease where the row is no longer what was seen.
    """
    if seen is not None:
        lock(conn, slot.dialer_id)
        if holder(conn, slot.dialer_id) != seen:
            raise LostLease(f"another worker took over the dialer {slot.dialer_id!r}")
    values = {
        "id": slot.dialer_id, "worker": name, "now": now, "installation": slot.installation,
    }  # fmt: skip
    epoch = conn.execute(_NEXT_EPOCH, values).scalar_one()
    former = select(worker.c.epoch).where(*_replaced_by(conn, slot))
    ended = conn.execute(former).scalars().all()
    conn.execute(
        insert(worker).values(
            dialer_id=slot.dialer_id,
            epoch=epoch,
            name=name,
            installation=slot.installation,
            slot=slot.number,
            address=address,
            started_at=now,
            seen_at=now,
            up=True,
            channels=0,
            calls_per_second=0.0,
            late_ms=0.0,
            last_attempt="",
            fenced=False,
            draining=False,
        )
    )
    remove(conn, slot.dialer_id, ended)
    return Lease(slot.dialer_id, name, epoch)


def _replaced_by(conn: Connection, slot: Slot) -> list[ColumnElement[bool]]:
    """The workers that end when one begins in the slot: in SQLite all of the dialer."""
    of_dialer = worker.c.dialer_id == slot.dialer_id
    if conn.dialect.name != "postgresql":
        return [of_dialer]
    return [
        of_dialer, worker.c.installation == slot.installation, worker.c.slot == slot.number,
    ]  # fmt: skip


def remove(conn: Connection, dialer_id: str, epochs: Iterable[int]) -> None:
    """End these leases, with their shares in limits; their attempts stay open."""
    ended = list(epochs)
    if not ended:
        return
    of_ended = (worker.c.dialer_id == dialer_id, worker.c.epoch.in_(ended))
    rows = conn.execute(select(worker.c.name, worker.c.last_attempt).where(*of_ended)).all()
    conn.execute(delete(worker).where(*of_ended))
    share = (worker_share.c.dialer_id == dialer_id, worker_share.c.epoch.in_(ended))
    conn.execute(delete(worker_share).where(*share))
    of_dialer = update(dialer).where(dialer.c.id == dialer_id)
    newest = max((row.last_attempt for row in rows), default="")
    conn.execute(of_dialer.where(dialer.c.last_attempt < newest).values(last_attempt=newest))
    left = workers(conn, dialer_id)
    named = (
        {"worker": left[0].name, "installation": left[0].installation}
        if left
        else {"installation": None, "up": False}
    )
    conn.execute(of_dialer.where(dialer.c.worker.in_([row.name for row in rows])).values(named))


def remove_all(conn: Connection, dialer_id: str) -> None:
    """End all leases of a dialer; their attempts stay open."""
    remove(conn, dialer_id, [each.epoch for each in workers(conn, dialer_id)])


def remove_dead(conn: Connection, seen: Worker) -> bool:
    """End the lease of a worker that is still as it was `seen`, without a heartbeat since.

    False: it has sent one, or its lease has ended already.
    """
    lock(conn, seen.dialer_id)
    is_same = (worker.c.dialer_id == seen.dialer_id, worker.c.epoch == seen.epoch,
               worker.c.seen_at == seen.seen_at)  # fmt: skip
    if conn.execute(select(worker.c.epoch).where(*is_same).with_for_update()).first() is None:
        return False
    remove(conn, seen.dialer_id, [seen.epoch])
    return True


def fence(conn: Connection, slot: Slot, name: str, now: float) -> Holder:
    """End the writes of the workers that one in this slot would replace, and may be alive.

    They stop when they notice; their attempts stay as they are. The dialer's row then names `name`,
    which calls `take` once they have ended. Returns that row as it was before.
    """
    before = holder(conn, slot.dialer_id)
    conn.execute(update(worker).where(*_replaced_by(conn, slot)).values(fenced=True))
    if blocking_holder(conn, slot.dialer_id) is not None:
        conn.execute(
            update(dialer)
            .where(dialer.c.id == slot.dialer_id)
            .values(epoch=dialer.c.epoch + 1, worker=name, installation=slot.installation,
                    seen_at=now, up=False)
        )  # fmt: skip
    return before


_is_held = (*matches(worker.c.dialer_id, worker.c.epoch), worker.c.fenced.is_(False))
# FOR SHARE: who ends the lease, and so changes the row, waits for our commit, and we for theirs.
_HOLDS: Final = Statement(select(worker.c.epoch).where(*_is_held).with_for_update(read=True))


def holds(conn: Connection, lease: Lease) -> bool:
    """Whether the lease is still valid; if so, it stays valid until this transaction ends."""
    return bool(_HOLDS.rows(conn, {"dialer_id": lease.dialer_id, "epoch": lease.epoch}))


WORKED_EVERY: Final = 60.0
"""Seconds between two notes in the dialer's row that its trunks have worked."""


def renew(
    conn: Connection,
    lease: Lease,
    now: float,
    state: WorkerState = WorkerState(),
) -> list[Worker]:
    """Store that the worker is alive, and its state; returns the workers of the dialer.

    The worker itself is among them, unless its lease has ended, or is fenced.
    """
    mine = (worker.c.dialer_id == lease.dialer_id, worker.c.epoch == lease.epoch)
    values: dict[str, Any] = {
        "seen_at": now,
        "up": state.up,
        "paused_reason": state.paused_reason or None,
        "channels": state.channels,
        "calls_per_second": state.calls_per_second,
        "late_ms": state.late_ms,
        "is_free": state.is_free,
    }
    held = update(worker).where(*mine, worker.c.fenced.is_(False))
    is_held = conn.execute(held.values(values)).rowcount == 1
    found = workers(conn, lease.dialer_id)
    if not is_held:
        return [each for each in found if each.epoch != lease.epoch]
    named = blocking_holder(conn, lease.dialer_id)
    if named is not None and named.worker != lease.worker:
        return []  # the version before this one was made to take over the dialer
    of_dialer = update(dialer).where(dialer.c.id == lease.dialer_id)
    if lease.epoch == min(each.epoch for each in found):
        conn.execute(
            of_dialer.values(
                worker=lease.worker,
                installation=next(e.installation for e in found if e.epoch == lease.epoch),
                seen_at=now,
                up=any(each.up for each in found),
                paused_reason=_common_reason(found) or None,
            )
        )
    if state.has_worked:
        is_old = dialer.c.worked_at.is_(None) | (dialer.c.worked_at < now - WORKED_EVERY)
        conn.execute(of_dialer.where(is_old).values(worked_at=now))
    return found


def release(conn: Connection, lease: Lease) -> None:
    """End the lease at the end of its worker; no effect if it has ended already."""
    lock(conn, lease.dialer_id)
    remove(conn, lease.dialer_id, [lease.epoch])


def ask_to_drain(conn: Connection, name: str) -> int:
    """Ask a worker, by its name, to finish its calls and stop. Returns of how many dialers."""
    return conn.execute(update(worker).where(worker.c.name == name).values(draining=True)).rowcount


@dataclass(frozen=True, slots=True)
class TrunkHistory:
    """What earlier workers knew of a dialer's trunks."""

    paused_reason: str = ""
    """Why no calls are placed although the trunks answer; empty: calls are placed."""
    has_worked: bool = False
    """Whether the trunks have ever delivered a call."""


def trunk_history(conn: Connection, dialer_id: str) -> TrunkHistory:
    """What the last renewals of the dialer's workers stored."""
    columns = (dialer.c.paused_reason, dialer.c.worked_at)
    row = conn.execute(select(*columns).where(dialer.c.id == dialer_id)).one_or_none()
    if row is None:
        return TrunkHistory()
    return TrunkHistory(row.paused_reason or "", row.worked_at is not None)


def _common_reason(some: Sequence[Worker]) -> str:
    """Why none of the workers places calls although trunks answer; empty: one does."""
    up = [each for each in some if each.up]
    if not up or any(each.is_placing for each in up):
        return ""
    return up[0].paused_reason or ""


def paused_reasons(conn: Connection) -> dict[str, str]:
    """The dialers that place no calls although their trunks answer, and why."""
    rows = conn.execute(
        select(dialer.c.id, dialer.c.paused_reason).where(dialer.c.paused_reason.is_not(None))
    )
    return {row.id: row.paused_reason for row in rows}


@dataclass(frozen=True, slots=True)
class DialerState:
    """What the live workers of a dialer report, all together."""

    up: bool = False
    """One of them reaches a carrier."""
    workers: int = 0
    channels: int = 0
    """In use."""
    calls_per_second: float = 0.0
    """Begun, on average."""
    late_ms: float = 0.0
    """The worst lateness of RTP packets in milliseconds."""
    since: float | None = None
    """When the oldest of them began, in Unix seconds."""


def together(states: Sequence[DialerState]) -> DialerState:
    """The state of several dialers, as if they were one."""
    return DialerState(
        any(each.up for each in states),
        sum(each.workers for each in states),
        sum(each.channels for each in states),
        sum(each.calls_per_second for each in states),
        max((each.late_ms for each in states), default=0.0),
        min((each.since for each in states if each.since is not None), default=None),
    )


def dialer_states(conn: Connection, now: float, within: float) -> dict[str, DialerState]:
    """The state of each dialer that ever ran.

    Workers count that were alive in the last `within` seconds.
    """
    # A worker of the version before this one is only in the dialer's row.
    rows = conn.execute(select(dialer.c.id, dialer.c.seen_at, dialer.c.up))
    states = {row.id: DialerState(row.up and row.seen_at >= now - within) for row in rows}
    alive: dict[str, list[Worker]] = {}
    for each in all_workers(conn):
        if each.seen_at >= now - within:
            alive.setdefault(each.dialer_id, []).append(each)
    for dialer_id, found in alive.items():
        states[dialer_id] = DialerState(
            any(each.up for each in found),
            len(found),
            sum(each.channels for each in found),
            sum(each.calls_per_second for each in found),
            max(each.late_ms for each in found),
            min(each.started_at for each in found),
        )
    return states
