"""What end-to-end tests do on a stage: upload a sample, place calls, wait for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from typer.testing import CliRunner

from bitel.cli import main
from bitel.client import Call, Client
from bitel.demo.play import read_wav
from bitel.demo.stage import WITHOUT_LIMITS, Stage
from bitel.g711 import Pcm
from bitel.recordings.sample import write_sample


def call_all(
    stage: Stage,
    numbers: Sequence[str],
    seconds: float = 1.0,
    timeout: float = 60.0,
    retry_count: int = 0,
) -> list[Call]:
    """Start the service, call all numbers at once, and stop it when all calls are over."""
    stage.start_service()
    with Client(token(stage), stage.url) as client:
        voice = upload(stage, client, seconds)
        (stage.folder / "sent.wav").write_bytes(client.recording(voice))
        placed = [
            client.call(number, voice, retry_count=retry_count, retry_interval=5)
            for number in numbers
        ]
        calls = [client.wait(call["id"], timeout) for call in placed]
    assert stage.stop_service() == 0
    return calls


@contextmanager
def started(stage: Stage, seconds: float) -> Iterator[tuple[str, Client, str]]:
    """Start the phone and the service, and upload a sample of that length to a new project.

    Yields the project's token, a client that has it, and the recording's id.
    """
    stage.start_phone()
    stage.start_service()
    key = token(stage)
    with Client(key, stage.url) as client:
        yield key, client, upload(stage, client, seconds)


def upload(stage: Stage, client: Client, seconds: float) -> str:
    """Upload a sample of that length; the recording's id."""
    sample = stage.folder / "sample.wav"
    write_sample(sample, seconds)
    return client.upload(sample)["id"]


def upload_to(folder: Path, http: httpx.Client, seconds: float = 1.0) -> str:
    """Upload a sample of that length with a client of the API; the recording's id."""
    sample = folder / "sample.wav"
    write_sample(sample, seconds)
    with sample.open("rb") as file:
        done = http.post("/api/v2/files/voice", files={"file": file})
    assert done.status_code == 200, done.text
    return str(done.json()["result"]["id"])


def token(stage: Stage) -> str:
    """`Stage.token` by commands in this process, which costs a tenth of starting two."""
    project = command(stage, "project", "create", "demo", *WITHOUT_LIMITS)
    return command(stage, "token", "create", project)


def command(stage: Stage, *arguments: str) -> str:
    """`Stage.command` in this process."""
    own = {name: None for name in os.environ if name.startswith("BITEL_")}
    done = CliRunner().invoke(main.app, [*arguments, f"--config={stage.config}"], env=own)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout.strip()


def sent(stage: Stage) -> Pcm:
    """The recording that `call_all` uploaded, as it should be heard."""
    return read_wav(stage.folder / "sent.wav")


def reports(calls: Sequence[Call]) -> list[tuple[str, int]]:
    """Status and billed seconds of each call."""
    return [(call["status"], call["billSec"]) for call in calls]


def numbers(count: int) -> list[str]:
    """That many different numbers."""
    return [f"09121{n:06}" for n in range(count)]


def folder(path: Path, name: str) -> Path:
    """A new folder below `path`."""
    made = path / name
    made.mkdir()
    return made
