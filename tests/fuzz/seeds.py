"""The seeds that are kept: each has made a target fail once."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).with_name("seeds.json")


def kept() -> dict[str, list[int]]:
    """The seeds by target."""
    seeds: dict[str, list[int]] = json.loads(FILE.read_text())
    return seeds


def keep(target: str, seed: int) -> None:
    """Add a seed to those of `target`."""
    seeds = kept()
    seeds[target] = sorted({*seeds.get(target, []), seed})
    FILE.write_text(json.dumps(seeds, indent=1) + "\n")
