"""Recipients of a request: its numbers, `recipients` or list, checked before anything is stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bitel.api.schemas import MOST_REFERENCE, BatchTerms, RecipientBody
from bitel.domain.number_policy import NumberChecker
from bitel.domain.recipients import Recipient
from bitel.domain.schedule import check_time_zone
from bitel.errors import ForbiddenError, InvalidPhoneNumberError, InvalidRequestError

MOST_VARIABLES: Final = 50
"""Variables of one recipient."""
LONGEST_VALUE: Final = 500
"""Characters of the value of a variable."""
_COMMA: Final = re.compile("[,،，]")
"""Commas of Latin, Arabic and full-width text."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A recipient of a batch that is left out."""

    index: int
    """Its position in the request, from 0."""
    phone_number: str
    message: str
    """What is wrong with it."""


@dataclass(frozen=True, slots=True)
class Recipients:
    """The recipients of a request whose calls may be placed, by column."""

    phone_numbers: Sequence[str]
    """As the client wrote them."""
    e164: Sequence[str]
    people: Sequence[Recipient] = ()
    """As many as numbers, if there is more to know of them; else empty."""
    skipped: Sequence[Skipped] | None = None
    """Those that are left out; None if the request does not allow that."""


def written(body: BatchTerms, most: int) -> tuple[Sequence[str], Sequence[Recipient]]:
    """The numbers of a body, and its recipients, if it gives them; at most `most`.

    Raises InvalidRequestError if there are none or too many. A list is read by the caller.
    """
    if body.recipients is not None:
        people = [_recipient(each) for each in body.recipients]
        _check_count("recipients", len(people), most)
        return [each.phone_number for each in people], people
    assert body.phone_numbers is not None
    return listed_numbers(body.phone_numbers, most), ()


def listed_numbers(numbers: Sequence[str], most: int) -> Sequence[str]:
    """The numbers of a list, or of one string. Raises InvalidRequestError for none or too many."""
    if isinstance(numbers, str):
        numbers = [number.strip() for number in _COMMA.split(numbers)] if numbers.strip() else []
    _check_count("phoneNumbers", len(numbers), most)
    return numbers


def _check_count(field: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise InvalidRequestError(f"{field} must hold 1 to {most} numbers, not {count}")


def _recipient(body: RecipientBody) -> Recipient:
    variables = {name: str(value) for name, value in (body.variables or {}).items()}
    return Recipient(body.phone_number, body.reference, variables, body.time_zone)


def check(
    numbers: Sequence[str],
    people: Sequence[Recipient],
    checker: NumberChecker,
    field: Callable[[int], str],
    *,
    skip_invalid: bool,
) -> Recipients:
    """Check the recipients of a request; may run on a thread.

    Args:
        people: as many as numbers, or empty.
        field: names the recipient at a position in errors.
        skip_invalid: leave out those that are not right, unless none is right.

    Raises InvalidPhoneNumberError, ForbiddenError or InvalidRequestError for the first wrong one.
    """
    if not skip_invalid:
        e164 = [checker.e164(number, field(at)) for at, number in enumerate(numbers)]
        for at, person in enumerate(people):
            _check_person(person, field(at))
        return Recipients(numbers, e164, people)
    return _check_each(numbers, people, checker, field)


def _check_each(
    numbers: Sequence[str],
    people: Sequence[Recipient],
    checker: NumberChecker,
    field: Callable[[int], str],
) -> Recipients:
    skipped: list[Skipped] = []
    first: Exception | None = None
    kept: list[int] = []
    e164: list[str] = []
    for at, number in enumerate(numbers):
        try:
            found = checker.e164(number, field(at))
            if people:
                _check_person(people[at], field(at))
        except (InvalidPhoneNumberError, ForbiddenError, InvalidRequestError) as fault:
            first = first or fault
            skipped.append(Skipped(at, number, str(fault)))
            continue
        e164.append(found)
        kept.append(at)
    if first is not None and not kept:
        raise first
    return Recipients(
        [numbers[at] for at in kept], e164, [people[at] for at in kept] if people else (), skipped
    )


def _check_person(person: Recipient, field: str) -> None:
    of = field.removesuffix(".phoneNumber")
    if person.reference is not None and len(person.reference) > MOST_REFERENCE:
        raise InvalidRequestError(f"{of}.reference must have at most {MOST_REFERENCE} characters")
    if person.time_zone is not None:
        check_time_zone(person.time_zone, f"{of}.timeZone")
    if len(person.variables) > MOST_VARIABLES:
        raise InvalidRequestError(f"{of}.variables must hold at most {MOST_VARIABLES} values")
    for name, value in person.variables.items():
        if len(value) > LONGEST_VALUE:
            raise InvalidRequestError(
                f"{of}.variables.{name[:40]} must have at most {LONGEST_VALUE} characters"
            )


def without(recipients: Recipients, faults: dict[int, str]) -> Recipients:
    """The recipients but for those at the positions of `faults`, which become skipped ones."""
    if not faults:
        return recipients
    positions = list(_positions(recipients))
    more = [
        Skipped(positions[at], recipients.phone_numbers[at], message)
        for at, message in faults.items()
    ]
    kept = [at for at in range(len(recipients.e164)) if at not in faults]
    return Recipients(
        [recipients.phone_numbers[at] for at in kept],
        [recipients.e164[at] for at in kept],
        [recipients.people[at] for at in kept] if recipients.people else (),
        sorted([*(recipients.skipped or ()), *more], key=lambda one: one.index),
    )


def _positions(recipients: Recipients) -> Iterator[int]:
    """The position in the request of each recipient that is left."""
    gone = {one.index for one in recipients.skipped or ()}
    total = len(recipients.e164) + len(gone)
    return (at for at in range(total) if at not in gone)
