"""Measures the detection of answering machines beside Asterisk's app_amd on the same audio.

`python -m bench.answering_machines` speaks greetings of humans and machines with espeak-ng and
flite, sends them through noise, G.711 and packet loss, and compares the decisions. Parameters were
tuned on the training voices; the figures with a target are those of the test voices. A second part
runs many calls at once, in real time, through the detection process. `scripts/setup dev` installs
the speech engines, `scripts/peers` Asterisk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import amd_peer, report
from bench.greetings import Part, greetings, render
from bench.line_audio import Call, call
from bench.report import Result, Row, at_least, at_most, say
from bitel.answering_machine import (
    Decision,
    DetectionProcess,
    Detector,
    DetectorSettings,
    FrameWindow,
    ToneEnd,
    Verdict,
    measure,
)
from bitel.g711 import Pcm
from tests.peers.asterisk import version, why_missing

PARTS: tuple[Part, ...] = ("train", "test")
BABBLE = 20  # texts that the babble is made of
NEAR = 0.15  # seconds from the end of a beep within which its report is right
LATE_AT_MOST = 0.25  # seconds from the last packet to the decision
STEP = 380  # calls
NICE = -10  # as RTP senders have it
FAR = 100_000  # from one part's seeds to the next


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided on a call, and its record tones with the time each was known."""

    call: Call
    decision: Decision | None
    beeps: Sequence[tuple[float, ToneEnd]]

    @property
    def is_right(self) -> bool:
        """Whether the verdict is that of the greeting; an open one is not."""
        return self.verdict is (Verdict.MACHINE if self.is_machine else Verdict.HUMAN)

    @property
    def is_machine(self) -> bool:
        """Whether a machine has answered."""
        return self.call.greeting.is_machine

    @property
    def verdict(self) -> Verdict | None:
        """What was decided."""
        return self.decision.verdict if self.decision else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--greetings", type=int, default=440, help="of each set of voices")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", type=int, default=380, help="that are decided at once")
    parser.add_argument("--no-peer", action="store_true", help="without Asterisk")


def measure_bench(given: argparse.Namespace) -> Result:
    """Measures both parts."""
    for program in ("espeak-ng", "flite"):
        if shutil.which(program) is None:
            report.missing(f"{program} is missing: run scripts/setup dev")
    if not given.no_peer and (sentence := why_missing()):
        report.missing(sentence)
    rows: list[Row] = []
    notes: list[str] = []
    calls: list[Call] = []
    for part in PARTS:
        say(f"speaking {given.greetings} greetings with the {part} voices")
        calls = make_calls(part, given.greetings, given.seed)
        ours = [examine(each) for each in calls]
        theirs = None
        if part == "test" and not given.no_peer:
            say("the same for Asterisk, in real time")
            theirs = amd_peer.decide(calls)
            arguments = amd_peer.own_times(DetectorSettings())
            tuned = _PeerFigures(
                [each.is_machine for each in ours], amd_peer.decide(calls, arguments)
            )
            notes.append(
                f"With our times, AMD({arguments}), {version()} has {tuned.right:.1f} % right, "
                f"takes {tuned.taken:.1f} % of humans for machines and {tuned.missed:.1f} % of "
                f"machines for humans, and decides after {tuned.quantile(50):.2f} s (median)."
            )
        rows += _rows(part, ours, theirs)
        notes += _notes(part, ours, theirs)
    say("calls at once")
    rows += asyncio.run(_load(calls, given.calls))
    title = f"Answering machines: {given.greetings} greetings of each set of voices"
    return Result(title, rows, notes)


def make_calls(part: Part, count: int, seed: int) -> list[Call]:
    """The calls of a set of voices; the same ones for the same arguments."""
    wanted = greetings(part, count, seed)
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        speech = render([each for one in wanted for each in one.sentences], Path(folder))
    machines = [each for one in wanted if one.is_machine for each in one.sentences]
    babble = [speech[each] for each in machines[:BABBLE]]
    first = seed + FAR * PARTS.index(part)
    return [call(each, speech, babble, first + n) for n, each in enumerate(wanted)]


