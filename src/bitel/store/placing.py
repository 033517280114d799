"""From calls that are asked for to calls that wait: all of a request's, or none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, literal_column

from bitel.calls.budget import Budget
from bitel.calls.call import Call, CallStatus, NewCall
from bitel.errors import BitelError, InvalidRequestError
from bitel.store import do_not_call, recordings, reserving
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import call

_NOTHING = Decimal(0)


def place(conn: Connection, calls: Sequence[NewCall]) -> list[Call]:
    """Queue calls, all or none of them; as they then stand, in that order. Each is due at once.

    What they may cost is kept back from their project's budget, where that has a limit. A call to
    a number on the do-not-call list is final at once, as an ERROR. Raises InvalidRequestError for
    a recording that is deleted or not the project's, and what `Budget.reserve` raises.
    """
    by_project = sorted(calls, key=lambda new: new.project_id)
    asks = [list(group) for _, group in groupby(by_project, key=lambda new: new.project_id)]
    answers = place_each(conn, asks)
    placed: dict[str, Call] = {}
    for answer in answers:
        if isinstance(answer, BitelError):
            raise answer
        placed.update((one.id, one) for one in answer)
    return [placed[new.id] for new in calls]


def place_each(
    conn: Connection, asks: Sequence[Sequence[NewCall]]
) -> list[list[Call] | BitelError]:
    """As `place`, for many requests at a time; for each its calls, or why it has none.

    Each ask is of one project, and holds at least one call.
    """
    terms = _look_up(conn, asks)
    answers: list[list[Call] | BitelError] = []
    placed: list[tuple[NewCall, bool, Decimal]] = []
    for calls in asks:
        try:
            admitted = terms.admit(calls)
        except BitelError as objection:
            answers.append(objection)
        else:
            placed += admitted
            answers.append([_as_placed(new, never, terms.now) for new, never, _ in admitted])
    if placed:
        conn.execute(_PLACE, [_row(*one) for one in placed])
    reserving.reserve(conn, terms.reserved)
    refused = [new.id for new, unwanted, _ in placed if unwanted]
    ends = [CallEnd(key, CallStatus.ERROR, reason=do_not_call.REASON) for key in refused]
    end_calls(conn, ends, terms.now)
    return answers


@dataclass
class _Terms:
    """What decides whether calls may be placed, as the database has it now."""

    budgets: dict[str, Budget]
    playable: set[tuple[str, str]]
    unwanted: dict[str, set[str]]
    now: float
    reserved: dict[str, Decimal] = field(default_factory=dict)
    """By project, what the calls admitted so far keep back."""

    def admit(self, calls: Sequence[NewCall]) -> list[tuple[NewCall, bool, Decimal]]:
        """For each call whether it is unwanted, and what it reserves. Raises BitelError."""
        project_id = calls[0].project_id
        for recording_id in {new.recording_id for new in calls} - {None}:
            if (project_id, recording_id) not in self.playable:
                raise InvalidRequestError("voiceId names no recording of this project")
        budget, unwanted = self.budgets[project_id], self.unwanted[project_id]
        admitted = []
        for new in calls:
            never = new.e164 in unwanted
            admitted.append((new, never, new.reserve if budget.limited and not never else _NOTHING))
        amount = sum((reserve for _, _, reserve in admitted), _NOTHING)
        self.budgets[project_id] = budget.reserve(amount, self.now)
        self.reserved[project_id] = self.reserved.get(project_id, _NOTHING) + amount
        return admitted


def _look_up(conn: Connection, asks: Sequence[Sequence[NewCall]]) -> _Terms:
    numbers: dict[str, set[str]] = {}
    wanted: set[str] = set()
    for calls in asks:
        numbers.setdefault(calls[0].project_id, set()).update(new.e164 for new in calls)
        wanted.update(new.recording_id for new in calls if new.recording_id is not None)
    # Recordings before budgets: a budget is what others wait for.
    playable = recordings.playable(conn, wanted)
    unwanted = {
        project_id: do_not_call.contains_many(conn, project_id, called)
        for project_id, called in numbers.items()
    }
    now = max((new.requested_at for calls in asks for new in calls), default=0.0)
    return _Terms(reserving.open_budgets(conn, numbers, now), playable, unwanted, now)


def _row(new: NewCall, unwanted: bool, reserve: Decimal) -> dict[str, Any]:
    return {
        "id": new.id,
        "project_id": new.project_id,
        "campaign_id": new.campaign_id,
        "dialer_id": new.dialer_id,
        "phone_number": new.phone_number,
        "e164": new.e164,
        "recording_id": new.recording_id,
        "lane": int(new.lane),
        "retry_count": new.retry_count,
        "retries_left": new.retry_count,
        "retry_interval": new.retry_interval,
        "requested_at": new.requested_at,
        "expires_at": new.expires_at,
        "due_at": None if unwanted else new.requested_at,
        "reserved": reserve,
        "digits": new.digits or None,
        "repeat_count": new.repeat_count,
        "language": new.language,
    }


def _as_placed(new: NewCall, unwanted: bool, now: float) -> Call:
    return Call(
        id=new.id,
        project_id=new.project_id,
        campaign_id=new.campaign_id,
        phone_number=new.phone_number,
        status=CallStatus.ERROR if unwanted else CallStatus.WAITING,
        bill_seconds=0,
        requested_at=new.requested_at,
        executed_at=0.0,
        price=_NOTHING,
        reason=do_not_call.REASON if unwanted else "",
        finished_at=now if unwanted else 0.0,
    )


# What is the same for every call is no parameter: there may be ten thousand rows.
_zero: ColumnElement[Any] = literal_column("0")
_PLACE = insert(call).values(
    status=literal_column(str(int(CallStatus.WAITING))),
    trouble=_zero,
    attempts=_zero,
    executed_at=_zero,
    bill_seconds=_zero,
    price=_zero,
    finished_at=_zero,
    reason=literal_column("''"),
)
