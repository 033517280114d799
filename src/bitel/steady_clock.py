"""The service's clock: Unix seconds, unaffected by steps of the system clock.

Due times, ends of leases, expiry times and ages are stored in the database as Unix seconds. They
outlive a process and are shared by several, so a monotonic clock can't measure them, and the system
clock may be set at any moment: by NTP, by an administrator, by a hypervisor. This clock is
CLOCK_BOOTTIME plus an anchor, which is taken from the system clock once, is kept in `data_dir`, and
is shared by all processes that use that folder.

When the system clock is set, the two differ by a *gap*: system clock minus service clock. The gap
is closed by running at most `SLEW` faster or slower, as adjtime(3) does, so that machines that
share a database agree again in the end, and no interval is ever wrong by more than that share.

Dates shown to clients, calling windows, the expiry of tokens and timestamps of webhooks follow the
system clock. The clock keeps its past gaps, so `date` gives, for any stored time, what the system
clock showed at that moment, and a date that a client has seen does not change later.

After a restart of the machine the service clock continues from the system clock and the last gap,
and never from before the last time that it is known to have shown. So where a machine starts with a
clock that is behind, no call is made a second time, and none expires before its time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from bitel.errors import BitelError

log = structlog.get_logger(__name__)

SLEW: Final = 0.005
"""Seconds per second by which the gap to the system clock is closed: 30 s take 100 minutes, an hour
takes 8 days."""

STEP: Final = 0.25
"""Seconds by which the system clock must move against the boot clock to count as set. NTP's gradual
corrections change the rate of both."""

MOST_GAPS: Final = 1000
"""Gaps that are kept for the dates of stored times, the latest."""

SAVED_EVERY: Final = 60.0
"""Seconds between two times that `save` writes."""

LOCK_TIMEOUT: Final = 5.0
"""Seconds that a start waits for another process that writes the file."""

_RETRY: Final = 1.0
"""Seconds until a step that could not be written is tried again."""

_EXACT: Final = 0.001
"""Seconds between two readings of the boot clock that make one of the system clock exact."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS: Final = Path("/proc/self/timens_offsets")


class Gap(NamedTuple):
    """System clock minus service clock, as it was at one moment and is closed from then on."""

    at: float
    """The moment, by the service clock in Unix seconds."""
    seconds: float
    """Positive: the system clock is ahead."""

    def after(self, elapsed: float) -> float:
        """What is left of it `elapsed` seconds of the service clock later."""
        left = max(0.0, abs(self.seconds) - SLEW * max(0.0, elapsed))
        return math.copysign(left, self.seconds)

    def service_time(self, passed: float) -> float:
        """The service clock `passed` real seconds after `at`."""
        rate = 1.0 - math.copysign(SLEW, self.seconds)
        if passed < abs(self.seconds) / SLEW * rate:
            return self.at + passed / rate
        return self.at + passed + self.seconds

    def service_time_of(self, date: float) -> float:
        """The service clock when the system clock shows `date`, if it is not set before."""
        return self.service_time(date - self.at - self.seconds)


class Anchor(NamedTuple):
    """What processes share in the file: the boot clock at the last gap, and all gaps."""

    boot: str
    """Identifies the start of the machine that `since` belongs to."""
    since: float
    """The boot clock at the last gap, in seconds."""
    gaps: tuple[Gap, ...]
    """At least one, in order of time."""
    seen: float
    """A time that the service clock has reached, in Unix seconds."""

    def now(self, boot_time: float) -> float:
        """The service clock, where the boot clock shows `boot_time`."""
        return self.gaps[-1].service_time(boot_time - self.since)

    def gap(self, at: float) -> float:
        """System clock minus service clock at `at` by the service clock."""
        place = bisect_right(self.gaps, at, key=lambda each: each.at)
        return self.gaps[place - 1].after(at - self.gaps[place - 1].at) if place else 0.0

    def with_gap(self, boot: str, boot_time: float, gap: Gap) -> Anchor:
        """The anchor that a new gap makes of this one."""
        gaps = (*self.gaps, gap)[-MOST_GAPS:]
        return Anchor(boot, boot_time, gaps, max(self.seen, gap.at))

    @classmethod
    def from_json(cls, text: str) -> Anchor:
        """The anchor in a file. Raises ValueError where it is none."""
        try:
            data: dict[str, Any] = json.loads(text)
            gaps = tuple(Gap(float(at), float(seconds)) for at, seconds in data["gaps"])
            anchor = cls(str(data["boot"]), float(data["since"]), gaps, float(data["seen"]))
        except (LookupError, TypeError, AttributeError) as fault:
            raise ValueError("not an anchor") from fault
        times = [anchor.since, anchor.seen, *(x for each in gaps for x in (each.at, each.seconds))]
        if not gaps or not all(map(math.isfinite, times)):
            raise ValueError("not an anchor")
        return anchor


