"""`python -m tests.chaos.fleet`: several workers and API processes while faults are injected.

Three dialer processes with data_dirs of their own and two API processes share one PostgreSQL; one
callee counts what reaches it, as a carrier does. Each process reaches the database through a relay
of its own, which can hold back everything, as a network that is cut off. Workers are killed, cut
off, and stopped beyond their lease; an API process is killed; the server is killed and started
again. The rules of a run with one process hold, and those of the limits of all workers together.

The same seed gives the same calls and the same sequence of faults.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bitel.demo.stage import WITHOUT_LIMITS, free_port
from tests.chaos import run as one
from tests.chaos.api import Api
from tests.chaos.checks import Violation, check
from tests.chaos.evidence import Evidence, Exit, Fault, Terms, read_callee_file
from tests.chaos.processes import Service, wait_for
from tests.chaos.storage import PostgresStorage
from tests.chaos.webhooks import Receiver, receiving

WORKERS: Final = 3
APIS: Final = 2
CHANNELS: Final = 40
RATE: Final = 20
CONTINUES: Final = 10.0
"""Seconds in which others notice that a worker is dead."""
RTP_PORTS: Final = 300
"""Of each worker."""
TERMS: Final = Terms()
FAULTS: Final = ("kill", "kill", "stop", "stop", "cut", "cut", "api-kill", "db-kill")
ENDED_LEASE: Final = "ended its lease, so this one stops"


class Relay:
    """Passes a process's connections on to the server's Unix socket, unless it is cut off."""

    def __init__(self, folder: Path, server: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._server = server
        self._open = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def cut(self, seconds: float) -> None:
        """Hold back all that is sent, in both directions; blocks for so long."""
        self._loop.call_soon_threadsafe(self._open.clear)
        time.sleep(seconds)
        self._loop.call_soon_threadsafe(self._open.set)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._open.set()
        path = self.folder / ".s.PGSQL.5432"
        server = await asyncio.start_unix_server(self._connected, path)
        self._ready.set()
        await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            to = await asyncio.open_unix_connection(str(self._server / ".s.PGSQL.5432"))
        except OSError:
            writer.close()
            return
        passing = [
            asyncio.create_task(self._passed(reader, to[1])),
            asyncio.create_task(self._passed(to[0], writer)),
        ]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, to[1]):
            each.close()
        for task in passing:
            task.cancel()

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()


@dataclass
class Member:
    """A process of the fleet, and its way to the database."""

    name: str
    service: Service
    relay: Relay


@dataclass
class Fleet:
    """The processes of a run."""

    workers: list[Member] = field(default_factory=list)
    apis: list[Member] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    @property
    def members(self) -> list[Member]:
        return [*self.workers, *self.apis]


@dataclass(frozen=True)
class Options:
    """The parameters of a run."""

    calls: int
    seed: int
    rate: float
    """Calls that are placed in a second."""
    gap: float = 6.0
    """Mean seconds from one fault to the next."""

    @property
    def duration(self) -> float:
        """Seconds of placing calls and injecting faults."""
        return self.calls / self.rate


def run(options: Options, folder: Path, say: one.Say) -> Evidence:
    """Carry out a run in a folder, and return its evidence."""
    with contextlib.ExitStack() as stack:
        storage = PostgresStorage(folder / "disk", 400 + options.calls // 20)
        stack.callback(storage.close)
        receiver = stack.enter_context(receiving())
        callee_port = free_port()
        plain = one.Options(options.calls, options.seed, duration=options.duration, terms=TERMS)
        callee = stack.enter_context(one._callee(plain, folder, callee_port))
        fleet = start(options, folder, storage, callee_port, stack)
        evidence = Evidence(TERMS, begun=time.monotonic(), is_fleet=True)
        config = folder / "api1" / "bitel.toml"
        project = one._command(config, "project", "create", "fleet", *WITHOUT_LIMITS)
        more = (f"--balance={one.BALANCE}", f"--webhook={receiver.url}")
        one._command(config, "project", "set", project, *more)
        token = one._command(config, "token", "create", project)
        apis = [Api(url, f"api{number}") for number, url in enumerate(fleet.urls)]
        for api in apis:
            api.authorise(token)
            stack.callback(api.close)
        voice = apis[0].recording(one.RECORDING)
        injector = Injector(fleet, storage, options.seed)
        injecting = threading.Thread(target=injector.run, args=(options,), daemon=True)
        injecting.start()
        place(options, plain, apis, voice, evidence, say)
        injecting.join()
        say(f"{len(evidence.placed)} calls placed, {len(injector.done)} faults injected")
        await_finals(plain, apis[0], evidence, receiver, say)
        one._require(callee)
        one._read_api(apis[0], evidence)
        for member in fleet.members:
            member.service.stop()
        one._read_database(storage, evidence)
        assert callee.stdin is not None
        callee.stdin.close()
        callee.wait(30.0)
        evidence.ended = time.monotonic()
        evidence.faults = injector.done
        evidence.exits = [each for m in fleet.members for each in exits_of(m.service)]
        evidence.log = [line for member in fleet.members for line in member.service.log]
        evidence.events = list(receiver.events)
        evidence.http_problems += [problem for api in apis for problem in api.problems]
        evidence.invitations = read_callee_file(folder / "callee.jsonl")
    return evidence


def exits_of(service: Service) -> Iterator[Exit]:
    """The ends of a process; that of a worker whose lease others have ended is no fault of its."""
    lost = sum(ENDED_LEASE in line for line in service.log if line.startswith("bitel: "))
    for each in service.exits:
        if each.why == "by itself" and each.status == 1 and lost:
            lost -= 1
            yield each._replace(why="lease ended")
        else:
            yield each


def start(
    options: Options, folder: Path, storage: PostgresStorage, callee: int,
    stack: contextlib.ExitStack,
) -> Fleet:  # fmt: skip
    """Start all processes, and wait until they are ready."""
    chance = random.Random(options.seed + 2)
    fleet = Fleet()
    first_rtp = random.Random(callee).randrange(10_000, 16_000, 2)
    server = Path(storage._socket_folder)
    (folder / "voices").mkdir()
    for number in range(APIS + WORKERS):
        is_api = number < APIS
        name = f"api{number + 1}" if is_api else f"worker{number - APIS + 1}"
        place_of = folder / name
        (place_of / "data").mkdir(parents=True)
        (place_of / "data" / "voices").symlink_to(folder / "voices")
        relay = Relay(Path(tempfile.mkdtemp(prefix="bitel-relay-")) / "s", server)
        stack.callback(shutil.rmtree, relay.folder.parent, ignore_errors=True)
        url = re.sub(r"host=[^&]+", f"host={relay.folder}", storage.url)
        http, rtp = free_port(), first_rtp + RTP_PORTS * number
        (place_of / "bitel.toml").write_text(settings(place_of, url, http, callee, rtp))
        # Some come back before others notice their death, some after.
        service = Service(
            place_of / "bitel.toml", TERMS.drain_timeout,
            ["--only=api" if is_api else "--only=dialer"],
            lambda: chance.choice((0.5, 1.0, 12.0)),
        )  # fmt: skip
        stack.callback(service.abandon)
        service.start()
        if not service.wait_ready(60.0):
            raise RuntimeError(f"{name} did not start; see {place_of / 'serve.log'}")
        (fleet.apis if is_api else fleet.workers).append(Member(name, service, relay))
        if is_api:
            fleet.urls.append(f"http://127.0.0.1:{http}")
    return fleet


def settings(folder: Path, url: str, http: int, callee: int, rtp: int) -> str:
    """The settings of a process."""
    return f"""\
