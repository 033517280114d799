"""Commands about calls: `bitel call`, `calls`, `status`, `cancel`, `attempts`, `trace`, `erase`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from bitel.cli import common
from bitel.cli.campaigns import show_campaign
from bitel.cli.voices import voice_id
from bitel.domain.attempts import Outcome
from bitel.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from bitel.client import Call, CallDetails
    from bitel.domain.attempts import Media
    from bitel.settings import Settings
    from bitel.store.calls import AttemptRow
    from bitel.store.database import Database
    from bitel.store.trace_requests import TraceLines

LARGEST_PAGE = 1000
"""Calls of one request."""
ERASED_AT_ONCE = 200
"""Calls that one transaction of `bitel erase` changes."""
TRACE_TIMEOUT = 8.0
"""Seconds in which workers must reply to a request for a trace."""
TRACE_POLL = 0.2


def call(
    number: common.Number,
    voice: common.Voice,
    retries: common.Retries = None,
    server: Annotated[
        str | None, Option(metavar="ID", help="The dialer that places the call.")
    ] = None,
    menu: common.Menu = None,
    machine_detection: common.Machines = None,
    machine_voice: common.MachineVoice = None,
    wait: Annotated[bool, Option("--wait", help="Wait until the call is over.")] = False,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Play a recording to one number. With --wait, succeeds only if the call was answered."""
    with common.open_client(config) as client:
        played = voice_id(client, voice)
        placed = client.call(
            number,
            played,
            retry_count=retries,
            server_id=server,
            menu=common.read_menu(menu),
            machine_detection=machine_detection,
            machine_voice_id=None if machine_voice is None else voice_id(client, machine_voice),
        )
        if wait:
            with _spinner(f"calling {number} (`bitel status {placed['id']} --details`)"):
                placed = client.wait(placed["id"], math.inf)
        is_failed = wait and placed["status"] != "NORMAL"
        if is_failed and not as_json:
            _show_details(client.call_details(placed["id"]), as_json)
        else:
            _show(placed, as_json)
    if is_failed:
        raise typer.Exit(1)


