"""Ways out of the workers, each tried from inside: with all layers, and with each of two alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from bitel.recordings import sandbox, worker_process
from bitel.recordings.limits import MEBIBYTE
from tests.support.prerequisites import need

if TYPE_CHECKING:
    from tests.recordings.audio_files import Media

ESCAPES = r"""
import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
parent, secret, folder = int(sys.argv[-3]), sys.argv[-2], sys.argv[-1]

def call(function, *arguments):
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def execute():
    os.execv("/bin/true", ["true"])

def start():
    if os.fork() == 0:
        os._exit(0)

def connect():
    socket.create_connection(("127.0.0.1", int(open_port)), 1)

def send():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))

def read_memory():
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(buffer), 8)
    remote = struct.pack("QQ", ctypes.addressof(buffer), 8)
    call(libc.process_vm_readv, parent, local, 1, remote, 1, 0)

def make_code():
    page = libc.mmap
    page.restype = ctypes.c_long
    call(page, None, ctypes.c_size_t(4096), 7, 0x22, -1, 0)

WAYS = {
    "read a secret": lambda: open(secret).read(),
    "read a secret by openat": lambda: call(libc.openat, -100, secret.encode(), 0),
    "write into data_dir": lambda: open(folder + "/new", "w"),
    "truncate a secret": lambda: os.truncate(secret, 0),
    "remove a secret": lambda: os.unlink(secret),
    "rename a secret": lambda: os.rename(secret, folder + "/other"),
    "list data_dir": lambda: os.listdir(folder),
    "make a folder": lambda: os.mkdir(folder + "/sub"),
    "link into data_dir": lambda: os.link(secret, folder + "/link"),
    "link an open file into data_dir": lambda: os.link("/proc/self/fd/2", folder + "/link"),
    "link symbolically": lambda: os.symlink("/etc/passwd", folder + "/link"),
    "open the memory of the parent": lambda: open(f"/proc/{parent}/mem", "rb"),
    "read the memory of the parent": read_memory,
    "trace the parent": lambda: call(libc.ptrace, 16, parent, 0, 0),
    "kill the parent": lambda: os.kill(parent, 0),
    "run a program": execute,
    "start a process": start,
    "make a socket": lambda: socket.socket(),
    "send a datagram": send,
    "make a pair of sockets": lambda: socket.socketpair(),
    "make code": make_code,
    "become root": lambda: os.setuid(0),
    "unshare": lambda: call(libc.unshare, 0x10000000),
    "mount": lambda: call(libc.mount, b"none", folder.encode(), b"tmpfs", 0, None),
    "io_uring": lambda: call(libc.syscall, 425, 1, 0),
}

def escape(*_):
    for name, way in WAYS.items():
        try:
            way()
        except (OSError, ValueError):
            continue
        os.write(2, f"escaped: {name}\n".encode())
    os.write(2, b"tried all\n")
    return 0
"""

DECODER = """
from bitel.recordings import decode_worker, sandbox, transcoding
transcoding.transcode = escape
sys.exit(decode_worker.main(sys.argv[1:-3]))
"""
SPEAKER = """
from bitel.speech import worker
worker._Speaker.speak = escape
sys.exit(worker.main(sys.argv[1:-3]))
"""
WITHOUT_SECCOMP = "from bitel.recordings import sandbox\nsandbox.has_seccomp = lambda: False\n"
WITHOUT_LANDLOCK = "from bitel.recordings import sandbox\nsandbox.landlock_version = lambda: 0\n"
WITHOUT_USER = "import os\nos.geteuid = lambda: 1000\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the service in a folder that every user may enter."""
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "signing.key"
    path.write_text("secret")
    for each in (path, folder, *folder.parents[:3]):
        if each.stat().st_uid == os.geteuid():
            each.chmod(each.stat().st_mode | 0o055)
    path.chmod(0o666)
    folder.chmod(0o777)
    return path


def escapes_of(script: str, arguments: list[str], secret: Path, *descriptors: int) -> set[str]:
    """What a worker manages to do that runs `script` after its confinement."""
    ran = subprocess.run(
        [sys.executable, "-c", ESCAPES + script, *arguments, str(os.getpid()), str(secret),
         str(secret.parent)],
        capture_output=True, text=True, check=False, pass_fds=descriptors, timeout=60, input="x\n",
    )  # fmt: skip
    lines = ran.stderr.splitlines()
    assert "tried all" in lines, ran.stderr
    assert secret.read_text() == "secret"
    assert [path.name for path in secret.parent.iterdir()] == [secret.name]
    return {line.removeprefix("escaped: ") for line in lines if line.startswith("escaped: ")}