data_dir = "{folder / "data"}"
database_url = "{url}"
drain_timeout = {TERMS.drain_timeout}
webhook_allow_private = true
[http]
port = {http}
[traces]
megabytes = 2
[[tariff]]
prefix = "+98"
per_minute = 60
increment = 1
[[dialers]]
id = "main"
trunks = ["sip:127.0.0.1:{callee}"]
bind = "127.0.0.1:{free_port()}"
rtp_ports = "{rtp}-{rtp + RTP_PORTS - 1}"
caller_id = "02191000000"
ring_timeout = {TERMS.ring_timeout}
ping_interval = 2
max_channels = {CHANNELS}
calls_per_second = {RATE}
"""


class Injector:
    """Injects faults one after the other, each into a member that is well."""

    def __init__(self, fleet: Fleet, storage: PostgresStorage, seed: int) -> None:
        self.done: list[Fault] = []
        self._fleet = fleet
        self._storage = storage
        self._random = random.Random(seed)

    def run(self, options: Options) -> None:
        """Inject faults for the duration of the run, then wait until all are over."""
        until = time.monotonic() + options.duration
        running: list[threading.Thread] = []
        while True:
            wait = self._random.uniform(0.3 * options.gap, 1.7 * options.gap)
            kind = self._random.choice(FAULTS)
            which = self._random.randrange(WORKERS * APIS)
            seconds = self._random.uniform(2.0, 14.0)
            if time.monotonic() + wait > until:
                break
            time.sleep(wait)
            thread = threading.Thread(target=self._inject, args=(kind, which, seconds))
            thread.start()
            running.append(thread)
        for each in running:
            each.join()

    def _inject(self, kind: str, which: int, seconds: float) -> None:
        worker = self._fleet.workers[which % WORKERS]
        api = self._fleet.apis[which % APIS]
        begun = time.monotonic()
        if kind == "kill":
            worker.service.kill()
            self._note(kind, begun, worker.name)
        elif kind == "api-kill":
            api.service.kill()
            self._note(kind, begun, api.name)
        elif kind == "stop":
            worker.service.signal(signal.SIGSTOP)
            time.sleep(seconds)
            worker.service.signal(signal.SIGCONT)
            self._note(kind, begun, worker.name)
        elif kind == "cut":
            worker.relay.cut(seconds)
            # What could not be written then is like that of a server that is frozen.
            self._note("db-freeze", begun, worker.name)
        else:
            self._storage.faults()["db-kill"](min(seconds, 4.0))
            self._note(kind, begun, "server")

    def _note(self, kind: str, begun: float, name: str) -> None:
        self.done.append(Fault(kind, begun, time.monotonic(), name))


def place(
    options: Options, plain: one.Options, apis: Sequence[Api], voice: str, evidence: Evidence,
    say: one.Say,
) -> None:  # fmt: skip
    """Place calls at all APIs in turn, half of them one by one, half in small batches."""
    chance = random.Random(options.seed + 1)
    begun = said_at = time.monotonic()
    used: list[str] = []
    asked = 0
    with ThreadPoolExecutor(one.PLACING) as pool:
        while asked < options.calls:
            time.sleep(max(0.0, begun + asked / options.rate - time.monotonic()))
            count = min(chance.choice((1, 1, 1, 1, 1, 1, 1, 8)), options.calls - asked)
            numbers = [one._number(chance, asked + n, used) for n in range(count)]
            api = apis[asked % len(apis)]
            asked += count
            retries = chance.choice((0, 1, 1, 2))
            pool.submit(one._place_one, plain, api, voice, numbers, retries, evidence)
            if time.monotonic() - said_at > 15.0:
                said_at = time.monotonic()
                say(f"{len(evidence.placed)} of {options.calls} calls placed")


def await_finals(
    plain: one.Options, api: Api, evidence: Evidence, receiver: Receiver, say: one.Say
) -> None:
    """Wait until each call is final and its webhook has come; the rate may need a while."""
    wanted = {placed.call_id for placed in evidence.placed}
    backlog = len(wanted) / RATE
    wait_for(lambda: wanted <= receiver.calls(), backlog, 0.5)
    one._await_finals(plain, api, evidence, receiver, say)


# The rules of several workers


def over_the_rate(evidence: Evidence) -> Iterator[Violation]:
    """New INVITEs of all workers in a sliding second: the rate and one more, at most."""
    begun = sorted(each.left for each in evidence.invitations)
    for number, at in enumerate(begun):
        count = bisect.bisect_left(begun, at + 1.0) - number
        if count > RATE + 1:
            when = at - evidence.begun
            yield Violation("rate exceeded", f"{count} INVITEs in the second from {when:.2f}")
            return


def over_the_channels(evidence: Evidence) -> Iterator[Violation]:
    """Calls at once, as the carrier counts them."""
    steps: list[tuple[float, int]] = []
    for each in evidence.invitations:
        end = each.sent[-1] if each.silent else each.end
        steps += [(each.left, 1), (min(end, evidence.ended), -1)]
    busy = most = 0
    when = 0.0
    for at, step in sorted(steps):
        busy += step
        if busy > most:
            most, when = busy, at
    if most > CHANNELS:
        yield Violation("channels exceeded", f"{most} calls at once at {when - evidence.begun:.1f}")


def noticed_late(evidence: Evidence, now: Callable[[], float] = time.time) -> Iterator[Violation]:
    """After the death of a worker others, or its next process, take its calls within 10 s."""
    offset = now() - time.monotonic()
    taken = sorted(
        stamp - offset
        for line in evidence.log
        if " worker_dead " in line or " recovered " in line or " ready " in f"{line} "
        for stamp in [stamp_of(line)]
        if stamp is not None
    )
    broken = [each for each in evidence.faults if each.kind.startswith("db-")]
    for fault in evidence.faults:
        if fault.kind != "kill":
            continue
        after = [at for at in taken if at > fault.at]
        limit = fault.at + CONTINUES
        disturbed = any(b.at - 1 <= limit and b.until + CONTINUES >= fault.at for b in broken)
        if not disturbed and (not after or after[0] > limit + 1.0):
            yield Violation(
                "death noticed late", f"{fault.detail} at {fault.at - evidence.begun:.1f}"
            )


def stamp_of(line: str) -> float | None:
    """The time at the beginning of a line of the log, in Unix seconds."""
    with contextlib.suppress(ValueError, IndexError):
        return datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp()
    return None


def main() -> int:
    """Run, report, and return the exit status: 0 if every rule held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fleet", description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=8.0, help="calls placed in a second")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="bitel-fleet-"))
    folder.chmod(0o755)
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:7.1f}  {line}", file=sys.stderr, flush=True)

    say(f"logs in {folder}")
    evidence = run(Options(given.calls, given.seed, given.rate), folder, say)
    violations = [
        *check(evidence),
        *over_the_rate(evidence),
        *over_the_channels(evidence),
        *noticed_late(evidence),
    ]
    for violation in violations:
        print(f"{violation.kind}: {violation.evidence}")
    kinds: dict[str, Any] = {}
    for fault in evidence.faults:
        kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
    print(
        f"{len(evidence.placed)} calls, {len(evidence.invitations)} INVITEs, faults {kinds}, "
        f"{len(violations)} violations"
    )
    if violations or given.keep:
        say(f"logs stay in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if violations else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
