"""The service's clock: Unix seconds that steps of the system clock do not affect.

Due times, leases, expiry times and ages are stored in the database as Unix seconds. They outlive a
process and are shared by several, so a monotonic clock can't measure them, and the system clock may
be set at any time: by NTP after boot, by an administrator, by a hypervisor. This clock is
CLOCK_BOOTTIME plus an anchor. The anchor is taken from the system clock once, is kept in
`data_dir`, and is shared by all processes that use that folder.

When the system clock is set, the two differ by a *gap*: system clock minus service clock. The gap
is closed by running `SLEW` faster or slower, as adjtime(3) does. So machines that share a database
agree again in the end, and no interval is wrong by more than that share.

Times of day follow the system clock: dates shown to clients, calling windows, and what other
systems check (expiry of tokens, timestamps of webhooks). The clock remembers past gaps, so that
`date` gives, for any stored time, what the system clock showed then; a date that a client has seen
does not change later.

A reboot is not a step: the service clock continues from the system clock and the last gap, and
never before the last time that it is known to have shown. So if a machine boots with a clock that
is behind, no call is repeated and none expires early.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from bitel.errors import BitelError

log = structlog.get_logger(__name__)

SLEW: Final = 0.005
"""Seconds per second by which the gap is closed: 30 s take 100 minutes, an hour takes 8 days."""

STEP: Final = 0.25
"""Seconds by which the system clock must have moved against the boot clock to count as set. NTP's
gradual corrections change the rate of both clocks, so they cause no difference."""

MOST_GAPS: Final = 1000
"""Gaps that are remembered for the dates of stored times; the oldest are forgotten first."""

SAVED_EVERY: Final = 60.0
"""Minimum seconds between two writes by `save`."""

LOCK_TIMEOUT: Final = 5.0
"""Seconds for which a start waits for another process that writes the file."""

_RETRY: Final = 1.0
"""Seconds until the next try to record a step that could not be written."""

_EXACT: Final = 0.001
"""Maximum seconds between the two readings of the boot clock around one of the system clock."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS: Final = Path("/proc/self/timens_offsets")


@dataclass(frozen=True, slots=True)
class Gap:
    """System clock minus service clock at one moment; it is closed from then on."""

    at: float
    """The moment, in Unix seconds of the service clock."""
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
        """The service clock when the system clock shows `date`, if it is not set before then."""
        return self.service_time(date - self.at - self.seconds)


