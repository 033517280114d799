"""An API over an empty database, with one project that has a token and a recording."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvicorn

from bitel.api.server import config
from bitel.client import AsyncClient, Client
from bitel.store.database import Database
from tests.api.stage import Stage
from tests.support.api_clients import Awaited, Threaded
from tests.support.clocks import FakeClock
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What the test has logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def stage(database: Database, clock: FakeClock, tmp_path: Path) -> Stage:
    """On a SQLite file, then on PostgreSQL."""
    return Stage.make(database, clock, tmp_path / "data")


@pytest.fixture
def sqlite_stage(sqlite_database: Database, clock: FakeClock, tmp_path: Path) -> Stage:
    """For what does not depend on the kind of database."""
    return Stage.make(sqlite_database, clock, tmp_path / "data")


@pytest.fixture
def stage_of() -> Callable[..., Stage]:
    """For tests that need a database and settings of their own."""
    return Stage.make


@pytest.fixture
def make_stage(sqlite_database: Database, clock: FakeClock, tmp_path: Path) -> Callable[..., Stage]:
    """For tests that need settings of their own."""
    return lambda **settings: Stage.make(sqlite_database, clock, tmp_path / "data", **settings)


@pytest.fixture
def served() -> Callable[[Stage], Any]:
    """Serves a stage's application on a real socket: `async with served(stage) as url`."""
    return _served


@pytest.fixture(params=["blocking", "asynchronous"])
def opened(request: Any) -> Callable[[str, str], Any]:
    """Makes a client of each kind, with the token and for the URL given."""
    kinds: dict[str, Callable[[str, str], Any]] = {
        "blocking": lambda token, url: Threaded(Client(token, url)),
        "asynchronous": lambda token, url: Awaited(AsyncClient(token, url)),
    }
    return kinds[request.param]


@asynccontextmanager
async def _served(stage: Stage) -> AsyncIterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config(stage.app, stage.parts.settings.http))
        task = asyncio.create_task(server._serve([listener]))
        try:
            await until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
