"""The queries that run all the time find their rows through an index, on both databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Executable, event

from bitel.store import calls, claims, leases, settling, tokens

if TYPE_CHECKING:
    from bitel.store.database import Database

IDS = ["a", "b"]
QUERIES: dict[str, tuple[Executable, dict[str, Any], set[str]]] = {
    "due": (
        claims._DUE,
        {"dialer_id": "main", "lane": 1, "now": 1.0, "most": 5},
        {"ix_call_due"},
    ),
    "expired": (
        claims._EXPIRED,
        {"dialer_id": "main", "now": 1.0, "most": 5},
        {"ix_call_expiring"},
    ),
    "next due": (claims._NEXT_DUE, {"dialer_id": "main"}, {"ix_call_due", "ix_call_expiring"}),
    "in flight": (claims._IN_FLIGHT, {"dialer_id": "main"}, {"ix_attempt_open"}),
    "left open": (leases._LEFT_OPEN, {"dialer_id": "main"}, {"ix_attempt_open"}),
    # By primary key; which of their indexes is best depends on how full the tables are.
    "mine": (claims._MINE, {"ids": IDS, "dialer_id": "main", "epoch": 1}, set()),
    "to settle": (settling._MINE, {"ids": IDS, "dialer_id": "main", "epoch": 1}, set()),
    "attempts": (calls._ATTEMPTS, {"call_id": "a"}, set()),
    "find": (calls._FIND, {"id": "a", "project_id": "p"}, set()),
    "token": (tokens._LIVE, {"id": "a", "project_id": "p", "now": 1.0}, set()),
}


def plan(conn: Connection, query: Executable, values: dict[str, Any]) -> str:
    """How the database would carry out the query, just as the driver gets it."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        seen.append((statement, parameters))

    event.listen(conn, "before_cursor_execute", note)
    conn.execute(query, values)
    event.remove(conn, "before_cursor_execute", note)
    statement, parameters = seen[-1]  # before it there may be a BEGIN
    explain = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
    rows = conn.exec_driver_sql(explain + statement, parameters)
    return "\n".join(str(row[-1]) for row in rows)


@pytest.mark.parametrize("name", QUERIES)
def test_the_query_uses_its_index(database: Database, name: str) -> None:
    query, values, indexes = QUERIES[name]

    def explain(conn: Connection) -> str:
        if conn.dialect.name == "postgresql":
            # The tables are empty here, and then it rightly reads all there is.
            conn.exec_driver_sql("SET LOCAL enable_seqscan = off")
            conn.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        return plan(conn, query, values)

    said = database.write_now(explain)

    # "SCAN CONSTANT ROW" is SQLite's word for a SELECT without FROM.
    assert "SCAN" not in said.replace("SCAN CONSTANT ROW", "")
    assert "Seq Scan" not in said
    assert all(index in said for index in indexes)
    if name == "due":
        assert "TEMP B-TREE" not in said
        assert "Sort" not in said
