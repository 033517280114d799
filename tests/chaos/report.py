"""A run's summary as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.checks import RULES, Violation
from tests.chaos.evidence import Evidence
from tests.chaos.run import Options


def summary(options: Options, evidence: Evidence, violations: Sequence[Violation]) -> str:
    """Three tables: what was done, how calls ended, and how often each rule was broken."""
    statuses = Counter(final.status for final in evidence.finals.values())
    faults = Counter(fault.kind for fault in evidence.faults)
    broken = Counter(violation.kind for violation in violations)
    facts = {
        "calls placed": f"{len(evidence.placed)} of {options.calls}",
        "seed, database": f"{options.seed}, {options.database}",
        "INVITEs at the callee": str(len(evidence.invitations)),
        "answered, with audio": _answers(evidence),
        "statuses": _list(statuses),
        "faults": f"{len(evidence.faults)}: {_list(faults)}",
        "duration": f"{evidence.ended - evidence.begun:.0f} s",
    }
    lines = ["", "| run | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "| violation | count |", "|---|---|"]
    lines += [f"| {kind} | {broken[kind]} |" for kind in RULES]
    lines.append(f"| **all** | **{len(violations)}** |")
    return "\n".join(lines)


def write_faults(evidence: Evidence, path: Path) -> None:
    """Write the faults and the service's ends, a JSON object a line, in seconds since the begin."""
    lines: list[tuple[float, dict[str, object]]] = [
        (fault.at, {"fault": fault.kind, "seconds": fault.until - fault.at, "detail": fault.detail})
        for fault in evidence.faults
    ]
    lines += [(each.at, {"end": each.why, "status": each.status}) for each in evidence.exits]
    with path.open("w") as file:
        for at, line in sorted(lines, key=lambda pair: pair[0]):
            file.write(json.dumps({"at": round(at - evidence.begun, 2), **line}) + "\n")


def _answers(evidence: Evidence) -> str:
    answered = [each for each in evidence.invitations if each.answered_at is not None]
    return f"{len(answered)}, {sum(1 for each in answered if each.packets)}"


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