def examine(subject: Call) -> Outcome:
    """Pass a call through the detector, without the process."""
    window, detector = FrameWindow(subject.law), Detector()
    beeps: list[tuple[float, ToneEnd]] = []
    frames: list[Pcm | None] = []
    for packet in subject.packets:
        if packet is None:
            window.lose()
            frames.append(None)
        else:
            frames += window.push(packet)
    measures = iter(measure([each for each in frames if each is not None]))
    for each in frames:
        detector.push(None if each is None else next(measures))
        if detector.beep is not None and (not beeps or detector.beep is not beeps[-1][1]):
            beeps.append((detector.at, detector.beep))
    return Outcome(subject, detector.decision, beeps)


def _rows(
    part: str, ours: Sequence[Outcome], theirs: Sequence[amd_peer.PeerDecision | None] | None
) -> list[Row]:
    is_test = part == "test"
    machines = [each.is_machine for each in ours]
    peer = _PeerFigures(machines, theirs) if theirs is not None else None
    name = version() if peer else ""
    humans = [each for each in ours if not each.is_machine]
    times = [each.decision.at if each.decision else math.inf for each in ours]

    def row(
        label: str,
        value: float,
        unit: str,
        of_peer: Callable[[_PeerFigures], float],
        bar: report.Bar | None = None,
    ) -> Row:
        bar = bar if is_test else None
        return Row(f"{part}: {label}", value, unit, of_peer(peer) if peer else None, name, bar)

    def median_of(is_machine: bool) -> float:
        return float(
            np.median([t for t, m in zip(times, machines, strict=True) if m is is_machine])
        )

    right = 100 * sum(each.is_right for each in ours) / len(ours)
    taken = 100 * sum(each.verdict is Verdict.MACHINE for each in humans) / len(humans)
    missed = [each for each in ours if each.is_machine and each.verdict is Verdict.HUMAN]
    undecided = 100 * sum(each.verdict is None for each in ours) / len(ours)
    with_beep = [each for each in ours if each.call.beep]
    found = [each for each in with_beep if _beep_delay(each) is not None]
    delays = [delay for each in found if (delay := _beep_delay(each)) is not None]
    false = sum(len(each.beeps) for each in ours) - len(found)
    machine_count = sum(machines)
    return [
        row("right", right, "%", lambda p: p.right, at_least(96)),
        row("humans taken for machines", taken, "%", lambda p: p.taken, at_most(1)),
        row(
            "machines taken for humans",
            100 * len(missed) / machine_count,
            "%",
            lambda p: p.missed,
        ),
        row("undecided", undecided, "%", lambda p: p.undecided),
        row(
            "decision, median", float(np.median(times)), "s", lambda p: p.quantile(50), at_most(2.5)
        ),
        row("decision, 95 %", float(np.percentile(times, 95)), "s", lambda p: p.quantile(95)),
        row("decision on humans, median", median_of(False), "s", lambda p: p.median_of(False)),
        row("decision on machines, median", median_of(True), "s", lambda p: p.median_of(True)),
        Row(f"{part}: beeps found", 100 * len(found) / len(with_beep), "%"),
        Row(f"{part}: beep's end known after, median", 1000 * float(np.median(delays)), "ms"),
        Row(f"{part}: beep's end known after, worst", 1000 * max(delays), "ms"),
        Row(f"{part}: other sounds taken for beeps, of all calls", 100 * false / len(ours), "%"),
    ]


def _beep_delay(outcome: Outcome) -> float | None:
    """Seconds from the end of the beep until it was known; None if it was not found."""
    expected = outcome.call.beep
    assert expected is not None
    for known, beep in outcome.beeps:
        if abs(beep.ended - expected[1]) < NEAR and abs(beep.frequency - expected[2]) < 30:
            return known - expected[1]
    return None


class _PeerFigures:
    """The same figures of app_amd."""

    def __init__(
        self, machines: Sequence[bool], decisions: Sequence[amd_peer.PeerDecision | None]
    ) -> None:
        self._machines = machines
        status = [each.status if each else "" for each in decisions]
        self._times = [each.seconds if each else math.inf for each in decisions]
        pairs = list(zip(machines, status, strict=True))
        humans = len(pairs) - sum(machines)
        wanted = {True: "MACHINE", False: "HUMAN"}
        self.right = 100 * sum(said == wanted[is_one] for is_one, said in pairs) / len(pairs)
        self.taken = 100 * pairs.count((False, "MACHINE")) / humans
        self.missed = 100 * pairs.count((True, "HUMAN")) / sum(machines)
        decided = sum(said in wanted.values() for _, said in pairs)
        self.undecided = 100 * (1 - decided / len(pairs))

    def quantile(self, percent: float) -> float:
        """Of the time to a decision, in seconds."""
        return float(np.percentile(self._times, percent))

    def median_of(self, is_machine: bool) -> float:
        """The time to a decision, of calls of one kind."""
        pairs = zip(self._times, self._machines, strict=True)
        return float(np.median([t for t, one in pairs if one is is_machine]))


