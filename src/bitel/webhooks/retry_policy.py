"""When a failed delivery is tried again: pure functions of status, headers and time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

_HOUR: Final = 3600.0
PAUSES: Final = (5.0, 300.0, 1800.0, *(hours * _HOUR for hours in (2, 5, 10, 14, 20, 24)))
"""Seconds after the first failed try, the second, and so on; then the event is given up."""

JITTER: Final = 0.1
"""Share by which each pause is randomly longer or shorter, so that retries spread out."""

LONGEST_WAIT: Final = 24 * _HOUR
"""Maximum seconds of a `Retry-After`."""

_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


def is_success(status: int) -> bool:
    """Whether this status means that the receiver took the event."""
    return status // 100 == 2


def is_gone(status: int) -> bool:
    """Whether this status means that the receiver wants no more events."""
    return status == HTTPStatus.GONE


def next_try(tries: int, failed_at: float, jitter: float, asked_for: float | None) -> float | None:
    """When to try again, by the clock of `failed_at`; None if the event is given up.

    Args:
        tries: failed tries, at least 1.
        failed_at: when the last one failed.
        jitter: 0 to 1, the position in the range of `JITTER`.
        asked_for: seconds of `Retry-After`; makes the pause longer, up to `LONGEST_WAIT`, never
            shorter.
    """
    if tries > len(PAUSES):
        return None
    pause = PAUSES[tries - 1] * (1 - JITTER + 2 * JITTER * jitter)
    if asked_for is not None:
        pause = max(pause, min(asked_for, LONGEST_WAIT))
    return failed_at + pause


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that `Retry-After` (RFC 9110 §10.2.3) asks for; None if absent or malformed.

    `headers` have names in lower case; a date in the past is 0.
    """
    text = headers.get("retry-after", "").strip()
    if not text or len(text) > 64 or _UNPRINTABLE.search(text):
        return None
    if text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        # A date without a zone is not allowed; it is read as GMT.
        at = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, at - now)
