"""Makes what most tests begin with: projects, recordings, calls, and the ends of attempts.

Fields that a test does not name have values that fit each other; a test names those it is about.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from bitel.domain.attempts import AttemptResult, Media, Outcome
from bitel.domain.calls import CallStatus, Lane, NewCall
from bitel.domain.ids import new_id
from bitel.domain.pricing import NOTHING, Bill
from bitel.domain.retry import Finish, Requeue, RetryAt, RetryDecision
from bitel.store import projects, recordings
from bitel.store.recordings import Recording
from bitel.store.settling import Settlement

if TYPE_CHECKING:
    from bitel.store.claims import Claim

NORMAL = Finish(CallStatus.NORMAL)


def make_project(conn: Connection, now: float, name: str = "shop") -> tuple[str, str]:
    """Store a project with one recording; the ids of both."""
    project_id = projects.create(conn, name, now).id
    return project_id, make_recording(conn, project_id, now).id


def make_recording(conn: Connection, project_id: str, now: float, **changes: Any) -> Recording:
    """Store the row of a recording; there is no file."""
    fields = {"id": new_id(now), "name": "hello", "duration": 3.2, "size": 51_200, **changes}
    made = Recording(project_id=project_id, created_at=now, **fields)
    recordings.add(conn, made)
    return made


def new_call(project_id: str, recording_id: str | None, now: float, **changes: Any) -> NewCall:
    """A call at dialer "main" to one number, with one retry after 60 s, which expires in 4 h."""
    fields: dict[str, Any] = {
        "id": new_id(now),
        "project_id": project_id,
        "dialer_id": "main",
        "phone_number": "0912 123 4567",
        "e164": "+989121234567",
        "recording_id": recording_id,
        "lane": Lane.SINGLE,
        "retry_count": 1,
        "retry_interval": 60,
        "requested_at": now,
        "expires_at": now + 14_400,
    }
    return NewCall(**{**fields, **changes})


def settlement(
    claimed: Claim,
    decision: RetryDecision,
    outcome: Outcome = Outcome.BUSY,
    bill: Bill = NOTHING,
    **more: Any,
) -> Settlement:
    """The end of a claimed attempt after 20 s; `more` are fields of its `AttemptResult`."""
    at = claimed.started_at
    done = AttemptResult(outcome, started_at=at + 0.25, ended_at=at + 20, **more)
    return Settlement(claimed.attempt_id, claimed.call_id, done, decision, bill)


def answered(claimed: Claim, price: str = "34.2", seconds: int = 12) -> Settlement:
    """The end of a claimed attempt that was answered after 8 s, and hung up by the callee."""
    return settlement(
        claimed,
        NORMAL,
        Outcome.ANSWERED,
        Bill(seconds, Decimal(price)),
        answered_at=claimed.started_at + 8,
        sip_code=200,
        q850=16,
        ended_by="far",
    )


def some_settlement(number: int, detail: str = "busy here") -> Settlement:
    """An end with fields of every kind, without a claim; its ids and its verdict go by `number`."""
    verdicts = (
        Finish(CallStatus.NORMAL),
        Finish(CallStatus.ERROR, detail),
        RetryAt(1_700_000_000.123456, spends_retry=True, trouble=2),
        Requeue(1_700_000_060.5),
    )
    media = Media(250, 240, "12*#A", 0.125, None) if number % 2 else None
    result = AttemptResult(
        Outcome.ANSWERED, 1.5, 20.25, 3.125, 200, 16, "far", detail=detail, media=media,
        caller_id="02191000000" if number % 2 else None,
    )  # fmt: skip
    return Settlement(
        f"{number:032x}",
        f"{number + 1000:032x}",
        result,
        verdicts[number % len(verdicts)],
        Bill(18, Decimal("34.2001")),
    )
