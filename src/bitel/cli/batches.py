"""`bitel batch`: places the calls of a file of numbers, or of recipients, over the HTTP API."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typer import Argument, Option

from bitel.cli import common
from bitel.cli.campaigns import show_campaign, wait_for
from bitel.cli.lists import DryRun, SkipInvalid, send_list, show_invalid, show_upload
from bitel.cli.number_lists import (
    MOST_SHOWN,
    NumberList,
    has_recipient_fields,
    located,
    read_number_list,
)
from bitel.cli.voices import voice_id
from bitel.domain import templates
from bitel.errors import (
    BitelError,
    ForbiddenError,
    InvalidPhoneNumberError,
    InvalidRequestError,
)

if TYPE_CHECKING:
    from bitel.client import Batch, BatchOptions, Client, InvalidRow
    from bitel.client_types import EventType


def batch(
    file: Annotated[
        Path,
        Argument(
            metavar="FILE",
            show_default=False,
            help="One number a line, a CSV or an XLSX; - is the standard input.",
        ),
    ],
    voice: Annotated[
        str | None,
        Option(metavar="FILE_OR_ID", help="What to play: an audio file, or a recording's id."),
    ] = None,
    text: Annotated[
        str | None,
        Option(
            metavar="TEXT",
            help="What to speak in place of --voice; {name} is the column of that heading.",
        ),
    ] = None,
    language: Annotated[
        str | None, Option(metavar="CODE", help="The text's language, as in fa or en.")
    ] = None,
    column: common.Column = None,
    name: Annotated[str | None, Option(metavar="NAME", help="A name for people.")] = None,
    reference: Annotated[
        str | None, Option(metavar="TEXT", help="Your own name for it, given back everywhere.")
    ] = None,
    start_at: common.Time = None,
    end_at: common.Time = None,
    window: Annotated[
        str | None,
        Option(
            metavar="HOURS",
            help="Hours at which calls may ring, as 'sat-wed 09:00-21:00 Asia/Tehran'; with the "
            "zone local, by each recipient's clock.",
        ),
    ] = None,
    calls_per_second: Annotated[
        float | None, Option(metavar="N", help="Calls that start a second, at most.")
    ] = None,
    max_channels: Annotated[int | None, Option(metavar="N", help="Calls at once, at most.")] = None,
    retries: common.Retries = None,
    busy_waits: Annotated[
        str | None,
        Option(
            metavar="SECONDS",
            help="In place of --retries: how long to wait after the 1st, 2nd … busy, as 60,300.",
        ),
    ] = None,
    no_answer_waits: Annotated[
        str | None, Option(metavar="SECONDS", help="The same, after no answer.")
    ] = None,
    caller_id: Annotated[
        str | None, Option(metavar="NUMBER", help="One of the dialer's caller ids.")
    ] = None,
    menu: common.Menu = None,
    machine_detection: common.Machines = None,
    machine_voice: common.MachineVoice = None,
    webhook: Annotated[
        str | None, Option(metavar="URL", help="Where events are posted, not to the project's URL.")
    ] = None,
    event: Annotated[
        list[str] | None,
        Option(
            metavar="TYPE",
            help="An event that is posted besides the end of each call, as call.answered; may be "
            "repeated. Needs --webhook.",
        ),
    ] = None,
    skip_invalid: SkipInvalid = False,
    dry_run: DryRun = False,
    server: Annotated[
        str | None, Option(metavar="ID", help="The dialer that places the calls.")
    ] = None,
    wait: Annotated[bool, Option("--wait", help="Wait until all calls are over.")] = False,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Play a recording, or speak a text, to many numbers.

    With --wait, succeeds only if all of them answered. A workbook, a file with a column of
    references or time zones, and a file for a text with {names} is read by the service as a list
    of recipients; of other files, the numbers are read here.
    """
    if dry_run:
        _check(file, column, text, skip_invalid, as_json, config)
        return
    if (voice is None) == (text is None):
        raise typer.BadParameter("give either --voice or --text")
    if event and webhook is None:
        raise typer.BadParameter("--event needs --webhook")
    options: BatchOptions = {
        "name": name,
        "reference": reference,
        "start_at": common.read_time("--start-at", start_at),
        "end_at": common.read_time("--end-at", end_at),
        "window": window,
        "calls_per_second": calls_per_second,
        "max_channels": max_channels,
        "retry_count": retries,
        "busy_waits": _waits("--busy-waits", busy_waits),
        "no_answer_waits": _waits("--no-answer-waits", no_answer_waits),
        "caller_id": caller_id,
        "menu": common.read_menu(menu),
        "machine_detection": machine_detection,
        "webhook_url": webhook,
        "webhook_events": cast("list[EventType] | None", event or None),
        "server_id": server,
        "skip_invalid": skip_invalid or None,
    }
    raw = _read(file)
    if has_recipient_fields(raw, str(file)) or "{" in (text or ""):
        with common.open_client(config) as client, _on_disk(file, raw) as source:
            if machine_voice is not None:
                options["machine_voice_id"] = voice_id(client, machine_voice)
            placed = _place_list(client, source, column, voice, text, language, options)
            campaign = client.campaign(placed["campaignId"])
            if wait:
                campaign = wait_for(client, campaign)
    else:
        found = _numbers(raw, file, column, config)
        with common.open_client(config) as client:
            if machine_voice is not None:
                options["machine_voice_id"] = voice_id(client, machine_voice)
            placed = _place_numbers(client, found, file, voice, text, language, options)
            campaign = client.campaign(placed["campaignId"])
            if wait:
                campaign = wait_for(client, campaign)
    show_campaign(campaign, as_json)
    if wait and campaign["byStatus"].get("NORMAL") != campaign["total"]:
        raise typer.Exit(1)


