"""Kamailio as an independent carrier: a registrar, and a proxy that demands digest and stays on
the way of every call. Its configuration is `kamailio/proxy.cfg`.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.peers.sipp import listens
from tests.support.certificates import Certificate
from tests.support.waiting import until

HOST = "127.0.0.1"
REALM = "carrier.test"
USERNAME = "acme"
PASSWORD = "s3cret"

Option = Literal[
    "WITH_STREAMS",
    "WITH_TLS",
    "WITH_SHA256",
    "WITH_REGISTRATION",
    "WITH_FORK",
    "WITHOUT_RECORD_ROUTE",
]

_TEMPLATES = Path(__file__).parent / "kamailio"
_ATTEMPTS = 5
"""Ports tried: another process may take one between our look and Kamailio's bind."""


@dataclass(frozen=True, slots=True)
class Kamailio:
    """A running Kamailio: UDP and TCP on `port`, TLS on `tls_port`."""

    port: int
    tls_port: int
    process: asyncio.subprocess.Process
    folder: Path

    @property
    def said(self) -> list[str]:
        """What it did, a line each, as its configuration words it."""
        lines = (self.folder / "kamailio.log").read_text(errors="replace").splitlines()
        return [line.partition("said: ")[2] for line in lines if "said: " in line]

    async def saying(self, line: str, times: int = 1, timeout: float = 15.0) -> None:
        """Wait until it has said `line` that often. Raises TimeoutError."""
        await until(lambda: self.said.count(line) >= times, timeout)


@asynccontextmanager
async def kamailio(
    folder: Path,
    callee: int,
    options: Sequence[Option] = (),
    *,
    max_expires: int = 3600,
    certificate: Certificate | None = None,
    second_callee: int = 0,
) -> AsyncIterator[Kamailio]:
    """A Kamailio that sends calls on to the UDP port `callee` of this host.

    Its files are kept in `folder`, which must exist; it ends with the `async with`. TLS needs a
    `certificate`, and a fork, which rings two phones at once, a `second_callee`.
    """
    program = shutil.which("kamailio") or shutil.which("kamailio", path="/usr/sbin")
    assert program is not None, "kamailio is missing: apt-get install kamailio"
    for _ in range(_ATTEMPTS):
        port, tls_port = _free_ports()
        values = {
            "host": HOST,
            "port": port,
            "tls_port": tls_port,
            "folder": folder,
            "callee": f"{HOST}:{callee}",
            "second_callee": f"{HOST}:{second_callee}",
            "realm": REALM,
            "username": USERNAME,
            "password": PASSWORD,
            "max_expires": max_expires,
            "certificate": certificate.certificate if certificate else "",
            "key": certificate.key if certificate else "",
        }
        config = _filled("proxy.cfg", folder, values)
        _filled("tls.cfg", folder, values)
        with (folder / "kamailio.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(program, "-f", str(config), "-DD", "-E", "-m", "16", "-M", "4"),
                *("-Y", str(folder), "-w", str(folder)),
                *(word for option in options for word in ("-A", option)),
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            streams = _stream_ports(options, port, tls_port)
            if await listens(process, "udp", port) and await listens(process, "tcp", *streams):
                yield Kamailio(port, tls_port, process, folder)
                return
        finally:
            await _end(process)
    raise AssertionError(f"Kamailio does not start; see {folder / 'kamailio.log'}")


def _filled(template: str, folder: Path, values: Mapping[str, object]) -> Path:
    """A configuration file in `folder`, with the words in square brackets filled in."""
    text = (_TEMPLATES / template).read_text()
    for name, value in values.items():
        text = text.replace(f"[{name}]", str(value))
    filled = folder / template
    filled.write_text(text)
    return filled


def _stream_ports(options: Sequence[Option], port: int, tls_port: int) -> list[int]:
    ports = [port] if "WITH_STREAMS" in options else []
    return [*ports, tls_port] if "WITH_TLS" in options else ports


def _free_ports() -> tuple[int, int]:
    """Two ports that were free a moment ago, the first one for UDP and TCP both."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tls,
        ):
            udp.bind((HOST, 0))
            tls.bind((HOST, 0))
            port, tls_port = int(udp.getsockname()[1]), int(tls.getsockname()[1])
            try:
                tcp.bind((HOST, port))
            except OSError:
                continue
            return port, tls_port


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its main process ends its children."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 5.0)
    except TimeoutError:
        process.kill()
        await process.wait()
