"""`/api/v2/account` and `/api/v2/servers`: the project, and the dialers that it may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.dependencies import Owner, services_of
from bitel.api.openapi import described
from bitel.api.placement import dialers_of
from bitel.api.responses import AccountAnswer, ServerAnswer, success
from bitel.domain.call_json import DateOf
from bitel.store import leases, pausing
from bitel.store.leases import DialerState

SEEN_WITHIN: Final = 15.0
"""Maximum seconds since the last heartbeat of a dialer that counts as up."""

router = APIRouter(prefix="/api/v2")


@router.get("/servers", **described("The dialers, and which are up", "service", list[ServerAnswer]))
async def servers(request: Request, project: Owner) -> Response:
    """Those that this project may use. Calls for a dialer that is down or paused are taken all the
    same, and wait until it is back."""
    context = services_of(request).context
    now = context.clock()
    usable = dialers_of(context.settings, project)
    behind = {each: context.settings.dialers_behind(each) for each in usable}
    dialers = sorted({one.id for some in behind.values() for one in some})
    states, paused = await context.database.read(
        lambda conn: (leases.dialer_states(conn, now, SEEN_WITHIN), _paused(conn, dialers))
    )
    found = []
    for each, some in behind.items():
        ids = [one.id for one in some]
        of_dialers = [states.get(one, DialerState()) for one in ids]
        reasons = [paused.get(one) for one in ids]
        # A group is paused if all of its dialers are.
        reason = None if None in reasons else reasons[0]
        found.append(_server(each, leases.together(of_dialers), reason, context.date))
    return success(found)


@router.get("/account", **described("The project, and its balance", "service", AccountAnswer))
async def account(request: Request, project: Owner) -> Response:
    """The balance is what the project has, with what waiting calls may still cost in it."""
    return success(
        {
            "id": project.id,
            "name": project.name,
            "balance": project.balance,
            "currency": services_of(request).context.settings.currency,
        }
    )


def _server(dialer_id: str, state: DialerState, paused: str | None, date: DateOf) -> dict[str, Any]:
    return {
        "id": dialer_id,
        "up": state.up,
        "paused": paused,
        "workers": state.workers,
        "channels": state.channels,
        "callsPerSecond": round(state.calls_per_second, 2),
        "lateMs": round(state.late_ms, 1),
        "since": None if state.since is None else int(date(state.since)),
    }


def _paused(conn: Connection, dialers: Sequence[str]) -> dict[str, str]:
    """Why dialers place no calls; a pause by the operator takes precedence."""
    reasons = leases.paused_reasons(conn)
    by_operator = {each: pausing.in_force(conn, each).reason for each in dialers}
    return reasons | {each: reason for each, reason in by_operator.items() if reason}