class SteadyClock:
    """Call it for the service's time in Unix seconds, on any thread.

    Made by `open` in the service and by `read` in commands beside it.
    """

    def __init__(
        self,
        anchor: Anchor,
        path: Path | None,
        boot: str,
        system: Callable[[], float],
        boot_time: Callable[[], float],
    ) -> None:
        self._anchor = anchor
        self._path = path
        self._boot = boot
        self._system = system
        self._boot_time = boot_time
        self._recording = threading.Lock()
        self._saved_at = boot_time()
        self._failed_at = -math.inf

    @classmethod
    def open(
        cls,
        data_dir: Path,
        *,
        system: Callable[[], float] = time.time,
        boot_time: Callable[[], float] | None = None,
        boot: str | None = None,
    ) -> SteadyClock:
        """The clock of `data_dir`, whose file is made on first use.

        `system` gives Unix seconds, `boot_time` seconds since the start of the machine, which
        `boot` identifies. Raises BitelError where the file can't be read or locked. One that can't
        be written is written later.
        """
        boot_time = boot_time or boot_clock
        boot = _boot_id() if boot is None else boot
        path = data_dir / "clock"
        try:
            with _locked(path, LOCK_TIMEOUT):
                anchor = _load(path)
                if anchor is None and path.exists():
                    log.warning("clock_file_damaged", path=str(path))
                if anchor is None or anchor.boot != boot or boot_time() < anchor.since:
                    anchor = _continued(anchor, boot, *_read_both(system, boot_time))
                    if abs(anchor.gaps[-1].seconds) >= STEP:
                        log.warning("clock_continued", ahead=round(anchor.gaps[-1].seconds, 3))
                    try:
                        _store(path, anchor)
                    except OSError as fault:
                        # Calls are made although the disk is full.
                        log.warning("clock_not_saved", fault=str(fault))
        except TimeoutError:
            raise BitelError(
                f"{path} is locked by another process for more than {LOCK_TIMEOUT:g} s"
            ) from None
        except OSError as fault:
            raise BitelError(f"{path} can't be used: {fault.strerror}") from fault
        return cls(anchor, path, boot, system, boot_time)

    @classmethod
    def read(cls, data_dir: Path) -> SteadyClock:
        """The clock of `data_dir`, for a command that must not write its file.

        Without a readable file it is the system clock of this moment.
        """
        boot = _boot_id()
        try:
            anchor = _load(data_dir / "clock")
        except OSError:
            anchor = None
        if anchor is None or anchor.boot != boot:
            anchor = _continued(anchor, boot, *_read_both(time.time, boot_clock))
        return cls(anchor, None, boot, time.time, boot_clock)

    def __call__(self) -> float:
        """Now, in Unix seconds."""
        boot_time = self._boot_time()
        now = self._anchor.now(boot_time)
        if abs(self._system() - now - self._anchor.gap(now)) >= STEP:
            self._record_step()
            now = self._anchor.now(boot_time)
        return now

    @property
    def gap(self) -> float:
        """Seconds by which the system clock is ahead of this one now."""
        now = self()
        return self._anchor.gap(now)

    def date(self, at: float) -> float:
        """What the system clock showed, or will show, at the time `at`; both in Unix seconds.

        0, for what has not happened, stays 0.
        """
        if at <= 0:
            return at
        self()  # notices a step that another process has written already
        return at + self._anchor.gap(at)

    def save(self) -> None:
        """Write the time, if that is due, for the next start of the machine. Never raises."""
        now = self()
        if self._boot_time() - self._saved_at < SAVED_EVERY:
            return
        self._saved_at = self._boot_time()
        self._update(lambda anchor: anchor._replace(seen=max(anchor.seen, now)))

    def _record_step(self) -> None:
        """Record that the system clock was set, unless another process has done so."""
        if self._boot_time() - self._failed_at < _RETRY:
            return

        def with_step(anchor: Anchor) -> Anchor:
            system, boot_time = _read_both(self._system, self._boot_time)
            now = anchor.now(boot_time)
            before, gap = anchor.gap(now), system - now
            if abs(gap - before) < STEP:
                return anchor
            if self._path is not None:
                log.warning("system_clock_set", by=round(gap - before, 3), ahead=round(gap, 3))
            return anchor.with_gap(self._boot, boot_time, Gap(now, gap))

        self._update(with_step)

    def _update(self, change: Callable[[Anchor], Anchor]) -> None:
        """Read the file, change it, and use what it then holds. A failure is tried again later."""
        if not self._recording.acquire(blocking=False):
            return  # another thread does it, and the time does not depend on it
        try:
            if self._path is None:
                self._anchor = change(self._anchor)
                return
            with _locked(self._path, 0.0):
                # No file, or one of another boot, was put there from outside: keep ours.
                found = _load(self._path)
                old = found if found is not None and found.boot == self._boot else self._anchor
                new = change(old)
                if new != found:
                    _store(self._path, new)
                self._anchor = new
        except OSError as fault:
            self._failed_at = self._boot_time()
            log.warning("clock_not_saved", fault=str(fault) or "another process writes it")
        finally:
            self._recording.release()


