"""Carries out one run: service, callee, calls, faults; collects the evidence."""

from __future__ import annotations

import contextlib
import functools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bitel.demo.stage import WITHOUT_LIMITS, free_port
from tests.chaos.api import Api, NoAnswerError
from tests.chaos.evidence import (
    Entry,
    Evidence,
    FinalCall,
    Placed,
    Terms,
    digits_of,
    read_callee_file,
)
from tests.chaos.faults import Injector
from tests.chaos.processes import Service, environment, wait_for
from tests.chaos.storage import PostgresStorage, SqliteStorage, Storage
from tests.chaos.webhooks import Receiver, receiving

ROOT: Final = Path(__file__).parents[2]
BALANCE: Final = 100_000_000
RECORDING: Final = 1.5
"""Seconds that are played."""
PER_UNIT: Final = 10_000
"""Of the currency, as the ledger counts it."""
WEBHOOK_PATIENCE: Final = 60.0
PATIENCE: Final = 120.0
"""Seconds for which a request that places calls is made again while it is not answered."""
PLACING: Final = 8
"""Requests that place calls at once."""
REPEATED: Final = 0.04
"""The share of calls to a number that was called before, so that some wait for each other."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """The parameters of a run; times in seconds."""

    calls: int = 500
    seed: int = 1
    faults: Sequence[str] = ()
    database: str = "sqlite"
    duration: float = 240.0
    """For how long calls are placed and faults injected."""
    gap: float = 4.0
    """Mean time from one fault to the next."""
    longest: float = 14.0
    """The longest that a fault may last."""
    time_to_live: float = 180.0
    terms: Terms = field(default_factory=Terms)
    disk_megabytes: int = 0
    """The size of the small disk; 0: enough for the calls."""


def run(options: Options, folder: Path, say: Say) -> Evidence:
    """Carry out a run in a folder, and return its evidence. The logs stay in the folder."""
    ports = {"http": free_port(), "sip": free_port(), "callee": free_port()}
    config = folder / "bitel.toml"
    service = Service(config, options.terms.drain_timeout)
    with contextlib.ExitStack() as stack:
        storage = _storage(options, folder / "disk", service)
        stack.callback(storage.close)
        config.write_text(_settings(options, ports, storage))
        receiver = stack.enter_context(receiving())
        callee = stack.enter_context(_callee(options, folder, ports["callee"]))
        evidence = Evidence(options.terms, begun=time.monotonic())
        stack.callback(service.abandon)
        service.start()
        if not service.wait_ready(60.0):
            raise RuntimeError(f"the service did not start; see {folder / 'serve.log'}")
        api = Api(f"http://127.0.0.1:{ports['http']}")
        stack.callback(api.close)
        project = _command(config, "project", "create", "chaos", *WITHOUT_LIMITS)
        settings = (f"--balance={BALANCE}", f"--webhook={receiver.url}")
        _command(config, "project", "set", project, *settings)
        api.authorise(_command(config, "token", "create", project))
        assert callee.stdin is not None
        injector = Injector(service, storage, callee.stdin, api, options.seed)
        voice = api.recording(RECORDING)
        begun = time.monotonic()
        injecting = threading.Thread(
            target=injector.run,
            args=(options.faults, begun + options.duration, options.gap, options.longest),
            daemon=True,
        )
        injecting.start()
        _place(options, api, voice, evidence, say)
        injecting.join()
        _require(callee)
        _say_skipped(injector, say)
        say(f"{len(evidence.placed)} calls placed, {len(injector.done)} faults injected")
        _await_finals(options, api, evidence, receiver, say)
        _require(callee)
        _read_api(api, evidence)
        service.stop()
        _read_database(storage, evidence)
        callee.stdin.close()
        callee.wait(30.0)
        evidence.ended = time.monotonic()
        evidence.faults = injector.done
        evidence.exits = service.exits
        evidence.log = service.log
        evidence.events = list(receiver.events)
        evidence.http_problems += api.problems
        evidence.invitations = read_callee_file(folder / "callee.jsonl")
    return evidence


def _storage(options: Options, folder: Path, service: Service) -> Storage:
    if options.database == "sqlite":
        size = options.disk_megabytes or 40 + options.calls // 50
        return SqliteStorage(folder, size, lambda: service.pid)
    return PostgresStorage(folder, options.disk_megabytes or 300 + options.calls // 50)


def _settings(options: Options, ports: dict[str, int], storage: Storage) -> str:
    rtp = random.Random(ports["sip"]).randrange(10_000, 19_000, 2)
    return f"""\
