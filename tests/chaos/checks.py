"""Applies every rule to the evidence of a run."""

from __future__ import annotations

from typing import NamedTuple

from tests.chaos import call_rules, service_rules
from tests.chaos.evidence import Evidence
from tests.chaos.rules import RULES

__all__ = ["RULES", "Violation", "call_rules", "check", "service_rules"]


class Violation(NamedTuple):
    """A rule that was broken, and the evidence for it."""

    kind: str
    evidence: str


def check(evidence: Evidence) -> list[Violation]:
    """Every violation in a run."""
    return [Violation(kind, found) for kind, rule in RULES.items() for found in rule(evidence)]
