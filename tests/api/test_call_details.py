"""`GET /api/v2/voice/calls/{id}`: a call with its attempts."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from bitel.domain.attempts import AttemptResult, Media, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.pricing import Bill
from bitel.domain.retry import Finish, RetryAt
from bitel.store import settling
from bitel.store.settling import Settlement

if TYPE_CHECKING:
    from tests.api.stage import Stage

EIGHT = ["id", "phoneNumber", "status", "statusCode", "billSec", "requestDate", "executionDate",
         "price"]  # fmt: skip
MORE = ["campaignId", "reference", "reason", "machine", "keys", "reports", "attempts"]


async def test_a_call_that_waits_has_no_attempts(stage: Stage) -> None:
    async with stage.client() as client:
        body = stage.body(reference="order-4711")
        placed = (await client.post("/api/v2/voice/single", json=body)).json()["result"]
        found = (await client.get(f"/api/v2/voice/calls/{placed['id']}")).json()["result"]

    assert list(found) == EIGHT + MORE
    assert {key: found[key] for key in EIGHT} == placed
    assert [found[key] for key in MORE] == [None, "order-4711", None, None, "", [], []]


async def test_each_attempt_is_described(stage: Stage) -> None:
    async with stage.client() as client:
        body = {"recipients": [{"phoneNumber": "09121234567", "reference": "row 1"}],
                "voiceId": stage.recording_id, "reference": "all"}  # fmt: skip
        placed = (await client.post("/api/v2/voice/batch", json=body)).json()
        began = stage.clock()
        lease, (first,) = stage.take()
        busy = AttemptResult(
            Outcome.BUSY, began, began + 4, None, 486, 17, rang_at=began + 2,
            caller_id="02191000000",
        )  # fmt: skip
        again = Settlement(first.attempt_id, first.call_id, busy, RetryAt(began + 60, True, 0))
        stage.do(lambda conn: settling.settle(conn, lease, [again], began + 4))
        stage.clock.advance(60)
        lease, (second,) = stage.take()
        path = f"/api/v2/voice/calls/{first.call_id}"
        during = (await client.get(path)).json()["result"]
        at = stage.clock()
        answered = AttemptResult(
            Outcome.ANSWERED, at, at + 30, at + 8, 200, 16, "far", rang_at=at + 3,
            media=Media(500, 490, "12#", 0.0123, 4.567), caller_id="02191000000",
        )  # fmt: skip
        done = Settlement(
            second.attempt_id, second.call_id, answered, Finish(CallStatus.NORMAL),
            Bill(22, Decimal("34.2")),
        )  # fmt: skip
        stage.do(lambda conn: settling.settle(conn, lease, [done], at + 30))
        found = (await client.get(path)).json()["result"]

    assert (during["status"], during["reason"]) == ("WAITING", "busy (SIP 486, cause 17)")
    assert during["attempts"][1]["outcome"] is None
    assert during["attempts"][1]["endDate"] == 0
    assert found["campaignId"] == placed["campaignId"]
    assert (found["status"], found["reason"], found["keys"]) == ("NORMAL", "answered", "12#")
    assert (found["reference"], found["price"]) == ("row 1", -34.2)
    assert found["attempts"] == [
        {
            "number": 1, "startDate": int(began), "ringDate": int(began + 2), "answerDate": 0,
            "endDate": int(began + 4), "outcome": "BUSY", "sipCode": 486, "cause": 17,
            "reason": "busy (SIP 486, cause 17)", "endedBy": None, "callerId": "02191000000",
            "keys": "", "reports": [], "lossPercent": None, "jitterMs": None,
        },
        {
            "number": 2, "startDate": int(at), "ringDate": int(at + 3),
            "answerDate": int(at + 8), "endDate": int(at + 30), "outcome": "ANSWERED",
            "sipCode": 200, "cause": 16, "reason": "answered", "endedBy": "callee",
            "callerId": "02191000000", "keys": "12#", "reports": [],
            "lossPercent": 1.23, "jitterMs": 4.57,
        },
    ]  # fmt: skip


async def test_an_unknown_call_is_not_found(stage: Stage) -> None:
    async with stage.client() as client:
        for call_id in ("0" * 32, "nonsense"):
            answer = await client.get(f"/api/v2/voice/calls/{call_id}")
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")
