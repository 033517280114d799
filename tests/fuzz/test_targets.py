"""Every fuzzed target with the seeds that are kept, and a few more."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.seeds import kept
from tests.fuzz.targets import TARGETS

FEW = 20
CASES = [(name, seed) for name, seeds in kept().items() for seed in seeds]


@pytest.mark.parametrize(("target", "seed"), CASES)
def test_what_was_found_once_stays_mended(target: str, seed: int) -> None:
    TARGETS[target](random.Random(seed))


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_input_does_no_harm(target: str) -> None:
    for seed in range(FEW):
        try:
            TARGETS[target](random.Random(seed))
        except Exception as error:
            raise AssertionError(f"{target} fails with seed {seed}: {error!r}") from error
