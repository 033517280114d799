"""The wheel by pip alone: the client without the service, the whole, and a release."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample
from scripts import pythons
from scripts.release import ReleaseError, release, with_release

pytestmark = pytest.mark.packages
ROOT = Path(__file__).parent.parent.parent
TODAY = datetime.date(2030, 1, 2)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pythons.build_wheel(tmp_path_factory.mktemp("wheel"))


def run(commands: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`bitel ARGUMENTS` of an environment, in the folder of that."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith("BITEL_")
    }
    return subprocess.run(
        [commands / "bitel", *arguments],
        env=kept | variables,
        cwd=commands.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_client_needs_no_service(wheel: Path, tmp_path: Path) -> None:
    commands = pythons.make_environment(Path(sys.executable), tmp_path / "environment", str(wheel))
    listed = subprocess.run(
        [commands / "pip", "list", "--format=json"], capture_output=True, check=True
    )
    installed = {each["name"].lower() for each in json.loads(listed.stdout)}
    assert not installed & {"sqlalchemy", "numpy", "av", "fastapi", "uvicorn", "structlog"}

    assert run(commands, "--version").stdout.startswith("bitel ")
    for arguments in (("serve",), ("project", "list"), ("demo",), ("dial", "0912"), ("phone",)):
        listen = ("--listen", "127.0.0.1:5999") if arguments == ("phone",) else ()
        done = run(commands, *arguments, *listen)
        assert done.returncode == 1
        assert done.stderr.startswith("bitel: this command needs the service, whose module ")
        assert done.stderr.endswith("run pip install 'bitel[server]'\n")
        assert len(done.stderr.splitlines()) == 1

    sample, numbers = tmp_path / "sample.wav", tmp_path / "numbers.csv"
    write_sample(sample, 0.5)
    numbers.write_text("number\n09121234567\n0912 123 4568\n")
    with Stage(tmp_path / "stage", ["*=answer:after=0.1"], record=False) as stage:
        stage.start_phone()
        stage.start_service()
        variables = {"BITEL_URL": stage.url, "BITEL_TOKEN": stage.token()}
        voice = json.loads(
            run(commands, "voice", "upload", str(sample), "--json", **variables).stdout
        )
        call = run(commands, "call", "09121234567", "--voice", voice["id"], "--wait", **variables)
        assert call.returncode == 0, call.stderr
        batch = run(
            commands, "batch", str(numbers), "--voice", voice["id"], "--wait", "--json", **variables
        )
        assert json.loads(batch.stdout)["byStatus"]["NORMAL"] == 2, batch.stderr
        assert run(commands, "servers", **variables).stdout.split() == ["main", "up"]
        script = (
            "from bitel.client import Client; import os;"
            "print(Client(os.environ['BITEL_TOKEN'], os.environ['BITEL_URL']).account()['name'])"
        )
        done = subprocess.run(
            [commands / "python", "-c", script],
            env={**os.environ, **variables, "PYTHONPATH": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "demo\n", done.stderr
        assert stage.stop_service() == 0


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_the_whole_by_pip_alone(wheel: Path, tmp_path: Path, version: str) -> None:
    python = pythons.find_pythons().get(version)
    if python is None:
        pytest.skip(f"there is no python{version} on this machine")
    requirement = f"{wheel}[server,speech]"
    commands = pythons.make_environment(python, tmp_path / "environment", requirement)
    log = tmp_path / "demo.log"
    try:
        pythons.run_demo(commands, log)
    except subprocess.CalledProcessError:
        pytest.fail(log.read_text())
    assert "All is as it should be." in log.read_text()


def test_a_release(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=checkout, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("config", "user.name", "x")
    git("config", "user.email", "x@example.com")
    (checkout / "LICENSE").write_text("changed")
    with pytest.raises(ReleaseError, match="changes that are not committed"):
        release(checkout, "9.8.7", TODAY)
    git("checkout", "--quiet", "LICENSE")
    with pytest.raises(ReleaseError, match="is no version"):
        release(checkout, "next", TODAY)

    release(checkout, "9.8.7", TODAY)

    assert git("status", "--porcelain") == ""
    assert git("describe", "--exact-match") == "v9.8.7"
    assert "## Unreleased\n\n## 9.8.7 - 2030-01-02\n" in (checkout / "CHANGELOG.md").read_text()
    names = sorted(path.name for path in (checkout / "dist").iterdir())
    assert names == ["bitel-9.8.7-py3-none-any.whl", "bitel-9.8.7.tar.gz"]
    with zipfile.ZipFile(checkout / "dist" / names[0]) as archive:
        packed = archive.namelist()
    assert "bitel/py.typed" in packed
    assert not [name for name in packed if "test" in name.split("/")[0]]
    with tarfile.open(checkout / "dist" / names[1]) as source:
        files = {name.partition("/")[2] for name in source.getnames()}
    assert {"CHANGELOG.md", "tests/conftest.py", "deploy/bitel.service", "Makefile"} <= files
    with pytest.raises(ReleaseError, match="is there already"):
        release(checkout, "9.8.7", TODAY)
    with pytest.raises(ReleaseError, match="names no unreleased changes"):
        release(checkout, "9.8.8", TODAY)


def test_a_changelog_of_several_releases() -> None:
    changes = "# Changelog\n\n## Unreleased\n\n- New.\n\n## 0.1.0 - 2029-01-01\n\n- Old.\n"
    assert with_release(changes, "0.2.0", TODAY) == (
        "# Changelog\n\n## Unreleased\n\n## 0.2.0 - 2030-01-02\n\n- New.\n\n"
        "## 0.1.0 - 2029-01-01\n\n- Old.\n"
    )
