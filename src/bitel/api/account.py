"""`/api/v2/account`: the project that a token speaks for."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.auth import Owner
from bitel.api.context import parts_of
from bitel.api.envelope import success
from bitel.api.openapi import described
from bitel.api.responses import AccountAnswer

router = APIRouter(prefix="/api/v2")


@router.get("/account", **described("The project, and its balance", "service", AccountAnswer))
async def account(request: Request, project: Owner) -> Response:
    """The balance is what the project has, with what waiting calls may still cost in it."""
    return success(
        {
            "id": project.id,
            "name": project.name,
            "balance": project.balance,
            "currency": parts_of(request).settings.currency,
        }
    )
