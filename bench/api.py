"""Measures the HTTP API's requests per second, as ratios to its health check.

`python -m bench.api` runs `bitel serve --only api` and a load generator in C (`http_load.c`), which
needs little CPU. Each call counted was durable before its response. Also measured: the latency on
another connection while one client sends batches.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from bench import report
from bench.processes import cpu_seconds
from bench.report import Result, Row, at_least, at_most
from bitel.api import signing_keys
from bitel.domain.ids import new_id
from bitel.store import migrate, projects, recordings, tokens
from bitel.store.database import Database
from bitel.store.recordings import Recording

BATCH: Final = 10_000
"""Numbers in one batch."""
START_TIMEOUT: Final = 30.0
CONNECTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class Load:
    """Results of a load generator. Latencies in milliseconds, CPU in seconds."""

    answered: int
    failed: int
    seconds: float
    cpu_seconds: float
    p50: float
    p99: float
    worst: float
    server_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Responses per second."""
        return self.answered / self.seconds

    @property
    def cpu_each(self) -> float:
        """Microseconds of the server's CPU per response."""
        return self.server_cpu / max(1, self.answered) * 1e6


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and what its client needs."""

    port: int
    pid: int
    token: str
    recording_id: str

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        """Returns an HTTP/1.1 request."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        if path != "/healthz":
            head += f"Authorization: Bearer {self.token}\r\n"
        if content:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        return head.encode() + b"\r\n" + content

    def single(self, number: int) -> bytes:
        """A request that places one call."""
        body = {"phoneNumber": f"0912{number:07}", "voiceId": self.recording_id, "retryCount": 2}
        return self.request("POST", "/api/v2/voice/single", body)

    def batch(self, size: int) -> bytes:
        """A request that places `size` calls."""
        numbers = [f"0935{number:07}" for number in range(size)]
        body = {"phoneNumbers": numbers, "voiceId": self.recording_id}
        return self.request("POST", "/api/v2/voice/batch", body)

    def status(self, call_id: str) -> bytes:
        """A request for the status of a call."""
        return self.request("GET", f"/api/v2/voice/status/{call_id}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each load lasts")
    parser.add_argument("--database", default="", help="URL of an empty one; else SQLite")


def measure(given: argparse.Namespace) -> Result:
    """Measures each load, with the health check before and after."""
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as name:
        folder = Path(name)
        generator = build(folder)
        with serving(folder, given.database) as server:
            return Result(
                "The HTTP API", rows(Bench(generator, server, given.seconds)), [NOTE.strip()]
            )


