"""The values that clients of the HTTP API send and receive; `bitel.client` exports them.

Answers are dicts with the keys of the API. Options of requests are keyword arguments, and what has
parts of its own is a dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

Time = datetime | float
"""A datetime with a time zone, or Unix seconds."""

EventType = Literal[
    "call.initiated", "call.ringing", "call.answered", "call.completed", "campaign.finished"
]
"""Types of events that a webhook gets if they are asked for."""

CampaignPhase = Literal["SCHEDULED", "RUNNING", "PAUSED", "FINISHED", "CANCELED"]


@dataclass(frozen=True, slots=True)
class Recipient:
    """A person to call."""

    phone_number: str
    reference: str | None = None
    """The caller's own name for this call; at most 100 characters."""
    variables: Mapping[str, str | float] = field(default_factory=dict)
    """Values for the `{names}` of a text."""
    time_zone: str | None = None
    """An IANA name, for calling windows; None: as the number says."""


class Options(TypedDict, total=False):
    """Options of calls; the service has a default for those that are missing or None.

    A request that is repeated with the same `idempotency_key` places no further calls.
    """

    retry_count: int | None
    retry_interval: int | None
    """Seconds."""
    time_to_live: int | None
    """Seconds."""
    server_id: str | None
    idempotency_key: str | None


class CallOptions(Options, total=False):
    """Options of calls that play a recording or a text."""

    name: str | None
    """For people; at most 100 characters."""
    reference: str | None
    """The caller's own name for it, given back everywhere; at most 100 characters."""
    start_at: Time | None
    """No attempt starts before."""
    end_at: Time | None
    """No attempt starts from then on."""
    busy_waits: Sequence[int] | None
    """Seconds to wait after each busy attempt; none left: no further attempt. These and
    `no_answer_waits` take the place of `retry_count` and `retry_interval`."""
    no_answer_waits: Sequence[int] | None
    """Seconds to wait after each unanswered attempt."""
    caller_id: str | None
    """One of the dialer's caller ids."""
    machine_detection: Literal["off", "flag", "hangup", "message"] | None
    """What is done if an answering machine answers."""
    machine_voice_id: str | None
    """The recording that a machine gets with `message`."""
    menu: Mapping[str, Any] | None
    """What keys do, as the API describes it: `{"keys": {"1": {"report": "yes"}}}`."""
    webhook_url: str | None
    """Where the events are sent, in place of the project's URL."""
    webhook_events: Sequence[EventType] | None
    """Types of events besides the one at the end of each call."""


class BatchOptions(CallOptions, total=False):
    """Options of a campaign."""

    calls_per_second: float | None
    """Attempts that start a second, at most."""
    max_channels: int | None
    """Attempts at once, at most."""
    window: str | None
    """Hours at which calls may ring, as `sat-wed 09:00-21:00 Asia/Tehran`; the zone `local` is the
    clock of each recipient."""
    skip_invalid: bool | None
    """Leave invalid recipients out instead of refusing the request."""


class CampaignChanges(TypedDict, total=False):
    """Changes of a campaign: what is missing stays, None removes a limit or the name."""

    name: str | None
    end_at: Time | None
    calls_per_second: float | None
    max_channels: int | None


class CallFilters(TypedDict, total=False):
    """Which calls of the project to list; None or missing: any."""

    status: str | Sequence[str] | None
    """Names of statuses."""
    phone_number: str | None
    reference: str | None
    campaign_id: str | None
    since: Time | None
    """Placed at that time or later."""
    until: Time | None
    """Placed before."""


class Call(TypedDict):
    """A call, with the eight keys of the API; `statusCode` is 0 until it is final."""

    id: str
    phoneNumber: str
    status: str
    statusCode: int
    billSec: int
    requestDate: int
    executionDate: int
    price: float


class ListedCall(Call):
    """A call in a list of the project's calls."""

    campaignId: str | None
    reference: str | None


class Attempt(TypedDict):
    """One attempt of a call; dates are Unix seconds, 0 where it has not happened."""

    number: int
    startDate: int
    ringDate: int
    answerDate: int
    endDate: int
    outcome: str | None
    sipCode: int | None
    cause: int | None
    """Of ITU-T Q.850."""
    reason: str | None
    endedBy: str | None
    callerId: str | None
    keys: str
    reports: list[str]
    lossPercent: float | None
    jitterMs: float | None