@dataclass(frozen=True, slots=True)
class Anchor:
    """The state that processes share in the file: all gaps, and the boot clock at the last one."""

    boot: str
    """Identifies the boot that `since` belongs to."""
    since: float
    """The boot clock at the last gap, in seconds."""
    gaps: tuple[Gap, ...]
    """At least one, in order of time."""
    seen: float
    """A time that the service clock has reached, in Unix seconds."""

    def now(self, boot_time: float) -> float:
        """The service clock when the boot clock shows `boot_time`."""
        return self.gaps[-1].service_time(boot_time - self.since)

    def gap(self, at: float) -> float:
        """System clock minus service clock at `at` by the service clock."""
        place = bisect_right(self.gaps, at, key=lambda each: each.at)
        return self.gaps[place - 1].after(at - self.gaps[place - 1].at) if place else 0.0

    def with_gap(self, boot: str, boot_time: float, gap: Gap) -> Anchor:
        """The anchor with another gap."""
        gaps = (*self.gaps, gap)[-MOST_GAPS:]
        return Anchor(boot, boot_time, gaps, max(self.seen, gap.at))

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps(
            {
                "boot": self.boot,
                "since": self.since,
                "gaps": [[each.at, each.seconds] for each in self.gaps],
                "seen": self.seen,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Anchor:
        """Parse the content of the file. Raises ValueError."""
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
    """Call it for the service's time in Unix seconds. Thread-safe.

    Created by `open` in the service, and by `read` in other commands.
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
        """The clock of `data_dir`; its file is created on first use.

        `system` gives Unix seconds, `boot_time` seconds since boot, which `boot` identifies. Raises
        BitelError if the file can't be read or locked. If it can't be written, `save` tries later.
        """
        boot_time = boot_time or _boot_time
        boot = _boot_id() if boot is None else boot
        path = data_dir / "clock"
        try:
            with _locked(path, LOCK_TIMEOUT):
                anchor = _load(path)
                if anchor is None and path.exists():
                    log.warning("clock_file_damaged", path=str(path))
                if anchor is None or anchor.boot != boot or boot_time() < anchor.since:
                    anchor = _continued(anchor, boot, *_both(system, boot_time))
                    if abs(anchor.gaps[-1].seconds) >= STEP:
                        log.warning("clock_continued", ahead=round(anchor.gaps[-1].seconds, 3))
                    try:
                        _store(path, anchor)
                    except OSError as fault:
                        # Calls must be possible while the disk is full.
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

        Without a readable file it starts at the system clock.
        """
        boot = _boot_id()
        try:
            anchor = _load(data_dir / "clock")
        except OSError:
            anchor = None
        if anchor is None or anchor.boot != boot:
            anchor = _continued(anchor, boot, *_both(time.time, _boot_time))
        return cls(anchor, None, boot, time.time, _boot_time)

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

        0, which means that something has not happened, stays 0.
        """
        if at <= 0:
            return at
        self()  # reads a step that another process has recorded
        return at + self._anchor.gap(at)

    def at(self, date: float) -> float:
        """The time at which the system clock shows `date`: the inverse of `date`.

        A date that it has shown twice, since it was set back, gives the later time.
        """
        self()  # reads a step that another process has recorded
        gaps, end = self._anchor.gaps, math.inf
        for gap in reversed(gaps):
            at = gap.service_time_of(date)
            if gap.at <= at:
                # A date that was skipped, since the clock was set forward, gives the time of that.
                return min(at, end)
            end = gap.at
        return min(date, end)

    def save(self) -> None:
        """Write the time for the next boot, at most every `SAVED_EVERY` seconds. Never raises."""
        now = self()
        if self._boot_time() - self._saved_at < SAVED_EVERY:
            return
        self._saved_at = self._boot_time()
        self._update(lambda anchor: replace(anchor, seen=max(anchor.seen, now)))

    def _record_step(self) -> None:
        """Record that the system clock was set, unless another process has done so."""
        if self._boot_time() - self._failed_at < _RETRY:
            return

        def with_step(anchor: Anchor) -> Anchor:
            system, boot_time = _both(self._system, self._boot_time)
            now = anchor.now(boot_time)
            before, gap = anchor.gap(now), system - now
            if abs(gap - before) < STEP:
                return anchor
            if self._path is not None:
                log.warning("system_clock_set", by=round(gap - before, 3), ahead=round(gap, 3))
            return anchor.with_gap(self._boot, boot_time, Gap(now, gap))

        self._update(with_step)

    def _update(self, change: Callable[[Anchor], Anchor]) -> None:
        """Read the file, change it, and use the result. If that fails, a later call tries again."""
        if not self._recording.acquire(blocking=False):
            return  # another thread does it, and the time does not depend on it
        try:
            if self._path is None:
                self._anchor = change(self._anchor)
                return
            with _locked(self._path, 0.0):
                # A missing file, or one of another boot, was changed from outside: keep ours.
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
    """The anchor after a boot, from the system clock and the anchor of before, if any."""
    if known is None:
        return Anchor(boot, boot_time, (Gap(system, 0.0),), system)
    now = max(known.gaps[-1].service_time_of(system), known.seen)
    return known.with_gap(boot, boot_time, Gap(now, system - now))


def _both(system: Callable[[], float], boot_time: Callable[[], float]) -> tuple[float, float]:
    """Both clocks at one moment; repeats readings between which the process was suspended."""
    best = math.inf
    found = 0.0, 0.0
    for _ in range(20):
        before = boot_time()
        at = system()
        after = boot_time()
        if after - before < best:
            best, found = after - before, (at, before)
        if best <= _EXACT:
            break
    return found


def _boot_time() -> float:
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _boot_id() -> str:
    """Identifies the zero of the boot clock: the boot and the time namespace.

    If the system provides neither, each process counts as a boot of its own.
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
    """Lock out other processes; waits `timeout` seconds for the lock. Raises OSError."""
    file = os.open(
        path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        end = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise TimeoutError from None
            time.sleep(0.01)
        yield
    finally:
        os.close(file)


def _load(path: Path) -> Anchor | None:
    """The anchor in the file; None if it is missing or damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return Anchor.from_json(path.read_text())
    return None


def _store(path: Path, anchor: Anchor) -> None:
    draft = path.with_name(f"{path.name}.new")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(anchor.to_json())
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