data_dir = "{storage.data_dir}"
database_url = "{storage.url}"
drain_timeout = {options.terms.drain_timeout}
webhook_allow_private = true
[http]
port = {ports["http"]}
[traces]
megabytes = 2
[[tariff]]
prefix = "+98"
per_minute = 60
increment = 1
[[dialers]]
id = "main"
trunks = ["sip:127.0.0.1:{ports["callee"]}"]
bind = "127.0.0.1:{ports["sip"]}"
rtp_ports = "{rtp}-{rtp + 999}"
caller_id = "02191000000"
ring_timeout = {options.terms.ring_timeout}
ping_interval = 2
max_channels = 200
calls_per_second = 50
"""


@contextlib.contextmanager
def _callee(
    options: Options, folder: Path, port: int, host: str = "127.0.0.1"
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.chaos.callee",
            f"--host={host}",
            f"--port={port}",
            f"--log={folder / 'callee.jsonl'}",
            f"--ring-timeout={options.terms.ring_timeout}",
        ],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _require(callee: subprocess.Popen[bytes]) -> None:
    if callee.poll() is not None:
        raise RuntimeError(f"the callee ended with status {callee.returncode}: nothing is shown")


def _command(config: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bitel.cli", *arguments, f"--config={config}"],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=True,
        env=environment(),
    )
    return done.stdout.strip()


def _place(options: Options, api: Api, voice: str, evidence: Evidence, say: Say) -> None:
    """Place all calls over the run's time: half of them one by one, half in small batches."""
    chance = random.Random(options.seed + 1)
    begun = said_at = time.monotonic()
    used: list[str] = []
    asked = 0
    with ThreadPoolExecutor(PLACING) as pool:
        while asked < options.calls:
            due = begun + options.duration * asked / options.calls
            time.sleep(max(0.0, due - time.monotonic()))
            count = min(chance.choice((1, 1, 1, 1, 1, 1, 1, 8)), options.calls - asked)
            numbers = [_number(chance, asked + n, used) for n in range(count)]
            retry_count = chance.choice((0, 1, 1, 2))
            asked += count
            pool.submit(_place_one, options, api, voice, numbers, retry_count, evidence)
            if time.monotonic() - said_at > 15.0:
                said_at = time.monotonic()
                say(f"{len(evidence.placed)} of {options.calls} calls placed")


def _place_one(
    options: Options,
    api: Api,
    voice: str,
    numbers: Sequence[str],
    retry_count: int,
    evidence: Evidence,
) -> None:
    body: dict[str, Any] = {
        "voiceId": voice,
        "retryCount": retry_count,
        "retryInterval": int(options.terms.retry_interval),
        "timeToLive": int(options.time_to_live),
    }
    try:
        if len(numbers) == 1:
            body["phoneNumber"] = numbers[0]
            calls = [api.place("/api/v2/voice/single", body, PATIENCE)]
        else:
            body["phoneNumbers"] = numbers
            calls = api.place("/api/v2/voice/batch", body, PATIENCE)
    except NoAnswerError as error:
        evidence.doubtful |= {digits_of(number) for number in numbers}
        evidence.http_problems.append(f"not accepted within {PATIENCE:.0f} s: {error}")
        return
    now = time.monotonic()
    evidence.placed += [
        Placed(call["id"], digits_of(number), retry_count, now)
        for call, number in zip(calls, numbers, strict=True)
    ]


def _number(chance: random.Random, index: int, used: list[str]) -> str:
    if used and chance.random() < REPEATED:
        return chance.choice(used)
    number = f"0912{index:05}{chance.randrange(100):02}"
    used.append(number)
    return number


def _say_skipped(injector: Injector, say: Say) -> None:
    for name in sorted(injector.skipped):
        say(f"{name} can't be injected here: there is nothing of the kind, or no small disk")


def _await_finals(
    options: Options, api: Api, evidence: Evidence, receiver: Receiver, say: Say
) -> None:
    """Wait until each call is final, and its webhook has come."""
    wanted = {placed.call_id for placed in evidence.placed}
    # A call that expires does so when its time to live is over, and the last was placed just now.
    until = time.monotonic() + options.time_to_live + options.terms.crash_wait + 30.0
    waiting = wanted
    while waiting and time.monotonic() < until:
        reported = receiver.calls()
        waiting = {call for call in waiting if call not in reported and not _is_final(api, call)}
        say(f"{len(waiting)} calls are not final")
        wait_for(functools.partial(_all_reported, receiver, waiting), 5.0, 0.2)
    final = wanted - waiting
    if not wait_for(functools.partial(_all_reported, receiver, final), WEBHOOK_PATIENCE, 0.2):
        say(f"{len(final - receiver.calls())} webhooks did not come")


def _all_reported(receiver: Receiver, calls: set[str]) -> bool:
    return calls <= receiver.calls()


def _is_final(api: Api, call_id: str) -> bool:
    try:
        call = api.status(call_id)
    except NoAnswerError:
        return False
    return call is None or call["status"] != "WAITING"


def _read_api(api: Api, evidence: Evidence) -> None:
    try:
        for placed in evidence.placed:
            call = api.status(placed.call_id)
            if call is not None:
                final = FinalCall(call["status"], call["billSec"], float(call["price"]))
                evidence.finals[placed.call_id] = final
        evidence.spent = BALANCE - api.balance()
    except NoAnswerError as error:
        evidence.http_problems.append(f"not answered at the end, with no fault any more: {error}")


def _read_database(storage: Storage, evidence: Evidence) -> None:
    entries = storage.query(
        "SELECT call_id, attempt_id, amount FROM ledger_entry WHERE call_id IS NOT NULL"
    )
    evidence.entries = [
        Entry(call_id, attempt_id, amount / PER_UNIT) for call_id, attempt_id, amount in entries
    ]
    stored = storage.query("SELECT e164, count(*) FROM call GROUP BY e164")
    evidence.calls_stored = {digits_of(number): count for number, count in stored}