def status(
    call_id: common.Id,
    details: Annotated[
        bool, Option("--details", help="Show its attempts, and why each ended.")
    ] = False,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Show how a call stands."""
    with common.open_client(config) as client:
        if details:
            _show_details(client.call_details(call_id), as_json)
        else:
            _show(client.status(call_id), as_json)


def calls(
    status: Annotated[
        list[str] | None, Option(metavar="STATUS", help="In this status; may be repeated.")
    ] = None,
    number: Annotated[
        str | None, Option(metavar="NUMBER", help="To this number, in any spelling.")
    ] = None,
    reference: Annotated[
        str | None, Option(metavar="TEXT", help="With this reference of yours.")
    ] = None,
    campaign: Annotated[str | None, Option(metavar="ID", help="Of this campaign.")] = None,
    since: common.Time = None,
    until: common.Time = None,
    limit: Annotated[int, Option(metavar="N", min=1, help="How many, at most.")] = 100,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """List the project's calls that fit all options, the newest first.

    --since and --until are about when a call was requested.
    """
    with common.open_client(config) as client:
        found = client.calls(
            min(limit, LARGEST_PAGE),
            status=[each.upper() for each in status or ()],
            phone_number=number,
            reference=reference,
            campaign_id=campaign,
            since=common.read_time("--since", since),
            until=common.read_time("--until", until),
        )
        listed = list(islice(found, limit))
    if as_json:
        common.print_json(listed)
        return
    for each in listed:
        at = common.utc(each["requestDate"])
        mine = f"  {each['reference']}" if each["reference"] else ""
        print(f"{each['id']}  {at}  {each['status']:<9}  {each['phoneNumber']}{mine}")


def cancel(
    id_: Annotated[
        str, Argument(metavar="ID", help="Of a call, or of a campaign.", show_default=False)
    ],
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Call off a call, or every call of a campaign that nobody has answered yet."""
    with common.open_client(config) as client:
        try:
            _show(client.cancel(id_), as_json)
        except NotFoundError:
            try:
                show_campaign(client.cancel_campaign(id_), as_json)
            except NotFoundError:
                raise NotFoundError(
                    f"this project has no call and no campaign of the id {id_[:64]!r}"
                ) from None


def _spinner(text: str) -> AbstractContextManager[object]:
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def _show(call: Call, as_json: bool) -> None:
    if as_json:
        common.print_json(call)
        return
    billed = f"  {call['billSec']} s  {call['price']:g}" if call["billSec"] else ""
    print(f"{call['id']}  {call['status']}  {call['phoneNumber']}{billed}")


def _show_details(call: CallDetails, as_json: bool) -> None:
    if as_json:
        common.print_json(call)
        return
    _show(call, as_json)
    words = {
        "reason": call["reason"],
        "reference": call["reference"],
        "campaign": call["campaignId"],
        "keys": call["keys"],
        "answered by": call["machine"],
    }
    for name, value in words.items():
        if value:
            print(f"   {name}: {value}")
    for each in call["attempts"]:
        steps = {"rang": each["ringDate"], "answered": each["answerDate"], "ended": each["endDate"]}
        after = [f"{name} after {at - each['startDate']} s" for name, at in steps.items() if at]
        code = f" {each['sipCode']}" if each["sipCode"] else ""
        reason = f" ({each['reason']})" if each["reason"] else ""
        outcome = f"{each['outcome'] or 'under way'}{code}{reason}"
        print(f"{each['number']}  {common.utc(each['startDate'])}  {', '.join([outcome, *after])}")


def attempts(
    call_id: common.Id, as_json: common.Json = False, config: common.Config = None
) -> None:
    """Show the attempts of a call: what became of each, how it was heard, what was keyed.

    Keyed digits may be somebody's secret; they are kept in the database and shown only here.
    """
    from bitel.store import calls

    found, date = common.read_database(config, lambda conn: calls.attempts(conn, call_id))
    if not found:
        raise NotFoundError(f"no attempt of a call {call_id!r} is known")
    if as_json:
        common.print_json([_attempt_row(each, date) for each in found])
        return
    for each in found:
        print(
            f"{each.number}  {common.utc(date(each.started_at))}  {each.dialer_id}  {_result(each)}"
        )
        if each.media is not None:
            keyed = f", keyed {each.media.digits}" if each.media.digits else ""
            print(f"   {_quality(each.media)}{keyed}")


def _quality(media: Media) -> str:
    if media.sent is None:
        return "packets were not counted, as the process that sent them was lost"
    words = [f"{media.sent} packets sent", f"about {media.received} received"]
    if media.loss is not None:
        words.append(f"the callee missed {media.loss:.1%}")
    if media.jitter_ms is not None:
        words.append(f"jitter {media.jitter_ms:.1f} ms")
    return ", ".join(words)


def _result(each: AttemptRow) -> str:
    if each.outcome is None or each.ended_at is None:
        if each.answered_at is not None:
            return "answered, under way"
        return "under way" if each.rang_at is None else "rings, under way"
    words = each.outcome.value
    if each.answered_at is not None:
        seconds = each.ended_at - each.answered_at
        is_answered = each.outcome is Outcome.ANSWERED
        words += f" for {seconds:.1f} s" if is_answered else f" {seconds:.1f} s after the answer"
    if each.rang_at is not None:
        words += f", rang after {each.rang_at - each.started_at:.1f} s"
    return words + (f" ({each.detail})" if each.detail else "")


def _attempt_row(each: AttemptRow, date: Callable[[float], float]) -> dict[str, object]:
    def optional_date(at: float | None) -> float | None:
        return None if at is None else date(at)

    media = each.media
    return {
        "id": each.id,
        "number": each.number,
        "dialer": each.dialer_id,
        "startedAt": date(each.started_at),
        "rangAt": optional_date(each.rang_at),
        "answeredAt": optional_date(each.answered_at),
        "endedAt": optional_date(each.ended_at),
        "outcome": each.outcome and each.outcome.value,
        "sipCode": each.sip_code,
        "q850": each.q850,
        "endedBy": each.ended_by,
        "detail": each.detail,
        "packetsSent": media and media.sent,
        "packetsReceived": media and media.received,
        "digits": media and media.digits,
        "loss": media and media.loss,
        "jitterMs": media and media.jitter_ms,
    }


def trace(call_id: common.Id, full: common.Full = False, config: common.Config = None) -> None:
    """Show the SIP messages of a call: one of the last, or one that ended in ERROR.

    They are in files of the machine that dialled; with PostgreSQL those of other machines are asked
    for. Credentials are not in them. The section `traces` of the settings says how many calls are
    kept, and for how long.
    """
    from bitel import settings
    from bitel.service.trace_replies import lines_of
    from bitel.store import engines

    loaded = settings.load(config)
    found = [lines_of(folder, call_id) for folder in _trace_folders(loaded.data_dir)]
    if not any(each.short for each in found):
        if engines.is_sqlite(engines.parse_url(loaded.effective_database_url)):
            place = loaded.data_dir / "traces"
            raise NotFoundError(f"no trace of a call {call_id!r} is kept in {place}")
        found = _ask_others(call_id, config)
    for lines in found:
        for line in lines.full if full else lines.short:
            typer.echo(line)


def _ask_others(call_id: str, config: Path | None) -> list[TraceLines]:
    """What the workers of other machines have of the call. Raises NotFoundError."""
    from bitel.store import leases, trace_requests

    with common.open_database(config) as (settings, database):
        clock = common.read_clock(settings)
        request = database.write_now(lambda conn: trace_requests.ask(conn, call_id, clock()))
        workers = {each.name for each in database.read_now(leases.all_workers)}
        found: dict[str, TraceLines] = {}
        end = time.monotonic() + TRACE_TIMEOUT
        while not workers <= found.keys() and time.monotonic() < end:
            found = database.read_now(lambda conn: trace_requests.replies(conn, request))
            if any(each.short for each in found.values()):
                break
            time.sleep(TRACE_POLL)  # polls the database
        database.write_now(lambda conn: trace_requests.remove(conn, request))
    # A standby has the folder of the process that it waits for.
    lines = list({str(each): each for _, each in sorted(found.items()) if each.short}.values())
    if not lines:
        silent = ", ".join(sorted(workers - found.keys()))
        but = f"; no reply from {silent}" if silent else ""
        raise NotFoundError(f"no trace of a call {call_id!r} is kept by any worker{but}")
    return lines


def _trace_folders(data_dir: Path) -> list[Path]:
    """The folders of all workers of this machine."""
    return sorted(data_dir.glob("traces*"))


def erase(
    project: common.ProjectName,
    number: common.Number,
    yes: common.Yes = False,
    config: common.Config = None,
) -> None:
    """Remove a number from a project's calls, attempts, traces, lists and stored answers.

    The calls and their prices stay, without the number and the digits that were keyed. Calls that
    wait are canceled first. An entry on the do-not-call list stays, so that
    the number is not called again.
    """
    from bitel.dialer import sip_trace
    from bitel.domain.phone_numbers import to_e164
    from bitel.store import calls, retention

    with common.open_database(config) as (settings, database):
        e164 = to_e164(number, settings.region, settings.extra_prefixes)
        found = database.read_now(lambda conn: common.find_project(conn, project))
        if not yes:
            typer.confirm(f"Erase {number} from the project {found.name}?", abort=True, err=True)
        now = common.read_clock(settings)()
        ids, open_ids = _calls_to(database, found.id, e164)
        for each in open_ids:
            database.write_now(partial(calls.cancel, project_id=found.id, call_id=each, now=now))
        _, open_ids = _calls_to(database, found.id, e164) if open_ids else ([], [])
        if open_ids:
            raise ConflictError(
                "a call to the number is under way, and was canceled; give the command again in "
                "a minute"
            )
        for first in range(0, len(ids), ERASED_AT_ONCE):
            some = ids[first : first + ERASED_AT_ONCE]
            database.write_now(partial(retention.erase_calls, project_id=found.id, ids=some))
        database.write_now(lambda conn: retention.forget_number(conn, found.id, e164))
        recipients = _erase_from_lists(database, found.id, e164, settings)
        folders = _trace_folders(settings.data_dir)
        traces = sum(sip_trace.erase(folder, set(ids)) for folder in folders)
    in_lists = f", and from {recipients} rows of lists" if recipients else ""
    typer.echo(f"erased from {len(ids)} calls and the traces of {traces} attempts{in_lists}")


def _erase_from_lists(database: Database, project_id: str, e164: str, settings: Settings) -> int:
    """Remove a number from the uploaded lists of a project; returns how many recipients changed."""
    from bitel.domain.phone_numbers import number_test
    from bitel.store import recipient_lists

    is_number = number_test(e164, settings.region, settings.extra_prefixes)
    place: tuple[str, int] | None = ("", -1)
    count = 0
    while place is not None:
        work = partial(recipient_lists.erase_number, is_number=is_number, after=place)
        place, changed = database.write_now(partial(work, project_id=project_id))
        count += changed
    return count


def _calls_to(database: Database, project_id: str, e164: str) -> tuple[list[str], list[str]]:
    """The ids of all calls of the project to the number, and of those that are not over."""
    from bitel.store import retention

    ids: list[str] = []
    open_ids: list[str] = []
    after = ""
    while True:
        after, found = database.read_now(
            partial(retention.calls_to, project_id=project_id, e164=e164, after=after)
        )
        ids += [each for each, _ in found]
        open_ids += [each for each, is_over in found if not is_over]
        if not after:
            return ids, open_ids
