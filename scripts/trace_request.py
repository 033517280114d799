"""Traces one real call through a running service and prints the source files that run, in order.

`python -m scripts.trace_request` starts the service in this process, with a SIP phone and a webhook
receiver beside it, places one call to warm up, and traces three more. Of each part it shows the
fewest files:

* `place`: `POST /api/v2/voice/single`, from the request to its response
* `claim`: from the dispatcher's question to the database to the start of the attempt
* `settle`: from the end of the SIP call to the commit of its result
* `webhook`: from that commit to the recorded delivery
* `call`: all of the service's process from the claim to the settled call

Files of the framework are not counted, nor are the HTTP middleware and what every part uses: the
clock, the log and the measurement of the event loop. Work on the database's threads counts for the
task that asked for it; tasks that run all the time, such as the renewal of the lease, do not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import httpx

import bitel
from bitel.demo.stage import Stage
from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialing.dispatcher import Dispatcher
from bitel.observability import logging
from bitel.recordings.sample import write_sample
from bitel.service import running
from bitel.settings import load
from bitel.store.database import Database

SOURCE: Final = f"{Path(bitel.__file__).parent}/"
MIDDLEWARE: Final = frozenset({"api/server.py", "api/middleware.py"})
EVERYWHERE: Final = frozenset(
    {"steady_clock.py", "observability/logging.py", "observability/event_loop.py"}
)
"""What every part uses: the clock, the log and the measurement of the event loop."""
LIMIT: Final = 20.0
"""Seconds that a call may take."""


class Step(NamedTuple):
    """One call of a Python function of ours."""

    at: float
    owner: object
    """The task on whose behalf it ran; None for a callback of the event loop."""
    file: str
    function: str


class Tracer:
    """Collects steps on all threads while `enabled`."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.enabled = False
        self.background: frozenset[object] = frozenset()
        """Tasks that ran before the trace began."""
        self._of_thread = threading.local()
        self._loop_thread = threading.get_ident()

    def install(self) -> None:
        """Trace every thread that is started from now on, and this one."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        for name in ("read", "write"):
            setattr(Database, name, self._with_owner(getattr(Database, name)))

    def _with_owner(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapped(database: Database, work: Callable[[Any], Any]) -> Any:
            owner = asyncio.current_task()

            def owned(conn: Any) -> Any:
                self._of_thread.owner = owner
                try:
                    return work(conn)
                finally:
                    del self._of_thread.owner

            return await method(database, owned)

        return wrapped

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if not self.enabled or event != "call":
            return
        code = frame.f_code
        if not code.co_filename.startswith(SOURCE):
            return
        if threading.get_ident() == self._loop_thread:
            owner: object = asyncio.current_task()
        else:
            # The threads of the database outside of any work: the queue and the commit.
            owner = getattr(self._of_thread, "owner", self)
        file = code.co_filename.removeprefix(SOURCE)
        self.steps.append(Step(time.monotonic(), owner, file, code.co_qualname))


def files(steps: Sequence[Step], wanted: Callable[[Step], bool]) -> list[str]:
    """The files of the wanted steps, each once, in the order of their first step."""
    found = dict.fromkeys(step.file for step in steps if wanted(step))
    return [file for file in found if file not in MIDDLEWARE | EVERYWHERE]


async def trace() -> Mapping[str, list[str]]:
    """The files that each part of a call runs through, by the part's name."""
    tracer = Tracer()
    with tempfile.TemporaryDirectory(prefix="bitel-trace-") as folder, _receiver() as url:
        stage = Stage(
            Path(folder),
            rules=(),
            extra='webhook_allow_private = true\n[[tariff]]\nprefix = "+"\nper_minute = "1"',
            record=False,
        )
        with stage:
            stage.start_phone()
            settings = load(stage.config)
            logging.configure("error", json=False)
            tracer.install()
            marks = _Marks()
            marks.install()
            async with running(settings) as service:
                assert service.http_address is not None
                token = await asyncio.to_thread(_new_project, stage, url)
                headers = {"Authorization": f"Bearer {token}"}
                async with httpx.AsyncClient(base_url=stage.url, headers=headers) as client:
                    return await _trace_call(client, stage, tracer, marks)


