"""`bitel project`: who may place calls."""

from __future__ import annotations

import sys
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitel.cli.opening import find_project, open_database, read_clock
from bitel.cli.options import ConfigOption, JsonOption, ProjectArgument
from bitel.errors import InvalidRequestError, InvalidServerError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bitel.settings import Settings
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
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help=f"HTTP requests a minute; {SETTINGS}: those of all projects. By default what the "
            "settings give a new project.",
        ),
    ] = None,
    call_rate: Annotated[
        str | None, typer.Option(metavar="N", help="Calls placed a minute, in the same way.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Create a project and print its id; its limits go to stderr."""
    from bitel.store import projects

    with open_database(config, create=True) as (settings, database):
        limits = settings.limits
        changes: ProjectChanges = {
            "requests_per_minute": limits.new_project_requests_per_minute
            if rate is None
            else _rate(rate),
            "calls_per_minute": limits.new_project_calls_per_minute
            if call_rate is None
            else _rate(call_rate),
        }
        now = read_clock(settings)()

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
    project: ProjectArgument,
    balance: Annotated[
        str | None,
        typer.Option(metavar="N", help=f"What it may still spend, or {UNLIMITED}."),
    ] = None,
    daily_spend: Annotated[
        str | None,
        typer.Option(metavar="N", help=f"The most it may spend on a day, UTC; or {UNLIMITED}."),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="HOURS",
            help="When its calls may ring, as in 'sat-wed 09:00-21:00 Asia/Tehran'; "
            f"or {ALWAYS}. One-time passwords ring at any time.",
        ),
    ] = None,
    allow_prefix: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIXES",
            help=f"Prefixes of numbers it may call, as in +98,+4930; + is all, {HOME} the "
            "service's own country only.",
        ),
    ] = None,
    forbid_prefix: Annotated[
        str | None,
        typer.Option(metavar="PREFIXES", help=f"Prefixes it must not call all the same; {NONE}."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="N", help=f"HTTP requests a minute; {SETTINGS}: as they say."),
    ] = None,
    call_rate: Annotated[
        str | None,
        typer.Option(metavar="N", help=f"Calls placed a minute; {SETTINGS}: as they say."),
    ] = None,
    dialers: Annotated[
        str | None,
        typer.Option(metavar="IDS", help="Dialers it may use, separated by commas; all."),
    ] = None,
    default_dialer: Annotated[
        str | None,
        typer.Option(metavar="ID", help=f"The dialer of calls that name none; {NONE}: the first."),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"Where its calls' ends are posted, or {NOWHERE}."),
    ] = None,
    one_call_per_number: Annotated[
        bool | None,
        typer.Option(
            "--one-call-per-number/--parallel-calls",
            help="Whether a number is called by one of its calls at a time (the default), or by "
            "several at once.",
        ),
    ] = None,
    unwanted: Annotated[
        bool | None,
        typer.Option(
            "--unwanted-to-dnc/--unwanted-ignored",
            help="Whether a number goes on the do-not-call list when its call is rejected as "
            "unwanted (SIP 607).",
        ),
    ] = None,
    hold_seconds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=3600,
            help="Seconds for which the person called may hold a call; then it is ended.",
        ),
    ] = None,
    daily_calls: Annotated[
        str | None,
        typer.Option(
            "--max-calls-per-number-per-day",
            metavar="N",
            help=f"Calls that it may place to one number in 24 hours, or {UNLIMITED}.",
        ),
    ] = None,
    enabled: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Whether its tokens are good at all."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Change a project."""
    from bitel.store import projects
    from bitel.webhooks import url_policy

    changes: ProjectChanges = {}
    if daily_spend is not None:
        changes["daily_spend"] = _amount(daily_spend)
    if window is not None:
        changes["window"] = None if window == ALWAYS else window
    if allow_prefix is not None:
        changes["allowed_prefixes"] = None if allow_prefix == HOME else _prefixes(allow_prefix)
    if forbid_prefix is not None:
        changes["forbidden_prefixes"] = () if forbid_prefix == NONE else _prefixes(forbid_prefix)
    if rate is not None:
        changes["requests_per_minute"] = _rate(rate)
    if call_rate is not None:
        changes["calls_per_minute"] = _rate(call_rate)
    if one_call_per_number is not None:
        changes["one_call_per_number"] = one_call_per_number
    if unwanted is not None:
        changes["unwanted_to_do_not_call"] = unwanted
    if hold_seconds is not None:
        changes["hold_seconds"] = hold_seconds
    if daily_calls is not None:
        changes["max_calls_per_number_per_day"] = _count(daily_calls)
    if enabled is not None:
        changes["disabled"] = not enabled
    if balance is None and webhook is None and not (changes or dialers or default_dialer):
        raise typer.BadParameter("say what to change, as in --balance 1000")
    amount = _amount(balance) if balance is not None else None

    def work(conn: Connection) -> None:
        found = find_project(conn, project)
        projects.change(conn, found.id, **changes)
        if balance is not None:
            projects.set_balance(conn, found.id, amount, now)
        if webhook is not None:
            _set_webhook(conn, found, webhook)

    with open_database(config) as (settings, database):
        now = read_clock(settings)()
        if webhook not in (None, NOWHERE):
            url_policy.check(webhook, allow_private=settings.webhook_allow_private)
        if dialers is not None:
            chosen = tuple(word.strip() for word in dialers.split(","))
            changes["dialers"] = None if dialers == ALL else _known(chosen, settings)
        if default_dialer == NONE:
            changes["default_dialer"] = None
        elif default_dialer is not None:
            (changes["default_dialer"],) = _known((default_dialer,), settings)
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


def _known(ids: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    for each in ids:
        if settings.dialer(each) is None:
            names = ", ".join(dialer.id for dialer in settings.dialers) or "none"
            raise InvalidServerError(f"the settings have no dialer {each!r}; there are: {names}")
    return ids


def _set_webhook(conn: Connection, found: Project, url: str) -> None:
    from bitel.store import projects
    from bitel.webhooks.signing import new_secret

    if url == NOWHERE:
        projects.change(conn, found.id, webhook_url=None)
        return
    # Receivers have the secret: it stays when the URL changes.
    kept = found.webhook_secret or new_secret()
    projects.change(conn, found.id, webhook_url=url, webhook_secret=kept)


@app.command("list")
def list_(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the projects."""
    from bitel.store import projects

    with open_database(config) as (_, database):
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
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether it is meant.")] = False,
    config: ConfigOption = None,
) -> None:
    """Delete a project with its calls, recordings, ledger and tokens. There is no way back.

    It is disabled first, and refused while calls of it are not over. Webhooks that were not
    delivered yet are dropped. If it is interrupted, run it again.
    """
    import asyncio

    from bitel.recordings.storage import VoiceStore
    from bitel.store import project_deletion

    with open_database(config) as (settings, database):
        found = database.read_now(lambda conn: find_project(conn, project))
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

        # Audio first: what is deleted of a project whose rows are there can be deleted again.
        for ids in project_deletion.recordings(database, found.id):
            asyncio.run(delete_audio(ids))
        project_deletion.delete_project(database, found.id, read_clock(settings)())


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
        "oneCallPerNumber": project.one_call_per_number,
        "unwantedToDoNotCall": project.unwanted_to_do_not_call,
        "holdSeconds": project.hold_seconds,
        "maxCallsPerNumberPerDay": project.max_calls_per_number_per_day,
        "disabled": project.disabled,
    }
