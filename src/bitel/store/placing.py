"""Placing of calls: admission of each request and its calls' rows, in one transaction.

The calls of a request are placed together or not at all. Small requests are placed many at a time
(`place_each`), since statements cost more than rows. The rows of a batch are encoded as JSON by
`prepare`, before the transaction, to keep the time short for which others wait. `large_batches`
writes those of a large one in several transactions, before `place_written` admits them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from json.encoder import encode_basestring_ascii as as_json
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    String,
    bindparam,
    or_,
    select,
)
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.types import TypeEngine

from bitel.domain.calls import CallStatus, Lane, NewCall, NewCalls
from bitel.domain.menus import RequestMenu
from bitel.domain.pricing import Budget, day_of
from bitel.domain.recipients import Recipient
from bitel.domain.webhooks import RequestWebhook
from bitel.errors import BitelError, InvalidRequestError
from bitel.store import balances, do_not_call, event_rows, one_time_passwords, recordings
from bitel.store import menus as stored_menus
from bitel.store.call_frequency import CallFrequency, open_frequency
from bitel.store.database import count_calls
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import UNTRIED, FreeText, Money, call, project, recording
from bitel.store.schema import do_not_call as number_list
from bitel.store.sql_batch import Statement, insert_rows, is_among, values_parameter

CHUNK: Final = 1000
"""Calls in one statement."""

_NOTHING: Final = Decimal(0)
_TERMS: Final = (
    "project_id", "campaign_id", "dialer_id", "recording_id", "lane", "retry_count",
    "retry_interval", "retry_waits", "requested_at", "expires_at", "repeat_count", "language",
    "longest_seconds", "reference", "caller_id", "webhook_id", "menu_id",
    "machine_detection", "machine_recording_id",
)  # fmt: skip
"""Columns that all calls of a request share."""
_terms_of: Final = attrgetter(*_TERMS)
_LONGEST_NUMBER: Final = 64
_money, _written, _reference = Money(), FreeText(_LONGEST_NUMBER), FreeText(100)
_ANY: Final = DefaultDialect()
"""For types that store the same in each kind of database."""

_each = values_parameter(
    "rows",
    *call.c[_TERMS],
    *call.c["id", "phone_number", "e164", "reserved", "digits", "due_at"],
)
_INSERT_EACH: Final = insert_rows(_each, call, retries_left=_each.c.retry_count, **UNTRIED)


class LimitsChangedError(Exception):
    """The limits of a project changed while a batch of it was written."""


def place_each(
    conn: Connection,
    requests: Sequence[Sequence[NewCall]],
    otp_per_number: int | None = None,
    webhooks: Iterable[RequestWebhook] = (),
    menus: Iterable[RequestMenu] = (),
) -> list[set[str] | BitelError]:
    """Queue the calls of many requests, each due at once.

    Their highest price is reserved in their project's budget, if that has a limit. A call to a
    number on the do-not-call list is final at once, as an ERROR.

    Args:
        requests: each of one project, with at least one call.
        otp_per_number: one-time passwords that a number may get in 10 minutes; None: any number.
        webhooks: those that the requests name.
        menus: those of the requests.

    Returns for each request the ids of its calls that are final at once, or the error:
    InvalidRequestError for a recording that is deleted or not the project's,
    InsufficientBalanceError or TooManyRequestsError.
    """
    numbers: dict[str, set[str]] = {}
    for calls in requests:
        numbers.setdefault(calls[0].project_id, set()).update(new.e164 for new in calls)
    named_menus = {each.id: each for each in menus}
    in_menus = {each for menu in named_menus.values() for each in menu.recordings}
    every = [new for calls in requests for new in calls]
    admission = _open_admission(conn, every, numbers, otp_per_number, in_menus)
    answers: list[set[str] | BitelError] = []
    rows: list[tuple[Any, ...]] = []
    for calls in requests:
        e164 = [new.e164 for new in calls]
        recording_ids = {new.recording_id for new in calls}
        recording_ids |= {new.machine_recording_id for new in calls}
        menu = named_menus.get(calls[0].menu_id or "")
        if menu is not None:
            recording_ids |= menu.recordings
        try:
            reserves = admission.admit(calls[0], e164, recording_ids, [n.reserve for n in calls])
        except BitelError as refusal:
            answers.append(refusal)
            continue
        unwanted = admission.unwanted[calls[0].project_id]
        answers.append({new.id for new in calls if new.e164 in unwanted})
        rows += [
            (
                *_terms_of(new),
                *(new.id, new.phone_number, new.e164, reserve, new.digits or None),
                None if new.e164 in unwanted else _due_at(new),
            )
            for new, reserve in zip(calls, reserves, strict=True)
        ]
        for new in calls:
            count_calls("placed", new.lane.name)
    named = {
        calls[0].webhook_id
        for calls, answer in zip(requests, answers, strict=True)
        if not isinstance(answer, BitelError)
    }
    if named - {None}:
        event_rows.name_webhooks(conn, [each for each in webhooks if each.id in named])
    used = {
        calls[0].menu_id
        for calls, answer in zip(requests, answers, strict=True)
        if not isinstance(answer, BitelError)
    }
    for key in sorted(named_menus.keys() & used):
        stored_menus.add(conn, named_menus[key])
    if rows:
        _INSERT_EACH.run(conn, {"rows": rows})
    final = set().union(*(answer for answer in answers if isinstance(answer, set)))
    admission.finish(conn, final)
    for calls, answer in zip(requests, answers, strict=True):
        if isinstance(answer, set) and calls[0].lane is Lane.OTP:
            accepted = [new for new in calls if new.id not in answer]
            one_time_passwords.supersede_older(conn, accepted, admission.now)
    return answers


def _due_at(new: NewCall) -> float:
    return new.requested_at if new.due_at is None else new.due_at


# Without types that convert values: `_rows_as_json` does.
_BY_CALL: Final[dict[str, TypeEngine[Any]]] = {
    "id": String(), "phone_number": String(), "e164": String(), "reserved": BigInteger(),
}  # fmt: skip
_BY_PERSON: Final[dict[str, TypeEngine[Any]]] = {
    "reference": String(), "time_zone": String(), "variables": String(),
    "longest_seconds": Integer(),
}  # fmt: skip
_terms: dict[str, ColumnElement[Any]] = {
    name: bindparam(name, type_=call.c[name].type)
    for name in (*_TERMS, "digits", "parts", "due_at")
}


def _insert(types: Mapping[str, TypeEngine[Any]]) -> Statement:
    """Inserts calls of which these columns differ."""
    shared = {name: term for name, term in _terms.items() if name not in types}
    rows = values_parameter("rows", **types)
    return insert_rows(rows, call, **shared, retries_left=_terms["retry_count"], **UNTRIED)


_INSERT_ALIKE: Final = _insert(_BY_CALL)
_INSERT_PEOPLE: Final = _insert({**_BY_CALL, **_BY_PERSON})


def place_many(
    conn: Connection,
    calls: NewCalls,
    prepared: Sequence[str] = (),
    otp_per_number: int | None = None,
    menu: RequestMenu | None = None,
) -> set[str]:
    """As `place_each`, for the many calls of one request; raises the error.

    `prepared` is the result of `prepare` for these calls, if it was called.
    """
    admission, reserves = _admit_many(conn, calls, otp_per_number, menu)
    if not prepared or reserves != calls.reserves:
        prepared = _rows_as_json(calls, reserves)
    write_rows(conn, calls, prepared)
    return _finish_many(conn, calls, admission, menu)


def check_many(
    conn: Connection,
    calls: NewCalls,
    otp_per_number: int | None = None,
    menu: RequestMenu | None = None,
) -> Sequence[Decimal]:
    """What each call would reserve if they were placed now. Raises as `place_many`."""
    return _admit_many(conn, calls, otp_per_number, menu)[1]


def place_written(
    conn: Connection,
    calls: NewCalls,
    reserves: Sequence[Decimal],
    otp_per_number: int | None = None,
    menu: RequestMenu | None = None,
) -> set[str]:
    """As `place_many`, for calls whose rows are written already, with these reservations.

    Raises LimitsChangedError if they reserve something else by now.
    """
    admission, admitted = _admit_many(conn, calls, otp_per_number, menu)
    if admitted != reserves:
        raise LimitsChangedError
    return _finish_many(conn, calls, admission, menu)


def _admit_many(
    conn: Connection, calls: NewCalls, otp_per_number: int | None, menu: RequestMenu | None
) -> tuple[_Admission, Sequence[Decimal]]:
    template, e164 = calls.template, calls.e164
    in_menu = frozenset[str]() if menu is None else menu.recordings
    numbers = {template.project_id: set(e164)}
    admission = _open_admission(conn, [template], numbers, otp_per_number, in_menu)
    played = {template.recording_id, template.machine_recording_id, *in_menu}
    return admission, admission.admit(template, e164, played, calls.reserves)


def write_rows(conn: Connection, calls: NewCalls, prepared: Iterable[str]) -> None:
    """Write rows of these calls, as `prepare` makes them."""
    template = calls.template
    terms = dict(zip(_TERMS, _terms_of(template), strict=True))
    # A call without a recording must have digits that are not NULL.
    digits = "" if template.is_personal else template.digits or None
    terms |= {
        "lane": int(template.lane),
        "digits": digits,
        "parts": () if template.is_personal else None,
        "due_at": _due_at(template),
    }
    insert = _INSERT_PEOPLE if calls.people else _INSERT_ALIKE
    for text in prepared:
        insert.run(conn, {**terms, "rows": text})


def _finish_many(
    conn: Connection, calls: NewCalls, admission: _Admission, menu: RequestMenu | None
) -> set[str]:
    if menu is not None:
        stored_menus.add(conn, menu)
    count_calls("placed", calls.template.lane.name, len(calls.ids))
    unwanted = admission.unwanted[calls.template.project_id]
    final = set[str]()
    if unwanted:
        final = {key for key, each in zip(calls.ids, calls.e164, strict=True) if each in unwanted}
    admission.finish(conn, final)
    return final


def prepare(calls: NewCalls, reserves: Sequence[Decimal] | None = None) -> Sequence[str]:
    """The rows of calls as JSON texts of up to `CHUNK` calls. Needs no database.

    `reserves` is what each reserves, in place of that of `calls`.
    """
    return _rows_as_json(calls, calls.reserves if reserves is None else reserves)


@dataclass
class _Admission:
    """The limits of the projects that place calls, read and locked in this transaction."""

    frequency: CallFrequency | None
    """None: no limit applies."""
    budgets: dict[str, Budget]
    playable: set[tuple[str, str]]
    unwanted: dict[str, set[str]]
    now: float
    reserved: dict[str, Decimal] = field(default_factory=dict)
    """Amounts that the admitted calls reserve, by project."""

    def admit(
        self,
        terms: NewCall,
        e164: Sequence[str],
        recording_ids: Collection[str | None],
        reserves: Sequence[Decimal],
    ) -> Sequence[Decimal]:
        """Admit calls with these terms; returns each one's reservation. Raises BitelError."""
        project_id, is_otp = terms.project_id, terms.lane is Lane.OTP
        unwanted = self.unwanted[project_id]
        numbers = [each for each in e164 if each not in unwanted] if unwanted else e164
        if self.frequency is not None:
            self.frequency.admit(project_id, numbers, is_otp=is_otp)
        for recording_id in recording_ids:
            if recording_id is not None and (project_id, recording_id) not in self.playable:
                raise InvalidRequestError("voiceId names no recording of this project")
        budget = self.budgets[project_id]
        if not budget.limited:
            reserves = [_NOTHING] * len(e164)
        elif unwanted:
            reserves = [
                _NOTHING if each in unwanted else reserve
                for each, reserve in zip(e164, reserves, strict=True)
            ]
        amount = sum(reserves, _NOTHING)
        self.budgets[project_id] = budget.reserve(amount, self.now)
        self.reserved[project_id] = self.reserved.get(project_id, _NOTHING) + amount
        if self.frequency is not None:
            self.frequency.count(project_id, numbers, is_otp=is_otp)
        return reserves

    def finish(self, conn: Connection, final: Collection[str]) -> None:
        """Store counts and reservations, and end the calls that must not be dialled."""
        if self.frequency is not None:
            self.frequency.store(conn)
        balances.reserve(conn, self.reserved)
        if final:
            ends = [
                CallEnd(key, CallStatus.ERROR, reason=do_not_call.REASON) for key in sorted(final)
            ]
            end_calls(conn, ends, self.now)


