"""A project with a recording in an empty database, of both kinds or of SQLite alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bitel.store.database import Database
from tests.support.clocks import FakeClock
from tests.support.store_world import World


@pytest.fixture
def world(database: Database, clock: FakeClock) -> World:
    return World.make(database, clock)


@pytest.fixture
def sqlite_world(sqlite_database: Database, clock: FakeClock) -> World:
    return World.make(sqlite_database, clock)


@pytest.fixture
def make_world() -> Callable[[Database, FakeClock], World]:
    """For tests that open databases by themselves."""
    return World.make
