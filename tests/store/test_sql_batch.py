"""Rows that go into the database as one text, and come out as one, stay what they were."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Boolean, Double, Integer, String, bindparam, select, update

from bitel.store import sql_batch
from bitel.store.database import Database
from bitel.store.schema import FreeText, Money, call
from bitel.store.sql_batch import Statement

_rows = sql_batch.values_parameter(
    "rows",
    number=Integer(),
    text=String(64),
    free=FreeText(8),
    at=Double(),
    amount=Money(),
    yes=Boolean(),
)
ROWS = Statement(select(*_rows.c).order_by(_rows.c.number))
NONE = Statement(
    update(call)
    .where(call.c.id.in_(select(sql_batch.values_parameter("ids", id=call.c.id.type).c.id)))
    .values(due_at=bindparam("due"))
)

# Without what no text in the database may hold; what strangers write goes into a FreeText.
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
# Up to 1e50: SQLite's own conversion between text and doubles rounds the last bit of larger ones
# wrongly. What the columns hold, Unix times and ratios, is far below.
finite = st.floats(-1e50, 1e50).map(lambda number: number + 0.0)
money = st.integers(-(10**12), 10**12).map(lambda units: Decimal(units).scaleb(-4))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.none() | plain,
            st.none() | finite,
            st.none() | money,
        ),
        max_size=5,
    )
)
def test_rows_come_back_as_they_went(
    database: Database, rows: list[tuple[str | None, float | None, Decimal | None]]
) -> None:
    wanted = [
        (number, text, None, at, amount, None) for number, (text, at, amount) in enumerate(rows)
    ]
    found = database.read_now(lambda conn: ROWS.rows(conn, {"rows": wanted}))
    assert [tuple(row) for row in found] == wanted


def test_what_strangers_write_is_cut_and_cleaned(database: Database) -> None:
    wanted = [(1, "", "a\0b\ud83dcdefghij", 0.1, Decimal(0), True)]
    (row,) = database.read_now(lambda conn: ROWS.rows(conn, {"rows": wanted}))
    assert row.free == "a\N{REPLACEMENT CHARACTER}b?cdef"
    assert row.yes is True


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65, 400, 512, 513, 1200])
def test_any_number_of_rows_is_that_number(database: Database, count: int) -> None:
    wanted = [(n, "t", "f", n / 3, Decimal(n), True) for n in range(count)]
    found = database.read_now(lambda conn: ROWS.rows(conn, {"rows": wanted}))
    assert [tuple(row) for row in found] == wanted


def test_no_rows_are_no_rows(database: Database) -> None:
    assert database.read_now(lambda conn: ROWS.rows(conn, {"rows": []})) == []
    changed = database.write_now(lambda conn: NONE.run(conn, {"ids": [], "due": 1.0}).rowcount)
    assert changed == 0