def _continued(known: Anchor | None, boot: str, system: float, boot_time: float) -> Anchor:
    """The anchor after a start of the machine, from the system clock and what is known."""
    if known is None:
        return Anchor(boot, boot_time, (Gap(system, 0.0),), system)
    now = max(known.gaps[-1].service_time_of(system), known.seen)
    return known.with_gap(boot, boot_time, Gap(now, system - now))


def _read_both(system: Callable[[], float], boot_time: Callable[[], float]) -> tuple[float, float]:
    """System clock and boot clock at one moment, from the least interrupted of some readings."""
    best, found = math.inf, (0.0, 0.0)
    for _ in range(20):
        before, at, after = boot_time(), system(), boot_time()
        if after - before < best:
            best, found = after - before, (at, before)
        if best <= _EXACT:
            break
    return found


def boot_clock() -> float:
    """Seconds of a monotonic clock that also counts while the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _boot_id() -> str:
    """Identifies what the boot clock counts from: a start of the machine, in a time namespace.

    Where neither is known, each process counts as a start of its own.
    """
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        return f"process {os.getpid()} {time.monotonic()}"
    with contextlib.suppress(OSError):
        offsets = " ".join(_OFFSETS.read_text().split())
        return f"{boot} {offsets}"
    return boot


@contextlib.contextmanager
def _locked(path: Path, timeout: float) -> Iterator[None]:
    """Exclude other processes, waiting up to `timeout` seconds for them. Raises OSError."""
    lock = path.with_name(f"{path.name}.lock")
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + timeout
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise TimeoutError from None
            time.sleep(0.01)  # flock(2) has no timeout
        yield
    finally:
        os.close(file)


def _load(path: Path) -> Anchor | None:
    """The anchor in the file; None if there is none, or a damaged one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return Anchor.from_json(path.read_text())
    return None


def _store(path: Path, anchor: Anchor) -> None:
    draft = path.with_name(f"{path.name}.new")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(json.dumps(anchor._asdict()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
