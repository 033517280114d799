"""The demo is what a newcomer sees first: it must end well, and fail when it should."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from bitel.client import Call
from bitel.demo.play import PARTS, faults, play


def test_the_demo_ends_as_it_should(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    heard = tmp_path / "heard.wav"
    assert play(heard, console), console.file.getvalue()  # type: ignore[attr-defined] # a StringIO
    assert heard.stat().st_size > 5 * 16000


def test_a_wrong_end_is_told() -> None:
    part = PARTS[0]
    wrong = Call(
        id="0" * 32,
        phoneNumber=part.number,
        status="NO_ANSWER",
        statusCode=2,
        billSec=1,
        requestDate=0,
        executionDate=0,
        price=0.0,
    )
    assert [fault.split(" ", 1)[1] for fault in faults(part, wrong)] == [
        "ended as NO_ANSWER, not NORMAL",
        "was billed 1 s, not 6 to 8",
        "cost 0.0, not -11.5000",
    ]
