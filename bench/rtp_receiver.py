"""The RTP receiver in C (`rtp_receiver.c`), as a process."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench import report

NICE = -15  # the senders have -10


@dataclass(frozen=True, slots=True)
class Arrived:
    """Packets received in a period.

    `missing` packets are holes in the sequence numbers; `overflowed` of them were lost by the
    receiver itself. `off_*` is how far the spacing of packets was from 20 ms, in ms, by the
    kernel's time of arrival; `off_p99_of_worst` that of the stream that had it worst.
    """

    streams: int
    packets: int
    missing: int
    late_or_double: int
    overflowed: int
    cpu_seconds: float
    off_p99: float
    off_p999: float
    off_worst: float
    off_p99_of_worst: float


class Receiver:
    """A running receiver on `ports` of 127.0.0.1. A context manager."""

    def __init__(self, program: Path, sockets: int) -> None:
        self._process = subprocess.Popen(
            [program, str(sockets), str(os.cpu_count() or 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.ports = [int(port) for port in self._line().split()]
        self._take_priority()

    def arrived(self) -> Arrived:
        """Packets received since the last call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told = self._line().split()
        streams, packets, missing, late_or_double, overflowed = map(int, told[:5])
        return Arrived(streams, packets, missing, late_or_double, overflowed, *map(float, told[5:]))

    def _take_priority(self) -> None:
        """Raises its priority, below that of the senders, so that it loses no packets."""
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{self.pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), NICE)
        # With autogroup scheduling, niceness applies only within the session.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/autogroup").write_text(str(NICE))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the receiver of streams ended")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


def compiled(name: str, folder: Path) -> Path:
    """Compiles `bench/NAME.c`; ends the bench if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        report.missing("a C compiler is missing (Debian, Ubuntu: apt-get install gcc libc6-dev)")
    program = folder / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler, "-O2", "-o", program, source, "-lm", "-pthread"], check=True)
    return program
