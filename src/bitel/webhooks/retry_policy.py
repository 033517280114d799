"""When an event that was not taken is offered again: rules without a clock or a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

MINUTE: Final = 60.0
HOUR: Final = 3600.0

PAUSES: Final = (
    5.0,
    5 * MINUTE,
    30 * MINUTE,
    2 * HOUR,
    5 * HOUR,
    10 * HOUR,
    14 * HOUR,
    20 * HOUR,
    24 * HOUR,
)
"""Seconds after the first try, the second, and so on; after the last one an event is given up."""

JITTER: Final = 0.1
"""Each pause is longer or shorter by up to this part of it, so that failures don't come back in
step."""

LONGEST_WAIT: Final = 24 * HOUR
"""Seconds; a receiver that asks for more with `Retry-After` is asked again after these."""

_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


def is_success(status: int) -> bool:
    """Whether a receiver that answers so has taken the event."""
    return status // 100 == 2


def is_gone(status: int) -> bool:
    """Whether a receiver that answers so wants no events any more."""
    return status == HTTPStatus.GONE


def next_try(tries: int, failed_at: float, luck: float, asked_for: float | None) -> float | None:
    """When to try again after `tries` tries (at least 1) failed, the last at `failed_at`; or None.

    `luck`, from 0 to 1, places it within the jitter. `asked_for` is what `Retry-After` said, in
    seconds; it makes a pause longer, never shorter, and no pause longer than `LONGEST_WAIT`.
    """
    if tries > len(PAUSES):
        return None
    pause = PAUSES[tries - 1] * (1 - JITTER + 2 * JITTER * luck)
    if asked_for is not None:
        pause = max(pause, min(asked_for, LONGEST_WAIT))
    return failed_at + pause


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that `Retry-After` (RFC 9110 §10.2.3) asks for, if it says something of sense.

    `headers` have names in lower case; a date in the past is 0.
    """
    text = headers.get("retry-after", "").strip()
    if not text or len(text) > 64 or _UNPRINTABLE.search(text):
        return None
    if text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        # A date without a zone, which is not allowed, is read as the allowed one: GMT.
        at = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, at - now)