def _check(
    file: Path,
    column: str | None,
    text: str | None,
    skip_invalid: bool,
    as_json: bool,
    config: Path | None,
) -> None:
    """Show what the service would make of a file. Exits with 1 if a row can't be called.

    Raises InvalidRequestError for a text with a variable that is no column of the file.
    """
    variables = templates.parse(text).variables if text and "{" in text else ()
    with common.open_client(config) as client, _on_disk(file, _read(file)) as source:
        found = send_list(
            client,
            source,
            column=column,
            dry_run=True,
            skip_invalid=skip_invalid,
            skip_duplicates=True,
        )
    show_upload(found, as_json)
    if unknown := [name for name in variables if name not in found["columns"]]:
        columns = ", ".join(found["columns"]) or "none"
        raise InvalidRequestError(
            f"{file} has no column {unknown[0]!r}, which the text needs; its columns for texts "
            f"are: {columns}"
        )
    if not found["recipients"] or (found["invalidCount"] and not skip_invalid):
        raise typer.Exit(1)


def _place_numbers(
    client: Client,
    found: NumberList,
    file: Path,
    voice: str | None,
    text: str | None,
    language: str | None,
    options: BatchOptions,
) -> Batch:
    try:
        if text is not None:
            placed = client.batch_tts(found.numbers, text, language=language, **options)
        else:
            placed = client.batch(found.numbers, voice_id(client, voice or ""), **options)
    except (InvalidPhoneNumberError, ForbiddenError) as error:
        why = located(error, found, str(file))
        raise InvalidRequestError(
            f"{why}; --dry-run shows all such lines, and --skip-invalid leaves them out"
        ) from None
    except BitelError as error:
        raise located(error, found, str(file)) from None
    for each in placed["skipped"]:
        print(f"bitel: left out {found.places[each['index']]}: {each['message']}", file=sys.stderr)
    return placed


def _place_list(
    client: Client,
    source: Path,
    column: str | None,
    voice: str | None,
    text: str | None,
    language: str | None,
    options: BatchOptions,
) -> Batch:
    """Upload a file as a list, place its calls, and remove the list, whose copies the calls have.

    Raises InvalidRequestError for a file with a row that can't be called, unless it may be skipped.
    """
    played = "" if voice is None else voice_id(client, voice)
    uploaded = send_list(
        client,
        source,
        column=column,
        dry_run=False,
        skip_invalid=bool(options.get("skip_invalid")),
        skip_duplicates=True,
    )
    list_id = uploaded["id"]
    assert list_id is not None, "only a dry run has no id"
    try:
        show_invalid(uploaded["invalid"], uploaded["invalidCount"])
        if uploaded["invalidCount"] and not options.get("skip_invalid"):
            raise InvalidRequestError(_refusal(uploaded["invalid"], uploaded["invalidCount"]))
        if uploaded["duplicates"]:
            count = uploaded["duplicates"]
            what = "number is" if count == 1 else "numbers are"
            print(f"bitel: {count} {what} called once only", file=sys.stderr)
        if text is not None:
            return client.batch_tts(text=text, language=language, list_id=list_id, **options)
        return client.batch(voice_id=played, list_id=list_id, **options)
    finally:
        client.remove_list(list_id)


def _refusal(rows: list[InvalidRow], count: int) -> str:
    lines = ", ".join(str(row["line"]) for row in rows[:MOST_SHOWN])
    more = f" and {count - MOST_SHOWN} more" if count > MOST_SHOWN else ""
    which = f"line {lines} of the file" if count == 1 else f"lines {lines}{more} of the file"
    return f"{which} can't be called; correct the file, or give --skip-invalid"


def _read(file: Path) -> bytes:
    # Typer's own check of a file refuses the dash in some versions.
    if str(file) == "-":
        return sys.stdin.buffer.read()
    if not file.is_file():
        raise typer.BadParameter(f"there is no file {str(file)!r}", param_hint="FILE")
    return file.read_bytes()


@contextmanager
def _on_disk(file: Path, raw: bytes) -> Iterator[Path]:
    """Yield `file`, or a temporary one with `raw` if it is the standard input."""
    if str(file) != "-":
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="bitel-") as folder:
        source = Path(folder) / "stdin"
        source.write_bytes(raw)
        yield source


def _numbers(raw: bytes, file: Path, column: str | None, config: Path | None) -> NumberList:
    from bitel import settings as all_settings

    loaded = all_settings.load(config)
    found = read_number_list(raw, str(file), column, loaded.region, loaded.extra_prefixes)
    if found.duplicates:
        count = len(found.duplicates)
        shown = ", ".join(found.duplicates[:MOST_SHOWN])
        more = f" and {count - MOST_SHOWN} more" if count > MOST_SHOWN else ""
        what = "number is" if count == 1 else "numbers are"
        print(f"bitel: {count} {what} called once only: {shown}{more}", file=sys.stderr)
    return found


def _waits(option: str, written: str | None) -> list[int] | None:
    if written is None:
        return None
    try:
        return [int(each) for each in written.split(",") if each.strip()]
    except ValueError:
        raise typer.BadParameter(
            f"{written!r} must be seconds separated by commas, as 60,300", param_hint=option
        ) from None