class CallDetails(ListedCall):
    """A call with its attempts."""

    reason: str | None
    """Why it has its status, in words."""
    machine: str | None
    keys: str
    reports: list[str]
    attempts: list[Attempt]


class Skipped(TypedDict):
    """A recipient that `skip_invalid` has left out."""

    index: int
    """Its position in the request, from 0."""
    phoneNumber: str
    message: str


class Batch(TypedDict):
    """The calls of a batch, in the order of its numbers, and the id of their campaign."""

    calls: list[Call]
    campaignId: str
    skipped: list[Skipped]
    """Recipients that `skip_invalid` has left out."""


class Campaign(TypedDict):
    """A campaign, with its calls counted by status; `finishedDate` is 0 until all are final."""

    id: str
    total: int
    byStatus: dict[str, int]
    requestDate: int
    finishedDate: int
    price: float
    name: str | None
    reference: str | None
    state: CampaignPhase
    answered: int
    keys: dict[str, int]
    machines: dict[str, int]
    startAt: int | None
    endAt: int | None
    window: str | None
    callsPerSecond: float | None
    maxChannels: int | None


class CampaignEvent(NamedTuple):
    """A server-sent event of a campaign."""

    type: str
    """progress, or finished: then it is the last one."""
    campaign: Campaign


class CallPage(TypedDict):
    """A page of a campaign's calls; `nextCursor` is None on the last one."""

    calls: list[Call]
    nextCursor: str | None


class ListedCallPage(TypedDict):
    """A page of the project's calls, the newest first."""

    calls: list[ListedCall]
    nextCursor: str | None


class CampaignPage(TypedDict):
    """A page of the project's campaigns, the newest first."""

    campaigns: list[Campaign]
    nextCursor: str | None


class Recording(TypedDict):
    """A recording; `duration` in seconds, `size` in bytes."""

    id: str
    name: str
    duration: float
    size: int
    warning: NotRequired[str]
    """What is wrong with the uploaded file, as one sentence."""


class RecordingPage(TypedDict):
    """A page of the recordings; `nextCursor` is None on the last one."""

    recordings: list[Recording]
    nextCursor: str | None


class InvalidRow(TypedDict):
    """A row of a file that can't be called."""

    line: int
    value: str
    message: str


class UploadedList(TypedDict):
    """What an uploaded list holds."""

    id: str | None
    """The `list_id` of batches; None after a dry run."""
    rows: int
    valid: int
    invalid: list[InvalidRow]
    """The first 1,000 of them."""
    columns: list[str]
    """The names of the variables."""
    duplicates: int
    invalidCount: int
    numberColumn: str
    recipients: int
    """How many the list holds."""


class RecipientList(TypedDict):
    """A stored list of recipients."""

    id: str
    name: str
    createdDate: int
    recipients: int
    columns: list[str]


class RecipientListPage(TypedDict):
    """A page of the lists; `nextCursor` is None on the last one."""

    lists: list[RecipientList]
    nextCursor: str | None


class DoNotCallPage(TypedDict):
    """A page of the do-not-call list, in E.164; `nextCursor` is None on the last one."""

    phoneNumbers: list[str]
    nextCursor: str | None


class DoNotCallAdded(TypedDict):
    """What was put on the do-not-call list."""

    added: int
    alreadyListed: int


class DoNotCallImported(DoNotCallAdded):
    """What a file has put on the do-not-call list."""

    invalid: list[InvalidRow]
    invalidCount: int


class DoNotCallNumber(TypedDict):
    """A number that was taken off the do-not-call list, in E.164."""

    phoneNumber: str


class Server(TypedDict):
    """A dialer, and whether it is up."""

    id: str
    up: bool
    paused: str | None
    """Why it places no calls although its trunk answers; None if it does."""
    workers: int
    """Processes that dial for it."""
    channels: int
    """In use, of all workers."""
    callsPerSecond: float
    """Begun, on average."""
    lateMs: float
    """How late packets of audio leave the latest of its workers, in milliseconds."""
    since: int | None
    """Unix seconds since when the oldest worker runs; None: none does."""


class Account(TypedDict):
    """The token's project; `balance` is None if its spending has no limit."""

    id: str
    name: str
    balance: float | None
    currency: str
