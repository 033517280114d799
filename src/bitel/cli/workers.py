"""Commands about the workers of dialers: `bitel workers` and `bitel drain`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer import Argument, Option

from bitel.cli import common
from bitel.errors import BitelError, NotFoundError

if TYPE_CHECKING:
    from bitel.store.database import Database
    from bitel.store.leases import Worker

SILENT_AFTER: Final = 15.0
"""Seconds without a heartbeat after which a worker is shown as silent."""
DRAIN_TIMEOUT: Final = 600.0
"""Seconds that `bitel drain --wait` waits at most."""
_POLL: Final = 0.5


def workers(as_json: common.Json = False, config: common.Config = None) -> None:
    """List the processes that dial, on all machines that use the database."""
    from bitel.store import leases

    with common.open_database(config) as (settings, database):
        found = database.read_now(leases.all_workers)
        now = common.read_clock(settings)()
    if as_json:
        common.print_json([_as_json(each, now) for each in found])
        return
    if not found:
        typer.echo("no worker is running")
    for each in found:
        load = f"{each.channels} channels, {each.calls_per_second:.1f} calls a second"
        since = common.utc(each.started_at)
        typer.echo(
            f"{each.name:<32}  {each.dialer_id:<12}  {_state(each, now):<8}  {each.address:<21}  "
            f"since {since}  {load}, {each.late_ms:.0f} ms late"
        )


def _state(worker: Worker, now: float) -> str:
    if worker.seen_at < now - SILENT_AFTER:
        return "silent"
    if worker.draining or worker.fenced:
        return "draining"
    if worker.paused_reason:
        return "paused"
    return "up" if worker.up else "down"


def _as_json(worker: Worker, now: float) -> dict[str, Any]:
    return {
        "name": worker.name,
        "dialer": worker.dialer_id,
        "slot": worker.slot,
        "address": worker.address,
        "state": _state(worker, now),
        "paused": worker.paused_reason,
        "since": int(worker.started_at),
        "seen": int(worker.seen_at),
        "channels": worker.channels,
        "callsPerSecond": round(worker.calls_per_second, 2),
        "lateMs": round(worker.late_ms, 1),
    }


def drain(
    worker: Annotated[
        str, Argument(metavar="WORKER", show_default=False, help="Its name in `bitel workers`.")
    ],
    wait: Annotated[bool, Option("--wait", help="Return when it has stopped.")] = False,
    config: common.Config = None,
) -> None:
    """Let a worker finish its calls and stop; others take over its share."""
    from bitel.store import leases

    with common.open_database(config) as (_, database):
        if not database.write_now(lambda conn: leases.ask_to_drain(conn, worker)):
            raise NotFoundError(
                f"there is no worker {worker!r}; `bitel workers` lists the names of all"
            )
        if wait:
            _wait_for_end(database, worker)


def _wait_for_end(database: Database, worker: str) -> None:
    from bitel.store import leases

    end = time.monotonic() + DRAIN_TIMEOUT
    while any(each.name == worker for each in database.read_now(leases.all_workers)):
        if time.monotonic() > end:
            raise BitelError(f"the worker {worker!r} has not stopped after {DRAIN_TIMEOUT:.0f} s")
        time.sleep(_POLL)  # polls the database
