"""Several processes that answer the API over one PostgreSQL and one object store.

They have a `data_dir` each, as on machines of their own, and do the same from whichever a client
reaches.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest
from sqlalchemy import URL

from bitel.client import Client
from bitel.demo.stage import WITHOUT_LIMITS, Stage, StageError, free_port
from bitel.recordings.sample import write_sample
from tests.support.log_secrets import leaks_below
from tests.support.prerequisites import need
from tests.support.s3_server import BUCKET, KEY, SECRET, s3_server
from tests.support.service_calls import command
from tests.support.waiting import wait_for_port, wait_until
from tests.support.webhook_recorder import Event, receiving

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
KEY_SECRET = "a secret that wraps the keys"
NUMBERS = [f"0912{n:07}" for n in range(1_000)]


@dataclass
class Processes:
    """Two processes."""

    stages: tuple[Stage, Stage]
    database_url: str
    names: Iterator[int] = field(default_factory=itertools.count)

    def project(self, *options: str) -> tuple[str, str]:
        """A new project and a token of it."""
        stage = self.stages[0]
        name = f"p{next(self.names)}"
        project = command(stage, "project", "create", name, *(options or WITHOUT_LIMITS))
        return project, command(stage, "token", "create", project)

    @contextmanager
    def clients(self, token: str) -> Iterator[Sequence[httpx.Client]]:
        """A client of each process."""
        with ExitStack() as stack:
            yield [stack.enter_context(stage.client(token)) for stage in self.stages]

    def execute(self, statement: str) -> Any:
        """Run a statement on the database; its first value, or None."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]


def stage_of(folder: Path, settings: str) -> Stage:
    return Stage(folder, extra=settings, record=False).__enter__()


