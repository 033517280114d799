"""The Containerfile and the compose file: linted, and with settings that the service knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitel.service.shutdown import SHUTDOWN_MARGIN
from bitel.settings import load
from tests.support.prerequisites import need

ROOT = Path(__file__).parent.parent.parent
CONTAINERFILE = ROOT / "Containerfile"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BITEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return loaded


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(BITEL_\w+)=(\S+)", CONTAINERFILE.read_text()))


def test_the_containerfile_is_linted() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    need(program is not None, "hadolint is not installed")
    assert program is not None
    done = subprocess.run([program, CONTAINERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_needs_is_not_ignored() -> None:
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} <= kept
    assert all((ROOT / name).exists() for name in kept)


def test_the_image_has_settings_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in image_environment().items():
        monkeypatch.setenv(name, value)
    loaded = load()
    assert (loaded.data_dir, loaded.http.host, loaded.log_json) == (Path("/data"), "0.0.0.0", True)


def test_so_has_the_compose_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = compose()["services"]["bitel"]
    secrets = {"database_url": "postgresql://bitel:x@127.0.0.1/bitel\n", "s3_secret": "s3cret\n"}
    assert set(secrets) == set(service["secrets"])
    for name, content in secrets.items():
        (tmp_path / name).write_text(content)
    for name, value in (image_environment() | service["environment"]).items():
        monkeypatch.setenv(name, value.replace("/run/secrets/", f"{tmp_path}/"))
    loaded = load()
    assert loaded.database_url.get_secret_value() == secrets["database_url"].strip()
    assert loaded.s3.secret_access_key.get_secret_value() == "s3cret"
    assert loaded.http.host == "127.0.0.1"
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace >= loaded.drain_timeout + SHUTDOWN_MARGIN


def test_nothing_but_the_service_can_be_reached_from_outside() -> None:
    services = compose()["services"]
    published = [port for each in services.values() for port in each.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    for name, each in services.items():
        assert not any(
            "PASSWORD" in key and "FILE" not in key for key in each.get("environment", {})
        )
        image = each["image"]
        assert name == "bitel" or ":" in image, "a version, not the latest"
