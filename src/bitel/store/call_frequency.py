"""Rate limits of calls to one number: one-time passwords in 10 minutes, all calls in 24 hours.

Each call that counts towards a limit is a row, written in the transaction that places it: always
for one-time passwords, for others where their project has a daily limit. So the limits hold across
all API processes, and a request that is refused or a repetition counts nothing.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.phone_numbers import masked
from bitel.errors import TooManyRequestsError
from bitel.store.schema import placed_number
from bitel.store.sql_batch import Statement, equals, insert_rows, values_parameter

DAY: Final = 86_400.0
OTP_PERIOD: Final = 600.0
"""Seconds that the limit for one-time passwords looks back."""

ProjectNumber = tuple[str, str]
"""A project's id and a number in E.164 with its plus sign."""


class _Placed(NamedTuple):
    at: float
    is_otp: bool


_row = placed_number.c
_columns = tuple(_row["project_id", "e164", "placed_at", "is_otp"])
_numbers = values_parameter("numbers", _row.project_id, _row.e164)
_since: sa.BindParameter[float] = sa.bindparam("since", type_=sa.Double())


def _placed_in_sqlite() -> sa.Select[tuple[str, str, float, bool]]:
    is_number = equals("sqlite", _columns[:2], tuple(_numbers.c))
    found = sa.select(*_columns).select_from(_numbers.join(placed_number, is_number))
    return found.where(_row.placed_at > _since)


def _placed_in_postgresql() -> sa.Select[tuple[str, str, float, bool]]:
    # As in `sql_batch.equals`, with the index's third column.
    key, number = sa.tuple_(*_columns[:3]), tuple(_numbers.c)
    of_number = (
        sa.select(*_columns)
        .where(
            key > sa.tuple_(*number, _since),
            key <= sa.tuple_(*number, sa.literal_column("'infinity'::float8")),
        )
        .order_by(*_columns[:3])
        .correlate(_numbers)
        .lateral("of_number")
    )
    return sa.select(*of_number.c).select_from(_numbers.join(of_number, sa.true()))


_PLACED: Final = Statement(_placed_in_sqlite(), postgresql=_placed_in_postgresql())
_COUNT: Final = insert_rows(values_parameter("rows", *_columns), placed_number)


class CallFrequency:
    """The recent calls to the numbers that one transaction places calls to.

    Created by `open_frequency`, which locks the projects: no other transaction counts calls of
    them until the end of this one.
    """

    def __init__(self, per_day: Mapping[str, int], otp_per_number: int | None, now: float) -> None:
        self._per_day = per_day
        self._otp_per_number = otp_per_number
        self._now = now
        self._placed: defaultdict[ProjectNumber, list[_Placed]] = defaultdict(list)
        self._new: list[tuple[str, str, float, bool]] = []

    def load(self, conn: Connection, numbers: Iterable[ProjectNumber]) -> None:
        """Read the calls of the last 24 hours to these numbers."""
        asked = {"numbers": sorted(numbers), "since": self._now - DAY}
        for row in _PLACED.rows(conn, asked):
            self._placed[row.project_id, row.e164].append(_Placed(row.placed_at, bool(row.is_otp)))

    def admit(self, project_id: str, numbers: Iterable[str], *, is_otp: bool) -> None:
        """Raise TooManyRequestsError where calls to `numbers`, which may repeat, exceed a limit."""
        per_day = self._per_day.get(project_id)
        otp_limit = self._otp_per_number if is_otp else None
        if per_day is None and otp_limit is None:
            return
        for e164, more in Counter(numbers).items():
            placed = self._placed[project_id, e164]
            if per_day is not None:
                times = [one.at for one in placed]
                self._check(e164, times, more, per_day, DAY, "calls in 24 hours")
            if otp_limit is not None:
                times = [one.at for one in placed if one.is_otp]
                what = "one-time passwords in 10 minutes"
                self._check(e164, times, more, otp_limit, OTP_PERIOD, what)

    def count(self, project_id: str, numbers: Iterable[str], *, is_otp: bool) -> None:
        """Count calls that are placed, once per entry of `numbers`."""
        if not is_otp and project_id not in self._per_day:
            return
        for e164 in numbers:
            self._placed[project_id, e164].append(_Placed(self._now, is_otp))
            self._new.append((project_id, e164, self._now, is_otp))

    def store(self, conn: Connection) -> None:
        """Write what was counted."""
        if self._new:
            _COUNT.run(conn, {"rows": self._new})

    def _check(
        self, e164: str, times: Iterable[float], more: int, most: int, period: float, what: str
    ) -> None:
        recent = sorted(at for at in times if at > self._now - period)
        over = len(recent) + more - most
        if over <= 0:
            return
        # The oldest calls must leave the period first; more calls than the limit never fit.
        frees_at = recent[min(over, len(recent)) - 1] + period if recent else self._now + period
        raise TooManyRequestsError(
            f"phoneNumber {masked(e164)} may get at most {most} {what}",
            retry_after=max(1, math.ceil(frees_at - self._now)),
        )


_LOCK: Final = sa.select(
    sa.func.pg_advisory_xact_lock(
        sa.func.hashtextextended(sa.bindparam("the_project"), sa.literal(1, sa.BigInteger()))
    )
)


def open_frequency(
    conn: Connection,
    numbers: Mapping[str, Iterable[str]],
    per_day: Mapping[str, int],
    otp_projects: Set[str],
    otp_per_number: int | None,
    now: float,
) -> CallFrequency:
    """Lock and load the limits of calls to `numbers` (E.164, by project).

    Args:
        per_day: calls that a number may get in 24 hours, for the projects that have such a limit.
        otp_projects: the projects that place one-time passwords now.
        otp_per_number: one-time passwords that a number may get in 10 minutes; None: no limit.
        now: Unix seconds.
    """
    frequency = CallFrequency(per_day, otp_per_number, now)
    counted = per_day.keys() | (otp_projects if otp_per_number is not None else set())
    if counted:
        if conn.dialect.name == "postgresql":  # SQLite has one writer
            for project_id in sorted(counted):
                conn.execute(_LOCK, {"the_project": project_id})
        frequency.load(conn, {(one, e164) for one in counted for e164 in numbers[one]})
    return frequency


_FORGET: Final = sa.delete(placed_number).where(
    placed_number.c.id.in_(
        sa.select(placed_number.c.id)
        .where(placed_number.c.placed_at < sa.bindparam("before"))
        .order_by(placed_number.c.placed_at)
        .limit(sa.bindparam("most"))
    )
)


def forget_old(conn: Connection, now: float, limit: int) -> None:
    """Delete up to `limit` rows that no longer count towards any limit."""
    conn.execute(_FORGET, {"before": now - DAY, "most": limit})
