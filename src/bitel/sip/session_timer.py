"""What messages say about session timers (RFC 4028): how long a session lasts, who refreshes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from bitel.sip.grammar import parameter
from bitel.sip.message import Message
from bitel.sip.requests import SUPPORTED

MIN_SE = 90
"""Shortest session interval that may be requested, in seconds (§5)."""
SHORTEST = 10
"""Shortest interval, in seconds, that is accepted from a far end which breaks that rule."""
LONGEST = 86_400
"""Seconds: a far end that demands more is one that we can't meet."""
MAX_RAISES = 2
"""How often a far end may answer one request with 422 and a longer Min-SE."""
TIMER = ("Supported", "timer")

Refresher = Literal["uac", "uas"]


@dataclass(frozen=True, slots=True)
class SessionExpires:
    """A Session-Expires header: `seconds`, and which side of this very request refreshes."""

    seconds: int
    refresher: Refresher | None

    def __str__(self) -> str:
        return f"{self.seconds};refresher={self.refresher}" if self.refresher else f"{self.seconds}"


@lru_cache(maxsize=64)
def timer_lines(asked: int, min_se: int) -> str:
    """What our INVITE says about the timer, as header lines, and that it knows reliable responses.

    `asked` are the seconds that a session is to last, 0 for no timer. `min_se` is what a 422 has
    demanded since, 0 for nothing.
    """
    if not asked:
        return "Supported: 100rel\r\n"
    lines = f"Supported: {SUPPORTED}\r\nSession-Expires: {max(asked, min_se)}\r\n"
    return f"{lines}Min-SE: {min_se}\r\n" if min_se else lines


def session_expires_of(message: Message) -> SessionExpires | None:
    """Read Session-Expires; None where it is missing or can't be read."""
    number, _, parameters = message.header("session-expires").partition(";")
    seconds = _seconds(number)
    if seconds is None:
        return None
    refresher = (parameter(parameters, "refresher") or "").lower()
    known: dict[str, Refresher] = {"uac": "uac", "uas": "uas"}
    return SessionExpires(min(seconds, LONGEST), known.get(refresher))


def min_se_of(message: Message) -> int | None:
    """The seconds of Min-SE, up to `LONGEST`; None where there is none that could be met."""
    seconds = _seconds(message.header("min-se").partition(";")[0])
    return seconds if seconds is not None and seconds <= LONGEST else None


def knows_timers(message: Message) -> bool:
    """Whether the sender supports session timers."""
    options = message.values("supported") + message.values("require")
    return "timer" in [option.lower() for option in options]


def asks_too_little(message: Message) -> bool:
    """Whether a request must be refused with 422 and our Min-SE (§8.1)."""
    asked = session_expires_of(message)
    return asked is not None and asked.seconds < MIN_SE and knows_timers(message)


def refresh_after(seconds: float) -> float:
    """When the refresher refreshes: at half of the interval (§10)."""
    return seconds / 2


def give_up_after(seconds: float) -> float:
    """Seconds until a session without a refresh is ended: min(32, a third) before its end (§10)."""
    return seconds - min(32.0, seconds / 3)


def _seconds(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None
