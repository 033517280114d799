"""A client that openapi-python-client generates from the document calls the service."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitel.api.openapi import document
from bitel.api.operation_ids import OPERATION_IDS
from bitel.recordings.sample import write_sample
from tests.support.prerequisites import need

if TYPE_CHECKING:
    from tests.api.stage import Stage

PACKAGE = "generated_bitel"
PROGRAM = Path(
    os.environ.get("BITEL_TEST_GENERATOR")
    or Path(sys.prefix) / "generator/bin/openapi-python-client"
)
"""Installed by `scripts/setup dev`."""


@pytest.fixture(scope="module")
def generate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Generates a client of a document, and makes it importable; returns what was printed."""
    need(PROGRAM.exists(), f"{PROGRAM} is missing, which scripts/setup dev installs")
    folder = tmp_path_factory.mktemp("generated")
    sys.path.insert(0, str(folder))

    def run(content: dict[str, Any]) -> str:
        if (folder / PACKAGE).exists():
            return ""
        (folder / "openapi.json").write_text(json.dumps(content))
        command = [str(PROGRAM), "generate", "--meta=none"]
        command += [f"--path={folder / 'openapi.json'}", f"--output-path={folder / PACKAGE}"]
        # Without the hooks of ruff, which format what nobody reads.
        (folder / "config.yml").write_text("post_hooks: []\n")
        command.append(f"--config={folder / 'config.yml'}")
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield run
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def snake(name: str) -> str:
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name)


async def test_a_generated_client_has_readable_names_and_works(
    sqlite_stage: Stage, served: Any, generate: Any, tmp_path: Path
) -> None:
    stage = sqlite_stage
    printed = await asyncio.to_thread(generate, document(stage.app))
    methods = importlib.import_module(PACKAGE)
    folder = Path(str(methods.__file__)).parent
    made = {file.stem for file in (folder / "api").rglob("*.py")} - {"__init__"}
    assert made == {snake(name) for name in OPERATION_IDS.values()}, printed

    def operation(tag: str, name: str) -> Any:
        return importlib.import_module(f"{PACKAGE}.api.{tag}.{name}")

    models = importlib.import_module(f"{PACKAGE}.models")
    types = importlib.import_module(f"{PACKAGE}.types")
    write_sample(tmp_path / "tune.wav", 1.0)

    def use(url: str) -> tuple[Any, Any, bytes, Any]:
        client = methods.AuthenticatedClient(base_url=url, token=stage.token)
        with (tmp_path / "tune.wav").open("rb") as opened:
            file = types.File(payload=opened, file_name="tune.wav", mime_type="audio/wav")
            body = models.UploadRecordingBody(file=file)
            voice = operation("recordings", "upload_recording").sync(client=client, body=body)
        wav = operation("recordings", "download_recording").sync_detailed(
            voice.result.id, client=client
        )
        single = models.SingleBody(phone_number="09121234567", voice_id=voice.result.id)
        call = operation("calls", "place_single_call").sync(client=client, body=single)
        state = operation("calls", "get_call").sync(call.result.id, client=client)
        return voice.result, call.result, wav.content, state.result

    async with served(stage) as url:
        voice, call, wav, state = await asyncio.to_thread(use, url)
    assert voice.name == "tune.wav"
    assert wav.startswith(b"RIFF")
    assert (call.phone_number, call.status) == ("09121234567", "WAITING")
    assert state.id == call.id
    assert [row.id for row in stage.rows()] == [call.id]
