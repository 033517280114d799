"""SIPp as an independent callee: runs one of `scenarios/*.xml` and reports what it counted."""

from __future__ import annotations

import asyncio
import csv
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

SCENARIOS = Path(__file__).parent / "scenarios"

HOST = "127.0.0.1"

_ATTEMPTS = 5
"""Ports tried: another process may take one between our look and SIPp's bind."""


@dataclass(frozen=True, slots=True)
class SippReport:
    """What SIPp counted, and what it complained about.

    `exit_code` is 0 where every call went as the scenario says, 1 where one did not.
    """

    exit_code: int
    successful: int
    failed: int
    complaints: str


@dataclass(slots=True)
class Sipp:
    """A running SIPp that listens on `port` and ends by itself after its number of calls."""

    port: int
    process: asyncio.subprocess.Process
    folder: Path
    media: socket.socket = field(repr=False)

    @property
    def address(self) -> tuple[str, int]:
        """Where it takes calls."""
        return HOST, self.port

    async def report(self, timeout: float = 30.0) -> SippReport:
        """Wait until all calls are through. Past `timeout` seconds SIPp is ended: a failure."""
        try:
            await asyncio.wait_for(self.process.wait(), timeout)
        except TimeoutError:
            await _end(self.process)
        successful, failed = _counts(self.folder / "statistics.csv")
        code = self.process.returncode
        assert code is not None
        return SippReport(code, successful, failed, _read(self.folder / "errors.log"))


@asynccontextmanager
async def sipp(
    scenario: str,
    calls: int,
    folder: Path,
    *,
    timeout: int = 60,
    hang_up_after: int = 0,
    **values: str,
) -> AsyncIterator[Sipp]:
    """Run `scenario` for that many calls, with its log files in the empty `folder`.

    `hang_up_after` is in ms, for a callee that does. `values` fill the scenario's own keywords,
    `username` and `password`. The RTP that callers send is taken by a socket that nobody reads.
    SIPp ends with the `async with`, whatever it is doing.
    """
    program = shutil.which("sipp")
    assert program is not None, "sipp is missing: apt-get install sip-tester"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as media:
        media.bind((HOST, 0))
        media.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        values["rtp_port"] = str(media.getsockname()[1])
        process, port = await _start(
            [
                program,
                *("-sf", str(SCENARIOS / f"{scenario}.xml"), "-d", str(hang_up_after)),
                *("-m", str(calls), "-timeout", f"{timeout}s", "-timeout_error", "-nostdin"),
                *("-i", HOST, "-mi", HOST, "-ci", HOST, "-bind_local"),
                *("-trace_stat", "-stf", str(folder / "statistics.csv"), "-fd", "1"),
                *("-trace_err", "-error_file", str(folder / "errors.log")),
                *(word for key, value in values.items() for word in ("-key", key, value)),
            ],
            folder,
        )
        try:
            yield Sipp(port, process, folder, media)
        finally:
            await _end(process)


async def _start(command: list[str], folder: Path) -> tuple[asyncio.subprocess.Process, int]:
    for _ in range(_ATTEMPTS):
        port = _free_port()
        with (folder / "screen.log").open("wb") as screen:
            process = await asyncio.create_subprocess_exec(
                *(*command, "-p", str(port)),
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=screen,
                stderr=asyncio.subprocess.STDOUT,
            )
        if await _listens(process, port):
            return process, port
        await _end(process)
    raise AssertionError(f"sipp does not start: {_read(folder / 'screen.log')[-2000:]}")


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


async def _listens(process: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until the port is bound by that process; False where it ends before."""
    for _ in range(500):
        if process.returncode is not None:
            return False
        if _is_bound(port):
            return True
        await asyncio.sleep(0.01)
    return False


def _is_bound(port: int) -> bool:
    if sys.platform != "linux":
        raise AssertionError("these tests look into /proc/net/udp, so they need Linux")
    local = f"0100007F:{port:04X}"
    return any(
        line.split()[1] == local for line in Path("/proc/net/udp").read_text().splitlines()[1:]
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def _counts(statistics: Path) -> tuple[int, int]:
    """The successful and the failed calls of the last line that SIPp wrote."""
    with statistics.open(newline="") as lines:
        last = list(csv.DictReader(lines, delimiter=";"))[-1]
    return int(last["SuccessfulCall(C)"]), int(last["FailedCall(C)"])


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
