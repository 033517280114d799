"""Classification of database errors: the caller's own, to be retried, or unavailability."""

from __future__ import annotations

import enum
import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from bitel.errors import UnavailableError


class StoreUnavailable(UnavailableError):
    """The database is full, locked, or can't be reached; nothing was stored.

    One exception: when the connection to PostgreSQL is lost during COMMIT, the transaction may have
    been committed. A read of identifiers that were made before the write shows whether it was.
    """


class Fault(enum.Enum):
    """How to handle an error."""

    OURS = "the work's own: raise it in the caller"
    AGAIN = "a deadlock or a serialization failure: run the whole transaction again"
    LOST = "the connection is gone: open another and run the whole transaction again, once"
    DOWN = "the database can't: raise StoreUnavailable, and close this connection"


_DOWN_SQLITE = frozenset(
    {
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_ABORT,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_NOTADB,
    }
)

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_AGAIN_POSTGRES = frozenset({"40001", "40P01"})
_OURS_POSTGRES_CLASSES = frozenset({"22", "23"})
"""Data exceptions and violated constraints, caused by the values of the work. Other errors, such as
a missing table, right or prepared statement, affect all work."""


def classify(error: BaseException) -> Fault:
    """How to handle an error that was raised while work ran in a transaction."""
    if not isinstance(error, DBAPIError):
        return Fault.OURS
    if error.connection_invalidated:
        return Fault.LOST
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return Fault.DOWN if code & 0xFF in _DOWN_SQLITE else Fault.OURS
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        # Only a connection that could not be made has no SQLSTATE.
        return Fault.DOWN if isinstance(error, OperationalError | InterfaceError) else Fault.OURS
    if state in _AGAIN_POSTGRES:
        return Fault.AGAIN
    return Fault.OURS if state[:2] in _OURS_POSTGRES_CLASSES else Fault.DOWN


def first_line(error: BaseException) -> str:
    """The first line of the driver's message, without the statement and its parameters."""
    words = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    return words.splitlines()[0] if words else type(error).__name__


def for_caller(error: BaseException) -> BaseException:
    """The error that the caller gets: its own, or StoreUnavailable caused by it."""
    return error if classify(error) is Fault.OURS else unavailable(error)


def unavailable(cause: BaseException) -> StoreUnavailable:
    """The error for the caller of an error that is not its own."""
    error = StoreUnavailable("the database can't do this now, try again later")
    error.__cause__ = cause
    return error
