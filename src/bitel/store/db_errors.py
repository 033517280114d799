"""What a driver's error means for the work that met it."""

from __future__ import annotations

import enum
import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from bitel.errors import UnavailableError


class StoreUnavailable(UnavailableError):
    """The database can't do this now: full, locked, or out of reach. Nothing of it is stored.

    One doubt no client can remove: when the connection to PostgreSQL is lost during the COMMIT
    itself, it may have been carried out. Identifiers made before the write tell on the next read.
    """


class Fault(enum.Enum):
    """What to do about an error."""

    OURS = "the work's own: hand it to the caller"
    AGAIN = "a deadlock or a serialization failure: run the whole transaction again"
    LOST = "the connection is gone: open another and run the whole transaction again, once"
    DOWN = "the database can't: say so to the caller, and use this connection no more"


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
"""Data exceptions and violated constraints: what the work wrote is at fault, and no other work.
Anything else, such as a table, a right or a prepared statement that is missing, is the same for all
work until somebody mends it."""


def sort(error: BaseException) -> Fault:
    """What `error`, raised while work ran in a transaction, means for that transaction."""
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
    """The driver's own words, without the statement and its parameters (which may be private)."""
    words = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    return words.splitlines()[0] if words else type(error).__name__


def for_caller(error: BaseException) -> BaseException:
    """The error as the caller gets it: its own, or StoreUnavailable caused by it."""
    return error if sort(error) is Fault.OURS else unavailable(error)


def unavailable(cause: BaseException) -> StoreUnavailable:
    """What a caller is told of a fault that is not its own."""
    told = StoreUnavailable("the database can't do this now, try again later")
    told.__cause__ = cause
    return told
