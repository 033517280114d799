"""`/healthz`: whether this process answers; `/readyz`: whether it should get requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.context import context_of
from bitel.errors import UnavailableError
from bitel.store import monitoring
from bitel.store.database import Database

JSON: Final = "application/json"
DATABASE_SECONDS: Final = 2.0
"""Seconds that the database may take to answer."""
FRESH: Final = 0.5
"""Seconds for which the answer of `/readyz` is cached, since it needs no token."""

router = APIRouter()


@router.get(
    "/healthz",
    tags=["service"],
    summary="Whether the service answers",
    response_model=None,
    responses={
        200: {"content": {"application/json": {"example": {"status": "ok"}}}, "description": "Yes."}
    },
)
@router.head("/healthz", include_in_schema=False)
async def healthz(request: Request) -> Response:
    """Asks neither for a token nor the database."""
    return Response(b'{"status":"ok"}', media_type=JSON)


@router.get("/readyz", include_in_schema=False)
@router.head("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Response:
    """200 where calls can be placed and this process is to get requests; else 503 and why not."""
    ready = context_of(request).ready
    why = await ready() if ready is not None else ""
    body: dict[str, Any] = {"status": "not ready", "reason": why} if why else {"status": "ready"}
    body |= context_of(request).ready_notes()
    return Response(json.dumps(body), status_code=503 if why else 200, media_type=JSON)


class Readiness:
    """Call it for the reason why this process should get no requests now; empty if it should.

    Args:
        database: must answer within `DATABASE_SECONDS`.
        is_draining: whether the service is stopping.
        standbys: the dialers of this process that wait for their lease.
        failing: the dialers of this process that can't claim calls or write results.
    """

    def __init__(
        self,
        database: Database,
        is_draining: Callable[[], bool],
        standbys: Callable[[], list[str]],
        failing: Callable[[], list[str]] = list,
    ) -> None:
        self._database = database
        self._is_draining = is_draining
        self._standbys = standbys
        self._failing = failing
        self._lock = asyncio.Lock()
        self._fault = ""
        self._asked_at = -FRESH

    async def __call__(self) -> str:
        """The reason, in a few words."""
        if self._is_draining():
            return "the service is being stopped"
        if waiting := self._standbys():
            return f"in standby for the dialer {waiting[0]}, which another process runs"
        if fault := await self._database_fault():
            return fault
        if failing := self._failing():
            return f"the dialer {failing[0]} can't claim calls or write their ends; see the log"
        return ""

    async def _database_fault(self) -> str:
        now = asyncio.get_running_loop().time
        async with self._lock:
            if now() - self._asked_at >= FRESH:
                try:
                    async with asyncio.timeout(DATABASE_SECONDS):
                        await self._database.read(monitoring.ping)
                except (UnavailableError, TimeoutError):
                    self._fault = "the database does not answer"
                else:
                    self._fault = ""
                self._asked_at = now()
            return self._fault