def _notes(
    part: str, ours: Sequence[Outcome], theirs: Sequence[amd_peer.PeerDecision | None] | None
) -> list[str]:
    machines = sum(each.is_machine for each in ours)
    engines = [each.call.greeting.sentences[0].engine for each in ours]
    notes = [
        f"{part}: {len(ours) - machines} humans, {machines} machines, "
        f"{sum(bool(each.call.beep) for each in ours)} with a beep; "
        f"{engines.count('espeak-ng')} by espeak-ng, {engines.count('flite')} by flite."
    ]
    if theirs is not None:
        notes.append("Asterisk hears silence in place of lost packets; AMD() has its defaults.")
    return notes


@dataclass(frozen=True, slots=True)
class Load:
    """Calls at once: how late decisions came, and CPU seconds each second."""

    calls: int
    decided: int
    late_p95: float
    late_worst: float
    worker: float
    parent: float


async def _load(calls: Sequence[Call], count: int) -> list[Row]:
    """`count` calls at once, then more until decisions come late."""
    first = await _at_once(calls, count)
    most, more = 0, first
    while more.late_p95 <= LATE_AT_MOST and more.decided == more.calls:
        most = more.calls
        more = await _at_once(calls, more.calls + STEP)
    return [
        Row(f"{count} calls at once: decisions late, 95 %", 1000 * first.late_p95, "ms"),
        Row(f"{count} calls at once: decisions late, worst", 1000 * first.late_worst, "ms"),
        Row(f"{count} calls at once: detection process", 100 * first.worker, "% of a core"),
        Row(f"{count} calls at once: process that sends audio", 100 * first.parent, "% of a core"),
        Row("calls at once in one process, at least", most, "", bar=at_least(380)),
    ]


async def _at_once(calls: Sequence[Call], count: int) -> Load:
    """Send `count` calls in real time, as 50 packets a second each, until all are decided."""
    loop = asyncio.get_running_loop()
    detection = DetectionProcess()
    late: list[float] = []
    decided = 0
    warm = loop.create_future()
    # The start of the process is not measured.
    watch = detection.watch("A", lambda decision: warm.set_result(None))
    for _ in range(400):
        watch.push(None)
    await warm
    _take_priority(detection.pid)
    cpu, own, began = detection.cpu_seconds, time.process_time(), loop.time()
    tick = 0

    def on_decision(decision: Decision) -> None:
        nonlocal decided
        if decision.at:
            decided += 1
            late.append(loop.time() - began - decision.at)

    watches = [
        detection.watch(calls[n % len(calls)].law, on_decision, _ignore) for n in range(count)
    ]
    length = max(len(each.packets) for each in calls)
    seconds = 8.0  # longer than the detector's total time
    while tick < seconds * 50:
        # Calls that share a packet's time differ by up to 20 ms in life; here they do not.
        for number, each in enumerate(watches):
            packets = calls[number % len(calls)].packets
            each.push(packets[tick] if tick < min(length, len(packets)) else b"\xd5" * 160)
        tick += 1
        await asyncio.sleep(max(0.0, began + tick * 0.02 - loop.time()))
    await asyncio.sleep(1.0)
    took = loop.time() - began
    worker, parent = detection.cpu_seconds - cpu, time.process_time() - own
    for each in watches:
        each.close()
    await detection.close()
    say(f"   {count} calls: {decided} decided, {os.getloadavg()[0]:.1f} load")
    return Load(
        count,
        decided,
        float(np.percentile(late, 95)) if late else math.inf,
        max(late, default=math.inf),
        worker / took,
        parent / took,
    )


def _take_priority(*pids: int | None) -> None:
    """Put these and this process before others of the machine, whose load is not our figure."""
    for pid in (os.getpid(), *pids):
        if pid is not None:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, pid, NICE)
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/autogroup").write_text(str(NICE))


def _ignore(beep: ToneEnd) -> None:
    pass


if __name__ == "__main__":
    report.main("answering_machines", __doc__, measure_bench, add_arguments)
