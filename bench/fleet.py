"""Measures how many calls several workers bring through one PostgreSQL: `python -m bench.fleet`.

Worker processes with dispatchers serve one dialer. Its calls take no network: each is answered at
once and ends a moment later. One campaign is placed while they dial, and the time is taken until
all of its calls are over, with 1, 2, 4 and 8 workers. The server's statistics say how many
transactions and how many bytes of WAL a call took, and the kernel how much CPU.

Beside it, on the same server: a bare loop of SELECT ... FOR UPDATE SKIP LOCKED over a table of jobs
with three states, with a transaction for each step of a job, as a call has them (place, claim,
answer, settle); the same loop in batches, with as few transactions a job as ours; and the jobs of
procrastinate, which take three transactions each (defer, fetch, finish).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import IO, Any, Final

import psutil
import psycopg
import structlog
from sqlalchemy import select

from bench import report
from bench.database import postgresql
from bench.report import Result, Row, at_least, at_most
from bitel.dialing.dialer import OnAnswered, OnRinging, ignore_ringing
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.limit_shares import Limits
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import Lane, NewCall, NewCalls
from bitel.domain.ids import new_id, new_ids
from bitel.domain.pricing import Rate, Tariff
from bitel.store import campaigns, migrate, placing, projects, recordings
from bitel.store.campaigns import Campaign
from bitel.store.database import Database
from bitel.store.engines import parse_url
from bitel.store.leases import Slot
from bitel.store.recordings import Recording
from bitel.store.schema import campaign

WORKERS: Final = (1, 2, 4, 8)
PIECE: Final = 500
"""Calls placed in one transaction."""
TALK: Final = 0.1
"""Seconds from the answer to the end of a call."""
CHANNELS: Final = 400
"""Of all workers together."""
STEPS: Final = 4
"""Place, claim, answer and settle."""
STEPS_OF_JOB: Final = 3
"""Defer, fetch and finish."""
TARIFF: Final = Tariff((Rate("+98", Decimal(60), increment=1),))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--calls", type=int, default=6000, help="calls of each campaign")
    parser.add_argument("--jobs", type=int, default=1500, help="jobs of procrastinate")
    parser.add_argument("--worker", nargs=2, metavar=("URL", "NUMBER"), help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=2, metavar=("URL", "BATCH"), help=argparse.SUPPRESS)


@dataclass(frozen=True, slots=True)
class Run:
    """A campaign, or a table of jobs, that was worked off."""

    workers: int
    seconds: float
    calls: int
    transactions: int
    wal_bytes: int
    shares: Sequence[int]
    """Calls of each worker."""
    cpu_seconds: float
    """Of the workers."""
    server_seconds: float = 0.0
    """CPU of the server's processes."""

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds


def measure(given: argparse.Namespace) -> Result:
    """Measures campaigns with more and more workers, then the peers."""
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder, postgresql(folder) as url:
        runs = []
        for workers in WORKERS:
            runs.append(run_fleet(url, workers, given.calls))
            report.say(f"{workers} workers: {runs[-1].rate:.0f} calls/s {list(runs[-1].shares)}")
        best = max(runs, key=lambda run: run.rate)
        # As many transactions: a batch takes three.
        batch = max(1, round(3 * best.calls / max(1, best.transactions)))
        bare = run_bare(url, best.workers, given.calls, 1)
        report.say(f"bare loop: {bare.rate:.0f} jobs/s")
        batched = run_bare(url, best.workers, given.calls * 2, batch)
        report.say(f"bare loop in batches of {batch}: {batched.rate:.0f} jobs/s")
        jobs = run_procrastinate(url, given.jobs)
    rows = [row for run in runs for row in of_run(run, runs[0])]
    rows += [
        Row("calls a second, all four steps", best.rate, "1/s", bare.rate, "bare SKIP LOCKED loop",
            at_least(0.5, "ratio")),
        Row("calls a second, all four steps", best.rate, "1/s", batched.rate, "it, in batches"),
    ]  # fmt: skip
    notes = [
        f"{given.calls:,} calls a run; each lasts {TALK:g} s; {CHANNELS} channels.",
        f"The bare loop takes {bare.transactions / bare.calls:.1f} transactions a job, in batches "
        f"of {batch} {batched.transactions / batched.calls:.3f}, and the best run "
        f"{best.transactions / best.calls:.3f} a call.",
    ]
    if jobs is None:
        notes.append("procrastinate is not installed.")
    else:
        rows.append(
            Row("steps a second", best.rate * STEPS, "1/s", jobs.rate * STEPS_OF_JOB,
                "procrastinate", at_least(1.5, "ratio"))
        )  # fmt: skip
    return Result("Several workers over one PostgreSQL", rows, notes)


