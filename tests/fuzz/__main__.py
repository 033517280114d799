"""`make fuzz`: feed each target with damaged input for a while, and keep the seeds that find
something.

    python -m tests.fuzz [--seconds 60] [--first SEED] [TARGET …]

A seed that makes a target fail is printed with its error and added to `seeds.json`, from where it
is tried in each run of the tests.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from tests.fuzz.seeds import keep
from tests.fuzz.targets import TARGETS


def main() -> int:
    """The exit status: 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--first", type=int, default=None, help="the first seed; default: random")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"{min(unknown)} is no target; there are {', '.join(TARGETS)}")
    found = 0
    for name in options.targets or TARGETS:
        first = random.randrange(1 << 31) if options.first is None else options.first
        found += _fuzz(name, first, options.seconds)
    return 1 if found else 0


def _fuzz(name: str, first: int, seconds: float) -> int:
    """Try seeds from `first` on; how many found something."""
    end, seed, found = time.monotonic() + seconds, first, 0
    while time.monotonic() < end:
        try:
            TARGETS[name](random.Random(seed))
        except Exception:
            found += 1
            print(f"{name}: seed {seed} found this:\n{traceback.format_exc()}", file=sys.stderr)
            keep(name, seed)
        seed += 1
    print(f"{name}: {seed - first} runs from seed {first} on, {found} with a fault")
    return found


if __name__ == "__main__":
    sys.exit(main())