class _Marks:
    """Times at which the parts of the traced call begin and end."""

    def __init__(self) -> None:
        self.claimed = self.dialled = self.settled = 0.0
        self.attempt: object = None
        self.claimer: object = None

    def install(self) -> None:
        start, attempt, dial = Dispatcher._start, Dispatcher._attempt, SipTrunkDialer.dial

        def started(dispatcher: Dispatcher, *arguments: Any) -> None:
            self.claimer = asyncio.current_task()
            start(dispatcher, *arguments)
            self.claimed = time.monotonic()

        async def attempted(dispatcher: Dispatcher, *arguments: Any) -> None:
            self.attempt = asyncio.current_task()
            await attempt(dispatcher, *arguments)
            self.settled = time.monotonic()

        async def dialled(dialer: SipTrunkDialer, *arguments: Any) -> Any:
            result = await dial(dialer, *arguments)
            self.dialled = time.monotonic()
            return result

        Dispatcher._start = started  # type: ignore[method-assign, assignment]
        Dispatcher._attempt = attempted  # type: ignore[method-assign, assignment]
        SipTrunkDialer.dial = dialled  # type: ignore[method-assign, assignment]


async def _trace_call(
    client: httpx.AsyncClient, stage: Stage, tracer: Tracer, marks: _Marks
) -> Mapping[str, list[str]]:
    sample = stage.folder / "sample.wav"
    write_sample(sample, 0.3)
    with sample.open("rb") as file:
        answer = await client.post("/api/v2/files/voice", files={"file": file}, timeout=LIMIT)
    body = {"phoneNumber": "09120000001", "voiceId": answer.json()["result"]["id"]}
    traced: list[Mapping[str, list[str]]] = []
    for is_traced in (False, True, True, True):
        tracer.steps.clear()
        _Receiver.delivered.clear()
        marks.settled = 0.0
        tracer.background = frozenset(asyncio.all_tasks())
        tracer.enabled = is_traced
        begun = time.monotonic()
        answer = await client.post("/api/v2/voice/single", json=body, timeout=LIMIT)
        assert answer.status_code == 200, answer.text
        placed = time.monotonic()
        await _until(lambda: marks.settled > 0 and _Receiver.delivered.is_set())
        await asyncio.sleep(0.5)  # the result of a delivery is written some milliseconds after it
        tracer.enabled = False
        if is_traced:
            traced.append(_parts(tracer, marks, begun, placed))
    # Other work may fall into the time of one call.
    return {name: min((each[name] for each in traced), key=len) for name in traced[0]}


def _parts(tracer: Tracer, marks: _Marks, begun: float, placed: float) -> Mapping[str, list[str]]:
    me = asyncio.current_task()
    steps = [step for step in tracer.steps if step.owner is not me]

    def is_background(step: Step) -> bool:
        return step.owner in tracer.background and step.owner is not marks.claimer

    woken = min(s.at for s in steps if s.owner is marks.claimer and s.at > begun)
    claim_begun = min(s.at for s in steps if s.file == "store/claims.py" and s.at > woken)
    new = [step for step in steps if not is_background(step)]
    deliverers = [s for s in steps if "webhooks" in s.file]
    delivered_by = {step.owner for step in deliverers} - {None, tracer, marks.attempt}
    return {
        "place": files(
            steps,
            lambda s: (
                begun <= s.at <= placed
                and s.owner is not None
                and s.owner not in tracer.background
                and s.owner is not marks.attempt
                and not s.function.startswith("_Worker.")
            ),
        ),
        "claim": files(
            steps,
            lambda s: (
                claim_begun <= s.at <= marks.claimed
                and (s.owner is marks.claimer or s.function.startswith(("_Worker.", "_Writer.")))
            ),
        ),
        "settle": files(
            new,
            lambda s: (
                marks.dialled <= s.at <= marks.settled
                and s.owner is not marks.claimer
                and s.owner not in delivered_by
            ),
        ),
        "webhook": files(steps, lambda s: s.at >= marks.dialled and s.owner in delivered_by),
        "call": files(
            new, lambda s: woken <= s.at <= marks.settled and s.owner not in delivered_by
        ),
    }


class _Receiver(BaseHTTPRequestHandler):
    delivered: threading.Event = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.delivered.set()

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def _receiver() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _new_project(stage: Stage, url: str) -> str:
    project = stage.command("project", "create", "traced")
    stage.command("project", "set", project, "--balance", "1000", "--webhook", url)
    return stage.command("token", "create", project)


async def _until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not is_done():  # noqa: ASYNC110  # what is waited for knows nothing of the trace
            await asyncio.sleep(0.02)


def main() -> None:
    """Print the files of each part."""
    for name, found in asyncio.run(trace()).items():
        print(f"{name}: {len(found)} files")
        for file in found:
            print(f"  {file}")


if __name__ == "__main__":
    main()