NOTE = f"""
{CONNECTIONS} connections, one request at a time on each; batches of {BATCH:,} numbers on one. CPU
is the server's, all its threads; "beside batches" is another client's wait, on a connection of its
own that asks without a pause.
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """A server and its load generators."""

    generator: Path
    server: Server
    seconds: float

    def run(
        self, requests: Iterable[bytes], connections: int = CONNECTIONS, seconds: float = 0.0
    ) -> Load:
        """Runs one load generator."""
        before = cpu_seconds(self.server.pid)
        load = self.begin(requests, connections, seconds or self.seconds)
        return finish(load, lambda: cpu_seconds(self.server.pid) - before)

    def begin(
        self, requests: Iterable[bytes], connections: int, seconds: float
    ) -> subprocess.Popen[bytes]:
        """Starts a load generator; `finish` returns its results."""
        arguments = [str(self.generator), str(self.server.port), str(connections), str(seconds)]
        load = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert load.stdin is not None
        load.stdin.write(b"".join(struct.pack("!I", len(each)) + each for each in requests))
        load.stdin.close()
        return load


def rows(bench: Bench) -> list[Row]:
    """The table."""
    server, seconds = bench.server, bench.seconds
    health = [server.request("GET", "/healthz")]
    batch = [server.batch(BATCH)]
    bench.run(health, seconds=1)
    before = bench.run(health)
    single = bench.run(server.single(number) for number in range(1000))
    status = bench.run(map(server.status, placed(server, 1000)))
    after = bench.run(health)
    batches = bench.run(batch, connections=1)
    # The latency of others while one client sends batches.
    beside = {
        "healthz": bench.begin(health, 1, seconds + 1),
        "single": bench.begin([server.single(1)], 1, seconds + 1),
    }
    time.sleep(0.5)
    bench.run(batch, connections=1)
    waited = {name: finish(load, lambda: 0.0) for name, load in beside.items()}
    # The speed of the machine may vary: the better measurement is the stricter target.
    healthy = max(before.rate, after.rate)
    found = [
        Row("GET /healthz", healthy, "/s"),
        Row("POST voice/single, durable", single.rate, "/s", healthy, "healthz",
            at_least(0.4, "ratio")),
        Row("GET voice/status", status.rate, "/s", healthy, "healthz", at_least(0.6, "ratio")),
        Row(f"POST voice/batch of {BATCH:,}", batches.rate * BATCH, "numbers/s",
            bar=at_least(50_000)),
    ]  # fmt: skip
    for name, load in {"healthz": after, "single": single, "status": status}.items():
        found.append(Row(f"{name}: server's CPU a request", load.cpu_each, "µs"))
    found.append(Row("batch: server's CPU a number", batches.cpu_each / BATCH, "µs"))
    found.append(Row("single: answered after, p99", single.p99, "ms"))
    found.append(Row("status: answered after, p99", status.p99, "ms"))
    for name, load in waited.items():
        most = 50 if name == "healthz" else 250
        found.append(Row(f"{name} beside batches, p99", load.p99, "ms", bar=at_most(most)))
        found.append(Row(f"{name} beside batches, worst", load.worst, "ms"))
    return found


def build(folder: Path) -> Path:
    """Compiles the load generator."""
    program = folder / "http_load"
    source = Path(__file__).with_name("http_load.c")
    subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    return program


def finish(load: subprocess.Popen[bytes], server_cpu: Callable[[], float]) -> Load:
    """Waits for a load generator; returns its results."""
    assert load.stdout is not None
    said = load.stdout.read()
    cpu = server_cpu()
    if load.wait():
        raise SystemExit("the load generator failed")
    seen = Load(**json.loads(said), server_cpu=cpu)
    if seen.failed:
        raise SystemExit(f"{seen.failed} of {seen.answered} requests were not answered with 200")
    return seen


def placed(server: Server, count: int) -> list[str]:
    """Places `count` calls as one batch; returns their ids."""
    answer = httpx.post(
        f"http://127.0.0.1:{server.port}/api/v2/voice/batch",
        headers={"Authorization": f"Bearer {server.token}"},
        json={"phoneNumbers": ["09121234567"] * count, "voiceId": server.recording_id},
        timeout=60,
    )
    return [call["id"] for call in answer.raise_for_status().json()["result"]]


@contextmanager
def serving(folder: Path, database_url: str) -> Iterator[Server]:
    """Runs the API in a process with an empty database, during the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    data.mkdir(mode=0o700)
    url = database_url or f"sqlite:///{data / 'bitel.db'}"
    settings = folder / "bitel.toml"
    settings.write_text(
        f'data_dir = "{data}"\ndatabase_url = "{url}"\n[http]\nport = {port}\n'
        '[[dialers]]\nid = "main"\ntrunks = ["sip:127.0.0.1:9"]\n'
    )
    token, recording_id = prepare(data, url)
    command = [sys.executable, "-m", "bitel.cli", "serve", "--only=api", f"--config={settings}"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until_up(port, process, folder / "server.log")
        yield Server(port, process.pid, token, recording_id)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def prepare(data: Path, url: str) -> tuple[str, str]:
    """Makes a project in a new database; returns its token and the id of its recording."""
    migrate.upgrade(url)
    now = time.time()
    with Database.open(url) as database:
        project = database.write_now(lambda conn: projects.create(conn, "bench", now))
        sound = Recording(new_id(now), project.id, "bench", 2.0, 32_000, now)
        database.write_now(lambda conn: recordings.add(conn, sound))
        token_id = new_id(now)
        database.write_now(lambda conn: tokens.add(conn, token_id, project.id, now, None))
        signer = signing_keys.open_signer(database, data, "", time.time)
    return signer.issue(project.id, token_id, None), sound.id


def wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the server answers."""
    end = time.monotonic() + START_TIMEOUT
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2)
        except httpx.HTTPError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server does not answer:\n{log.read_text()}") from None
            time.sleep(0.02)
        else:
            return


if __name__ == "__main__":
    report.main("api", __doc__, measure, add_arguments)
