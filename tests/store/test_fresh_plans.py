"""What a claim reads in PostgreSQL while tables have many rows and no statistics yet.

So is a new database in its first campaign, until autovacuum has analyzed it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import Connection, text

from bitel.domain.calls import Lane
from bitel.domain.ids import new_id
from bitel.store import campaigns, claims, migrate, number_exclusion, sql_batch
from bitel.store.campaigns import Campaign
from bitel.store.database import Database
from tests.support import call_rows, factories
from tests.support.clocks import FakeClock
from tests.support.store_world import World

WAITING = 4000
CLAIMED = 50
MOST_PAGES = 80
"""Read for each claimed call, by all statements of a claim."""


def place_campaign(world: World) -> None:
    now = world.clock()
    new = Campaign(new_id(now), world.project_id, "main", world.recording_id, now, WAITING)
    calls = [
        factories.new_call(
            world.project_id, world.recording_id, now, e164=f"+98912{n:07}", campaign_id=new.id,
            lane=Lane.BATCH,
        )
        for n in range(WAITING)
    ]  # fmt: skip
    world.do(lambda conn: conn.execute(text("ALTER TABLE call SET (autovacuum_enabled = false)")))
    world.do(lambda conn: campaigns.add(conn, new))
    world.do(lambda conn: call_rows.place(conn, calls))


def pages_of(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def test_a_claim_reads_a_few_pages_for_each_call(
    blank_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(blank_postgres_url)
    pages: Counter[str] = Counter()
    execute = sql_batch.execute

    def explained(conn: Connection, statement: str, parameters: Any = ()) -> Any:
        """Explain SELECTs, which also runs them; then run the statement."""
        if statement.lstrip().startswith(("SELECT", "WITH")) and conn.info.get("explain"):
            explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
            found = execute(conn, explain, parameters).fetchone()[0]
            parsed = json.loads(found) if isinstance(found, str) else found
            pages[" ".join(statement.split())[:200]] += pages_of(parsed[0]["Plan"])
        return execute(conn, statement, parameters)

    monkeypatch.setattr(sql_batch, "execute", explained)
    with Database.open(blank_postgres_url) as database:
        world = World.make(database, FakeClock(time.time()))
        place_campaign(world)
        lease = world.take_over()

        def claim(conn: Connection) -> int:
            conn.info["explain"] = True
            try:
                claims.next_due(conn, "main", world.clock())
                number_exclusion.occupied(conn, ["main"], world.clock())
                return len(claims.claim(conn, lease, CLAIMED, world.clock()))
            finally:
                conn.info["explain"] = False

        assert world.do(claim) == CLAIMED
    assert sum(pages.values()) <= MOST_PAGES * CLAIMED, pages.most_common(5)
