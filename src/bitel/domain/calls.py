"""Calls and their status.

A call is a request to reach one number, with one or more attempts. Its status is `WAITING` until
the last attempt is over, then final.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from bitel.domain.recipients import Recipient


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
        """Whether the status can't change any more."""
        return self is not CallStatus.WAITING


class Lane(enum.IntEnum):
    """Priority of a call when channels are short: lower values are dialled first."""

    OTP = 0
    SINGLE = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call to place. Times are Unix seconds, intervals seconds."""

    id: str
    project_id: str
    dialer_id: str
    phone_number: str
    """As the client wrote it."""
    e164: str
    """The number in E.164 with its plus sign, which is dialled and priced."""
    recording_id: str | None
    """Played first; None if only `digits` are read."""
    lane: Lane
    retry_count: int
    retry_interval: int
    requested_at: float
    expires_at: float
    """No attempt starts at this time or later."""
    campaign_id: str | None = None
    digits: str = ""
    """Read one by one, after the recording."""
    repeat_count: int = 1
    """How many times the digits are read; 1 or more."""
    language: str = ""
    """Language of the digits; empty for the default."""
    reserve: Decimal = Decimal(0)
    """The most that the call can cost; reserved from the balance until the call is over."""
    longest_seconds: int = 0
    """Seconds after the answer at which the call is ended; 0: the dialer's default."""
    due_at: float | None = None
    """When its first attempt is due; None: when it was requested."""
    reference: str | None = None
    """The client's own name for the call."""
    retry_waits: str | None = None
    """Waits by outcome, as `RetryWaits` writes them, in place of the retries and their interval."""
    caller_id: str | None = None
    """The caller id of all of its attempts; None: the dialer chooses."""
    webhook_id: str | None = None
    """Where its events go; None: as its project says."""
    menu_id: str | None = None
    """What keys do; None: nothing."""
    machine_detection: str | None = None
    """A `MachineDetection`; None: nothing is done about answering machines."""
    machine_recording_id: str | None = None
    """Played to a machine; None: what the call plays."""
    is_personal: bool = False
    """It plays a text with the recipient's variables, which is not rendered yet."""


@dataclass(frozen=True, slots=True)
class NewCalls:
    """Calls of one request, by column, since they differ in a few fields only.

    The columns have the same length, at least 1. There may be ten thousand calls; creating an
    object for each would take longer than storing them.
    """

    template: NewCall
    """The fields that they share; its id, numbers and reserve are ignored."""
    ids: Sequence[str]
    phone_numbers: Sequence[str]
    e164: Sequence[str]
    reserves: Sequence[Decimal]
    people: Sequence[Recipient] = ()
    """What differs by recipient besides; empty: nothing."""
    longest: Sequence[int] = ()
    """As `longest_seconds` of each call; empty: all as the template."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call in its present state. Times are Unix seconds, 0 if it has not happened."""

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
    """What the call cost, zero or positive; clients see it negated, as a change of balance."""
    reason: str = ""
    """The cause of an ERROR, in a few words; empty otherwise."""
    finished_at: float = 0.0
    """When the call reached its final status."""
