"""The demo's table, as it goes and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bitel.client import Call
from bitel.demo.scenario import Part

_STYLES = {
    "WAITING": "yellow",
    "NORMAL": "green",
    "NO_ANSWER": "magenta",
    "USER_BUSY": "magenta",
    "ERROR": "red",
}

Calls = Mapping[str, Call]
"""The calls by number, as the API tells them."""


def table(parts: Sequence[Part], calls: Calls, elapsed: float) -> RenderableType:
    """Each number with how its call stands, and below how many are over."""
    rows = Table("number", "the phone", "status", "billed", "price", title="bitel demo")
    rows.columns[3].justify = rows.columns[4].justify = "right"
    over = 0
    for part in parts:
        call = calls.get(part.number)
        if call is None:
            rows.add_row(part.number, part.does, "", "", "")
            continue
        status = call["status"]
        final = status != "WAITING"
        over += final
        rows.add_row(
            part.number,
            part.does,
            Text(status, _STYLES.get(status, "")),
            f"{call['billSec']} s" if final else "",
            f"{call['price']}" if final else "",
        )
    bar = ProgressBar(total=len(parts), completed=over, width=40)
    done = Text(f"{over} of {len(parts)} calls are over after {elapsed:.0f} s")
    # A bar ends without a line end.
    return Group(rows, done, Padding(bar, (0, 0, 1, 0)))