@pytest.fixture(scope="module")
def settings(postgres: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Those that the processes share, and the URL of their database."""
    name = f"bitel_{uuid.uuid4().hex}"
    url = postgres.set(database=name).render_as_string(hide_password=False)
    maintenance = postgres.render_as_string(hide_password=False)

    def administer(statement: str) -> None:
        with psycopg.connect(maintenance, autocommit=True) as connection:
            connection.execute(statement.encode())

    administer(f"CREATE DATABASE {name}")
    with s3_server(tmp_path_factory.mktemp("storage") / "s3") as s3:
        yield (
            f"""database_url = "{url}"
            storage_url = "s3://{BUCKET}/calls"
            signing_key_secret = "{KEY_SECRET}"
            webhook_allow_private = true
            [s3]
            endpoint = "{s3.endpoint}"
            access_key_id = "{KEY}"
            secret_access_key = "{SECRET}"
            allow_http = true
            """,
            url,
        )
    administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def processes(
    settings: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp("processes")
    first, second = (stage_of(folder / name, settings[0]) for name in ("first", "second"))
    try:
        # Both at once, on an empty database.
        together(lambda stage: stage.start_service("--only", "api"), [first, second])
        yield Processes((first, second), settings[1])
    finally:
        for stage in (first, second):
            stage.__exit__(None, None, None)
        assert leaks_below(folder) == []


def together(work: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """`work` for each of the arguments, begun at the same time."""
    barrier = threading.Barrier(len(arguments[0]))

    def begin(*some: Any) -> T:
        barrier.wait()
        return work(*some)

    with ThreadPoolExecutor(len(arguments[0])) as pool:
        return list(pool.map(begin, *arguments))


def upload(client: httpx.Client, folder: Path) -> str:
    sample = folder / "sample.wav"
    write_sample(sample, 0.3)
    answer = client.post("/api/v2/files/voice", files={"file": sample.read_bytes()})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["result"]["id"])


def result(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def test_a_key_is_used_by_both_and_rotated_without_a_restart(processes: Processes) -> None:
    first, second = processes.stages
    project, old = processes.project()
    for stage in processes.stages:
        line = command(stage, "key", "list").splitlines()[0]
        assert line.endswith("wrapped  signs")
    before = line.split()[0]
    assert command(first, "key", "rotate", "--overlap", "1") != before
    new = command(second, "token", "create", project)

    def statuses(token: str) -> list[int]:
        with processes.clients(token) as clients:
            return [client.get("/api/v2/account").status_code for client in clients]

    assert statuses(new) == statuses(old) == [200, 200], "at once, as it names its key"
    command(first, "key", "retire", before)
    wait_until(lambda: statuses(old) == [401, 401])
    assert statuses(new) == [200, 200]


def test_a_process_with_a_wrong_secret_does_not_start(
    processes: Processes, settings: tuple[str, str], tmp_path: Path
) -> None:
    wrong = "another secret than that"
    third = stage_of(tmp_path, settings[0].replace(KEY_SECRET, wrong))
    with pytest.raises(StageError):
        third.start_service("--only", "api")
    assert third.service is not None
    assert third.service.wait(10) == 1
    log = third.service_log.read_text()
    last = log.splitlines()[-1]
    assert last.startswith("bitel: signing_key_secret is not the secret that the signing key")
    assert "ready" not in log
    assert KEY_SECRET not in log
    assert wrong not in log


def test_uploads_lists_and_downloads_are_the_same_from_each(
    processes: Processes, tmp_path: Path
) -> None:
    _, token = processes.project()
    with processes.clients(token) as (first, second):
        voice = upload(first, tmp_path)
        body = {"phoneNumber": NUMBERS[0], "voiceId": voice}
        call = result(second.post("/api/v2/voice/single", json=body))
        assert result(first.get(f"/api/v2/voice/status/{call['id']}")) == call
        wavs = [each.get(f"/api/v2/files/voice/{voice}").content for each in (first, second)]
        assert wavs[0] == wavs[1]
        assert wavs[0].startswith(b"RIFF")

        rows = "\n".join(["phone,name", *(f"{number},x" for number in NUMBERS[:100])])
        listed = result(first.post("/api/v2/files/list", files={"file": ("l.csv", rows)}))
        batch = {"listId": listed["id"], "voiceId": voice}
        placed = second.post("/api/v2/voice/batch", json=batch)
        assert [each["phoneNumber"] for each in result(placed)] == NUMBERS[:100]
        campaign = placed.json()["campaignId"]
        csv = [
            each.get(f"/api/v2/voice/campaign/{campaign}/results.csv").text
            for each in (first, second)
        ]
        assert csv[0] == csv[1]
        assert len(csv[0].splitlines()) == 101

        assert second.delete(f"/api/v2/files/voice/{voice}").status_code == 409
        assert first.delete(f"/api/v2/voice/campaign/{campaign}").status_code == 200
        assert first.delete(f"/api/v2/voice/{call['id']}").status_code == 200
        assert second.delete(f"/api/v2/files/voice/{voice}").status_code == 200
        # The first one has placed no call with it yet; both must find out that it is gone.
        for client in (first, second):
            assert client.post("/api/v2/voice/single", json=body).status_code == 400


def test_a_key_that_comes_to_both_at_once_places_once(processes: Processes, tmp_path: Path) -> None:
    project, token = processes.project()
    with processes.clients(token) as clients:
        voice = upload(clients[0], tmp_path)
        for number in range(5):
            headers = {"Idempotency-Key": f"key {number}"}
            kind = ("single", "batch")[number % 2]
            field = {"single": "phoneNumber", "batch": "phoneNumbers"}[kind]
            body = {field: NUMBERS[number], "voiceId": voice}

            def place(
                client: httpx.Client,
                kind: str = kind,
                body: dict[str, str] = body,
                headers: dict[str, str] = headers,
            ) -> httpx.Response:
                return client.post(f"/api/v2/voice/{kind}", json=body, headers=headers)

            answers = together(place, [*clients, *clients])
            assert {each.status_code for each in answers} == {200}
            assert len({each.content for each in answers}) == 1
            replayed = [each for each in answers if "idempotent-replayed" in each.headers]
            assert len(replayed) == 3
            other = {**body, field: NUMBERS[99]}
            for client in clients:
                assert place(client, kind, other, headers).status_code == 409
    assert processes.execute(f"SELECT count(*) FROM call WHERE project_id = '{project}'") == 5


def test_a_text_that_both_are_asked_for_at_once_is_one_recording(processes: Processes) -> None:
    project, token = processes.project()
    with processes.clients(token) as clients:
        spoken = together(
            lambda client: result(
                client.post("/api/v2/files/tts", json={"text": "سلام دنیا", "language": "fa"})
            ),
            [*clients, *clients],
        )
        (voice,) = {each["id"] for each in spoken}
        for client in clients:
            assert client.get(f"/api/v2/files/voice/{voice}").content.startswith(b"RIFF")
        calls = together(
            lambda client, number: result(
                client.post(
                    "/api/v2/voice/single/tts",
                    json={"text": "Hello there", "language": "en", "phoneNumber": number},
                )
            ),
            clients,
            NUMBERS[:2],
        )
        assert len({each["id"] for each in calls}) == 2
    query = f"SELECT count(*) FROM recording WHERE project_id = '{project}'"
    assert processes.execute(query) == 2


def test_personal_texts_are_spoken_once_when_both_render(processes: Processes) -> None:
    project, token = processes.project()
    with processes.clients(token) as clients:
        batches = [
            {
                "text": "Hello {name}, bye",
                "language": "en",
                "recipients": [
                    {"phoneNumber": number, "variables": {"name": f"n{at % 5}"}}
                    for at, number in enumerate(numbers)
                ],
            }
            for numbers in (NUMBERS[:20], NUMBERS[20:40])
        ]
        together(
            lambda client, body: result(client.post("/api/v2/voice/batch/tts", json=body)),
            clients,
            batches,
        )
    left = f"SELECT count(*) FROM call WHERE project_id = '{project}' AND parts = ''"
    wait_until(lambda: processes.execute(left) == 0)
    parts = f"SELECT count(*) FROM speech_part WHERE project_id = '{project}'"
    assert processes.execute(parts) == 7, "five names, and what stands before and behind them"


def test_the_progress_of_a_campaign_is_followed_at_another_process(
    processes: Processes, tmp_path: Path
) -> None:
    first, second = processes.stages
    _, token = processes.project()
    with Client(token, first.url) as placer, Client(token, second.url) as follower:
        write_sample(tmp_path / "sample.wav", 0.3)
        voice = placer.upload(tmp_path / "sample.wav")["id"]
        campaign = placer.batch(NUMBERS[:10], voice)["campaignId"]
        events = follower.campaign_events(campaign)
        assert next(events).campaign["byStatus"]["WAITING"] == 10
        placer.cancel_campaign(campaign)
        *_, last = events
    assert last.campaign["byStatus"]["CANCELED"] == 10


def counted(stage: Stage) -> str:
    """How many processes share the limits, as one of them has logged last."""
    found = re.findall(r" api_processes +count=(\d+)", stage.service_log.read_text())
    return str(found[-1]) if found else ""


def test_a_limit_holds_for_both_together_and_for_the_one_that_is_left(
    processes: Processes,
) -> None:
    first, second = processes.stages
    _, token = processes.project("--rate", "60", "--call-rate", "settings")

    def requests(client: httpx.Client) -> int:
        """Those that are answered until one is refused."""
        count = 0
        while client.get("/api/v2/account").status_code == 200:
            count += 1
        return count

    # Earlier tests have killed some.
    wait_until(lambda: counted(first) == counted(second) == "2")
    with processes.clients(token) as clients:
        begun = time.monotonic()
        accepted = sum(together(requests, clients))
        assert 58 <= accepted <= 60 + (time.monotonic() - begun)
        second.kill_service()
        try:
            wait_until(lambda: counted(first) == "1")
        finally:
            second.start_service("--only", "api")
        wait_until(lambda: counted(first) == "2")


class Posts:
    """Counts how often each event is posted, and how often at the same time."""

    def __init__(self, seconds: float) -> None:
        self.count: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.most_at_once = 0
        self.hangs = threading.Event()
        self._seconds = seconds
        self._lock = threading.Lock()

    def take(self, event: Event) -> None:
        with self._lock:
            self.count[event.webhook_id] += 1
            self.under_way[event.webhook_id] += 1
            self.most_at_once = max(self.most_at_once, self.under_way[event.webhook_id])
        time.sleep(self._seconds)  # what its receiver does with it
        while self.hangs.is_set():
            time.sleep(0.02)
        with self._lock:
            self.under_way[event.webhook_id] -= 1


def make_events(processes: Processes, project: str, token: str, url: str, count: int) -> None:
    """Calls that are canceled, so that each has an event."""
    command(processes.stages[0], "project", "set", project, "--webhook", url)
    with processes.clients(token) as (client, _):
        body = {"phoneNumbers": NUMBERS[:count], "text": "Hello", "language": "en"}
        campaign = client.post("/api/v2/voice/batch/tts", json=body).json()["campaignId"]
        assert client.delete(f"/api/v2/voice/campaign/{campaign}").status_code == 200


def delivered(processes: Processes, project: str) -> int:
    of = f"WHERE project_id = '{project}' AND state = 'delivered'"
    return int(processes.execute(f"SELECT count(*) FROM webhook_event {of}"))


def test_an_event_is_posted_by_one_process_and_by_the_other_when_that_is_killed(
    processes: Processes,
) -> None:
    first, _ = processes.stages
    project, token = processes.project()
    posts = Posts(0.01)
    with receiving(posts.take) as url:
        posts.hangs.set()
        make_events(processes, project, token, url, 300)
        # Each process posts eight events of a project at a time, so both are at work.
        wait_until(lambda: posts.under_way.total() == 16)
        posts.hangs.clear()
        wait_until(lambda: delivered(processes, project) == 300)
        assert set(posts.count.values()) == {1}
        assert (len(posts.count), posts.most_at_once) == (300, 1)

        posts.hangs.set()
        make_events(processes, project, token, url, 300)
        wait_until(lambda: posts.under_way.total() == 16)
        first.kill_service()
        try:
            posts.hangs.clear()
            wait_until(lambda: delivered(processes, project) == 592)
            # The leases of the events that the killed process was posting.
            processes.execute("UPDATE webhook_event SET due_at = due_at - 60 WHERE tries > 0")
            wait_until(lambda: delivered(processes, project) == 600)
        finally:
            first.start_service("--only", "api")
    assert Counter(posts.count.values()) == {1: 592, 2: 8}
    assert posts.most_at_once == 1


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {upstream}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://bitel;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
        }}
    }}
}}
"""


@contextmanager
def balanced(folder: Path, *stages: Stage) -> Iterator[str]:
    """nginx in front of the processes; its URL."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    need(nginx is not None, "nginx is not installed")
    assert nginx is not None
    port = free_port()
    upstream = (ROOT / "deploy" / "nginx-balancer.conf").read_text()
    for example, stage in zip(("192.0.2.1:8080", "192.0.2.2:8080"), stages, strict=True):
        assert example in upstream
        upstream = upstream.replace(example, f"127.0.0.1:{stage.ports.http}")
    user = "user root;" if os.getuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, user=user, upstream=upstream, port=port))
    log = folder / "error.log"
    process = subprocess.Popen([nginx, "-p", folder, "-e", log, "-c", config])
    try:
        wait_for_port(port, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_behind_a_balancer_a_killed_process_costs_no_request_and_no_second_call(
    processes: Processes, tmp_path: Path
) -> None:
    first, _ = processes.stages
    project, token = processes.project()
    headers = {"Authorization": f"Bearer {token}"}
    with (
        balanced(tmp_path, *processes.stages) as url,
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
    ):
        voice = upload(client, tmp_path)
        ids = []
        for number in range(40):
            if number == 10:
                first.kill_service()
            body = {"phoneNumber": NUMBERS[number], "voiceId": voice}
            key = {"Idempotency-Key": str(number)}
            answer = None
            while answer is None or answer.status_code >= 500:
                with suppress(httpx.TransportError):
                    answer = client.post("/api/v2/voice/single", json=body, headers=key)
            ids.append(result(answer)["id"])
            if number == 20:
                first.start_service("--only", "api")
        for each in ids:
            assert result(client.get(f"/api/v2/voice/status/{each}"))["id"] == each
    stored = processes.execute(
        f"SELECT json_agg(id ORDER BY id) FROM call WHERE project_id = '{project}'"
    )
    assert sorted(ids) == (json.loads(stored) if isinstance(stored, str) else stored)
