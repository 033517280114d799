"""Runs Asterisk out of the folder that `scripts/peers` installs it in, and speaks to its manager.

Asterisk runs in a chroot, which needs root. Each process has a temporary folder with its
configuration, ports that were free, and only the modules that are named: it starts in about a
second, and several can run at once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bitel.demo.stage import free_port
from tests.peers.phone_process import folder_of_peers

HOST = "127.0.0.1"
START_TIMEOUT = 30.0
"""Seconds until all modules must be loaded."""

_SECRET = "manager"  # of a port on loopback, while the process runs
_USER = "bitel"
_FILES = {
    "asterisk.conf": """\
[directories]
astetcdir => {inside}
astmoddir => {modules}
astvarlibdir => /var/lib/asterisk
astdbdir => {inside}
astkeydir => {inside}
astdatadir => /usr/share/asterisk
astagidir => {inside}
astspooldir => {inside}
astrundir => {inside}
astlogdir => {inside}
[options]
nocolor = yes
maxfiles = 20000
""",
    "modules.conf": "[modules]\nautoload=no\n{loads}\n",
    "logger.conf": "[general]\n[logfiles]\n",
    "cdr.conf": "[general]\nenable=no\n",
    "extensions.conf": "[default]\n",
    "rtp.conf": "[general]\nrtpstart=40000\nrtpend=59999\n",
    "manager.conf": f"""\
[general]
enabled = yes
bindaddr = {HOST}
port = {{manager}}
[{_USER}]
secret = {_SECRET}
read = all
write = all
""",
}


def why_missing() -> str:
    """A sentence that says why Asterisk can't run here; empty if it can."""
    root = folder_of_peers() / "asterisk"
    if not (root / "usr/sbin/asterisk").exists():
        return f"there is no Asterisk in {root}: run scripts/peers"
    if os.geteuid() != 0:
        return "Asterisk runs in a chroot, which needs root"
    return ""


def version() -> str:
    """Name and version, such as `Asterisk 22.10.1`."""
    done = subprocess.run(
        ["chroot", folder_of_peers() / "asterisk", "asterisk", "-V"],
        capture_output=True,
        text=True,
        check=True,
    )
    return " ".join(done.stdout.split()[:2]).partition("+")[0]


@dataclass
class Asterisk:
    """A running Asterisk and the connection to its manager.

    `inside` is the path of `folder` as Asterisk sees it. `events` grows with each `ask`, if they
    are on.
    """

    pid: int
    sip_port: int
    folder: Path
    inside: str
    _connection: socket.socket = field(repr=False)
    events: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._manager = self._connection.makefile("rwb")
        self._manager.readline()  # its greeting
        self.ask("Login", Username=_USER, Secret=_SECRET, Events="system")
        while not any(event["Event"] == "FullyBooted" for event in self.events):
            self._take(self._message())
        self.ask("Events", EventMask="off")

    def ask(self, action: str, **headers: str) -> dict[str, str]:
        """Sends an action; its response. Raises RuntimeError if that is no success."""
        lines = [f"Action: {action}", *(f"{key}: {value}" for key, value in headers.items())]
        self._manager.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        self._manager.flush()
        while "Response" not in (answer := self._message()):
            self._take(answer)
        if answer.get("Response") != "Success":
            raise RuntimeError(f"Asterisk refuses {action}: {answer}")
        return answer

    def matching(self, event: str, **fields: str) -> list[dict[str, str]]:
        """The events received so far of that kind and with these fields."""
        self.ask("Ping")  # events come before the response
        return [
            each
            for each in self.events
            if each["Event"] == event and fields.items() <= each.items()
        ]

    def _take(self, message: dict[str, str]) -> None:
        if "Event" in message:
            self.events.append(message)

    def _message(self) -> dict[str, str]:
        message: dict[str, str] = {}
        while line := self._manager.readline():
            key, _, value = line.decode().strip().partition(":")
            if key:
                message[key] = value.strip()
            elif message:
                return message
        raise RuntimeError("Asterisk has closed its manager's connection")


@contextmanager
def asterisk(
    modules: Sequence[str], files: Mapping[str, str], values: Mapping[str, object]
) -> Iterator[Asterisk]:
    """Runs Asterisk with `modules` until the block ends.

    `files` are configuration files by name, whose fields in braces are filled in from `values`;
    `{sip}`, a port for UDP and TCP, and `{inside}` can be used too.
    Raises RuntimeError if it does not start.
    """
    root = folder_of_peers() / "asterisk"
    (library,) = (path.parent for path in root.glob("usr/lib/*/asterisk/modules/chan_pjsip.so"))
    with tempfile.TemporaryDirectory(prefix="bitel-", dir=root / "tmp") as made:
        folder = Path(made)
        inside = f"/tmp/{folder.name}"
        ports = {"sip": free_port(), "manager": free_port()}
        filled = {
            "inside": inside,
            "modules": f"/{library.relative_to(root)}",
            "loads": "\n".join(f"load = {name}.so" for name in modules),
            **ports,
            **values,
        }
        for name, text in {**_FILES, **files}.items():
            (folder / name).write_text(text.format(**filled))
        # Without `asterisk -f` it would go to the background.
        command = ["chroot", str(root), "asterisk", "-f", "-C", f"{inside}/asterisk.conf"]
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            with _connect(process, ports["manager"], folder) as manager:
                yield Asterisk(process.pid, ports["sip"], folder, inside, manager)
        finally:
            process.kill()
            process.wait()


def _connect(process: subprocess.Popen[bytes], port: int, folder: Path) -> socket.socket:
    end = time.monotonic() + START_TIMEOUT
    while True:
        try:
            return socket.create_connection((HOST, port), timeout=START_TIMEOUT)
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                output = (folder / "output").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Asterisk does not start: {output}") from None
            time.sleep(0.05)  # waits for another process
