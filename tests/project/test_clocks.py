"""Which modules may read the system clock, and why a step of it does no harm there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent.parent / "src" / "bitel"

ALLOWED = {
    "steady_clock.py": "the one place that turns it into the clock of everything that is stored",
    "api/context.py": "expiry of tokens, which other systems may check too; default of a parameter",
    "api/uploads.py": "ages of files, at a start, against a limit of a day",
    "speech/library.py": "default of a parameter, which the service sets",
    "dialing/standby.py": "default of a parameter, which the service sets",
    "dialer/sip_dialer.py": "dates of metrics",
    "dialer/sip_trace.py": "dates of files that are kept for days",
    "sip_transport/transport.py": "dates of messages in traces",
    "rtp/sender/rtcp.py": "NTP timestamps (RFC 3550 §6.4.1), read once and counted on",
    "store/migrations/versions/0008_pauses_and_retention.py": "the day of the upgrade, from which "
    "on recordings count as not used; a day is nothing against what is kept for days",
    "cli/common.py": "expiry of tokens and of their keys",
    "cli/keys.py": "expiry of the keys of tokens",
    "cli/tokens.py": "expiry of tokens",
    "cli/trial.py": "one call by hand, whose times are stored nowhere",
    "test_phone/phone.py": "dates of the test phone's log",
}
"""By file, why it may."""

_READS = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
_WITH_ARGUMENTS = {"localtime", "gmtime", "ctime"}
"""Functions that read the clock only where they are given no time."""


def reads_of_the_system_clock(source: str) -> Iterator[int]:
    """The lines of a module that name a function which reads the system clock."""
    tree = ast.parse(source)
    with_time: set[ast.expr] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            needed = 2 if node.func.attr == "strftime" else 1
            is_given = len(node.args) >= needed
            if is_given and node.func.attr in {*_WITH_ARGUMENTS, "strftime"}:
                with_time.add(node.func)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in with_time:
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if node.attr in _READS.get(name, ()):
                yield node.lineno
            if node.attr == "CLOCK_REALTIME":
                yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            names = {each.name for each in node.names}
            if names & (_READS["time"] | {"CLOCK_REALTIME"}):
                yield node.lineno
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.upper()
            if "CURRENT_TIMESTAMP" in words or "DATETIME('NOW'" in words or "NOW()" in words:
                yield node.lineno


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("import time\nat = time.time()", True),
        ("import time\ndef f(clock=time.time): ...", True),
        ("from time import time", True),
        ("import datetime\nat = datetime.datetime.now()", True),
        ("from datetime import datetime\nat = datetime.now(UTC)", True),
        ("import time\nat = time.clock_gettime(time.CLOCK_REALTIME)", True),
        ("import time\nat = time.localtime()", True),
        ("text('UPDATE x SET at = now()')", True),
        ("import time\nat = time.localtime(5.0)", False),
        ("import time\nat = time.monotonic()", False),
        ("loop.time()", False),
        ("datetime.fromtimestamp(5.0, UTC).strftime('%Y')", False),
    ],
)
def test_reads_of_the_system_clock_are_found(source: str, is_found: bool) -> None:
    assert bool(list(reads_of_the_system_clock(source))) is is_found


def test_only_these_modules_read_the_system_clock() -> None:
    reading = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if any(reads_of_the_system_clock(path.read_text()))
    }
    assert sorted(reading - ALLOWED.keys()) == [], (
        "time stored or measured there changes when the system clock is set: use the service's "
        "clock (bitel.steady_clock) for stored times, time.monotonic for durations"
    )
    assert sorted(ALLOWED.keys() - reading) == []
