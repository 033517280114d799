"""The document against the service, by schemathesis: whatever is sent, with a token or without.

No answer is a 5xx, none is outside the envelope, none is one that the document does not tell of.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bitel.api.server import config
from bitel.store.database import Database

if TYPE_CHECKING:
    from tests.api.stage import Stage

EXAMPLES = 12
"""Requests to each operation, with a token and without."""

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance,
          response_schema_conformance]  # fmt: skip

bounded = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(scope="module")
def served_stage(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, stage_of_module: Any
) -> Iterator[tuple[Stage, str]]:
    folder = tmp_path_factory.mktemp("contract")
    path = folder / "bitel.db"
    path.write_bytes(sqlite_template.read_bytes())
    with Database.open(f"sqlite:///{path}") as database, socket.socket() as listener:
        stage = stage_of_module(database, time.time, folder / "data")
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config(stage.app))
        thread = threading.Thread(target=lambda: asyncio.run(server._serve([listener])))
        thread.start()
        while not server.started:
            time.sleep(0.01)  # another thread starts it
        try:
            yield stage, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def stage_of_module() -> Any:
    from tests.api.stage import Stage

    return Stage.make


@pytest.fixture(scope="module")
def operations(served_stage: tuple[Stage, str]) -> list[Any]:
    document: Any = schemathesis.openapi.from_url(f"{served_stage[1]}/openapi.json")
    return [found.ok() for found in document.get_all_operations()]


def cases(operation: Any) -> Any:
    """Requests that fit the document, and requests that do not."""
    return st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode])


def check(answer: Any) -> None:
    """Whatever it says, it says it in the envelope; recordings alone are audio."""
    if answer.headers["content-type"][0] == "audio/wav":
        assert answer.status_code == 200
        return
    envelope = answer.json()
    if answer.request.url.endswith("/healthz"):
        return
    assert list(envelope)[:2] == ["result", "error"]
    if answer.status_code == 200:
        assert envelope["error"] is None
    else:
        assert envelope["result"] is None
        assert isinstance(envelope["error"], str)
        assert isinstance(envelope["message"], str)


def test_whoever_has_a_token_is_answered_as_the_document_says(
    served_stage: tuple[Stage, str], operations: list[Any]
) -> None:
    stage = served_stage[0]
    headers = {"Authorization": f"Bearer {stage.token}"}
    real = {"voiceId": stage.recording_id, "phoneNumber": "09121234567", "serverId": "main",
            "phoneNumbers": ["09121234567", "+989350000001"], "text": "4071"}  # fmt: skip
    seen: Counter[int] = Counter()
    assert len(operations) > 20
    for operation in operations:

        @bounded
        @given(case=cases(operation), sensible=st.booleans())
        def ask(case: Any, sensible: bool) -> None:
            if sensible and isinstance(case.body, dict):
                # No generator hits upon a recording's id, or often upon a phone number.
                case.body |= {name: real[name] for name in case.body.keys() & real.keys()}
            answer = case.call(headers=headers)
            check(answer)
            seen[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        ask()
    assert seen.keys() >= {200, 400, 404}
    assert stage.queued() > 0


def test_whoever_has_none_is_told_so(
    served_stage: tuple[Stage, str], operations: list[Any]
) -> None:
    stage = served_stage[0]
    before = stage.queued()
    for operation in operations:

        @bounded
        @given(case=cases(operation))
        def ask(case: Any) -> None:
            answer = case.call(headers={"Authorization": ""})
            check(answer)
            # A generated identifier may turn the path into another.
            if not answer.request.url.endswith("/healthz"):
                assert answer.status_code in (401, 404, 405)

        ask()
    assert stage.queued() == before
