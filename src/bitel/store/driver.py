"""Statements handed straight to the database's driver, in the transaction of a `Connection`.

SQLAlchemy's own way from a text to its rows costs more than most statements do. Here nothing lies
between but the error, which is the one that SQLAlchemy would raise: `faults` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

Parameters = Sequence[Any] | Mapping[str, Any]

_NONE: Final = ()


class Cursor(Protocol):
    """What both drivers answer a statement with."""

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""

    def fetchone(self) -> Any:
        """The next row, a tuple; None after the last."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""


def execute(conn: Connection, text: str, parameters: Parameters = _NONE) -> Cursor:
    """Carry out a statement, written as the driver takes it. Raises DBAPIError."""
    if not conn.in_transaction():
        conn.begin()
    return execute_outside(conn, text, parameters)


def execute_outside(conn: Connection, text: str, parameters: Parameters = _NONE) -> Cursor:
    """As `execute`, without a transaction being begun for it."""
    driver: Any = conn.connection.driver_connection
    try:
        cursor: Cursor = driver.execute(text, parameters)
    except conn.dialect.loaded_dbapi.Error as error:
        raise _as_sqlalchemys(conn, driver, text, error) from error
    return cursor


def _as_sqlalchemys(conn: Connection, driver: Any, text: str, error: Any) -> BaseException:
    dialect = conn.dialect
    is_lost = dialect.is_disconnect(error, driver, None)
    if is_lost:
        conn.invalidate(error)
    told: BaseException = DBAPIError.instance(
        text,
        None,  # the parameters are people's phone numbers
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=is_lost,
        dialect=dialect,
    )
    return told
