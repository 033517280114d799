"""Numbers in the form that a carrier wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bitel.domain.phone_numbers import national

NumberFormat = Literal["e164", "digits", "national"]


@dataclass(frozen=True, slots=True)
class NumberRule:
    """Numbers that begin with `prefix` lose `strip` characters in front, then gain `add`."""

    prefix: str
    strip: int = 0
    add: str = ""


@dataclass(frozen=True, slots=True)
class NumberForm:
    """The rule with the longest prefix decides; a number that none fits is written in `format`."""

    format: NumberFormat = "e164"
    rules: Sequence[NumberRule] = ()

    def of(self, e164: str) -> str:
        """`+98912…` as the carrier wants it: `+98912…`, `98912…`, `0912…`, or by a rule."""
        fitting = [rule for rule in self.rules if e164.startswith(rule.prefix)]
        if fitting:
            rule = max(fitting, key=lambda rule: len(rule.prefix))
            return rule.add + e164[rule.strip :]
        if self.format == "digits":
            return e164.removeprefix("+")
        return national(e164) if self.format == "national" else e164
