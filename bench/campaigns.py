"""Measures control of a campaign, lists and the claims of its dialer with many calls stored.

`python -m bench.campaigns` fills a database with one campaign of a million calls, most of them
waiting, runs `bitel serve --only api` over it, and measures how long each request takes, one after
the other on one connection, beside the health check. The claims are timed in this process: those
of a dialer whose largest campaign is paused, and those of one that runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final

import httpx

from bench import report
from bench.api import Server, serving
from bench.report import Result, Row, at_most
from bitel.domain.calls import CallStatus, Lane, NewCall, NewCalls
from bitel.domain.ids import new_id, new_ids
from bitel.store import campaigns, claims, placing, projects, recovery
from bitel.store.campaigns import Campaign
from bitel.store.database import Database
from bitel.store.endings import CallEnd, end_calls
from bitel.store.leases import Slot

PIECE: Final = 10_000
LIMIT: Final = 50.0
"""Milliseconds in which each request is to be answered."""
ENDED: Final = 5
"""One in so many calls is over."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--calls", type=int, default=1_000_000, help="calls of the campaign")
    parser.add_argument("--requests", type=int, default=100, help="requests of each kind")
    parser.add_argument("--database", default="", help="URL of an empty one; else SQLite")


def measure(given: argparse.Namespace) -> Result:
    """Measures requests and claims over one large campaign."""
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as name:
        folder = Path(name)
        with serving(folder, given.database) as server:
            url = given.database or f"sqlite:///{folder / 'data' / 'bitel.db'}"
            with Database.open(url) as database:
                began = time.monotonic()
                campaign_id, ids = fill(database, server, given.calls)
                report.say(f"{given.calls:,} calls stored in {time.monotonic() - began:.0f} s")
                rows = list(requests(server, campaign_id, ids[given.calls // 2], given.requests))
                rows += claim_rows(database, server, campaign_id)
    return Result("A campaign of many calls", rows, [f"{given.calls:,} calls in one campaign."])


def fill(database: Database, server: Server, count: int) -> tuple[str, list[str]]:
    """Stores the campaign; returns its id and those of its calls."""
    now = time.time()
    (project,) = database.read_now(projects.listing)
    new = Campaign(new_id(now), project.id, "main", server.recording_id, now, count)
    template = NewCall(
        id="", project_id=project.id, dialer_id="main", phone_number="", e164="",
        recording_id=server.recording_id, lane=Lane.BATCH, retry_count=1, retry_interval=60,
        requested_at=now, expires_at=now + 14_400, campaign_id=new.id, reference="bench",
    )  # fmt: skip
    database.write_now(lambda conn: campaigns.add(conn, new))
    ids = new_ids(now, count)
    for first in range(0, count, PIECE):
        some = ids[first : first + PIECE]
        numbers = [f"+98912{number:07}" for number in range(first, first + len(some))]
        calls = NewCalls(
            replace(template, id=some[0]), some, numbers, numbers, [Decimal(0)] * len(some)
        )
        prepared = placing.prepare(calls)
        database.write_now(lambda conn: placing.place_many(conn, calls, prepared))  # noqa: B023
        ends = [CallEnd(each, CallStatus.NORMAL, now, 10) for each in some[::ENDED]]
        database.write_now(lambda conn: end_calls(conn, ends, now))  # noqa: B023
    return new.id, ids


def requests(server: Server, campaign_id: str, call_id: str, count: int) -> Iterator[Row]:
    """Yields the time that requests take, at the 99th percentile."""
    voice = "/api/v2/voice"
    campaign = f"{voice}/campaign/{campaign_id}"
    kinds: dict[str, tuple[str, str, Any]] = {
        "POST campaign/{id}/pause": ("POST", f"{campaign}/pause", None),
        "POST campaign/{id}/resume": ("POST", f"{campaign}/resume", None),
        "PATCH campaign/{id}": ("PATCH", campaign, {"callsPerSecond": 5}),
        "GET campaign/{id}": ("GET", campaign, None),
        "GET campaigns": ("GET", f"{voice}/campaigns", None),
        "GET calls": ("GET", f"{voice}/calls", None),
        "GET calls?status=": ("GET", f"{voice}/calls?status=UNKNOWN", None),
        "GET calls?phoneNumber=": ("GET", f"{voice}/calls?phoneNumber=%2B989120000007", None),
        "GET calls?campaignId=&status=": (
            "GET", f"{voice}/calls?campaignId={campaign_id}&status=NORMAL", None
        ),
        "GET calls/{id}": ("GET", f"{voice}/calls/{call_id}", None),
    }  # fmt: skip
    with httpx.Client(
        base_url=f"http://127.0.0.1:{server.port}",
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=60,
    ) as client:
        health = percentile(lambda: client.get("/healthz"), count)
        yield Row("GET /healthz, p99", health, "ms")
        for name, (method, path, body) in kinds.items():
            took = percentile(lambda: client.request(method, path, json=body), count)  # noqa: B023
            yield Row(f"{name}, p99", took, "ms", health, "healthz", at_most(LIMIT))


def percentile(request: Callable[[], httpx.Response], count: int) -> float:
    """The 99th percentile of the milliseconds that a request takes."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        request().raise_for_status()
        times.append(time.perf_counter() - began)
    return sorted(times)[min(count - 1, count * 99 // 100)] * 1000


def claim_rows(database: Database, server: Server, campaign_id: str) -> list[Row]:
    """The time of a claim of 100 calls beside a paused campaign, and from a running one."""
    now = time.time()
    (project,) = database.read_now(projects.listing)
    lease, _ = database.write_now(
        lambda conn: recovery.take_over(conn, Slot("main"), "bench", now, 77.0)
    )

    def claim() -> float:
        began = time.perf_counter()
        at = time.time()
        database.write_now(lambda conn: claims.claim(conn, lease, 100, at))
        return (time.perf_counter() - began) * 1000

    def worst() -> float:
        return max(islice(iter(claim, None), 20))

    running = worst()
    database.write_now(lambda conn: campaigns.pause(conn, project.id, campaign_id, now))
    paused = worst()
    return [
        Row("claim of 100 calls of it, worst of 20", running, "ms"),
        Row("claim while it is paused, worst of 20", paused, "ms", running, "running"),
    ]


if __name__ == "__main__":
    report.main("campaigns", __doc__, measure, add_arguments)
