"""`/docs`: a self-contained page that shows `/openapi.json`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.openapi import document

router = APIRouter(include_in_schema=False)

_PAGE: Final = (files("bitel.api") / "docs.html").read_bytes()


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page; its Content-Security-Policy allows only the script in it."""
    return Response(
        _PAGE,
        media_type="text/html",
        headers={"Content-Security-Policy": _policy()},
    )


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI document, made once per application."""
    state = request.app.state
    if not hasattr(state, "openapi"):
        state.openapi = json.dumps(document(request.app), ensure_ascii=False).encode()
    return Response(state.openapi, media_type="application/json")


@cache
def _policy() -> str:
    return (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {_digest('script')}; style-src {_digest('style')}"
    )


def _digest(tag: str) -> str:
    """The hash by which a policy names the page's one element of that tag (CSP Level 3 §2.3.1)."""
    inside = re.search(rf"<{tag}>(.*?)</{tag}>".encode(), _PAGE, re.DOTALL)
    assert inside is not None, tag
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside[1]).digest()).decode()}'"
