"""`/healthz`: whether this process answers at all, for a load balancer to ask often."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

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
    return Response(b'{"status":"ok"}', media_type="application/json")
