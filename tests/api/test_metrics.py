"""Who may read `/metrics`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError

from bitel.api.app import build_app
from bitel.api.routes.metrics import build_listener
from bitel.settings import MetricsSettings

if TYPE_CHECKING:
    from tests.api.stage import Stage

HERE, ELSEWHERE = ("127.0.0.1", 40000), ("192.0.2.7", 40000)


async def page() -> bytes:
    return b"bitel_up 1\n"


@pytest.fixture(params=["beside the API", "alone"])
def app_with(
    request: pytest.FixtureRequest, make_stage: Callable[..., Stage]
) -> Callable[[str], FastAPI]:
    def build(token: str) -> FastAPI:
        if request.param == "alone":
            return build_listener(page, lambda: token)
        stage = make_stage(metrics={"token": token})
        return build_app(replace(stage.parts, metrics=page))

    return build


async def get(
    app: FastAPI,
    client: tuple[str, int],
    path: str = "/metrics",
    host: str = "127.0.0.1:8080",
    **headers: str,
) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, client=client)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
        return await http.get(path, headers=named)


@pytest.mark.parametrize("client", [HERE, ("::1", 1), ("127.8.0.1", 1), ("::ffff:127.0.0.1", 1)])
async def test_without_a_token_this_machine_reads(
    app_with: Callable[[str], FastAPI], client: tuple[str, int]
) -> None:
    answer = await get(app_with(""), client)
    assert answer.status_code == 200
    assert answer.content == b"bitel_up 1\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("host", ["localhost:8080", "LOCALHOST.", "127.8.0.1", "[::1]:8080"])
async def test_without_a_token_this_machine_is_asked_by_its_own_name(
    app_with: Callable[[str], FastAPI], host: str
) -> None:
    assert (await get(app_with(""), HERE, host=host)).status_code == 200


async def test_without_a_token_nobody_else_does(app_with: Callable[[str], FastAPI]) -> None:
    app = app_with("")
    refused = [
        await get(app, ELSEWHERE),
        await get(app, ("fe80::1", 1)),
        await get(app, ("", 1)),
        await get(app, HERE, x_forwarded_for="127.0.0.1"),
        await get(app, HERE, forwarded="for=192.0.2.7"),
        await get(app, HERE, x_real_ip="192.0.2.7"),
        await get(app, HERE, x_forwarded_host="metrics.example"),
        await get(app, HERE, via="1.1 proxy"),
        await get(app, HERE, host="metrics.example"),
        await get(app, HERE, host="localhost.example"),
        await get(app, HERE, host="192.0.2.7:8080"),
        await get(app, HERE, host="[2001:db8::1]:8080"),
    ]
    assert {each.status_code for each in refused} == {403}
    assert {each.json()["error"] for each in refused} == {"Forbidden"}


@pytest.mark.parametrize("client", [HERE, ELSEWHERE])
async def test_with_a_token_whoever_has_it_reads(
    app_with: Callable[[str], FastAPI], client: tuple[str, int]
) -> None:
    app = app_with("s3cret")
    for value in ("Bearer s3cret", "bearer  s3cret"):
        assert (await get(app, client, authorization=value)).status_code == 200
    wrong: list[dict[str, Any]] = [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer s3cre"},
        {"authorization": "Basic s3cret"},
        {"authorization": "s3cret"},
    ]
    for headers in wrong:
        answer = await get(app, client, **headers)
        assert answer.status_code == 401
        assert answer.json()["error"] == "Unauthorized"


async def test_where_there_is_no_page(make_stage: Callable[..., Stage]) -> None:
    answer = await get(make_stage().app, HERE)
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")


async def test_a_listener_answers_nothing_else() -> None:
    app = build_listener(page, str)
    for path in ("/", "/docs", "/openapi.json", "/api/v2/servers"):
        assert (await get(app, HERE, path)).status_code == 404


@pytest.mark.parametrize(
    "token", ["رمز عبور", "pässwort", "two words", " edge ", 'q"uo\\te', "=#;,"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
async def test_a_token_may_be_any_text(
    app_with: Callable[[str], FastAPI], token: str, encoding: str
) -> None:
    try:
        sent = token.encode(encoding)
    except UnicodeEncodeError:
        return
    transport = httpx.ASGITransport(app=app_with(token), client=ELSEWHERE)
    async with httpx.AsyncClient(transport=transport, base_url="http://bitel") as http:
        for value, status in ((sent, 200), (sent + b"x", 401), (b"", 401)):
            headers = {b"authorization": b"Bearer " + value.strip()}
            assert (await http.get("/metrics", headers=headers)).status_code == status


@pytest.mark.parametrize("token", ["   ", "\t", "a\nb", "a\0b"])
def test_a_token_that_can_not_be_sent_stops_the_start(token: str) -> None:
    with pytest.raises(ValidationError, match="can't be sent"):
        MetricsSettings(token=SecretStr(token))
