"""Distinct values of an index's column, found without reading the rows that share them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, Column, ColumnElement, bindparam, func, select


def distinct(column: Column[Any], *conditions: ColumnElement[bool]) -> CTE:
    """The values of `column` above the parameter `after`, ascending, as a column `value`.

    Each costs one look into an index whose columns are those that the conditions fix, then
    `column`: a loose index scan, which neither database does by itself. What reads from it with a
    LIMIT stops it early. The last value is NULL, for the caller to leave out.
    """
    first = select(func.min(column).label("value")).where(*conditions, column > bindparam("after"))
    found = first.cte("found", recursive=True)
    following = select(func.min(column)).where(*conditions, column > found.c.value)
    return found.union_all(select(following.scalar_subquery()).where(found.c.value.is_not(None)))
