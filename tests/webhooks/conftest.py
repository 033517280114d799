"""Projects with receivers, events that are due, and a deliverer that works on them."""

from __future__ import annotations

import pytest

from bitel.store.database import Database
from tests.support.clocks import FakeClock
from tests.webhooks.post import Post


@pytest.fixture
def post(database: Database, clock: FakeClock) -> Post:
    return Post(database, clock)


@pytest.fixture
def sqlite_post(sqlite_database: Database, clock: FakeClock) -> Post:
    return Post(sqlite_database, clock)
