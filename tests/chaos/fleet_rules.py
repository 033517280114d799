"""Rules about several workers together: the limits that they share, and the death of one."""

from __future__ import annotations

import bisect
import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from tests.chaos.checks import Violation
from tests.chaos.evidence import SERVER, Evidence, Fault

CONTINUES: Final = 10.0
"""Seconds in which others notice that a worker is dead."""


def check_fleet(evidence: Evidence, rate: int, channels: int) -> list[Violation]:
    """Every violation of the rules about several workers."""
    return [
        *_over_the_rate(evidence, rate),
        *_over_the_channels(evidence, channels),
        *_noticed_late(evidence),
    ]


def _over_the_rate(evidence: Evidence, rate: int) -> Iterator[Violation]:
    """New INVITEs of all workers in a sliding second: the rate and one more, at most.

    Those count too that were lost on their way to the carrier.
    """
    begun = sorted([*(each.left for each in evidence.invitations), *evidence.lost_invites])
    for number, at in enumerate(begun):
        count = bisect.bisect_left(begun, at + 1.0) - number
        if count > rate + 1:
            when = at - evidence.begun
            yield Violation("rate exceeded", f"{count} INVITEs in the second from {when:.2f}")
            return


def _over_the_channels(evidence: Evidence, channels: int) -> Iterator[Violation]:
    """Calls at once, as the carrier counts them.

    A call is over when the service sends BYE, also where that is lost on its way: with it the
    session has ended for the one that sends it (RFC 3261, 15.1.1), and it can't know of the loss.
    """
    steps: list[tuple[float, int]] = []
    for each in evidence.invitations:
        end = each.sent[-1] if each.silent else each.end
        steps += [(each.left, 1), (min(end, evidence.ended), -1)]
    busy = most = 0
    when = 0.0
    for at, step in sorted(steps):
        busy += step
        if busy > most:
            most, when = busy, at
    if most > channels:
        yield Violation("channels exceeded", f"{most} calls at once at {when - evidence.begun:.1f}")


def _noticed_late(evidence: Evidence) -> Iterator[Violation]:
    """After the death of a worker others, or its next process, take its calls within 10 s."""
    taken = sorted(
        at
        for line in evidence.log
        if " worker_dead " in line or " recovered " in line or " ready " in f"{line} "
        for at in _time_of(line)
    )
    for fault in evidence.faults:
        if fault.kind != "kill":
            continue
        after = [at for at in taken if at > fault.at]
        limit = fault.at + CONTINUES
        if _had_no_lease(evidence, fault) or _could_not(evidence, fault, limit):
            continue
        if not after or after[0] > limit + 1.0:
            yield Violation(
                "death noticed late", f"{fault.detail} at {fault.at - evidence.begun:.1f}"
            )


def _had_no_lease(evidence: Evidence, death: Fault) -> bool:
    """Whether others had ended the lease of the process that was killed before that."""
    exits = [each.at for each in evidence.exits_of(death.detail) if each.at < death.at]
    begun = max(exits, default=evidence.begun)
    return any(name == death.detail and begun < at < death.at for name, at in evidence.taken_over)


def _could_not(evidence: Evidence, death: Fault, limit: float) -> bool:
    """Whether the database was away, or no other worker was well in the time after a death."""
    near = [
        each
        for each in evidence.faults
        if each is not death and each.at - 1 <= limit and each.until + CONTINUES >= death.at
    ]
    if any(each.detail == SERVER for each in near):
        return True
    return evidence.workers - {death.detail} <= {each.detail for each in near}


def taken_over(log: Sequence[str], pids: Mapping[int, str]) -> Iterator[tuple[str, float]]:
    """The workers whose lease others have ended, and when; `pids` gives the names of workers.

    Such a worker is named in the log by its machine, process and instance, as in `vm-4711-0af32d`.
    """
    for line in log:
        found = re.search(r" worker_dead .*worker=\S+-(\d+)-\w+", line)
        if found is not None and int(found[1]) in pids:
            for at in _time_of(line):
                yield pids[int(found[1])], at


def _time_of(line: str) -> Iterator[float]:
    """The time at the beginning of a line of the log, on the monotonic clock, if there is one."""
    with contextlib.suppress(ValueError, IndexError):
        stamp = datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp()
        yield stamp - time.time() + time.monotonic()
