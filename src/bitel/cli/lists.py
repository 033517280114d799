"""Commands about lists of recipients, over the HTTP API: `bitel list`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from bitel.cli import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitel.client import Client, InvalidRow, RecipientList, UploadedList

app = typer.Typer(help="Lists of recipients, from CSV and XLSX files.", no_args_is_help=True)

SkipInvalid = Annotated[
    bool, Option("--skip-invalid", help="Leave out those that can't be called.")
]
DryRun = Annotated[
    bool, Option("--dry-run", help="Only check the file: show each row that can't be called.")
]


@app.command()
def upload(
    file: Annotated[
        Path, Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)
    ],
    column: common.Column = None,
    dry_run: DryRun = False,
    skip_invalid: SkipInvalid = False,
    skip_duplicates: Annotated[
        bool, Option("--skip-duplicates", help="Leave out numbers that are in a row before.")
    ] = False,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Upload a list. Its id comes first in what is printed.

    Fails if a row can't be called, unless --skip-invalid is given; the list is stored all the same,
    but not with --dry-run.
    """
    with common.open_client(config) as client:
        found = send_list(
            client,
            file,
            column=column,
            dry_run=dry_run,
            skip_invalid=skip_invalid,
            skip_duplicates=skip_duplicates,
        )
    show_upload(found, as_json)
    if found["invalidCount"] and not (skip_invalid and found["recipients"]):
        raise typer.Exit(1)


@app.command()
def show(
    list_id: Annotated[
        str | None,
        Argument(metavar="[ID]", help="Of a list; all lists if left out.", show_default=False),
    ] = None,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Show a list, or all, the oldest first."""
    with common.open_client(config) as client:
        if list_id is not None:
            _show(client.recipient_list(list_id), as_json)
            return
        found = list(client.recipient_lists())
    if as_json:
        common.print_json(found)
        return
    for each in found:
        _show(each, as_json)


@app.command()
def remove(list_id: common.Id, as_json: common.Json = False, config: common.Config = None) -> None:
    """Remove a list; calls that were placed with it stay."""
    with common.open_client(config) as client:
        _show(client.remove_list(list_id), as_json)


def send_list(
    client: Client,
    file: Path,
    *,
    column: str | None,
    dry_run: bool,
    skip_invalid: bool,
    skip_duplicates: bool,
) -> UploadedList:
    """Upload a list, with a progress bar if stderr is a terminal."""
    with common.transfer_bar(file.name, file.stat().st_size) as progress:
        return client.upload_list(
            file,
            column=column,
            dry_run=dry_run,
            skip_invalid=skip_invalid,
            skip_duplicates=skip_duplicates,
            progress=progress,
        )


def show_upload(found: UploadedList, as_json: bool) -> None:
    """Print what an uploaded list holds, and the rows that can't be called, or all as JSON."""
    if as_json:
        common.print_json(found)
        return
    columns = f"  columns: {', '.join(found['columns'])}" if found["columns"] else ""
    repeated = f"  {found['duplicates']} repeated" if found["duplicates"] else ""
    print(
        f"{found['id'] or 'not stored'}  {found['recipients']} recipients of {found['rows']} rows"
        f"  {found['invalidCount']} invalid{repeated}{columns}"
    )
    show_invalid(found["invalid"], found["invalidCount"])


def show_invalid(rows: Sequence[InvalidRow], count: int) -> None:
    """Print a table of rows that can't be called, of which there are `count`, on stderr."""
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("line", "value", "message", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(str(row["line"]), Text(row["value"]), Text(row["message"]))
    # A pipe or a log has no width: there a message stays in one line.
    width = None if sys.stderr.isatty() else 10_000
    Console(stderr=True, width=width).print(table)
    if count > len(rows):
        print(f"bitel: and {count - len(rows)} more", file=sys.stderr)


def _show(found: RecipientList, as_json: bool) -> None:
    if as_json:
        common.print_json(found)
        return
    columns = f"  columns: {', '.join(found['columns'])}" if found["columns"] else ""
    at = common.utc(found["createdDate"])
    print(f"{found['id']}  {at}  {found['recipients']} recipients  {found['name']}{columns}")
