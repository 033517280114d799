"""A call as its client knows it, and the states it goes through.

A call is one request to reach one number. It makes one or more attempts, and holds exactly one
`CallStatus` at any time: `WAITING` until the last attempt is over, then a final one for ever.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal


class CallStatus(enum.IntEnum):
    """The status of a call; the value is the `statusCode` that clients see."""

    WAITING = 0
    NORMAL = 1
    NO_ANSWER = 2
    USER_BUSY = 3
    CANCELED = 4
    EXPIRED = 10
    ERROR = 11
    UNKNOWN = 20

    @property
    def final(self) -> bool:
        """Whether a call in this status changes no more."""
        return self is not CallStatus.WAITING


class Lane(enum.IntEnum):
    """What goes first when channels are short: a lower value is dialled before a higher one."""

    OTP = 0
    SINGLE = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call as it is asked for. Times are Unix seconds, intervals seconds."""

    id: str
    project_id: str
    dialer_id: str
    phone_number: str
    """As the client wrote it; answers repeat it."""
    e164: str
    """The same number in E.164 with its plus sign; this is what is dialled and priced."""
    recording_id: str | None
    """What is played first; None where only `digits` are read."""
    lane: Lane
    retry_count: int
    retry_interval: int
    requested_at: float
    expires_at: float
    """From here on no attempt starts."""
    campaign_id: str | None = None
    digits: str = ""
    """What is read out one by one, after the recording; empty for none."""
    repeat_count: int = 1
    """How many times the digits are read; 1 or more."""
    language: str = ""
    """In which language the digits are read; empty for the service's own."""
    reserve: Decimal = Decimal(0)
    """The most that the call can cost: kept back from the balance until the call is over."""
    longest_seconds: int = 0
    """Seconds after the answer at which the call is ended; 0: as its dialer thinks fit."""


@dataclass(frozen=True, slots=True)
class NewCalls:
    """Calls of one request that differ in their numbers alone: a column for each difference.

    The columns are of one length, which is at least 1. There may be ten thousand calls, and an
    object for each would take longer than storing them.
    """

    template: NewCall
    """The terms of all of them; its own id, number and reserve count for nothing."""
    ids: Sequence[str]
    phone_numbers: Sequence[str]
    e164: Sequence[str]
    reserves: Sequence[Decimal]


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it now stands. Times are Unix seconds, 0 when it has not happened."""

    id: str
    project_id: str
    campaign_id: str | None
    phone_number: str
    status: CallStatus
    bill_seconds: int
    requested_at: float
    executed_at: float
    """When the attempt that decided the call was dialled."""
    price: Decimal
    """What the call cost: zero or positive; clients see it negated, as a change of balance."""
    reason: str = ""
    """Why an ERROR came about, in a few words; empty otherwise."""
    finished_at: float = 0.0
    """When the call reached its final status."""
