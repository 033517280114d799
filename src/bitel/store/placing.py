"""From calls that are asked for to calls that wait: all of a request's, or none of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import compress, groupby
from typing import Any

from sqlalchemy import Connection, String, insert, select

from bitel.domain.budget import Budget
from bitel.domain.calls import Call, CallStatus, Lane, NewCall, NewCalls
from bitel.errors import BitelError, InvalidRequestError
from bitel.store import (
    call_counters,
    do_not_call,
    one_time_passwords,
    queueing,
    recordings,
    reserving,
)
from bitel.store.call_frequency import open_frequency
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import UNTRIED, call, recording
from bitel.store.schema import do_not_call as number_list
from bitel.store.sql_batch import Statement, values_parameter

_NOTHING = Decimal(0)


def place(conn: Connection, calls: Sequence[NewCall]) -> list[Call]:
    """Queue calls, all or none of them; as they then stand, in that order. Each is due at once.

    What they may cost is kept back from their project's budget, where that has a limit. A call to
    a number on the do-not-call list is final at once, as an ERROR. Raises InvalidRequestError for
    a recording that is deleted or not the project's, and what `Budget.reserve` raises.
    """
    by_project = sorted(calls, key=lambda new: new.project_id)
    asks = [list(group) for _, group in groupby(by_project, key=lambda new: new.project_id)]
    refused: set[str] = set()
    for answer in place_each(conn, asks):
        if isinstance(answer, BitelError):
            raise answer
        refused |= answer
    now = max((new.requested_at for new in calls), default=0.0)
    return [_as_placed(new, new.id in refused, now) for new in calls]


def place_each(
    conn: Connection, asks: Sequence[Sequence[NewCall]], otp_per_number: int | None = None
) -> list[set[str] | BitelError]:
    """As `place`, for many requests at a time; for each why it has no calls, if it has none.

    Else the ids of those calls that are final at once, mostly none. Each ask is of one project,
    and holds at least one call. `otp_per_number` is how many one-time passwords a number may get
    in 10 minutes; None: any number.
    """
    project_ids = [calls[0].project_id for calls in asks]
    wanted: dict[str, set[str]] = {}
    for project_id, calls in zip(project_ids, asks, strict=True):
        wanted.setdefault(project_id, set()).update(new.e164 for new in calls)
    recording_ids = {new.recording_id for calls in asks for new in calls}
    now = max((new.requested_at for calls in asks for new in calls), default=0.0)
    otp = {calls[0].project_id for calls in asks if calls[0].lane is Lane.OTP}
    frequency = open_frequency(conn, wanted, otp_per_number, now, otp_projects=otp)
    terms = _look_up(conn, wanted, recording_ids, now)
    answers: list[set[str] | BitelError] = []
    rows: list[tuple[Any, ...]] = []
    lanes: list[Lane] = []
    for project_id, calls in zip(project_ids, asks, strict=True):
        unwanted = terms.unwanted[project_id]
        refused = {new.id for new in calls if new.e164 in unwanted}
        asked = [_NOTHING if new.id in refused else new.reserve for new in calls]
        is_otp = calls[0].lane is Lane.OTP
        numbers = [new.e164 for new in calls if new.id not in refused]
        try:
            frequency.admit(project_id, numbers, is_otp=is_otp)
            reserves = terms.admit(project_id, {new.recording_id for new in calls}, asked)
        except BitelError as objection:
            answers.append(objection)
        else:
            answers.append(refused)
            frequency.count(project_id, numbers, is_otp=is_otp)
            rows += [
                _row(new, new.id in refused, reserve)
                for new, reserve in zip(calls, reserves, strict=True)
            ]
            lanes += [new.lane for new in calls]
    if rows:
        _PLACE.run(conn, {"rows": rows})
    frequency.store(conn)
    for lane in lanes:
        call_counters.count("placed", lane.name)
    placed = [answer for answer in answers if isinstance(answer, set)]
    _finish(conn, terms, sorted(set().union(*placed)))
    for calls, answer in zip(asks, answers, strict=True):
        if isinstance(answer, set) and calls[0].lane is Lane.OTP:
            accepted = [new for new in calls if new.id not in answer]
            one_time_passwords.supersede_older(conn, accepted, now)
    return answers


def prepare(calls: NewCalls) -> Sequence[str]:
    """What most of `place_many` is, done beforehand: others wait as long as the transaction is."""
    return queueing.written_rows(calls, calls.reserves)


def place_many(
    conn: Connection,
    calls: NewCalls,
    prepared: Sequence[str] = (),
    otp_per_number: int | None = None,
) -> set[str]:
    """As `place`, for the many calls of one request; the ids of those that are final at once.

    `prepared` is what `prepare` has made of these calls, if it was asked; `otp_per_number` as for
    `place_each`.
    """
    like = calls.like
    wanted = {like.project_id: set(calls.e164)}
    otp = {like.project_id} if like.lane is Lane.OTP else set[str]()
    frequency = open_frequency(conn, wanted, otp_per_number, like.requested_at, otp_projects=otp)
    terms = _look_up(conn, wanted, {like.recording_id}, like.requested_at)
    reserves, refused = calls.reserves, set[str]()
    unwanted = terms.unwanted[like.project_id]
    if unwanted:
        is_refused = [e164 in unwanted for e164 in calls.e164]
        refused = set(compress(calls.ids, is_refused))
        reserves = [
            _NOTHING if never else reserve
            for reserve, never in zip(reserves, is_refused, strict=True)
        ]
    numbers = [e164 for e164 in calls.e164 if e164 not in unwanted]
    frequency.admit(like.project_id, numbers, is_otp=like.lane is Lane.OTP)
    reserves = terms.admit(like.project_id, {like.recording_id}, reserves)
    frequency.count(like.project_id, numbers, is_otp=like.lane is Lane.OTP)
    frequency.store(conn)
    if not prepared or reserves != calls.reserves:
        prepared = queueing.written_rows(calls, reserves)
    queueing.insert_calls(conn, like, prepared)
    call_counters.count("placed", like.lane.name, len(calls.ids))
    _finish(conn, terms, sorted(refused))
    return refused


@dataclass
class _Terms:
    """What decides whether calls may be placed, as the database has it now."""

    budgets: dict[str, Budget]
    playable: set[tuple[str, str]]
    unwanted: dict[str, set[str]]
    now: float
    reserved: dict[str, Decimal] = field(default_factory=dict)
    """By project, what the calls admitted so far keep back."""

    def admit(
        self, project_id: str, recording_ids: Collection[str | None], asked: Sequence[Decimal]
    ) -> Sequence[Decimal]:
        """What calls reserve, of which each asks for so much. Raises BitelError."""
        for recording_id in recording_ids:
            if recording_id is not None and (project_id, recording_id) not in self.playable:
                raise InvalidRequestError("voiceId names no recording of this project")
        budget = self.budgets[project_id]
        reserves = asked if budget.limited else [_NOTHING] * len(asked)
        amount = sum(reserves, _NOTHING)
        self.budgets[project_id] = budget.reserve(amount, self.now)
        self.reserved[project_id] = self.reserved.get(project_id, _NOTHING) + amount
        return reserves


def _look_up(
    conn: Connection,
    numbers: Mapping[str, set[str]],
    recording_ids: Collection[str | None],
    now: float,
) -> _Terms:
    # Recordings before budgets: a budget is what others wait for.
    wanted = [(one,) for one in recording_ids if one is not None]
    found = _PLAYABLE.rows(conn, {"wanted": wanted})
    playable = {(row.project_id, row.id) for row in found}
    today = recordings.day_of(now)
    recordings.note_use(conn, [row.id for row in found if row.used_on < today], now)
    unwanted: dict[str, set[str]] = {project_id: set() for project_id in numbers}
    # Most projects have no list, and one look tells which have.
    for row in _HAVE_LISTS.rows(conn, {"asked": [(project_id,) for project_id in numbers]}):
        unwanted[row.id] = do_not_call.contains_many(conn, row.id, numbers[row.id])
    return _Terms(reserving.open_budgets(conn, numbers, now), playable, unwanted, now)


def _finish(conn: Connection, terms: _Terms, refused: Sequence[str]) -> None:
    """Keep back what was admitted, and end the calls that must not be dialled."""
    reserving.reserve(conn, terms.reserved)
    ends = [CallEnd(key, CallStatus.ERROR, reason=do_not_call.REASON) for key in refused]
    end_calls(conn, ends, terms.now)


def _row(new: NewCall, unwanted: bool, reserve: Decimal) -> tuple[Any, ...]:
    return (
        new.id,
        new.project_id,
        new.campaign_id,
        new.dialer_id,
        new.phone_number,
        new.e164,
        new.recording_id,
        int(new.lane),
        new.retry_count,
        new.retry_interval,
        new.requested_at,
        new.expires_at,
        None if unwanted else new.requested_at,
        reserve,
        new.digits or None,
        new.repeat_count,
        new.language,
        new.longest_seconds,
    )


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


_wanted = values_parameter("wanted", id=String())
_PLAYABLE = Statement(
    select(recording.c.id, recording.c.project_id, recording.c.used_on)
    .where(recording.c.id.in_(select(_wanted.c.id)), recording.c.deleted_at.is_(None))
    .with_for_update(read=True, key_share=True)
)
_asked = values_parameter("asked", id=String())
_HAVE_LISTS = Statement(
    select(_asked.c.id).where(
        select(number_list.c.e164).where(number_list.c.project_id == _asked.c.id).exists()
    )
)

# In the order of `_row`.
_NAMES = (
    "id", "project_id", "campaign_id", "dialer_id", "phone_number", "e164", "recording_id", "lane",
    "retry_count", "retry_interval", "requested_at", "expires_at", "due_at", "reserved", "digits",
    "repeat_count", "language", "longest_seconds",
)  # fmt: skip
_rows = values_parameter("rows", **{name: call.c[name].type for name in _NAMES})
_values: dict[str, Any] = {
    **{name: _rows.c[name] for name in _NAMES},
    "retries_left": _rows.c.retry_count,
    **UNTRIED,
}
_PLACE = Statement(insert(call).from_select(list(_values), select(*_values.values())))
