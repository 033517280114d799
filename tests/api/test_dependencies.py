"""The endpoints that are called directly are reached as FastAPI would have it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from bitel.api.dependencies import DirectRoute
from bitel.domain.ids import new_id
from bitel.store import tokens

if TYPE_CHECKING:
    from tests.api.stage import Stage


async def guest(request: Request) -> str:
    return request.headers["guest"]


def greeted(wants: Request) -> str:
    return wants.headers["guest"]


Guest = Annotated[str, Depends(guest)]
Greeted = Annotated[str, Depends(greeted)]


async def plain(request: Request, name: Guest, room: str) -> Response:
    return PlainTextResponse(f"{name} {room}")


async def with_query(request: Request, name: Guest, room: str, nights: int = 1) -> Response:
    return PlainTextResponse(f"{name} {room} {nights}")


async def with_number(request: Request, name: Guest, room: int) -> Response:
    return PlainTextResponse(f"{name} {room + 1}")


async def with_thread(request: Request, name: Greeted, room: str) -> Response:
    return PlainTextResponse(f"{name} {room}")


def asked(endpoint: Any, path: str, method: str = "GET") -> tuple[bool, httpx.Response]:
    """Whether the endpoint is called directly, and what it answers."""
    router = APIRouter(route_class=DirectRoute)
    router.get("/rooms/{room}")(endpoint)
    app = FastAPI()
    app.router.routes.extend(router.routes)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bitel") as client:
            return await client.request(method, path, headers={"guest": "Ana"})

    (route,) = router.routes
    assert isinstance(route, DirectRoute)
    return route.is_simple, asyncio.run(ask())


@pytest.mark.parametrize(
    ("endpoint", "path", "simple", "status", "said"),
    [
        (plain, "/rooms/7", True, 200, "Ana 7"),
        (plain, "/rooms/a%20b", True, 200, "Ana a b"),
        (with_query, "/rooms/7?nights=2", False, 200, "Ana 7 2"),
        (with_query, "/rooms/7?nights=x", False, 422, "int_parsing"),
        (with_number, "/rooms/7", False, 200, "Ana 8"),
        (with_number, "/rooms/x", False, 422, "int_parsing"),
        (with_thread, "/rooms/7", False, 200, "Ana 7"),
    ],
)
def test_what_wants_little_is_called_directly(
    endpoint: Any, path: str, simple: bool, status: int, said: str
) -> None:
    was_simple, answer = asked(endpoint, path)
    assert was_simple is simple
    assert answer.status_code == status
    assert said in answer.text


def test_a_method_that_is_none_of_the_routes_own_is_refused() -> None:
    _, answer = asked(plain, "/rooms/7", "DELETE")
    assert answer.status_code == 405


async def test_states_that_are_asked_for_together_are_each_for_its_own_token(stage: Stage) -> None:
    """They share one look into the database, and nothing else."""
    async with stage.client() as client:
        placed = await client.post("/api/v2/voice/single", json=stage.body())
    mine = placed.json()["result"]["id"]
    revoked_id, revoked = stage.new_token(stage.project_id)
    stage.do(lambda conn: tokens.revoke(conn, revoked_id, stage.clock()))
    _, expired = stage.new_token(stage.project_id, expires_at=stage.clock() + 1)
    stage.clock.advance(2)
    _, strangers = stage.new_token(stage.new_project("other"))
    unknown = new_id(stage.clock())
    asks = [(stage.token, mine), (revoked, mine), (expired, mine), (strangers, mine),
            (stage.token, unknown), (stage.token, "no id"), (revoked, "no id")]  # fmt: skip

    async def ask(client: httpx.AsyncClient, token: str, call_id: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await client.get(f"/api/v2/voice/status/{call_id}", headers=headers)

    async with stage.client() as client:
        answers = await asyncio.gather(*(ask(client, *each) for each in asks))

    assert [answer.status_code for answer in answers] == [200, 401, 401, 404, 404, 404, 401]
    assert answers[0].json()["result"]["id"] == mine
    assert {answer.json()["error"] for answer in answers[1:]} == {"Unauthorized", "NotFound"}
