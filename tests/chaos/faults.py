"""Injects faults at random moments, chosen by name."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Final, NamedTuple

from tests.chaos.api import Api
from tests.chaos.evidence import Fault
from tests.chaos.processes import Service, find_child, wait_for
from tests.chaos.storage import Inject, Storage

SENDER: Final = "bitel.rtp.sender"
WORKERS: Final = {
    "decode": "bitel.recordings.decode_worker",
    "speech": "bitel.speech.worker",
}
AT_ONCE: Final = 2
"""Faults at the same time, each in another part."""
LONGEST_STOP: Final = 12.0
"""Seconds: longer than ring time-outs here, so that timers of all kinds are due afterwards."""
WEIGHTS: Final = {"kill": 3, "stop": 3}
"""How often a kind is drawn, where it is not once."""


class Kind(NamedTuple):
    """A kind of fault: the part that it affects, one fault at a time, and for how long."""

    part: str
    shortest: float
    longest: float
    inject: Callable[[float], str]
    """Takes seconds; returns a detail for the log. Returns when the fault is over."""


class Injector:
    """The kinds of faults that can be injected here, and the threads that inject them."""

    def __init__(
        self, service: Service, storage: Storage, callee: IO[bytes], api: Api, seed: int
    ) -> None:
        self.done: list[Fault] = []
        self.skipped: set[str] = set()
        self._service = service
        self._callee = callee
        self._api = api
        self._random = random.Random(seed)
        self._busy: dict[str, threading.Thread] = {}
        self.kinds: Mapping[str, Kind] = {
            "kill": Kind("service", 0.0, 0.0, self._kill),
            "stop": Kind("service", 0.5, LONGEST_STOP, self._stop),
            "term": Kind("service", 0.0, 0.0, self._term),
            "sender-kill": Kind("sender", 0.0, 0.0, self._sender_kill),
            "sender-stop": Kind("sender", 0.5, LONGEST_STOP, self._sender_stop),
            "worker-kill": Kind("worker", 0.0, 1.0, self._worker_kill),
            "worker-stop": Kind("worker", 0.5, LONGEST_STOP, self._worker_stop),
            "callee-unreachable": Kind(
                "callee", 1.0, 8.0, lambda s: self._command_callee("drop", s)
            ),
            "callee-refuse": Kind("callee", 1.0, 8.0, lambda s: self._command_callee("refuse", s)),
            **{
                name: Kind("database", *_DURATIONS[name], _without_detail(inject))
                for name, inject in storage.faults().items()
            },
        }

    def run(self, names: Sequence[str], until: float, gap: float, longest: float) -> None:
        """Inject faults of these kinds until a moment, about every `gap` seconds; then wait.

        None lasts longer than `longest` seconds.
        """
        self.skipped = set(names) - self.kinds.keys()
        known = [name for name in names if name in self.kinds]
        while known:
            # Drawn in any case, so that the sequence of faults depends on the seed alone.
            wait = self._random.uniform(0.3 * gap, 1.7 * gap)
            [name] = self._random.choices(known, [WEIGHTS.get(each, 1) for each in known])
            kind = self.kinds[name]
            seconds = min(self._random.uniform(kind.shortest, kind.longest), longest)
            if time.monotonic() + wait > until:
                break
            time.sleep(wait)
            self._begin(name, kind, seconds)
        for thread in list(self._busy.values()):
            thread.join()

    def _begin(self, name: str, kind: Kind, seconds: float) -> None:
        running = {part: each for part, each in self._busy.items() if each.is_alive()}
        while kind.part in running or len(running) >= AT_ONCE:
            time.sleep(0.05)
            running = {part: each for part, each in self._busy.items() if each.is_alive()}
        thread = threading.Thread(target=self._inject, args=(name, kind, seconds))
        self._busy[kind.part] = thread
        thread.start()

    def _inject(self, name: str, kind: Kind, seconds: float) -> None:
        at = time.monotonic()
        detail = kind.inject(seconds)
        if detail != _NOTHING:
            self.done.append(Fault(name, at, time.monotonic(), detail))

    def _kill(self, seconds: float) -> str:
        self._wait_for_restart(self._service.kill)
        return ""

    def _stop(self, seconds: float) -> str:
        self._service.signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._service.signal(signal.SIGCONT)
        return f"{seconds:.1f} s"

    def _term(self, seconds: float) -> str:
        if not self._service.is_ready:
            return _NOTHING
        self._wait_for_restart(self._service.terminate)
        return ""

    def _wait_for_restart(self, end: Callable[[], None]) -> None:
        """End the service; over once it is back, or is known not to come back soon."""
        before = self._service.pid
        end()
        wait_for(lambda: self._service.pid not in (None, before), 5.0)
        self._service.wait_ready(15.0)

    def _sender(self) -> int | None:
        process = self._service.pid
        return None if process is None else find_child(process, SENDER)

    def _sender_kill(self, seconds: float) -> str:
        return _kill(self._sender())

    def _sender_stop(self, seconds: float) -> str:
        return _stop(self._sender(), seconds)

    def _worker_kill(self, seconds: float) -> str:
        return self._at_work(seconds, _kill)

    def _worker_stop(self, seconds: float) -> str:
        return self._at_work(seconds, lambda worker: _stop(worker, seconds))

    def _at_work(self, seconds: float, do: Callable[[int | None], str]) -> str:
        """Have the service decode or speak, by the time drawn, and do something to the worker."""
        kind = sorted(WORKERS)[round(seconds * 1000) % len(WORKERS)]
        asking = threading.Thread(target=self._api.upload if kind == "decode" else self._api.speak)
        asking.start()
        worker = None
        while asking.is_alive() and worker is None:
            process = self._service.pid
            worker = None if process is None else find_child(process, WORKERS[kind])
        detail = do(worker)
        asking.join()
        return detail if detail == _NOTHING else f"{kind} {detail}"

    def _command_callee(self, mode: str, seconds: float) -> str:
        self._callee.write(f"{mode} {seconds}\n".encode())
        self._callee.flush()
        time.sleep(seconds)
        return f"{seconds:.1f} s"


def _kill(process: int | None) -> str:
    if process is None:
        return _NOTHING
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return ""


def _stop(process: int | None, seconds: float) -> str:
    if process is None:
        return _NOTHING
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(process, signal.SIGCONT)
    return f"{seconds:.1f} s"


_NOTHING: Final = "nothing was there"

_DURATIONS: Final[Mapping[str, tuple[float, float]]] = {
    "db-kill": (0.0, 3.0),
    "db-freeze": (0.5, LONGEST_STOP),
    "db-full": (1.0, 6.0),
    "db-unwritable": (8.0, 14.0),
}


def _without_detail(inject: Inject) -> Callable[[float], str]:
    def injected(seconds: float) -> str:
        inject(seconds)
        return f"{seconds:.1f} s"

    return injected
