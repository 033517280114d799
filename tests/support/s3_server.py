"""A real S3 server for tests: rclone, which checks signatures, over a folder."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitel.demo.stage import free_port
from bitel.settings import S3Settings
from tests.support.waiting import wait_for_port

KEY = "test-key"
SECRET = "test-secret"
BUCKET = "recordings"


@dataclass(frozen=True)
class S3Server:
    """A server that runs."""

    port: int
    folder: Path
    """Each bucket is a folder in it, and each object a file."""
    host: str = "127.0.0.1"

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def settings(self) -> S3Settings:
        return S3Settings.model_validate(
            {
                "endpoint": self.endpoint,
                "access_key_id": KEY,
                "secret_access_key": SECRET,
                "allow_http": True,
            }
        )

    @property
    def objects(self) -> list[str]:
        """The keys of the bucket's objects."""
        bucket = self.folder / BUCKET
        return sorted(str(each.relative_to(bucket)) for each in bucket.rglob("*") if each.is_file())


@contextlib.contextmanager
def s3_server(folder: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server with one empty bucket, `BUCKET`, on a free port of an address of this machine."""
    (folder / BUCKET).mkdir(parents=True)
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or "rclone"
    port = free_port()
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            (
                *(program, "serve", "s3", "--config", "/dev/null", "--addr", f"{host}:{port}"),
                *("--auth-key", f"{KEY},{SECRET}", str(folder)),
            ),
            stdout=output,
            stderr=output,
        )
    try:
        wait_for_port(port, process, log, host)
        yield S3Server(port, folder, host)
    finally:
        process.kill()
        process.wait()
