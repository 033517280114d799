"""Reads the filters of lists from query parameters; errors name the parameter."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from fastapi import Query
from pydantic import BeforeValidator, Field

from bitel.api.schemas import MOST_REFERENCE
from bitel.domain.ids import first_id_at, is_id
from bitel.domain.phone_numbers import LONGEST_WRITTEN, to_e164
from bitel.errors import InvalidPhoneNumberError, InvalidRequestError
from bitel.settings import Settings
from bitel.store.call_lists import Span

LATEST_DATE: Final = 253_402_300_799
"""The largest date that filters take, in Unix seconds: the end of the year 9999."""
_MILLISECOND: Final = 0.001
_ROUNDS: Final = 5
"""Each makes the error 200 times smaller, since the gap of the clocks changes by 0.5 % at most."""

E = TypeVar("E", bound=enum.Enum)


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


_Date = Annotated[int, Field(ge=0, le=LATEST_DATE)]
Since = Annotated[
    _Date | None,
    BeforeValidator(_none_if_empty),
    Query(alias="from", description="Unix seconds: calls that were requested then or later."),
]
Until = Annotated[
    _Date | None,
    BeforeValidator(_none_if_empty),
    Query(alias="to", description="Unix seconds: calls that were requested earlier."),
]


def read_names(written: str | None, field: str, kind: type[E]) -> frozenset[E] | None:
    """Members of `kind` from their names, separated by commas; None if there are none.

    Raises InvalidRequestError, which names `field`.
    """
    names = [name.strip().upper() for name in (written or "").split(",")]
    if not any(names):
        return None
    try:
        return frozenset(kind[name] for name in names if name)
    except KeyError:
        known = ", ".join(kind.__members__)
        raise InvalidRequestError(
            f"{field} must be one or more of {known}, separated by commas"
        ) from None


def read_number(written: str | None, settings: Settings) -> str | None:
    """The E.164 form of a phone number, None for an empty one. Raises InvalidPhoneNumberError.

    A space at the beginning may be a plus sign, which means a space in a query.
    """
    if not written:
        return None
    if written.startswith(" ") and len(written) <= LONGEST_WRITTEN:
        try:
            return to_e164(f"+{written[1:]}", settings.region, settings.extra_prefixes)
        except InvalidPhoneNumberError:
            pass  # a space after all
    return to_e164(written, settings.region, settings.extra_prefixes)


def read_reference(written: str | None) -> str | None:
    """A reference, None for an empty one. Raises InvalidRequestError if it is too long."""
    if written is not None and len(written) > MOST_REFERENCE:
        raise InvalidRequestError(f"reference must have at most {MOST_REFERENCE} characters")
    return written or None


def read_id(written: str | None, field: str) -> str | None:
    """An id, None for an empty one. Raises InvalidRequestError, which names `field`."""
    if written and not is_id(written):
        raise InvalidRequestError(f"{field} must be an id of 32 hex characters")
    return written or None


@dataclass(frozen=True, slots=True)
class DateRange:
    """Dates as clients see them, in Unix seconds: from `since`, inclusive, to `until`, exclusive;
    None: no limit."""

    since: int | None = None
    until: int | None = None

    def __contains__(self, shown: int) -> bool:
        return (self.since is None or self.since <= shown) and (
            self.until is None or shown < self.until
        )

    def span(self, cursor: str | None, date: Callable[[float], float], now: float) -> Span:
        """The ids of calls that were requested at these dates, and sort before `cursor`.

        Where the system clock was set back, some dates occurred twice, and calls of other dates
        may be between them.

        Args:
            date: gives the date for a time of the service.
            now: the present time of the service, in Unix seconds.
        """
        whole = Span()
        first, before = whole.first, cursor or whole.before
        if self.since is not None:
            first = first_id_at(min(_service_times(self.since, date, now)))
        if self.until is not None:
            before = min(before, first_id_at(max(_service_times(self.until, date, now))))
        return Span(first, before)


def _service_times(wanted: float, date: Callable[[float], float], now: float) -> tuple[float, ...]:
    """Times of the service at which the date came to be `wanted`, to the millisecond.

    Two where the system clock was set back since the first of them.
    """
    by_now = now
    for _ in range(_ROUNDS):
        by_now = wanted - (date(by_now) - by_now)
    early, late = 0.0, max(now, wanted, by_now) + 1.0
    while late - early > _MILLISECOND:
        middle = (early + late) / 2
        early, late = (early, middle) if date(middle) >= wanted else (middle, late)
    return (late, by_now) if abs(date(by_now) - wanted) < _MILLISECOND else (late,)
