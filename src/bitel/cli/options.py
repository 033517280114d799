"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The settings file; BITEL_CONFIG by default."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", help="A project's name or id.", show_default=False)
]
