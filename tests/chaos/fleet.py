"""`python -m tests.chaos.fleet`: several workers and API processes while faults are injected.

Three workers, two API processes, PostgreSQL, an S3 server and a carrier, which is a callee that
counts what reaches it, run on a machine each: in network namespaces joined by a router, or where
these can't be made, all on loopback. Workers are killed, stopped beyond their lease, and cut off:
from the database, from the carrier, or from both as their link is down. An API process is killed;
the server is killed and started again. The rules of a run with one process hold, and those of the
limits of all workers together.

The same seed gives the same calls and the same sequence of faults.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bitel.demo.stage import WITHOUT_LIMITS, free_port
from tests.chaos import run as one
from tests.chaos.api import Api
from tests.chaos.checks import check
from tests.chaos.evidence import SERVER, Evidence, Exit, Fault, Terms, read_callee_file
from tests.chaos.fleet_rules import check_fleet, taken_over
from tests.chaos.network import Machine, Network, new_network
from tests.chaos.processes import Service, wait_for
from tests.chaos.report import write_faults
from tests.chaos.storage import PostgresStorage
from tests.chaos.webhooks import Receiver, receiving
from tests.chaos.wire import add_wire
from tests.support.s3_server import BUCKET, KEY, SECRET, S3Server, s3_server

WORKERS: Final = 3
APIS: Final = 2
RTP_PORTS: Final = 300
"""Of each worker, at least."""
TERMS: Final = Terms()
FAULTS: Final = (
    *("kill", "kill", "stop", "stop", "db-cut", "db-cut"),
    *("carrier-cut", "carrier-cut", "link-down", "link-down", "api-kill", "db-kill"),
)
ENDED_LEASE: Final = "ended its lease, so this one stops"


@dataclass
class Member:
    """A process of the fleet, and the machine that it runs on."""

    name: str
    service: Service
    machine: Machine


@dataclass
class Surroundings:
    """What the processes of the fleet use."""

    network: Network
    storage: PostgresStorage
    database: Machine
    objects: S3Server
    carrier: Machine
    carrier_port: int


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
    channels: int = 40
    """The setting `max_channels`."""
    calls_per_second: int = 20
    """The setting of that name."""
    gap: float = 6.0
    """Mean seconds from one fault to the next."""
    on_loopback: bool = False

    @property
    def duration(self) -> float:
        """Seconds of placing calls and injecting faults."""
        return self.calls / self.rate


def run(options: Options, folder: Path, say: one.Say) -> Evidence:
    """Carry out a run in a folder, and return its evidence."""
    plain = one.Options(options.calls, options.seed, duration=options.duration, terms=TERMS)
    with contextlib.ExitStack() as stack:
        network = new_network(options.on_loopback)
        stack.callback(network.close)
        say(f"faults of the network: {', '.join(sorted(network.faults))}")
        receiver = stack.enter_context(receiving(network.address))
        carrier, carrier_port = network.machine("carrier"), free_port()
        with carrier.entered():
            callee = stack.enter_context(one._callee(plain, folder, carrier_port, carrier.address))
        around = surroundings(options, folder, network, carrier, carrier_port, stack)
        fleet = start(options, folder, around, stack)
        capture = network.capture([each.machine for each in fleet.workers], carrier_port)
        if capture is not None:
            stack.callback(capture.close)
        evidence = Evidence(TERMS, begun=time.monotonic(), is_fleet=True)
        evidence.workers = frozenset(each.name for each in fleet.workers)
        config = folder / "api1" / "bitel.toml"
        project = one._command(config, "project", "create", "fleet", *WITHOUT_LIMITS)
        more = (f"--balance={one.BALANCE}", f"--webhook={receiver.url}")
        one._command(config, "project", "set", project, *more)
        token = one._command(config, "token", "create", project)
        apis = [
            Api(url, f"api{number}", [each for each in fleet.urls if each != url])
            for number, url in enumerate(fleet.urls)
        ]
        for api in apis:
            api.authorise(token)
            stack.callback(api.close)
        voice = apis[0].recording(one.RECORDING)
        injector = Injector(fleet, around, options.seed)
        injecting = threading.Thread(target=injector.run, args=(options,), daemon=True)
        injecting.start()
        place(options, plain, apis, voice, evidence, say)
        injecting.join()
        if injector.failed:
            raise injector.failed[0]
        say(f"{len(evidence.placed)} calls placed, {len(injector.done)} faults injected")
        await_finals(options, plain, apis[0], evidence, receiver, say)
        one._require(callee)
        one._read_api(apis[0], evidence)
        for member in fleet.members:
            member.service.stop()
        one._read_database(around.storage, evidence)
        assert callee.stdin is not None
        callee.stdin.close()
        callee.wait(30.0)
        evidence.ended = time.monotonic()
        evidence.faults = injector.done
        evidence.exits = [each for member in fleet.members for each in exits_of(member)]
        evidence.log = [line for member in fleet.members for line in member.service.log]
        pids = {pid: worker.name for worker in fleet.workers for pid in worker.service.pids}
        evidence.taken_over = list(taken_over(evidence.log, pids))
        evidence.events = list(receiver.events)
        evidence.http_problems += [problem for api in apis for problem in api.problems]
        evidence.invitations = read_callee_file(folder / "callee.jsonl")
        if capture is not None:
            capture.close()
            evidence.lost_invites = add_wire(evidence.invitations, capture.datagrams)
            capture.write(folder / "wire.jsonl")
    return evidence


def exits_of(member: Member) -> Iterator[Exit]:
    """The ends of a process; that of a worker whose lease others have ended is no fault of its."""
    lost = sum(ENDED_LEASE in line for line in member.service.log if line.startswith("bitel: "))
    for each in member.service.exits:
        if each.why == "by itself" and each.status == 1 and lost:
            lost -= 1
            yield each._replace(why="lease ended", name=member.name)
        else:
            yield each._replace(name=member.name)


def surroundings(
    options: Options, folder: Path, network: Network, carrier: Machine, carrier_port: int,
    stack: contextlib.ExitStack,
) -> Surroundings:  # fmt: skip
    """Start the database server and the object store."""
    database, objects = network.machine("database"), network.machine("objects")
    address = database.address if network.is_separate else ""
    megabytes = 400 + options.calls // 20
    storage = PostgresStorage(folder / "disk", megabytes, address, database.entered)
    stack.callback(storage.close)
    with objects.entered():
        server = stack.enter_context(s3_server(folder / "s3", objects.address))
    return Surroundings(network, storage, database, server, carrier, carrier_port)


def start(
    options: Options, folder: Path, around: Surroundings, stack: contextlib.ExitStack
) -> Fleet:
    """Start all processes, and wait until they are ready."""
    chance = random.Random(options.seed + 2)
    fleet = Fleet()
    rtp = random.Random(around.carrier_port).randrange(10_000, 14_000, 2)
    for number in range(APIS + WORKERS):
        is_api = number < APIS
        name = f"api{number + 1}" if is_api else f"worker{number - APIS + 1}"
        machine = around.network.machine(name)
        config = folder / name / "bitel.toml"
        (config.parent / "data").mkdir(parents=True)
        http = free_port()
        span = max(RTP_PORTS, 4 * options.channels)
        config.write_text(settings(options, config.parent, machine, around, http, rtp, span))
        rtp += span
        # Some come back before others notice their death, some after.
        service = Service(
            config, TERMS.drain_timeout, ["--only=api" if is_api else "--only=dialer"],
            lambda: chance.choice((0.5, 1.0, 12.0)), machine.entered,
        )  # fmt: skip
        stack.callback(service.abandon)
        service.start()
        if not service.wait_ready(60.0):
            raise RuntimeError(f"{name} did not start; see {config.with_name('serve.log')}")
        (fleet.apis if is_api else fleet.workers).append(Member(name, service, machine))
        if is_api:
            fleet.urls.append(f"http://{machine.address}:{http}")
    return fleet


def settings(
    options: Options, folder: Path, machine: Machine, around: Surroundings, http: int, rtp: int,
    rtp_ports: int,
) -> str:  # fmt: skip
    """The settings of a process."""
    return f"""\
