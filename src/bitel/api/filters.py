"""Reads the filters of lists from query parameters; errors name the parameter."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import Query
from pydantic import BeforeValidator

from bitel.api.schemas import MOST_REFERENCE
from bitel.domain.ids import first_id_at, is_id
from bitel.domain.phone_numbers import LONGEST_WRITTEN, to_e164
from bitel.errors import InvalidPhoneNumberError, InvalidRequestError
from bitel.settings import Settings
from bitel.store.call_lists import Span

LATEST_DATE: Final = 253_402_300_799
"""The largest date that filters take, in Unix seconds: the end of the year 9999."""
_MILLISECOND: Final = 0.001

E = TypeVar("E", bound=enum.Enum)


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


Since = Annotated[
    int | None,
    BeforeValidator(_none_if_empty),
    Query(
        alias="from",
        ge=0,
        le=LATEST_DATE,
        description="Unix seconds: calls that were requested then or later.",
    ),
]
Until = Annotated[
    int | None,
    BeforeValidator(_none_if_empty),
    Query(
        alias="to",
        ge=0,
        le=LATEST_DATE,
        description="Unix seconds: calls that were requested earlier.",
    ),
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


def span_of(
    since: int | None,
    until: int | None,
    cursor: str | None,
    date: Callable[[float], float],
    now: float,
) -> Span:
    """The ids of calls that were requested from `since`, inclusive, to `until`, exclusive, and sort
    before `cursor`.

    Args:
        since, until: by the system clock, as clients see dates; None: no limit.
        date: gives the system clock's time for a time of the service.
        now: the present time of the service, in Unix seconds.
    """
    whole = Span()
    first = whole.first if since is None else first_id_at(_service_time(since, date, now))
    before = whole.before if until is None else first_id_at(_service_time(until, date, now))
    return Span(first, min(before, cursor or before))


def _service_time(wanted: float, date: Callable[[float], float], now: float) -> float:
    """The earliest time of the service whose date is `wanted` or later, to the millisecond.

    Where the system clock was set back, dates occur twice, and it is one of these times.
    """
    if date(wanted) == wanted:
        return wanted  # both clocks showed the same
    early, late = 0.0, max(now, wanted) + abs(date(now) - now) + 1.0
    while late - early > _MILLISECOND:
        middle = (early + late) / 2
        early, late = (early, middle) if date(middle) >= wanted else (middle, late)
    return late
