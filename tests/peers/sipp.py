"""SIPp as an independent callee: runs one of `scenarios/*.xml` and reports what it counted."""

from __future__ import annotations

import asyncio
import csv
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SCENARIOS = Path(__file__).parent / "scenarios"

HOST = "127.0.0.1"

SOCKET_BUFFER = 4 * 1024 * 1024
"""Bytes; with its usual 64 KiB a burst of a hundred INVITEs loses some."""

_ATTEMPTS = 5
"""Ports tried: another process may take one between our look and SIPp's bind."""
_LISTEN = "0A"
"""How /proc/net/tcp writes that a socket listens."""


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

    @property
    def log(self) -> list[str]:
        """The lines that the scenario logged."""
        return _read(self.folder / "log.txt").splitlines()

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
    tcp: bool = False,
    **values: str,
) -> AsyncIterator[Sipp]:
    """Run `scenario` for that many calls, with its log files in the empty `folder`.

    With `tcp` it listens for TCP and not for UDP. `hang_up_after` is in ms, for a callee that does.
    `values` fill the scenario's own keywords, as `username` and `password`. The RTP that callers
    send is taken by a socket that nobody reads, unless there is an `rtp_port` among the values.
    What the scenario logs is in `Sipp.log`.
    SIPp ends with the `async with`, whatever it is doing.
    """
    program = shutil.which("sipp")
    assert program is not None, "sipp is missing: apt-get install sip-tester"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as media:
        media.bind((HOST, 0))
        media.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        values.setdefault("rtp_port", str(media.getsockname()[1]))
        process, port = await _start(
            [
                program,
                *("-sf", str(_filled(scenario, values, folder)), "-d", str(hang_up_after)),
                *("-m", str(calls), "-timeout", f"{timeout}s", "-timeout_error", "-nostdin"),
                *("-t", "t1" if tcp else "u1"),
                *("-i", HOST, "-mi", HOST, "-ci", HOST, "-bind_local"),
                *("-buff_size", str(SOCKET_BUFFER)),
                *("-trace_stat", "-stf", str(folder / "statistics.csv"), "-fd", "1"),
                *("-trace_err", "-error_file", str(folder / "errors.log")),
                *("-trace_logs", "-log_file", str(folder / "log.txt")),
            ],
            folder,
            "tcp" if tcp else "udp",
        )
        try:
            yield Sipp(port, process, folder, media)
        finally:
            await _end(process)


def _filled(scenario: str, values: Mapping[str, str], folder: Path) -> Path:
    """The scenario with its keywords filled in: SIPp's own way allows none for a status."""
    text = (SCENARIOS / f"{scenario}.xml").read_text()
    for key, value in values.items():
        text = text.replace(f"[{key}]", value)
    filled = folder / f"{scenario}.xml"
    filled.write_text(text)
    return filled


async def _start(
    command: list[str], folder: Path, kind: Literal["udp", "tcp"]
) -> tuple[asyncio.subprocess.Process, int]:
    for _ in range(_ATTEMPTS):
        port = _free_port(kind)
        with (folder / "screen.log").open("wb") as screen:
            process = await asyncio.create_subprocess_exec(
                *(*command, "-p", str(port)),
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=screen,
                stderr=asyncio.subprocess.STDOUT,
            )
        if await listens(process, kind, port):
            return process, port
        await _end(process)
    raise AssertionError(f"sipp does not start: {_read(folder / 'screen.log')[-2000:]}")


def _free_port(kind: Literal["udp", "tcp"]) -> int:
    with socket.socket(
        socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    ) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


async def listens(
    process: asyncio.subprocess.Process, kind: Literal["udp", "tcp"], *ports: int
) -> bool:
    """Wait until the ports are bound, by that process; False where it ends before."""
    for _ in range(1000):
        if process.returncode is not None:
            return False
        if all(_is_bound(kind, port) for port in ports):
            return True
        await asyncio.sleep(0.01)
    return False


def _is_bound(kind: str, port: int) -> bool:
    if sys.platform != "linux":
        raise AssertionError("these tests look into /proc/net, so they need Linux")
    local = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return any(row[1] == local and (kind == "udp" or row[3] == _LISTEN) for row in rows)


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