_PLAYABLE: Final = Statement(
    select(recording.c.id, recording.c.project_id, recording.c.used_on)
    .where(is_among(recording.c.id, "wanted"), recording.c.deleted_at.is_(None))
    .with_for_update(read=True, key_share=True)
)
_has_list = select(number_list.c.e164).where(number_list.c.project_id == project.c.id).exists()
_SPECIAL: Final = Statement(
    select(
        project.c.id,
        project.c.max_calls_per_number_per_day.label("per_day"),
        _has_list.label("has_list"),
    ).where(
        is_among(project.c.id, "asked"),
        or_(project.c.max_calls_per_number_per_day.is_not(None), _has_list),
    )
)


def _open_admission(
    conn: Connection,
    calls: Collection[NewCall],
    numbers: Mapping[str, set[str]],
    otp_per_number: int | None,
    in_menus: Iterable[str] = (),
) -> _Admission:
    now = max((new.requested_at for new in calls), default=0.0)
    otp_projects = {new.project_id for new in calls if new.lane is Lane.OTP}
    # Most projects have neither a limit nor a list; one query finds those that do.
    special = _SPECIAL.rows(conn, {"asked": [(project_id,) for project_id in numbers]})
    per_day = {row.id: row.per_day for row in special if row.per_day is not None}
    frequency = None
    if per_day or otp_projects:
        frequency = open_frequency(conn, numbers, per_day, otp_projects, otp_per_number, now)
    # Budgets last: their locks block others.
    played = {each for new in calls for each in (new.recording_id, new.machine_recording_id)}
    wanted = {each for each in played if each is not None}.union(in_menus)
    found = _PLAYABLE.rows(conn, {"wanted": [(each,) for each in wanted]})
    unused_today = [row.id for row in found if row.used_on < day_of(now)]
    if unused_today:
        recordings.note_use(conn, unused_today, now)
    unwanted: dict[str, set[str]] = {project_id: set() for project_id in numbers}
    for row in special:
        if row.has_list:
            unwanted[row.id] = do_not_call.contains_many(conn, row.id, numbers[row.id])
    budgets = balances.open_budgets(conn, numbers, now)
    playable = {(row.project_id, row.id) for row in found}
    return _Admission(frequency, budgets, playable, unwanted, now)