data_dir = "{folder / "data"}"
database_url = "{around.network.database_url(machine, around.storage)}"
storage_url = "s3://{BUCKET}/calls"
drain_timeout = {TERMS.drain_timeout}
webhook_allow_private = true
[s3]
endpoint = "{around.objects.endpoint}"
access_key_id = "{KEY}"
secret_access_key = "{SECRET}"
allow_http = true
[http]
host = "{machine.address}"
port = {http}
[traces]
megabytes = 2
[[tariff]]
prefix = "+98"
per_minute = 60
increment = 1
[[dialers]]
id = "main"
trunks = ["sip:{around.carrier.address}:{around.carrier_port}"]
bind = "{machine.address}:{free_port()}"
rtp_ports = "{rtp}-{rtp + rtp_ports - 1}"
caller_id = "02191000000"
ring_timeout = {TERMS.ring_timeout}
ping_interval = 2
max_channels = {options.channels}
calls_per_second = {options.calls_per_second}
"""


class Injector:
    """Injects faults one after the other. A link has one fault of the network at a time."""

    def __init__(self, fleet: Fleet, around: Surroundings, seed: int) -> None:
        self.done: list[Fault] = []
        self.failed: list[BaseException] = []
        self._fleet = fleet
        self._around = around
        self._random = random.Random(seed)
        self._links = {each.name: threading.Lock() for each in fleet.workers}
        elsewhere = {"link-down", "db-cut", "carrier-cut"} - around.network.faults
        self._kinds = [kind for kind in FAULTS if kind not in elsewhere]

    def run(self, options: Options) -> None:
        """Inject faults for the duration of the run, then wait until all are over."""
        until = time.monotonic() + options.duration
        running: list[threading.Thread] = []
        while True:
            wait = self._random.uniform(0.3 * options.gap, 1.7 * options.gap)
            kind = self._random.choice(self._kinds)
            which = self._random.randrange(WORKERS * APIS)
            seconds = self._random.uniform(2.0, 14.0)
            if time.monotonic() + wait > until:
                break
            time.sleep(wait)
            thread = threading.Thread(target=self._inject_or_fail, args=(kind, which, seconds))
            thread.start()
            running.append(thread)
        for each in running:
            each.join()

    def _inject_or_fail(self, kind: str, which: int, seconds: float) -> None:
        try:
            self._inject(kind, which, seconds)
        except BaseException as error:
            self.failed.append(error)

    def _inject(self, kind: str, which: int, seconds: float) -> None:
        worker = self._fleet.workers[which % WORKERS]
        api = self._fleet.apis[which % APIS]
        with self._links[worker.name] if kind in _OF_A_LINK else contextlib.nullcontext():
            begun = time.monotonic()
            detail = worker.name
            if kind == "kill":
                # A process that is not ready yet has no lease, and no death to be noticed.
                kind = kind if worker.service.is_ready else "kill-starting"
                worker.service.kill()
            elif kind == "stop":
                worker.service.signal(signal.SIGSTOP)
                time.sleep(seconds)
                worker.service.signal(signal.SIGCONT)
            elif kind in _OF_A_LINK:
                self._cut_off(kind, worker.machine, seconds)
            elif kind == "api-kill":
                api.service.kill()
                detail = api.name
            else:
                self._around.storage.faults()["db-kill"](min(seconds, 4.0))
                detail = SERVER
            self.done.append(Fault(kind, begun, time.monotonic(), detail))

    def _cut_off(self, kind: str, machine: Machine, seconds: float) -> None:
        network = self._around.network
        if kind == "link-down":
            network.take_down(machine, seconds)
        elif kind == "db-cut":
            network.cut(machine, self._around.database, seconds)
        else:
            network.cut(machine, self._around.carrier, seconds)


_OF_A_LINK: Final = ("link-down", "db-cut", "carrier-cut")


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
    options: Options, plain: one.Options, api: Api, evidence: Evidence, receiver: Receiver,
    say: one.Say,
) -> None:  # fmt: skip
    """Wait until each call is final and its webhook has come; the rate may need a while."""
    wanted = {placed.call_id for placed in evidence.placed}
    backlog = len(wanted) / options.calls_per_second
    wait_for(lambda: wanted <= receiver.calls(), backlog, 0.5)
    one._await_finals(plain, api, evidence, receiver, say)


def main() -> int:
    """Run, report, and return the exit status: 0 if every rule held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fleet", description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=8.0, help="calls placed in a second")
    parser.add_argument("--channels", type=int, default=40, help="max_channels of the dialer")
    parser.add_argument("--calls-per-second", type=int, default=20, help="of the dialer")
    parser.add_argument("--gap", type=float, default=6.0, help="mean seconds between two faults")
    parser.add_argument("--loopback", action="store_true", help="make no network namespaces")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="bitel-fleet-"))
    folder.chmod(0o755)
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:7.1f}  {line}", file=sys.stderr, flush=True)

    say(f"logs in {folder}")
    options = Options(
        given.calls, given.seed, given.rate, given.channels, given.calls_per_second, given.gap,
        given.loopback,
    )  # fmt: skip
    evidence = run(options, folder, say)
    write_faults(evidence, folder / "faults.jsonl")
    violations = [
        *check(evidence),
        *check_fleet(evidence, options.calls_per_second, options.channels),
    ]
    for violation in violations:
        print(f"{violation.kind}: {violation.evidence}")
    kinds = dict(sorted(Counter(fault.kind for fault in evidence.faults).items()))
    print(
        f"{len(evidence.placed)} calls, {len(evidence.invitations)} INVITEs, "
        f"{len(evidence.lost_invites)} lost, {len(evidence.faults)} faults {kinds}, "
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
