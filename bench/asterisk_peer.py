"""Asterisk in a folder of Debian's sid, made by `scripts/bench-peers`: a peer to measure against.

It gets what serves its speed: only the modules that a played call needs, no console, no log, no
call records, and a recording in the codec of the call, so that nothing is transcoded.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.report import missing

START_PATIENCE = 30.0  # seconds until it must answer
SECRET = "bench"  # of the manager's port, on loopback, while a bench runs

MODULES = (
    "res_timing_timerfd",
    "res_sorcery_config",
    "res_sorcery_memory",
    "res_sorcery_astdb",
    "res_geolocation",
    "res_statsd",
    "res_pjproject",
    "res_pjsip",
    "res_pjsip_pubsub",
    "res_pjsip_session",
    "res_pjsip_sdp_rtp",
    "res_pjsip_caller_id",
    "res_rtp_asterisk",
    "chan_pjsip",
    "codec_alaw",
    "codec_ulaw",
    "format_pcm",
    "app_playback",
    "pbx_config",
)

FILES = {
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
    "rtp.conf": "[general]\nrtpstart={rtp_first}\nrtpend={rtp_last}\n",
    "manager.conf": """\
[general]
enabled = yes
bindaddr = 127.0.0.1
port = {manager}
[bench]
secret = {secret}
read = all
write = all
""",
    "pjsip.conf": """\
[transport]
type = transport
protocol = udp
bind = 127.0.0.1:{sip}
[carrier]
type = aor
contact = sip:127.0.0.1:{carrier}
[carrier]
type = endpoint
transport = transport
context = default
disallow = all
allow = alaw
aors = carrier
direct_media = no
media_address = 127.0.0.1
bind_rtp_to_media_address = yes
""",
}


class Asterisk:
    """A running Asterisk, and the connection to its manager."""

    def __init__(self, process: subprocess.Popen[bytes], manager: socket.socket) -> None:
        self.pid = process.pid
        self._manager = manager.makefile("rwb")
        self._manager.readline()  # its greeting
        self.ask("Login", Username="bench", Secret=SECRET, Events="system")
        while self._message().get("Event") != "FullyBooted":
            pass  # the modules are still being loaded
        self.ask("Events", EventMask="off")

    def ask(self, action: str, **headers: str) -> dict[str, str]:
        """What the manager answers; RuntimeError where that is no success."""
        lines = [f"Action: {action}", *(f"{key}: {value}" for key, value in headers.items())]
        self._manager.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        self._manager.flush()
        while "Response" not in (answer := self._message()):
            pass  # events come in between
        if answer.get("Response") != "Success":
            raise RuntimeError(f"Asterisk refuses {action}: {answer}")
        return answer

    def _message(self) -> dict[str, str]:
        message: dict[str, str] = {}
        while line := self._manager.readline().strip().decode():
            key, _, value = line.partition(": ")
            message[key] = value
        if not message:
            raise RuntimeError("Asterisk's manager hung up")
        return message

    def call(self, number: str, clip: str) -> None:
        """Places a call that plays the clip (a path inside, without its ending) and hangs up."""
        self.ask(
            "Originate",
            Channel=f"PJSIP/{number}@carrier",
            Application="Playback",
            Data=clip,
            CallerID="02191000000",
            Async="true",
        )

    def running(self) -> int:
        """Its channels: calls that ring or run."""
        return int(self.ask("CoreStatus")["CoreCurrentCalls"])


def home() -> Path:
    """The folder that Asterisk lies in; ends the bench where there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("BITEL_BENCH_ASTERISK") or cache / "bitel" / "asterisk")
    if not (folder / "usr/sbin/asterisk").exists():
        missing(f"there is no Asterisk in {folder}: run scripts/bench-peers")
    if os.geteuid() != 0:
        missing("Asterisk runs in a chroot, which needs root")
    return folder


def version() -> str:
    """As it names itself."""
    told = subprocess.run(
        ["chroot", home(), "asterisk", "-V"], capture_output=True, text=True, check=True
    )
    return " ".join(told.stdout.split()[:2]).partition("+")[0]


@contextmanager
def asterisk(carrier: int, clip: Path) -> Iterator[tuple[Asterisk, str]]:
    """Runs it until the block ends; also the name by which it plays `clip`, a raw A-law file.

    `carrier` is the port of 127.0.0.1 that calls are sent to.
    """
    root = home()
    with tempfile.TemporaryDirectory(prefix="bitel-bench-", dir=root / "tmp") as folder:
        inside = f"/tmp/{Path(folder).name}"
        values = _write(root, Path(folder), inside, carrier)
        shutil.copyfile(clip, Path(folder) / "clip.alaw")
        # In the foreground, with neither console nor colours; -f alone keeps it from forking.
        command = ["chroot", str(root), "asterisk", "-f", "-C", f"{inside}/asterisk.conf"]
        with (Path(folder) / "output").open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            with _connect(process, int(values["manager"]), Path(folder)) as manager:
                yield Asterisk(process, manager), f"{inside}/clip"
        finally:
            process.kill()
            process.wait()


def _write(root: Path, folder: Path, inside: str, carrier: int) -> dict[str, str]:
    (modules,) = (path.parent for path in root.glob("usr/lib/*/asterisk/modules/chan_pjsip.so"))
    values = {
        "inside": inside,
        "modules": f"/{modules.relative_to(root)}",
        "loads": "\n".join(f"load = {name}.so" for name in MODULES),
        "secret": SECRET,
        "carrier": str(carrier),
        "sip": str(_free_port(socket.SOCK_DGRAM)),
        "manager": str(_free_port(socket.SOCK_STREAM)),
        "rtp_first": "40000",
        "rtp_last": "59999",
    }
    for name, text in FILES.items():
        (folder / name).write_text(text.format(**values))
    return values


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _connect(process: subprocess.Popen[bytes], port: int, folder: Path) -> socket.socket:
    end = time.monotonic() + START_PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10.0)
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                told = (folder / "output").read_text(errors="replace")[-2000:]
                raise SystemExit(f"Asterisk does not start: {told}") from None
            time.sleep(0.05)  # another process is waited for
