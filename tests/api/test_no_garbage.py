"""Requests leave no cycles behind, since the collector does not run while the service works."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.stage import Stage

TIMES = 40


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def _ask(stage: Stage, method: str, path: str, body: bytes = b"", token: str = "") -> int:
    """The status of an answer, asked for past any client, which would leave cycles of its own."""
    headers = [(b"host", b"bitel"), (b"content-type", b"application/json")]
    headers += [(b"content-length", str(len(body)).encode())]
    headers += [(b"authorization", f"Bearer {token or stage.token}".encode())]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 40000),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    asked = [{"type": "http.request", "body": body, "more_body": False}]
    answered: list[Any] = []

    async def receive() -> Any:
        return asked.pop() if asked else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answered.append(message)

    await stage.app(scope, receive, send)
    return int(answered[0]["status"])


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("method", "path", "body", "token", "status"),
    [
        ("GET", "/healthz", b"", "", 200),
        ("POST", "/api/v2/voice/single", None, "", 200),
        ("POST", "/api/v2/voice/single", b"{", "", 400),
        ("POST", "/api/v2/voice/single", b"{}", "", 400),
        ("POST", "/api/v2/voice/single", b"{}", "wrong", 401),
        ("GET", "/api/v2/voice/status/00000000000000000000000000000000", b"", "", 404),
        ("GET", "/api/v2/nothing", b"", "", 404),
        ("DELETE", "/healthz", b"", "", 405),
    ],
)
async def test_an_answer_leaves_no_cycle(
    stage: Stage, method: str, path: str, body: bytes | None, token: str, status: int
) -> None:
    sent = json.dumps(stage.body()).encode() if body is None else body
    assert await _ask(stage, method, path, sent, token) == status
    gc.collect()
    for _ in range(TIMES):
        assert await _ask(stage, method, path, sent, token) == status
    found = gc.collect()
    assert found < TIMES, f"{found} objects of {TIMES} answers lay in cycles"
