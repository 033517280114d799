"""`/api/v2/servers`: the dialers that a client may name as `serverId`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.auth import Owner
from bitel.api.context import parts_of
from bitel.api.envelope import success
from bitel.api.openapi import described
from bitel.api.placement import dialers_of
from bitel.api.responses import ServerAnswer
from bitel.store import leases, pausing

SEEN_WITHIN: Final = 15.0
"""Seconds since a dialer was last heard of, within which it counts as up."""

router = APIRouter(prefix="/api/v2")


@router.get("/servers", **described("The dialers, and which are up", "service", list[ServerAnswer]))
async def servers(request: Request, project: Owner) -> Response:
    """Those that this project may use. Calls for a dialer that is down or paused are taken all the
    same, and wait until it is back."""
    parts = parts_of(request)
    now = parts.clock()
    usable = dialers_of(parts.settings, project)
    up, paused = await parts.database.read(
        lambda conn: (leases.dialers_up(conn, now, SEEN_WITHIN), _paused(conn, usable))
    )
    return success(
        [{"id": each, "up": up.get(each, False), "paused": paused.get(each)} for each in usable]
    )


def _paused(conn: Connection, dialers: Sequence[str]) -> dict[str, str]:
    """Why dialers place no calls, those that the operator has paused first."""
    reasons = leases.paused_reasons(conn)
    by_operator = {each: pausing.in_force(conn, each).reason for each in dialers}
    return reasons | {each: reason for each, reason in by_operator.items() if reason}
