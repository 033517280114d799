"""`bitel attempts`: what became of each attempt of a call, and how it was heard."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.cli.opening import open_database, read_clock
from bitel.cli.options import ConfigOption, JsonOption
from bitel.domain.attempts import Outcome
from bitel.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bitel.domain.attempts import Media
    from bitel.store.calls import AttemptRow


def attempts(
    call_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show the attempts of a call: what became of each, how it was heard, what was keyed.

    Keyed digits may be somebody's secret; they are kept in the database and shown only here.
    """
    from bitel.store import calls

    with open_database(config) as (settings, database):
        found = database.read_now(lambda conn: calls.attempts(conn, call_id))
    if not found:
        raise NotFoundError(f"no attempt of a call {call_id!r} is known")
    date = read_clock(settings).date
    if as_json:
        print(json.dumps([_row(each, date) for each in found], ensure_ascii=False))
        return
    for each in found:
        at = datetime.fromtimestamp(date(each.started_at), UTC).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{each.number}  {at}  {each.dialer_id}  {_ending(each)}")
        if each.media is not None:
            keyed = f", keyed {each.media.digits}" if each.media.digits else ""
            print(f"   {as_heard(each.media)}{keyed}")


def as_heard(media: Media) -> str:
    """How a call was heard, in a few words."""
    if media.sent is None:
        return "packets were not counted, as the process that sent them was lost"
    words = [f"{media.sent} packets sent", f"about {media.received} received"]
    if media.loss is not None:
        words.append(f"the callee missed {media.loss:.1%}")
    if media.jitter_ms is not None:
        words.append(f"jitter {media.jitter_ms:.1f} ms")
    return ", ".join(words)


def _ending(each: AttemptRow) -> str:
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


def _row(each: AttemptRow, date: Callable[[float], float]) -> dict[str, object]:
    media = each.media

    def shown(at: float | None) -> float | None:
        return None if at is None else date(at)

    return {
        "id": each.id,
        "number": each.number,
        "dialer": each.dialer_id,
        "startedAt": date(each.started_at),
        "rangAt": shown(each.rang_at),
        "answeredAt": shown(each.answered_at),
        "endedAt": shown(each.ended_at),
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
