"""Commands about projects and their balances: `bitel project` and `bitel ledger`."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer import Argument, Option

from bitel.cli import common
from bitel.errors import InvalidRequestError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bitel.store.balances import LedgerEntry
    from bitel.store.projects import Project, ProjectChanges

UNLIMITED = "unlimited"
NONE = NOWHERE = "none"
ALWAYS = "always"
ALL = "all"
HOME = "home"
SETTINGS = "settings"

app = typer.Typer(help="Projects: who may place calls, and on what balance.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, Argument(metavar="NAME", show_default=False)],
    rate: Annotated[
        str | None,
        Option(
            metavar="N",
            help=f"HTTP requests a minute; {SETTINGS}: those of all projects. By default what the "
            "settings give a new project.",
        ),
    ] = None,
    call_rate: Annotated[
        str | None, Option(metavar="N", help="Calls placed a minute, in the same way.")
    ] = None,
    config: common.Config = None,
) -> None:
    """Create a project and print its id; its limits go to stderr."""
    from bitel.store import projects

    with common.open_database(config, create=True) as (settings, database):
        limits = settings.limits
        changes: ProjectChanges = {
            "requests_per_minute": limits.new_project_requests_per_minute,
            "calls_per_minute": limits.new_project_calls_per_minute,
        }
        if rate is not None:
            changes["requests_per_minute"] = _rate(rate)
        if call_rate is not None:
            changes["calls_per_minute"] = _rate(call_rate)
        now = common.read_clock(settings)()

        def work(conn: Connection) -> Project:
            made = projects.create(conn, name, now)
            projects.change(conn, made.id, **changes)
            return made

        project = database.write_now(work)
    requests = changes["requests_per_minute"] or limits.requests_per_minute or UNLIMITED
    calls = changes["calls_per_minute"] or limits.calls_per_minute or UNLIMITED
    print(
        f"limits of {name}: {requests} requests and {calls} calls a minute; "
        "bitel project set changes them with --rate and --call-rate",
        file=sys.stderr,
    )
    print(project.id)


@app.command("set")
def set_(
    project: common.ProjectName,
    balance: Annotated[
        str | None, Option(metavar="N", help=f"What it may still spend, or {UNLIMITED}.")
    ] = None,
    daily_spend: Annotated[
        str | None,
        Option(metavar="N", help=f"The most it may spend on a day, UTC; or {UNLIMITED}."),
    ] = None,
    window: Annotated[
        str | None,
        Option(
            metavar="HOURS",
            help="When its calls may ring, as in 'sat-wed 09:00-21:00 Asia/Tehran'; "
            f"or {ALWAYS}. One-time passwords ring at any time.",
        ),
    ] = None,
    allow_prefix: Annotated[
        str | None,
        Option(
            metavar="PREFIXES",
            help=f"Prefixes of numbers it may call, as in +98,+4930; + is all, {HOME} the "
            "service's own country only.",
        ),
    ] = None,
    forbid_prefix: Annotated[
        str | None,
        Option(metavar="PREFIXES", help=f"Prefixes it must not call all the same; {NONE}."),
    ] = None,
    rate: Annotated[
        str | None, Option(metavar="N", help=f"HTTP requests a minute; {SETTINGS}: as they say.")
    ] = None,
    call_rate: Annotated[
        str | None, Option(metavar="N", help=f"Calls placed a minute; {SETTINGS}: as they say.")
    ] = None,
    dialers: Annotated[
        str | None, Option(metavar="IDS", help="Dialers it may use, separated by commas; all.")
    ] = None,
    default_dialer: Annotated[
        str | None,
        Option(metavar="ID", help=f"The dialer of calls that name none; {NONE}: the first."),
    ] = None,
    webhook: Annotated[
        str | None, Option(metavar="URL", help=f"Where its calls' ends are posted, or {NOWHERE}.")
    ] = None,
    webhook_events: Annotated[
        str | None,
        Option(
            metavar="TYPES",
            help="Events to post besides the ends of calls, as in call.answered,call.completed; "
            f"or {NONE}.",
        ),
    ] = None,
    one_call_per_number: Annotated[
        bool | None,
        Option(
            "--one-call-per-number/--parallel-calls",
            help="Whether a number is called by one of its calls at a time (the default), or by "
            "several at once.",
        ),
    ] = None,
    unwanted: Annotated[
        bool | None,
        Option(
            "--unwanted-to-dnc/--unwanted-ignored",
            help="Whether a number goes on the do-not-call list when its call is rejected as "
            "unwanted (SIP 607).",
        ),
    ] = None,
    hold_seconds: Annotated[
        int | None,
        Option(
            metavar="N",
            min=0,
            max=3600,
            help="Seconds for which the person called may hold a call; then it is ended.",
        ),
    ] = None,
    daily_calls: Annotated[
        str | None,
        Option(
            "--max-calls-per-number-per-day",
            metavar="N",
            help=f"Calls that it may place to one number in 24 hours, or {UNLIMITED}.",
        ),
    ] = None,
    enabled: Annotated[
        bool | None, Option("--enable/--disable", help="Whether its tokens are good at all.")
    ] = None,
    config: common.Config = None,
) -> None:
    """Change a project."""
    from bitel.domain.webhooks import check_url
    from bitel.store import projects

    given: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "daily_spend": (daily_spend, _amount),
        "window": (window, lambda text: None if text == ALWAYS else text),
        "allowed_prefixes": (allow_prefix, lambda text: None if text == HOME else _prefixes(text)),
        "forbidden_prefixes": (forbid_prefix, lambda text: () if text == NONE else _prefixes(text)),
        "requests_per_minute": (rate, _rate),
        "calls_per_minute": (call_rate, _rate),
        "one_call_per_number": (one_call_per_number, bool),
        "unwanted_to_do_not_call": (unwanted, bool),
        "hold_seconds": (hold_seconds, int),
        "webhook_events": (webhook_events, _events),
        "max_calls_per_number_per_day": (daily_calls, _count),
        "disabled": (enabled, operator.not_),
    }
    parsed = {name: parse(value) for name, (value, parse) in given.items() if value is not None}
    changes = cast("ProjectChanges", parsed)
    if balance is None and webhook is None and not (changes or dialers or default_dialer):
        raise typer.BadParameter("say what to change, as in --balance 1000")
    amount = _amount(balance) if balance is not None else None

    def work(conn: Connection) -> None:
        found = common.find_project(conn, project)
        projects.change(conn, found.id, **changes)
        if balance is not None:
            projects.set_balance(conn, found.id, amount, now)
        if webhook is not None:
            _set_webhook(conn, found, webhook)

    with common.open_database(config) as (settings, database):
        now = common.read_clock(settings)()
        if webhook not in (None, NOWHERE):
            check_url(webhook, allow_private=settings.webhook_allow_private)
        if dialers is not None:
            changes["dialers"] = (
                None
                if dialers == ALL
                else tuple(
                    common.check_server(settings, word.strip()) for word in dialers.split(",")
                )
            )
        if default_dialer is not None:
            changes["default_dialer"] = (
                None if default_dialer == NONE else common.check_server(settings, default_dialer)
            )
        database.write_now(work)


def _amount(text: str) -> Decimal | None:
    if text == UNLIMITED:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    from bitel.domain.pricing import check_amount

    try:
        check_amount(amount, "it")
    except InvalidRequestError as fault:
        raise typer.BadParameter(f"{fault}, such as 1500.50, or {UNLIMITED}") from None
    return amount


def _prefixes(text: str) -> tuple[str, ...]:
    from bitel.domain.number_policy import parse_prefixes

    prefixes = parse_prefixes(text)
    if not prefixes:
        raise typer.BadParameter("must be prefixes such as +98,+4930")
    return prefixes


def _events(text: str) -> tuple[str, ...] | None:
    from bitel.domain.webhooks import check_events

    if text == NONE:
        return None
    return check_events([word.strip() for word in text.split(",")], "--webhook-events")


def _rate(text: str) -> int | None:
    if text == SETTINGS:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 7 or not int(text):
        raise typer.BadParameter(f"must be a whole number above 0, or {SETTINGS}")
    return int(text)


def _count(text: str) -> int | None:
    if text == UNLIMITED:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= 1_000_000:
        raise typer.BadParameter(f"must be a whole number, 1 to 1000000, or {UNLIMITED}")
    return int(text)


def _set_webhook(conn: Connection, found: Project, url: str) -> None:
    from bitel.store import projects
    from bitel.webhooks.signing import new_secret

    if url == NOWHERE:
        projects.change(conn, found.id, webhook_url=None)
        return
    # Receivers know the secret, so it is kept when the URL changes.
    kept = found.webhook_secret or new_secret()
    projects.change(conn, found.id, webhook_url=url, webhook_secret=kept)


@app.command("list")
def list_(as_json: common.Json = False, config: common.Config = None) -> None:
    """List the projects."""
    from bitel.store import projects

    with common.open_database(config) as (_, database):
        listing = database.read_now(projects.listing)
    if as_json:
        from bitel import exact_json

        print(exact_json.dumps([_row(each) for each in listing]))
        return
    for each in listing:
        balance = UNLIMITED if each.balance is None else f"{each.balance:f}"
        print(f"{each.id}  {balance:>16}  {each.name}")


@app.command()
def delete(
    project: common.ProjectName, yes: common.Yes = False, config: common.Config = None
) -> None:
    """Delete a project with its calls, recordings, ledger and tokens. There is no way back.

    It is disabled first, and refused while calls of it are not over. Webhooks that were not
    delivered yet are dropped. If it is interrupted, run it again.
    """
    import asyncio

    from bitel.recordings.storage import VoiceStore
    from bitel.store import project_deletion

    with common.open_database(config) as (settings, database):
        found = database.read_now(lambda conn: common.find_project(conn, project))
        if not yes:
            typer.confirm(f"Delete the project {found.name} ({found.id})?", abort=True, err=True)
        database.write_now(lambda conn: project_deletion.disable(conn, found.id))
        database.read_now(lambda conn: project_deletion.check_no_open_calls(conn, found.id))
        voices = VoiceStore.open(
            settings.storage_url.get_secret_value(), settings.data_dir, settings.s3
        )

        async def delete_audio(ids: list[str]) -> None:
            for each in ids:
                await voices.delete(each)

        # Audio first: while its rows exist, an interrupted deletion can be repeated.
        for ids in project_deletion.recordings(database, found.id):
            asyncio.run(delete_audio(ids))
        project_deletion.delete_project(database, found.id, common.read_clock(settings)())


def _row(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "balance": project.balance,
        "reserved": project.reserved,
        "dailySpend": project.daily_spend,
        "window": project.window,
        "allowedPrefixes": project.allowed_prefixes,
        "forbiddenPrefixes": project.forbidden_prefixes,
        "requestsPerMinute": project.requests_per_minute,
        "callsPerMinute": project.calls_per_minute,
        "dialers": project.dialers,
        "defaultDialer": project.default_dialer,
        "webhook": project.webhook_url,
        "webhookOffReason": project.webhook_off_reason,
        "webhookEvents": project.webhook_events,
        "oneCallPerNumber": project.one_call_per_number,
        "unwantedToDoNotCall": project.unwanted_to_do_not_call,
        "holdSeconds": project.hold_seconds,
        "maxCallsPerNumberPerDay": project.max_calls_per_number_per_day,
        "disabled": project.disabled,
    }


def ledger(
    project: Annotated[
        str | None, Argument(metavar="[PROJECT]", help="A project's name or id; all without.")
    ] = None,
    limit: Annotated[
        int, Option(metavar="N", min=1, max=100_000, help="Entries of each project.")
    ] = 100,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Show what moved the balances of projects, the newest entries first."""
    from bitel import exact_json
    from bitel.store import balances as entries
    from bitel.store import projects

    def query(conn: Connection) -> list[tuple[Project, list[LedgerEntry]]]:
        chosen = projects.listing(conn) if project is None else [common.find_project(conn, project)]
        return [(each, entries.entries(conn, each.id, limit)) for each in chosen]

    found, date = common.read_database(config, query)
    if as_json:
        rows = [_ledger_row(each, entry, date) for each, theirs in found for entry in theirs]
        print(exact_json.dumps(rows))
        return
    for each, theirs in found:
        for entry in theirs:
            about = f"{entry.kind:<7} {entry.call_id or '':<32}  {each.name}"
            note = f"  ({entry.note})" if entry.note else ""
            print(f"{common.utc(date(entry.created_at))}  {entry.amount:>16f}  {about}{note}")


def _ledger_row(
    project: Project, entry: LedgerEntry, date: Callable[[float], float]
) -> dict[str, object]:
    return {
        "id": entry.id,
        "project": project.name,
        "callId": entry.call_id,
        "kind": entry.kind,
        "amount": entry.amount,
        "at": int(date(entry.created_at)),
        "note": entry.note,
    }
