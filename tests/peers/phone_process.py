"""A phone in a process of its own, which reports what happens to it as JSON lines on stdout.

Stacks in C keep their state per process, so each phone of a test needs one. A module that is such
a phone starts itself by `phone_process`; its process runs it with `-m`, and calls `report`.
This module needs the standard library alone: the process may run with another interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Transport = Literal["udp", "tcp", "tls"]

HOST = "127.0.0.1"

_ROOT = Path(__file__).parent.parent.parent
_ATTEMPTS = 5
"""Ports tried: another process may take one before the phone binds it."""


def folder_of_peers() -> Path:
    """The folder that `scripts/peers` installs into."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("BITEL_PEERS") or cache / "bitel")


def report(event: str) -> None:
    """Report an event from the phone's process to the test."""
    print(json.dumps({"event": event}), flush=True)


@dataclass(slots=True)
class PhoneProcess:
    """A running phone that takes calls to any number on `port`. `events` grows as it reports."""

    port: int
    transport: Transport
    process: asyncio.subprocess.Process
    events: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def address(self) -> tuple[str, int]:
        """Where it takes calls. It listens for TLS one port above."""
        return HOST, self.port + (self.transport == "tls")

    @property
    def trunk(self) -> str:
        """Its URI as a trunk of a dialer."""
        host, port = self.address
        return f"sip:{host}:{port};transport={self.transport}"

    async def saw(self, event: str, times: int = 1, timeout: float = 15.0) -> None:
        """Wait until `event` was reported that many times. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while self.events.count(event) < times:
                self._changed.clear()
                await self._changed.wait()

    async def is_ready(self) -> bool:
        """Wait until it takes calls; False where the process ends before."""
        ready = asyncio.create_task(self.saw("ready"))
        ended = asyncio.create_task(self.process.wait())
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, ended):
            task.cancel()
        return self.process.returncode is None

    async def read_events(self) -> None:
        """Collect what the process reports until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.events.append(json.loads(line)["event"])
            self._changed.set()


@asynccontextmanager
async def phone_process(
    python: str, module: str, options: Sequence[str], transport: Transport
) -> AsyncIterator[PhoneProcess]:
    """Run `module` with the interpreter `python`, a free port and `options` until the block ends.

    It must report "ready", and end on SIGTERM.
    """
    for _ in range(_ATTEMPTS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(python, "-m", module, str(port), *options),
            cwd=_ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        phone = PhoneProcess(port, transport, process)
        reader = asyncio.create_task(phone.read_events())
        try:
            if await phone.is_ready():
                yield phone
                return
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await reader
    raise AssertionError(f"{module} does not start: its port may be taken, or its package broken")