def from_decoder(before: str, media: Media, tmp_path: Path, secret: Path) -> set[str]:
    with (
        media.wav().open("rb") as source,
        (tmp_path / "alaw").open("wb") as alaw,
        (tmp_path / "ulaw").open("wb") as ulaw,
    ):
        descriptors = source.fileno(), alaw.fileno(), ulaw.fileno()
        limits = ["8000", "10", str(512 * MEBIBYTE), "30"]
        arguments = [*map(str, descriptors), *limits]
        return escapes_of(before + DECODER, arguments, secret, *descriptors)


def from_speaker(before: str, tmp_path: Path, secret: Path) -> set[str]:
    with (tmp_path / "spoken").open("wb") as spoken:
        number = spoken.fileno()
        limits = ["60", "10", str(2048 * MEBIBYTE), "30"]
        arguments = ["espeak-ng", "en", "150", str(number), *limits]
        return escapes_of(before + SPEAKER, arguments, secret, number)


def need_layers() -> None:
    need(sandbox.has_seccomp(), "system calls can't be filtered here (seccomp)")
    need(sandbox.landlock_version() >= 6, "Landlock of version 6 or later is missing here")


def test_a_decoder_gets_nowhere(media: Media, tmp_path: Path, secret: Path) -> None:
    need_layers()
    assert from_decoder("", media, tmp_path, secret) == set()


def test_a_decoder_gets_nowhere_as_the_service_s_own_user(
    media: Media, tmp_path: Path, secret: Path
) -> None:
    need_layers()
    assert from_decoder(WITHOUT_USER, media, tmp_path, secret) == set()


def test_seccomp_alone_suffices(media: Media, tmp_path: Path, secret: Path) -> None:
    need_layers()
    assert from_decoder(WITHOUT_LANDLOCK + WITHOUT_USER, media, tmp_path, secret) == set()


def test_landlock_and_another_user_keep_the_rest_out_of_reach(
    media: Media, tmp_path: Path, secret: Path
) -> None:
    """Without seccomp a process can be started and code be made, of no more use than the first."""
    need_layers()
    need(os.geteuid() == 0, "only root can become another user")
    allowed = {"start a process", "make code", "unshare"}
    assert from_decoder(WITHOUT_SECCOMP, media, tmp_path, secret) <= allowed


def test_espeak_reads_its_own_files_alone(tmp_path: Path, secret: Path) -> None:
    need_layers()
    assert from_speaker("", tmp_path, secret) == set()


def test_espeak_without_landlock_opens_nothing(tmp_path: Path, secret: Path) -> None:
    need_layers()
    assert from_speaker(WITHOUT_LANDLOCK, tmp_path, secret) == set()


@pytest.mark.parametrize(
    ("seccomp", "landlock", "user", "level"),
    [(True, 7, 0, "info"), (True, 0, 1000, "info"), (False, 7, 0, "info"),
     (False, 7, 1000, "warning"), (False, 0, 0, "warning"), (False, 0, 1000, "warning")],
)  # fmt: skip
def test_the_start_says_what_protects_and_what_does_not(
    monkeypatch: pytest.MonkeyPatch, seccomp: bool, landlock: int, user: int, level: str
) -> None:
    monkeypatch.setattr(sandbox, "has_seccomp", lambda: seccomp)
    monkeypatch.setattr(sandbox, "landlock_version", lambda: landlock)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with structlog.testing.capture_logs() as logs:
        worker_process.log_confinement()
    [line] = logs
    assert (line["event"], line["log_level"]) == ("workers_confined", level)
    assert ("seccomp" in line["by"], "seccomp" in line["missing"]) == (seccomp, not seccomp)
    assert ("Landlock" in line["by"]) is bool(landlock)
    assert ("another user" in line["missing"]) is bool(user)


def test_the_sandbox_costs_a_worker_no_libraries() -> None:
    """Each module that it loads takes of the memory that is granted to the decoder."""
    script = "import sys; from bitel.recordings import decode_worker; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"structlog", "asyncio", "numpy", "av"} & set(ran.stdout.split())