def of_run(run: Run, first: Run) -> Iterator[Row]:
    """Yields the figures of a run, beside those of one worker."""
    name = f"{run.workers} workers" if run.workers > 1 else "1 worker"
    yield Row(f"{name}: calls a second", run.rate, "1/s", first.rate, "1 worker")
    cost, before = ((each.cpu_seconds + each.server_seconds) / each.calls for each in (run, first))
    yield Row(f"{name}: CPU a call, with the server", cost * 1e6, "µs", before * 1e6, "1 worker",
              at_most(1.2, "ratio"))  # fmt: skip
    yield Row(f"{name}: CPU a call, of workers", run.cpu_seconds / run.calls * 1e6, "µs")
    yield Row(f"{name}: transactions a call", run.transactions / run.calls, "")
    yield Row(f"{name}: WAL a call", run.wal_bytes / run.calls, "B")
    if run.workers > 1:
        fair = run.calls / run.workers
        yield Row(f"{name}: least share of a worker", min(run.shares) / fair, "of its fair share",
                  bar=at_least(0.25))  # fmt: skip


class InstantDialer:
    """Answers each call at once, and ends it `TALK` seconds later."""

    up, probing, paused_reason, has_worked = True, False, "", True

    def __init__(self) -> None:
        self.calls = 0

    async def dial(
        self, request: DialRequest, on_answered: OnAnswered, on_ringing: OnRinging = ignore_ringing
    ) -> AttemptResult:
        """Make the attempt."""
        begun = time.time()
        if not await on_answered(begun):
            return AttemptResult(Outcome.TRUNK_TROUBLE, begun, time.time())
        await asyncio.sleep(TALK)
        self.calls += 1
        return AttemptResult(Outcome.ANSWERED, begun, time.time(), begun)

    def assume_worked(self) -> None:
        """Nothing depends on it."""

    def assume_paused(self, reason: str) -> None:
        """Nothing depends on it."""

    async def start(self) -> None:
        """Nothing to bind."""

    async def close(self) -> None:
        """Nothing to close."""

    def cancel(self, attempt_id: str) -> None:
        """No call takes long."""

    def abandon(self, attempt_id: str) -> None:
        """No call takes long."""


