"""What a dispatcher has done since it began, counted; for the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bitel.domain.attempts import Irregularity, Outcome


@dataclass(slots=True)
class Figures:
    """Totals of one dialer; they only grow."""

    claimed: int = 0
    """Attempts begun."""
    answered: int = 0
    """Attempts whose answer was made durable, so that their recording could start."""
    ended: Counter[Outcome] = field(default_factory=Counter)
    """Attempts that are over, by what became of them."""
    irregular: Counter[Irregularity] = field(default_factory=Counter)
    """Attempts that are over, by what was irregular about them."""
