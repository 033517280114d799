"""`/readyz`: whether a process should get requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bitel.api.app import build_app
from bitel.api.routes import health
from bitel.api.routes.health import Readiness
from bitel.store.db_errors import StoreUnavailable

if TYPE_CHECKING:
    from tests.api.stage import Stage


async def ask(stage: Stage, readiness: Readiness) -> tuple[int, str]:
    app = build_app(replace(stage.parts, ready=readiness))
    async with replace(stage, app=app).client() as client:
        answer = await client.get("/readyz")
        alive = await client.get("/healthz")
        assert alive.status_code == 200
        head = await client.head("/readyz")
        assert head.status_code == answer.status_code
    body = answer.json()
    assert body["status"] == ("ready" if answer.status_code == 200 else "not ready")
    return answer.status_code, body.get("reason", "")


async def test_ready(stage: Stage) -> None:
    readiness = Readiness(stage.parts.database, lambda: False, list)
    assert await ask(stage, readiness) == (200, "")


async def test_a_service_that_is_being_stopped(sqlite_stage: Stage) -> None:
    readiness = Readiness(sqlite_stage.parts.database, lambda: True, list)
    assert await ask(sqlite_stage, readiness) == (503, "the service is being stopped")


async def test_a_standby(sqlite_stage: Stage) -> None:
    readiness = Readiness(sqlite_stage.parts.database, lambda: False, lambda: ["main"])
    status, reason = await ask(sqlite_stage, readiness)
    assert status == 503
    assert "standby for the dialer main" in reason


@pytest.mark.parametrize("hangs", [False, True])
async def test_without_a_database(
    sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(health, "DATABASE_SECONDS", 0.05)
    monkeypatch.setattr(health, "FRESH", 0.0)
    away = True

    class Database:
        async def read(self, work: object) -> object:
            if away and hangs:
                await asyncio.sleep(60)
            if away:
                raise StoreUnavailable("away")
            return []

    readiness = Readiness(Database(), lambda: False, list)  # type: ignore[arg-type]
    assert await ask(sqlite_stage, readiness) == (503, "the database does not answer")
    away = False
    assert await ask(sqlite_stage, readiness) == (200, "")


async def test_strangers_do_not_ask_the_database_each_time(sqlite_stage: Stage) -> None:
    asked = 0

    class Database:
        async def read(self, work: object) -> object:
            nonlocal asked
            asked += 1
            return []

    readiness = Readiness(Database(), lambda: False, list)  # type: ignore[arg-type]
    assert await asyncio.gather(*(readiness() for _ in range(100))) == [""] * 100
    assert asked == 1