def _rows_as_json(calls: NewCalls, reserves: Sequence[Decimal]) -> Sequence[str]:
    amounts = {amount: _money.process_bind_param(amount, _ANY) for amount in set(reserves)}
    texts = []
    for at in range(0, len(calls.ids), CHUNK):
        some = slice(at, at + CHUNK)
        numbers = _storable(calls.phone_numbers[some])
        columns = zip(calls.ids[some], numbers, calls.e164[some], reserves[some], strict=True)
        rows = [
            f'"{call_id}",{as_json(number)},{as_json(e164)},{amounts[reserve]}'
            for call_id, number, e164, reserve in columns
        ]
        if calls.people:
            longest = calls.longest[some] or [calls.template.longest_seconds] * len(rows)
            people = zip(rows, calls.people[some], longest, strict=True)
            rows = [f"{row},{_person(each, calls.template, most)}" for row, each, most in people]
        texts.append(f"[[{'],['.join(rows)}]]")
    return texts


def _person(person: Recipient, template: NewCall, longest_seconds: int) -> str:
    """The values of `_BY_PERSON`, as JSON without brackets."""
    reference = template.reference if person.reference is None else person.reference
    variables = None
    if person.variables:
        variables = json.dumps(dict(person.variables), ensure_ascii=False).replace("\\u0000", "")
    texts = (_reference.process_bind_param(reference, _ANY), person.time_zone, variables)
    written = ",".join("null" if text is None else as_json(text) for text in texts)
    return f"{written},{longest_seconds}"


def _storable(numbers: Sequence[str]) -> Sequence[str]:
    """The numbers as the column's type stores them, which is nearly always unchanged."""
    together = "".join(numbers)
    if together.isascii() and together.isprintable() and max(map(len, numbers)) <= _LONGEST_NUMBER:
        return numbers
    return [_written.process_bind_param(number, _ANY) or "" for number in numbers]
