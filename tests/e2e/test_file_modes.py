"""What the service writes is its own alone, whatever the umask that it is started with."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bitel.recordings.sample import write_sample
from tests.e2e.bare_service import environment, logged, serving


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_files_are_0600_and_folders_0700(tmp_path: Path, umask: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    _use(home, tmp_path / "outside", umask)
    made = sorted(path for path in home.rglob("*") if path.name != "bitel.toml")
    files = {path for path in made if path.is_file()}
    assert len(files) >= 6, files
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in made}
    assert {str(path): oct(modes[path]) for path in files if modes[path] != 0o600} == {}
    assert {str(path): oct(modes[path]) for path in made if path.is_dir()} == {
        str(path): "0o700" for path in made if path.is_dir()
    }


def _use(home: Path, outside: Path, umask: int) -> None:
    """Run the commands that write files, in `home`."""
    outside.mkdir()
    settings = "[http]\nport = 0\n"
    (home / "bitel.toml").write_text(settings)

    def bitel(*arguments: str) -> str:
        command = [sys.executable, "-m", "bitel.cli", *arguments]
        done = subprocess.run(
            command, cwd=home, env=environment(), umask=umask, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    token = bitel("token", "create", bitel("project", "create", "shop"))
    sample, log = outside / "sample.wav", outside / "log"
    write_sample(sample, 1.0)
    with serving(home, settings, log, umask) as (process, _):
        port = re.search(r"http://127.0.0.1:(\d+)", logged(log, "ready"))
        assert port is not None
        answer = httpx.post(
            f"http://127.0.0.1:{port[1]}/api/v2/files/voice",
            files={"file": sample.read_bytes()},
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        bitel("backup", "copy")
        process.terminate()
        process.wait(20)
