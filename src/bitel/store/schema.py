"""Tables of the database, after the last migration.

Identifiers are 32 hex characters, times Unix seconds by `bitel.steady_clock`, money exact. A query
can use a partial index only if it repeats the index's condition with literals, not parameters; so
indexes and queries share conditions such as `is_due` and `is_open`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    false,
    literal_column,
    text,
    true,
)
from sqlalchemy.types import TypeDecorator

from bitel.domain.calls import CallStatus, Lane

_PER_UNIT: Final = 10_000


class Money(TypeDecorator[Decimal]):
    """An amount of the currency as a whole number of 1/10000 units, so that sums are exact."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        """Return the value as it is stored."""
        if not value:
            return None if value is None else 0
        return int((value * _PER_UNIT).quantize(Decimal(1), rounding=ROUND_HALF_UP))

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:
        """Return a stored value as Python uses it."""
        return None if value is None else Decimal(value).scaleb(-4)


class FreeText(TypeDecorator[str]):
    """Text from outside, cut to `length`, without characters that PostgreSQL can't store."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self._length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the value as it is stored."""
        if not value:
            return value
        whole = value.encode("utf-8", "replace").decode("utf-8")
        return whole.replace("\0", "\N{REPLACEMENT CHARACTER}")[: self._length]

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Return a stored value as Python uses it."""
        return value


class CommaList(TypeDecorator[tuple[str, ...]]):
    """A tuple of words without commas, stored as one text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        """Return the value as it is stored."""
        return None if value is None else ",".join(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        """Return a stored value as Python uses it."""
        return None if value is None else tuple(filter(None, value.split(",")))


class Intervals(TypeDecorator[tuple[tuple[float, float], ...]]):
    """Spans of time, each as two Unix seconds, stored as JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(
        self, value: tuple[tuple[float, float], ...] | None, dialect: Dialect
    ) -> str | None:
        """Return the value as it is stored."""
        return None if value is None else json.dumps(value)

    def process_result_value(
        self, value: str | None, dialect: Dialect
    ) -> tuple[tuple[float, float], ...] | None:
        """Return a stored value as Python uses it."""
        return None if value is None else tuple((begin, end) for begin, end in json.loads(value))


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _partial_index(
    name: str, where: ColumnElement[bool], *columns: Column[Any], unique: bool = False
) -> None:
    Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


_Id = String(32)
_DialerId = String(64)
_ZERO = text("0")

project = Table(
    "project",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("balance", Money),  # NULL: unlimited
    Column("default_dialer", _DialerId),
    Column("disabled", Boolean, nullable=False),
    Column("webhook_url", Text),
    Column("webhook_secret", String(255)),
    Column("webhook_off_reason", FreeText(200)),  # NULL: events are sent, if there is a URL
    Column("webhook_events", CommaList),  # those of every state; NULL: only the end of each call
    Column("reserved", Money, nullable=False, server_default=_ZERO),  # by calls that wait
    Column("daily_spend", Money),  # NULL: unlimited
    Column("spent_today", Money, nullable=False, server_default=_ZERO),
    Column("spent_on", Integer, nullable=False, server_default=_ZERO),  # that day, since 1970, UTC
    Column("requests_per_minute", Integer),
    Column("calls_per_minute", Integer),
    Column("allowed_prefixes", CommaList),  # NULL: those of the configured region
    Column("forbidden_prefixes", CommaList, nullable=False, server_default=text("''")),
    Column("window", String(255)),  # NULL: always open
    Column("dialers", CommaList),  # NULL: all
    Column("one_call_per_number", Boolean, nullable=False, server_default=true()),
    Column("unwanted_to_do_not_call", Boolean, nullable=False, server_default=false()),
    Column("hold_seconds", Integer, nullable=False, server_default=text("60")),
    Column("max_calls_per_number_per_day", Integer),  # NULL: no limit
    Column("deleted_at", Double),  # its calls, recordings, ledger and tokens are deleted
)

has_window = project.c.window.is_not(None)
_partial_index("ix_project_window", has_window, project.c.id)

token = Table(
    "token",
    metadata,
    Column("id", _Id, primary_key=True),  # the jti of the JWT
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

signing_key = Table(
    "signing_key",
    metadata,
    Column("id", _Id, primary_key=True),  # the kid of tokens that it signs
    # Both by the system clock, as the expiry of tokens is.
    Column("created_at", Double, nullable=False),
    Column("retired_at", Double),  # its tokens are refused from then on; NULL: it is in use
    Column("wrapping", String(32)),  # how `material` is encrypted; NULL: it is the key itself
    Column("material", LargeBinary, nullable=False),
)
"""Keys that sign tokens: the newest one that is in use signs, and all are accepted until retired.

Retired rows stay, so that a copy of their key in a file is not imported again."""

api_process = Table(
    "api_process",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", FreeText(64), nullable=False),  # host and process id
    Column("beats", Integer, nullable=False),  # changes with each heartbeat
    Column("seen_at", Double, nullable=False),
)
"""Processes that answer the API and share the rate limits of projects."""

recording = Table(
    "recording",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("name", FreeText(255), nullable=False),
    Column("duration", Double, nullable=False),
    Column("size", BigInteger, nullable=False),  # bytes, as uploaded
    Column("created_at", Double, nullable=False),
    Column("deleted_at", Double),
    Column("kind", String(8), nullable=False, server_default=text("'upload'")),
    Column("speech_key", String(64)),  # what it says and how; NULL: an upload, or deleted
    # The day, since 1970, UTC, on which a call with it was placed last, or it was made.
    Column("used_on", Integer, nullable=False, server_default=_ZERO),
    Index("ix_recording_project", "project_id", "id"),
    CheckConstraint("kind IN ('upload', 'speech')", name="kind"),
)

has_speech_key = recording.c.speech_key.is_not(None)
_partial_index(
    "uq_recording_speech_key",
    has_speech_key,
    recording.c.project_id,
    recording.c.speech_key,
    unique=True,
)

speech_part = Table(
    "speech_part",
    metadata,
    Column("id", _Id, primary_key=True),  # of its audio in the storage of recordings
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("key", String(64), nullable=False),  # a hash of what it says and how
    Column("duration", Double, nullable=False),
    # The day, since 1970, UTC, on which a call was given it last.
    Column("used_on", Integer, nullable=False),
    UniqueConstraint("project_id", "key"),
)
"""Spoken parts of personal texts; calls name them in `parts`. They are no recordings: clients
neither list nor delete them, and their words are not kept."""

webhook = Table(
    "webhook",
    metadata,
    Column("id", _Id, primary_key=True),  # a hash of its fields, so that requests share a row
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("events", CommaList, nullable=False),
    Column("off_reason", FreeText(200)),  # NULL: events are sent
    Index("ix_webhook_project", "project_id", "id"),
)
"""Webhooks that requests named for their own calls, in place of their project's."""

menu = Table(
    "menu",
    metadata,
    Column("id", _Id, primary_key=True),  # a hash of its fields, so that requests share a row
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("body", Text, nullable=False),  # as `domain.menus.to_json` writes it
    Index("ix_menu_project", "project_id", "id"),
)

menu_recording = Table(
    "menu_recording",
    metadata,
    Column("menu_id", _Id, ForeignKey("menu.id"), primary_key=True),
    Column("recording_id", _Id, ForeignKey("recording.id"), primary_key=True),
    Index("ix_menu_recording", "recording_id", "menu_id"),
)
"""The recordings that menus may play."""

campaign = Table(
    "campaign",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("dialer_id", _DialerId, nullable=False),
    Column("recording_id", _Id, ForeignKey("recording.id")),
    Column("requested_at", Double, nullable=False),
    Column("total", Integer, nullable=False),
    Column("canceled_at", Double),
    Column("name", FreeText(100)),
    Column("reference", FreeText(100)),
    # The start and the end are by the system clock, as calling windows are.
    Column("start_at", Double),  # no attempt starts before; NULL: at once
    Column("time_to_live", Integer, nullable=False, server_default=_ZERO),  # from the start
    Column("end_at", Double),  # no attempt starts then or later; NULL: only the time to live counts
    Column("window", String(255)),  # besides the project's; NULL: always open
    Column("calls_per_second", Double),  # NULL: as fast as the dialer
    Column("max_channels", Integer),
    Column("paused_at", Double),  # NULL: not paused
    Column("pauses", Intervals, nullable=False, server_default=text("'[]'")),  # those that are over
    Column("finished_at", Double),  # its last call was over; NULL: some are not
    Column("webhook_id", _Id),  # NULL: the project's
    Column("template", Text),  # a text with {variables}; NULL: all of its calls play the same
    Column("language", String(35)),
    # Numbers of its calls by status, written in the transaction that ends a call.
    *(
        Column(status.name.lower(), Integer, nullable=False, server_default=_ZERO)
        for status in CallStatus
    ),
    Column("answered", Integer, nullable=False, server_default=_ZERO),
    Column("humans", Integer, nullable=False, server_default=_ZERO),
    Column("machines", Integer, nullable=False, server_default=_ZERO),
    Column("price", Money, nullable=False, server_default=_ZERO),
    Index("ix_campaign_project", "project_id", "id"),
)

is_unfinished = campaign.c.finished_at.is_(None)
"""A call of the campaign is not over."""

may_run = and_(is_unfinished, campaign.c.paused_at.is_(None))
"""The campaign is neither over nor paused; it may still be too early, or its window closed."""

_partial_index(
    "ix_campaign_unfinished",
    is_unfinished,
    campaign.c.dialer_id,
    campaign.c.project_id,
    campaign.c.id,
)
has_end = and_(is_unfinished, campaign.c.end_at.is_not(None))
_partial_index("ix_campaign_ending", has_end, campaign.c.dialer_id, campaign.c.end_at)

incomplete_batch = Table(
    "incomplete_batch",
    metadata,
    Column("campaign_id", _Id, primary_key=True),  # of its calls; the campaign has no row yet
    Column("written_at", Double, nullable=False),  # its last piece
    Column("is_abandoned", Boolean, nullable=False),  # its calls are to be deleted
)
"""Large batches of which some calls are written; no list shows them, and none is dialled."""

campaign_key = Table(
    "campaign_key",
    metadata,
    Column("campaign_id", _Id, ForeignKey("campaign.id"), primary_key=True),
    Column("key", String(32), primary_key=True),  # a key, or the word that keys report
    Column("calls", Integer, nullable=False),  # in which it was pressed
)

call = Table(
    "call",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("campaign_id", _Id),
    Column("dialer_id", _DialerId, nullable=False),
    Column("phone_number", FreeText(64), nullable=False),
    Column("e164", String(16), nullable=False),
    Column("recording_id", _Id, ForeignKey("recording.id")),
    Column("lane", SmallInteger, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("retry_count", SmallInteger, nullable=False),
    Column("retries_left", SmallInteger, nullable=False),
    Column("retry_interval", Integer, nullable=False),
    Column("requested_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("due_at", Double),  # NULL: claimed or final
    Column("trouble", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("executed_at", Double, nullable=False),
    Column("bill_seconds", Integer, nullable=False),
    Column("price", Money, nullable=False),
    Column("reason", FreeText(200), nullable=False),
    Column("reserved", Money, nullable=False, server_default=_ZERO),  # 0 once it is final
    Column("finished_at", Double, nullable=False, server_default=_ZERO),
    Column("digits", String(16)),
    Column("repeat_count", SmallInteger),
    Column("language", String(35)),
    Column("uncertain", Integer, nullable=False, server_default=_ZERO),  # redials beyond retries
    # An INVITE of a process that crashed may ring the phone until then; NULL: none does.
    Column("may_ring_until", Double),
    # Seconds after the answer at which its dialer ends it; 0 for calls of before schema 0007.
    Column("longest_seconds", Integer, nullable=False, server_default=_ZERO),
    Column("reference", FreeText(100)),
    # Waits in seconds that are left, busy ones before the semicolon, as in "60,300;600"; NULL: as
    # retries_left and retry_interval say.
    Column("retry_waits", String(128)),
    Column("time_zone", String(64)),  # of the callee; NULL: as the number says
    Column("variables", Text),  # JSON, for the template of its campaign
    # Rows of `speech_part`, played in this order; empty while they are not rendered yet.
    Column("parts", CommaList),
    Column("caller_id", String(33)),  # NULL: the dialer chooses
    Column("webhook_id", _Id),  # NULL: the project's
    Column("menu_id", _Id),  # NULL: keys do nothing
    Column("machine_detection", String(8)),  # flag, hangup or message; NULL: none
    Column("machine_recording_id", _Id),  # played to a machine; NULL: what the call plays
    CheckConstraint("due_at IS NULL OR status = 0", name="final_is_not_due"),
    CheckConstraint("recording_id IS NOT NULL OR digits IS NOT NULL", name="plays_something"),
)

is_due = call.c.due_at.is_not(None)
"""The call waits for its next attempt: it is not claimed, and not final."""

is_waiting = call.c.status == literal_column(str(int(CallStatus.WAITING)))
"""The call is not final: it waits for an attempt, or one is under way."""

_zero: ColumnElement[Any] = literal_column("0")
UNTRIED: Final[Mapping[str, ColumnElement[Any]]] = MappingProxyType(
    {
        "status": literal_column(str(int(CallStatus.WAITING))),
        "trouble": _zero,
        "uncertain": _zero,
        "attempts": _zero,
        "executed_at": _zero,
        "bill_seconds": _zero,
        "price": _zero,
        "finished_at": _zero,
        "reason": literal_column("''"),
    }
)
"""Values of a new call, by column: no attempt was made yet."""

in_campaign = call.c.campaign_id.is_not(None)
is_alone = call.c.campaign_id.is_(None)
"""The call belongs to no campaign."""

is_due_alone = and_(is_due, is_alone)
"""The call waits for its next attempt, and belongs to no campaign."""

is_due_in_campaign = and_(is_due, in_campaign)
"""The call waits for its next attempt, and belongs to a campaign."""

# By project, so that projects take turns however many calls one of them has waiting.
_partial_index(
    "ix_call_due",
    is_due_alone,
    call.c.dialer_id,
    call.c.lane,
    call.c.project_id,
    call.c.due_at,
    call.c.id,
)
_partial_index("ix_call_next", is_due_alone, call.c.dialer_id, call.c.due_at)
_partial_index("ix_call_expiring", is_due_alone, call.c.dialer_id, call.c.expires_at)
# By campaign, so that the calls of one that is paused are skipped without reading them.
_partial_index(
    "ix_call_due_in_campaign", is_due_in_campaign, call.c.campaign_id, call.c.due_at, call.c.id
)
is_unrendered = and_(is_due_in_campaign, call.c.parts == literal_column("''"))
"""The texts of the call are not rendered yet."""

_partial_index("ix_call_unrendered", is_unrendered, call.c.campaign_id, call.c.due_at, call.c.id)
is_in_flight = and_(call.c.due_at.is_(None), is_waiting)
"""An attempt of the call is under way."""

_partial_index("ix_call_in_flight", is_in_flight, call.c.project_id, call.c.e164)
may_ring = call.c.may_ring_until.is_not(None)
_partial_index("ix_call_may_ring", may_ring, call.c.project_id, call.c.e164, call.c.may_ring_until)
# By number first, as no other index is: on a table that was not analyzed yet, PostgreSQL would else
# take one that begins with the project, and read all of its calls for each number.
_partial_index(
    "ix_call_may_ring_number", may_ring, call.c.e164, call.c.project_id, call.c.may_ring_until
)
is_waiting_otp = and_(is_due, call.c.lane == literal_column(str(int(Lane.OTP))))
"""The call is a one-time password that waits for its next attempt."""

_partial_index("ix_call_waiting_otp", is_waiting_otp, call.c.project_id, call.c.e164, call.c.id)
_partial_index("ix_call_campaign", in_campaign, call.c.campaign_id, call.c.id)
# For lists of a project's calls, the newest first.
Index("ix_call_project", call.c.project_id, call.c.id)
Index("ix_call_status", call.c.project_id, call.c.status, call.c.id)
# Numbers come in any order: an index of all of a project's would be written all over by each batch.
_partial_index("ix_call_number", is_alone, call.c.project_id, call.c.e164, call.c.id)
_partial_index(
    "ix_call_number_in_campaign", in_campaign, call.c.campaign_id, call.c.e164, call.c.id
)
has_reference = call.c.reference.is_not(None)
has_own_webhook = call.c.webhook_id.is_not(None)
has_machine_message = call.c.machine_recording_id.is_not(None)
_partial_index(
    "ix_call_machine_recording",
    has_machine_message,
    call.c.machine_recording_id,
    call.c.status,
)
has_menu = call.c.menu_id.is_not(None)
_partial_index("ix_call_menu", has_menu, call.c.menu_id, call.c.status)
_partial_index("ix_call_webhook", has_own_webhook, call.c.webhook_id)
_partial_index("ix_call_reference", has_reference, call.c.project_id, call.c.reference, call.c.id)
_partial_index("ix_call_needing_recording", is_waiting, call.c.recording_id)

CLAIMED: Final = "held"
"""Claimed and not answered: after a crash it may be dialled again."""
ANSWERED: Final = "heard"
"""Answered: the callee may have heard the recording, so it is not dialled again."""
FINISHED: Final = "settled"
"""Over, and its result is stored."""

attempt = Table(
    "attempt",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("call_id", _Id, ForeignKey("call.id"), nullable=False),
    Column("number", Integer, nullable=False),  # 1 is a call's first
    Column("dialer_id", _DialerId, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("claim", String(8), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("answered_at", Double),
    Column("ended_at", Double),
    Column("outcome", String(32)),
    Column("sip_code", SmallInteger),
    Column("q850", SmallInteger),
    Column("ended_by", String(8), nullable=False),
    Column("detail", FreeText(200), nullable=False),
    # Received is NULL where nothing was played, sent also where it is unknown. The last two are
    # from the callee's RTCP reports, if any.
    Column("packets_sent", Integer),
    Column("packets_received", Integer),
    Column("digits", FreeText(256)),
    Column("far_loss", Double),
    Column("far_jitter_ms", Double),
    Column("rang_at", Double),  # the first 18x; NULL: none is known of
    Column("caller_id", String(33)),  # that it showed; NULL: not known
    Column("machine", String(8)),  # human or machine; NULL: not detected
    Column("reports", CommaList),  # the words of the keys of its menu; NULL: none was pressed
    CheckConstraint("claim IN ('held', 'heard', 'settled')", name="claim"),
    UniqueConstraint("call_id", "number"),
)

is_open = attempt.c.ended_at.is_(None)
"""The attempt is under way, or was interrupted by a crash and not recovered yet.

Its claim says the same, but that changes with the answer, which would update an index on it too.
"""

_partial_index("ix_attempt_open", is_open, attempt.c.dialer_id)
# A call never has two open attempts.
_partial_index("uq_attempt_open_call", is_open, attempt.c.call_id, unique=True)

cancel_request = Table(
    "cancel_request",
    metadata,
    Column("attempt_id", _Id, ForeignKey("attempt.id"), primary_key=True),
    Column("dialer_id", _DialerId, nullable=False),
    Index("ix_cancel_request_dialer", "dialer_id"),
)

ledger_entry = Table(
    "ledger_entry",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    # No foreign keys: the ledger outlives its calls.
    Column("call_id", _Id),
    Column("attempt_id", _Id, unique=True),
    Column("kind", String(16), nullable=False),
    Column("amount", Money, nullable=False),  # negative: spent
    Column("created_at", Double, nullable=False),
    # Why length and price do not agree; empty where they do.
    Column("note", FreeText(200), nullable=False, server_default=text("''")),
    Index("ix_ledger_entry_project", "project_id", "id"),
)

placed_number = Table(
    "placed_number",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("e164", String(16), nullable=False),
    Column("placed_at", Double, nullable=False),
    Column("is_otp", Boolean, nullable=False),
    Index("ix_placed_number", "project_id", "e164", "placed_at"),
    Index("ix_placed_number_age", "placed_at"),
)

dialer = Table(
    "dialer",
    metadata,
    Column("id", _DialerId, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("worker", FreeText(64), nullable=False),
    Column("seen_at", Double, nullable=False),
    # Of the data_dir of a worker; NULL: no worker runs the dialer. With the name, heartbeat and
    # state of one of its workers, for the version before this one, which has no table `worker`.
    Column("installation", _Id),
    Column("up", Boolean, nullable=False, server_default=true()),  # a carrier can be reached
    Column("paused_reason", FreeText(200)),  # NULL: calls are placed
    Column("worked_at", Double),  # a call was last known to be delivered; NULL: never yet
    Column("last_attempt", _Id, nullable=False, server_default=text("''")),  # of its claims
)

worker = Table(
    "worker",
    metadata,
    # The epoch is also that of its attempts.
    Column("dialer_id", _DialerId, primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("name", FreeText(64), nullable=False),
    # The data_dir and the number of the lock file that it holds there.
    Column("installation", _Id, nullable=False),
    Column("slot", Integer, nullable=False),
    Column("address", String(64), nullable=False),  # where it speaks SIP from
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("up", Boolean, nullable=False),  # a carrier can be reached
    Column("paused_reason", FreeText(200)),  # NULL: calls are placed
    Column("channels", Integer, nullable=False),  # in use
    Column("calls_per_second", Double, nullable=False),  # begun, on average
    Column("late_ms", Double, nullable=False),  # of its RTP packets, the 90th percentile
    Column("last_attempt", _Id, nullable=False),  # of its claims
    Column("fenced", Boolean, nullable=False),  # its slot is to be taken over
    Column("draining", Boolean, nullable=False),  # it is to stop
    Column("is_free", Boolean, nullable=False, server_default=true()),  # it could begin more calls
)
"""The workers of dialers; a row is a lease, and who ends it removes the row."""

worker_share = Table(
    "worker_share",
    metadata,
    Column("resource", String(80), primary_key=True),
    Column("dialer_id", _DialerId, primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("most", Integer, nullable=False),  # of the resource, for all workers
    Column("used", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("held", Integer, nullable=False),
    Column("is_able", Boolean, nullable=False),  # it can use what no other worker wants
    Column("weight", Double, nullable=False, server_default=text("1")),
    Index("ix_worker_share_worker", "dialer_id", "epoch"),
)
"""The shares of the workers in limits that hold for all of them together."""

group_dialer = Table(
    "group_dialer",
    metadata,
    Column("group_id", _DialerId, primary_key=True),
    Column("dialer_id", _DialerId, primary_key=True),
    Column("taken", Double, nullable=False),  # calls, divided by its weight
)
"""What the dialers of groups with weights have taken."""

trace_request = Table(
    "trace_request",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("call_id", _Id, nullable=False),
    Column("at", Double, nullable=False),
)
"""Requests for the SIP trace of a call, which is in files of the machine that dialled."""

trace_reply = Table(
    "trace_reply",
    metadata,
    Column("request_id", _Id, ForeignKey("trace_request.id"), primary_key=True),
    Column("worker", FreeText(64), primary_key=True),
    Column("lines", LargeBinary, nullable=False),  # JSON, compressed by zlib
)

SERVICE: Final = "service"
DIALER: Final = "dialer"
PROJECT: Final = "project"

pause = Table(
    "pause",
    metadata,
    Column("scope", String(8), primary_key=True),
    Column("target", String(64), primary_key=True),  # an id; of the service, empty
    Column("reason", FreeText(200), nullable=False),
    Column("at", Double, nullable=False),
    # The database is from a backup: calls of before `at` may have been dialled since.
    Column("is_restored", Boolean, nullable=False),
    CheckConstraint("scope IN ('service', 'dialer', 'project')", name="scope"),
)

schema_compatibility = Table(
    "schema_compatibility",
    metadata,
    # The program that knows this revision as its newest can use the schema, too.
    Column("usable_since", String(8), primary_key=True),
)
"""One row, written by the migrations."""

retention_cursor = Table(
    "retention_cursor",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("last_id", _Id, nullable=False),  # rows up to this id have been dealt with
)

recipient_list = Table(
    "recipient_list",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("name", FreeText(255), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("recipients", Integer, nullable=False),
    Column("columns", Text, nullable=False),  # JSON: the names of the variables
    Index("ix_recipient_list_project", "project_id", "id"),
)
"""Lists of recipients that clients have uploaded."""

recipient_list_piece = Table(
    "recipient_list_piece",
    metadata,
    Column("list_id", _Id, ForeignKey("recipient_list.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("recipients", LargeBinary, nullable=False),  # JSON, compressed by zlib
)

do_not_call = Table(
    "do_not_call",
    metadata,
    Column("project_id", _Id, ForeignKey("project.id"), primary_key=True),
    Column("e164", String(16), primary_key=True),
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    Column("project_id", _Id, ForeignKey("project.id"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("answer", LargeBinary),  # NULL only during the request
    Column("created_at", Double, nullable=False),
    Index("ix_idempotency_key_created", "created_at"),
)

PENDING: Final = "pending"
DELIVERED: Final = "delivered"
GIVEN_UP: Final = "given up"

webhook_event = Table(
    "webhook_event",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("project_id", _Id, ForeignKey("project.id"), nullable=False),
    Column("call_id", _Id, ForeignKey("call.id")),  # NULL: the event is a campaign's
    Column("campaign_id", _Id),  # NULL: the event is a call's
    Column("type", String(20), nullable=False, server_default=text("''")),  # empty: a call's end
    Column("webhook_id", _Id),  # NULL: the project's
    Column("body", Text),  # JSON; NULL: made from the call, which is over
    Column("created_at", Double, nullable=False),
    Column("due_at", Double),  # NULL: it is not tried any more
    Column("tries", Integer, nullable=False),  # begun, whether or not their end was written
    Column("state", String(9), nullable=False),
    Column("leased_until", Double),  # a try is under way until then, or was cut off; NULL: none is
    CheckConstraint("state IN ('pending', 'delivered', 'given up')", name="state"),
    CheckConstraint("(state = 'pending') = (due_at IS NOT NULL)", name="only_pending_is_due"),
    Index("ix_webhook_event_project", "project_id", "id"),
)

is_undelivered = webhook_event.c.due_at.is_not(None)
"""The event is still to be delivered, now or later."""

_partial_index(
    "ix_webhook_event_due",
    is_undelivered,
    webhook_event.c.project_id,
    webhook_event.c.due_at,
    webhook_event.c.id,
)
ends_call = webhook_event.c.type == literal_column("''")
# The end of a call is one event; its retention and history look for all events of a call.
_partial_index("uq_webhook_event_end", ends_call, webhook_event.c.call_id, unique=True)
Index("ix_webhook_event_call", webhook_event.c.call_id)
Index("ix_webhook_event_campaign", webhook_event.c.campaign_id)

webhook_try = Table(
    "webhook_try",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("event_id", _Id, ForeignKey("webhook_event.id"), nullable=False),
    Column("at", Double, nullable=False),
    Column("status_code", SmallInteger),
    Column("error", FreeText(200), nullable=False),
    Column("seconds", Double, nullable=False),
    Index("ix_webhook_try_event", "event_id", "id"),
)