async def work(url: str, number: int) -> None:
    """Runs one worker until its standard input is closed; prints how much it did."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    dialer = InstantDialer()
    with Database.open(url) as database:
        dispatcher = Dispatcher(
            "main", f"worker-{number}", dialer, Limits(CHANNELS, 100_000.0, 45.0), database, TARIFF,
            time.time,
        )  # fmt: skip
        await dispatcher.take_over(Slot("main", f"{number:032}"))
        running = asyncio.create_task(dispatcher.run())
        await asyncio.sleep(1.5)  # until the limits are shared
        print("ready", flush=True)
        begun = time.process_time()
        await asyncio.to_thread(sys.stdin.read)
        used = time.process_time() - begun
        await dispatcher.drain(5.0)
        await running
        await dispatcher.release()
    print(json.dumps({"calls": dialer.calls, "cpu": used}), flush=True)


@contextlib.contextmanager
def processes(arguments: Sequence[Sequence[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of this module that are ready."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.fleet", *each],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for each in arguments
    ]
    try:
        for each in started:
            assert pipe(each.stdout).readline() == "ready\n"
        yield started
    finally:
        for each in started:
            if each.poll() is None:
                each.kill()
            each.wait()


def pipe(stream: IO[str] | None) -> IO[str]:
    """The stream, which there is."""
    assert stream is not None
    return stream


def results(started: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """Ends the processes, and reads what each did."""
    for each in started:
        pipe(each.stdin).close()
    return [json.loads(pipe(each.stdout).readline()) for each in started]


def statistics(url: str) -> tuple[int, int]:
    """Transactions committed in the database, and the position of the WAL in bytes."""
    time.sleep(1.2)  # a backend reports its transactions once a second
    with psycopg.connect(plain(url), autocommit=True) as connection:
        row = connection.execute(
            "SELECT xact_commit, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') "
            "FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def server_cpu(url: str) -> float:
    """CPU seconds of the server and all of its processes, those that have ended included."""
    with psycopg.connect(plain(url), autocommit=True) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        server = psutil.Process(row[0]).parent()
        assert server is not None
        times = server.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in server.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                of_child = child.cpu_times()
                total += of_child.user + of_child.system
    return float(total)


def plain(url: str) -> str:
    """The URL as psycopg takes it."""
    return parse_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def run_fleet(url: str, workers: int, calls: int) -> Run:
    """Places a campaign while the workers dial, and waits for its end."""
    migrate.upgrade(url)
    with Database.open(url) as database:
        template = prepare(database)
        arguments = [("--worker", url, str(number)) for number in range(workers)]
        with processes(arguments) as started:
            before, used, begun = statistics(url), server_cpu(url), time.monotonic()
            campaign_id = place(database, template, calls)
            while database.read_now(lambda conn: unfinished(conn, campaign_id)):
                time.sleep(0.05)
            seconds = time.monotonic() - begun
            done = results(started)
            after, used = statistics(url), server_cpu(url) - used
    return Run(
        workers, seconds, calls, after[0] - before[0], after[1] - before[1],
        [each["calls"] for each in done], sum(each["cpu"] for each in done), used,
    )  # fmt: skip


def prepare(database: Database) -> NewCall:
    """Makes a project with a recording; returns a call like those of a campaign."""
    now = time.time()
    project = database.write_now(lambda conn: projects.create(conn, f"fleet-{now}", now))
    recording = Recording(new_id(now), project.id, "hello", 3.0, 24_000, now)
    database.write_now(lambda conn: recordings.add(conn, recording))
    return NewCall(
        id="", project_id=project.id, dialer_id="main", phone_number="", e164="",
        recording_id=recording.id, lane=Lane.BATCH, retry_count=1, retry_interval=60,
        requested_at=now, expires_at=now + 14_400,
    )  # fmt: skip


def place(database: Database, template: NewCall, count: int) -> str:
    """Places a campaign piece by piece; returns its id."""
    now = time.time()
    new = Campaign(new_id(now), template.project_id, "main", template.recording_id, now, count)
    database.write_now(lambda conn: campaigns.add(conn, new))
    ids = new_ids(now, count)
    for first in range(0, count, PIECE):
        some = ids[first : first + PIECE]
        numbers = [f"+98912{number:07}" for number in range(first, first + len(some))]
        like = replace(template, id=some[0], campaign_id=new.id, requested_at=now)
        calls = NewCalls(like, some, numbers, numbers, [Decimal(0)] * len(some))
        prepared = placing.prepare(calls)
        database.write_now(lambda conn: placing.place_many(conn, calls, prepared))  # noqa: B023
    return new.id


def unfinished(conn: Any, campaign_id: str) -> bool:
    """Whether calls of the campaign are not over."""
    row = conn.execute(select(campaign.c.finished_at).where(campaign.c.id == campaign_id)).one()
    return row.finished_at is None


_JOBS: Final = """
CREATE TABLE IF NOT EXISTS bare_job (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number text NOT NULL,
    state text NOT NULL DEFAULT 'waiting', worker text, at double precision
);
CREATE INDEX IF NOT EXISTS bare_job_waiting ON bare_job (id) WHERE state = 'waiting';
TRUNCATE bare_job;
"""
_CLAIM: Final = """
UPDATE bare_job SET state = 'claimed', worker = %s WHERE id IN (
    SELECT id FROM bare_job WHERE state = 'waiting' ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
) RETURNING id
"""
_ANSWER: Final = "UPDATE bare_job SET state = 'answered', at = %s WHERE id = ANY(%s)"
_SETTLE: Final = "UPDATE bare_job SET state = 'settled', at = %s WHERE id = ANY(%s)"


def bare_loop(url: str, batch: int) -> None:
    """Works off the table of jobs in batches, a transaction for each change of their state."""
    with psycopg.connect(plain(url)) as connection:
        print("ready", flush=True)
        sys.stdin.readline()
        begun, done = time.process_time(), 0
        while True:
            with connection.transaction():
                ids = [row[0] for row in connection.execute(_CLAIM, (str(os.getpid()), batch))]
            if not ids:
                break
            for statement in (_ANSWER, _SETTLE):
                with connection.transaction():
                    connection.execute(statement, (time.time(), ids))
            done += len(ids)
        used = time.process_time() - begun
    print(json.dumps({"calls": done, "cpu": used}), flush=True)


def run_bare(url: str, workers: int, jobs: int, batch: int) -> Run:
    """Measures the bare loop with as many processes; the jobs are placed in the same time."""
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute(_JOBS.encode())
    with processes([("--bare", url, str(batch)) for _ in range(workers)]) as started:
        before, begun = statistics(url), time.monotonic()
        with psycopg.connect(plain(url)) as connection:
            for first in range(0, jobs, PIECE):
                with connection.transaction():
                    connection.execute(
                        "INSERT INTO bare_job (number) SELECT '+98912' || lpad(n::text, 7, '0') "
                        "FROM generate_series(%s::int, %s::int) AS n",
                        (first, min(jobs, first + PIECE) - 1),
                    )
        for each in started:
            pipe(each.stdin).write("\n")
        done = results(started)
        seconds, after = time.monotonic() - begun, statistics(url)
    return Run(
        workers, seconds, jobs, after[0] - before[0], after[1] - before[1],
        [each["calls"] for each in done], sum(each["cpu"] for each in done),
    )  # fmt: skip


def run_procrastinate(url: str, jobs: int) -> Run | None:
    """Measures jobs that do nothing with one worker of procrastinate; None: not installed."""
    if importlib.util.find_spec("procrastinate") is None:
        return None
    return asyncio.run(_procrastinate(url, jobs))


async def _procrastinate(url: str, jobs: int) -> Run:
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=plain(url)))

    @app.task(name="call")
    async def call(number: str) -> None:
        """Ends at once."""

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        before, begun, used = statistics(url), time.monotonic(), time.process_time()
        for first in range(0, jobs, PIECE):
            numbers = range(first, min(jobs, first + PIECE))
            jobs_of_piece: list[dict[str, Any]] = [{"number": f"+98912{n:07}"} for n in numbers]
            await call.batch_defer_async(*jobs_of_piece)
        await app.run_worker_async(
            wait=False, concurrency=20, install_signal_handlers=False, listen_notify=False
        )
        seconds, after = time.monotonic() - begun, statistics(url)
    return Run(
        1, seconds, jobs, after[0] - before[0], after[1] - before[1], [jobs],
        time.process_time() - used,
    )  # fmt: skip


def main() -> None:
    """Runs the bench, or one of its processes."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    given, _ = parser.parse_known_args()
    if given.worker:
        asyncio.run(work(given.worker[0], int(given.worker[1])))
    elif given.bare:
        bare_loop(given.bare[0], int(given.bare[1]))
    else:
        report.main("fleet", __doc__, measure, add_arguments)


if __name__ == "__main__":
    main()
