"""The registry of rules, and the views of the evidence that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tests.chaos.evidence import Evidence, Fault, Invitation, Placed

Rule = Callable[[Evidence], Iterator[str]]
RULES: Final[dict[str, Rule]] = {}
"""The rules by the name of what they find, in the order of the report."""


def finds(kind: str) -> Callable[[Rule], Rule]:
    """Registers a rule, which yields the evidence of each violation of that kind."""

    def add(rule: Rule) -> Rule:
        RULES[kind] = rule
        return rule

    return add


def numbers(
    evidence: Evidence,
) -> Iterator[tuple[str, Sequence[Placed], Sequence[Invitation]]]:
    """Each number with its calls and invitations."""
    calls, invitations = evidence.calls_of(), evidence.by_number()
    for number in sorted((calls.keys() | invitations.keys()) - evidence.doubtful):
        yield number, calls.get(number, ()), invitations.get(number, ())


def single(evidence: Evidence) -> Iterator[tuple[Placed, Sequence[Invitation]]]:
    """Each number that has one call, with its invitations."""
    for _, placed, invitations in numbers(evidence):
        if len(placed) == 1:
            yield placed[0], invitations


def disturbed(faults: Sequence[Fault], begin: float, end: float, margin: float = 1.0) -> bool:
    """Whether there was a fault between two moments, or within `margin` seconds of them."""
    return any(fault.at - margin <= end and begin <= fault.until + margin for fault in faults)


def status(evidence: Evidence, placed: Placed) -> str:
    """A call's status at the end; empty if it is not known."""
    final = evidence.finals.get(placed.call_id)
    return final.status if final else ""


def seconds(evidence: Evidence, at: float) -> str:
    """A moment as seconds since the run's begin."""
    return f"{at - evidence.begun:.2f}"


def story(evidence: Evidence, invitation: Invitation) -> str:
    """An invitation in one line, with times since the run's begin."""
    words = [f"{invitation.plan or 'invitation'} ({invitation.call[:12]})"]
    words.append("INVITE " + ", ".join(seconds(evidence, at) for at in invitation.sent))
    words += [f"{code} {seconds(evidence, at)}" for at, code in invitation.responses]
    marks = (
        ("known to the service", invitation.settled_at),
        ("CANCEL", invitation.canceled_at),
        ("audio", invitation.audio_at),
        (f"BYE by {invitation.bye_by}", invitation.bye_at),
    )
    words += [f"{name} {seconds(evidence, at)}" for name, at in marks if at is not None]
    if invitation.packets:
        words.append(f"{invitation.packets} packets")
    return "; ".join(words)
