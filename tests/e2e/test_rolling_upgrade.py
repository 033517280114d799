"""Two versions of the service beside each other over one PostgreSQL, as in a rolling upgrade."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.support import phone_log
from tests.support.service_calls import folder, token, upload
from tests.support.waiting import wait_until

FORMER = "422e8e8008304f458dc4b4608a5bd00f62f0fbcf"
"""The last commit whose schema is 0009, and whose dialers have one worker."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def former_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the version before, as the repository has it."""
    packed = subprocess.run(
        ["git", "archive", FORMER, "src"], cwd=ROOT, capture_output=True, check=False
    )
    if packed.returncode:
        pytest.skip("the history of the repository does not reach back to the version before")
    unpacked = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(unpacked, filter="data")
    return unpacked / "src"


def service(tmp_path: Path, name: str, url: str, trunk: str = "") -> Stage:
    """A machine: a data_dir of its own, and recordings that it shares."""
    data_dir, shared = folder(tmp_path, f"{name}-data"), tmp_path / "shared"
    (shared / "voices").mkdir(parents=True, exist_ok=True)
    (data_dir / "voices").symlink_to(shared / "voices")
    return Stage(
        folder(tmp_path, name), rules=["*=answer:after=0.1"], record=False,
        dialer={"calls_per_second": 50, "ring_timeout": 10},
        extra=f'database_url = "{url}"', data_dir=data_dir, trunk=trunk,
    )  # fmt: skip


def logged(stage: Stage, event: str) -> list[str]:
    return [line for line in stage.service_log.read_text().splitlines() if f" {event} " in line]


def place(stage: Stage, key: str, voice: str, first: int) -> str:
    """Place a campaign of 20 calls; its id."""
    with Client(key, stage.url) as client:
        numbers = [f"0912000{n:04}" for n in range(first, first + 20)]
        return client.batch(numbers, voice, retry_count=0)["campaignId"]


def test_the_version_before_and_this_one_work_side_by_side(
    tmp_path: Path, blank_postgres_url: str, former_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes requests; one dials, and the other continues when it drains."""
    with service(tmp_path, "old", blank_postgres_url) as old:
        old.start_phone()
        with monkeypatch.context() as former:
            path = os.environ.get("PYTHONPATH", "")
            former.setenv("PYTHONPATH", f"{former_source}{os.pathsep}{path}")
            old.start_service()
        trunk = f"sip:127.0.0.1:{old.ports.phone}"
        with service(tmp_path, "new", blank_postgres_url, trunk) as new:
            # The version before has the key of tokens in its data_dir, on all machines.
            assert old.data_dir is not None
            assert new.data_dir is not None
            shutil.copy2(old.data_dir / "signing.key", new.data_dir / "signing.key")
            key = token(new)
            with Client(key, old.url) as client:
                voice = upload(old, client, 1.0)
            placed = [place(old, key, voice, 0)]
            new.start_service()
            wait_until(lambda: bool(logged(new, "standby")), 20)
            placed += [place(old, key, voice, 20), place(new, key, voice, 40)]
            assert old.stop_service() == 0
            wait_until(lambda: bool(logged(new, "active")), 15)
            placed.append(place(new, key, voice, 60))
            with Client(key, new.url) as client:
                for one in placed:
                    wait_until(lambda: client.campaign(one)["state"] == "FINISHED", 30)  # noqa: B023
                    assert client.campaign(one)["answered"] == 20
            assert new.stop_service() == 0
        seen = phone_log.read(old.phone_log)
    assert {len(calls) for calls in seen.values()} == {1}, "each person was called once"
    assert len(seen) == 80
    assert "Traceback" not in old.service_log.read_text() + new.service_log.read_text()
