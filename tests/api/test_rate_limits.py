"""What a project may do: spend, ask, call, and over which dialers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from bitel.domain.calls import CallStatus
from bitel.store import do_not_call

if TYPE_CHECKING:
    from tests.api.stage import Stage

SINGLE = "/api/v2/voice/single"
BATCH = "/api/v2/voice/batch"
PER_SECOND = [{"prefix": "+98", "per_minute": "60", "increment": 1}]
# The test's recording lasts a second, and two are kept back for hanging up.
CLAIMED = Decimal(66)


def money(stage: Stage) -> tuple[Any, Any]:
    """What is kept back, and the balance."""
    project = stage.project()
    return project.reserved, project.balance


def code(answer: Any) -> tuple[int, str | None]:
    return answer.status_code, answer.json()["error"]


async def test_a_call_keeps_back_what_it_may_cost(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(tariff=PER_SECOND)
    async with stage.client() as client:
        stage.set_balance("65.9999")
        assert code(await client.post(SINGLE, json=stage.body())) == (402, "InsufficientBalance")
        assert stage.queued() == 0
        stage.set_balance("132.5")
        for number in ("09121234567", "09121234568"):
            placed = await client.post(SINGLE, json=stage.body(phoneNumber=number))
            assert code(placed) == (200, None)
        # 132 of 132.5 are spoken for, though nothing is spent yet.
        assert code(await client.post(SINGLE, json=stage.body())) == (402, "InsufficientBalance")
        assert money(stage) == (2 * CLAIMED, Decimal("132.5"))
        stage.answer(*stage.take(), price="1")
        assert money(stage) == (0, Decimal("130.5"))
        account = (await client.get("/api/v2/account")).json()["result"]
        assert account["balance"] == 130.5


async def test_a_batch_is_paid_as_a_whole_or_not_placed(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(tariff=PER_SECOND)
    stage.set_balance("6599.99")
    body = {
        "phoneNumbers": [f"0912{n:07d}" for n in range(100)],
        "voiceId": stage.recording_id,
    }
    async with stage.client() as client:
        assert code(await client.post(BATCH, json=body)) == (402, "InsufficientBalance")
        assert stage.queued() == 0
        assert stage.project().reserved == 0
        stage.set_balance("6600")
        placed = await client.post(BATCH, json=body)
        assert code(placed) == (200, None)
        campaign = await client.get(f"/api/v2/voice/campaign/{placed.json()['campaignId']}")
        assert campaign.json()["result"]["price"] == 0.0
        assert stage.project().reserved == 6600


async def test_calls_at_once_can_not_overspend(stage: Stage, make_priced: Any) -> None:
    stage = make_priced(stage)
    stage.set_balance("200")
    async with stage.client() as client:
        answers = await asyncio.gather(
            *(client.post(SINGLE, json=stage.body()) for _ in range(20)),
            *(
                client.post(SINGLE, json=stage.body(), headers={"Idempotency-Key": str(n)})
                for n in range(20)
            ),
        )
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [402] * 37
    assert stage.queued() == 3


@pytest.fixture
def make_priced() -> Callable[[Stage], Stage]:
    from dataclasses import replace

    from bitel.api.app import build_app
    from bitel.settings import Settings

    def make(stage: Stage) -> Stage:
        settings = Settings(
            **{**stage.parts.settings.model_dump(), "tariff": PER_SECOND}  # same, but priced
        )
        parts = replace(stage.parts, settings=settings)
        return replace(stage, parts=parts, app=build_app(parts))

    return make


async def test_what_may_be_spent_on_a_day_runs_out_until_midnight(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(tariff=PER_SECOND)
    stage.change(daily_spend=Decimal(133))
    stage.clock.now = 1_700_006_400.0 - 600  # ten minutes to midnight, UTC
    async with stage.client() as client:
        for expected in (200, 200, 429):
            answer = await client.post(SINGLE, json=stage.body())
            assert answer.status_code == expected
        assert answer.json()["error"] == "TooManyRequests"
        assert answer.headers["retry-after"] == "600"
        stage.answer(*stage.take(), price="66")
        assert (await client.post(SINGLE, json=stage.body())).status_code == 429
        stage.clock.advance(601)
        assert (await client.post(SINGLE, json=stage.body())).status_code == 200


async def test_requests_a_minute_are_counted_per_project(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(limits={"requests_per_minute": 3})
    _, other = stage.new_token(stage.new_project("other"))
    async with stage.client() as client, stage.client(other) as stranger:
        for _ in range(3):
            assert code(await client.get("/api/v2/servers")) == (200, None)
        refused = await client.get("/api/v2/servers")
        assert code(refused) == (429, "TooManyRequests")
        assert refused.headers["retry-after"] == "20"
        assert code(await stranger.get("/api/v2/servers")) == (200, None)
        assert (await client.get("/healthz")).status_code == 200
        stage.clock.advance(20)
        assert code(await client.get("/api/v2/account")) == (200, None)
        stage.change(requests_per_minute=600)
        stage.clock.advance(1)
        for _ in range(10):
            assert code(await client.get("/api/v2/account")) == (200, None)


async def test_on_a_new_day_only_what_is_spent_on_it_counts(
    stage: Stage, make_priced: Callable[[Stage], Stage]
) -> None:
    stage = make_priced(stage)
    stage.change(daily_spend=Decimal(133))
    async with stage.client() as client:
        for number in ("09121234567", "09121234568"):
            placed = await client.post(SINGLE, json=stage.body(phoneNumber=number))
            assert code(placed) == (200, None)
        stage.answer(*stage.take(), price="66")
        refused = await client.post(SINGLE, json=stage.body())
        assert code(refused) == (429, "TooManyRequests")
        stage.clock.advance(int(refused.headers["retry-after"]))
        # 66 of the second day's 133 are spent, and then 66 more may be.
        assert code(await client.post(SINGLE, json=stage.body())) == (200, None)
        stage.answer(*stage.take(), price="66")
        assert code(await client.post(SINGLE, json=stage.body())) == (200, None)
        assert code(await client.post(SINGLE, json=stage.body())) == (429, "TooManyRequests")


# A rate of 1 a second, so the prices are seconds; 65 are added for a hold and for hanging up.
@pytest.mark.parametrize(
    ("kind", "terms", "reserve"),
    [
        ("single", {}, 76),
        ("otp", {"text": "4071", "repeatCount": 1, "voiceId": None}, 72),
        ("otp", {"text": "4071", "repeatCount": 1}, 82),
        ("otp", {"text": "40718", "repeatCount": 3}, 98),
    ],
    ids=["a recording", "a code", "an intro and a code", "an intro and a code three times"],
)
async def test_a_call_reserves_what_it_costs_to_hear_it_to_the_end(
    make_stage: Callable[..., Stage], kind: str, terms: dict[str, Any], reserve: int
) -> None:
    stage = make_stage(tariff=PER_SECOND)
    voice_id = stage.new_recording(stage.project_id, seconds=10.2)
    body = stage.body(**{"voiceId": voice_id, **terms})
    async with stage.client() as client:
        for balance, expected in ((reserve - 0.01, 402), (reserve, 200)):
            stage.set_balance(str(balance))
            answer = await client.post(f"/api/v2/voice/{kind}", json=body)
            assert answer.status_code == expected
    assert stage.project().reserved == reserve


async def test_calls_a_minute_are_counted(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage()
    stage.change(calls_per_minute=4)
    body = {"phoneNumbers": "09120000001,09120000002,09120000003", "voiceId": stage.recording_id}
    async with stage.client() as client:
        assert code(await client.post(BATCH, json={**body, "voiceId": "0" * 32}))[0] == 400
        assert code(await client.post(BATCH, json=body)) == (200, None)
        refused = await client.post(BATCH, json=body)
        assert code(refused) == (429, "TooManyRequests")
        assert refused.headers["retry-after"] == "30"
        assert code(await client.post(SINGLE, json=stage.body())) == (200, None)
        assert code(await client.post(SINGLE, json=stage.body())) == (429, "TooManyRequests")
        assert stage.queued() == 4
        # Larger than a minute's worth: it waits for a full minute, and leaves a debt.
        many = {**body, "phoneNumbers": [f"0912000000{n}" for n in range(10)]}
        stage.clock.advance(60)
        assert code(await client.post(BATCH, json=many)) == (200, None)
        stage.clock.advance(60)
        assert code(await client.post(SINGLE, json=stage.body()))[0] == 429


async def test_calls_that_are_refused_for_want_of_money_do_not_count(
    stage: Stage, make_priced: Callable[[Stage], Stage]
) -> None:
    stage = make_priced(stage)
    stage.change(calls_per_minute=3)
    stage.set_balance("0")
    batch = {"phoneNumbers": "09120000001,09120000002,09120000003", "voiceId": stage.recording_id}
    async with stage.client() as client:
        for _ in range(4):
            for path, body in ((BATCH, batch), (SINGLE, stage.body())):
                refused = await client.post(path, json=body, headers={"Idempotency-Key": path})
                assert code(refused) == (402, "InsufficientBalance")
                refused = await client.post(path, json=body)
                assert code(refused) == (402, "InsufficientBalance")
        stage.set_balance("1000")
        assert code(await client.post(BATCH, json=batch)) == (200, None)
        assert code(await client.post(SINGLE, json=stage.body())) == (429, "TooManyRequests")


async def test_calls_that_are_refused_because_their_recording_is_gone_do_not_count(
    stage: Stage,
) -> None:
    stage.change(calls_per_minute=2)
    kept = stage.new_recording(stage.project_id)
    async with stage.client() as client:
        assert code(await client.post(SINGLE, json=stage.body())) == (200, None)
        stage.answer(*stage.take())
        # How long it lasts is remembered, so only the store finds out that it is gone.
        stage.do(stage.remove_recording)
        for _ in range(3):
            assert code(await client.post(SINGLE, json=stage.body())) == (400, "InvalidRequest")
        body = stage.body(voiceId=kept)
        assert code(await client.post(SINGLE, json=body)) == (200, None)
        assert code(await client.post(SINGLE, json=body)) == (429, "TooManyRequests")


async def test_a_repeated_key_does_not_count(stage: Stage) -> None:
    stage.change(calls_per_minute=10)
    key = {"Idempotency-Key": "order-1"}
    batch = {"phoneNumbers": "09120000001,09120000002,09120000003", "voiceId": stage.recording_id}
    async with stage.client() as client:
        # All are counted before the first is stored, and all but that one are given back.
        asks = (client.post(SINGLE, json=stage.body(), headers=key) for _ in range(10))
        answers = await asyncio.gather(*asks)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        for _ in range(3):
            assert code(await client.post(BATCH, json=batch)) == (200, None)
        assert code(await client.post(SINGLE, json=stage.body())) == (429, "TooManyRequests")
        # The first answer is given again also where no further call may be placed.
        again = await client.post(SINGLE, json=stage.body(), headers=key)
        assert again.content == answers[0].content
    assert stage.queued() == 10


async def test_numbers_abroad_are_off_until_switched_on(stage: Stage) -> None:
    abroad = stage.body(phoneNumber="+442079460018")
    async with stage.client() as client:
        refused = await client.post(SINGLE, json=abroad)
        assert code(refused) == (403, "Forbidden")
        assert "phoneNumber '+442079460018'" in refused.json()["message"]
        stage.change(allowed_prefixes=("+98", "+4420"), forbidden_prefixes=("+98900",))
        assert code(await client.post(SINGLE, json=abroad)) == (200, None)
        premium = stage.body(phoneNumber="09001234567")
        assert code(await client.post(SINGLE, json=premium)) == (403, "Forbidden")
        assert code(await client.post(SINGLE, json=stage.body())) == (200, None)
        stage.change(allowed_prefixes=("+",))
        anywhere = stage.body(phoneNumber="+12125551234")
        assert code(await client.post(SINGLE, json=anywhere)) == (200, None)
    assert stage.queued() == 3


async def test_a_number_that_must_not_be_called_ends_at_once(stage: Stage) -> None:
    stage.do(lambda conn: do_not_call.add(conn, stage.project_id, "+989121234567"))
    stage.set_balance("0")
    body = {"phoneNumbers": ["09350000001", "09121234567"], "voiceId": stage.recording_id}
    async with stage.client() as client:
        single = await client.post(SINGLE, json=stage.body(), headers={"Idempotency-Key": "k"})
        again = await client.post(SINGLE, json=stage.body(), headers={"Idempotency-Key": "k"})
        result = single.json()["result"]
        assert (result["status"], result["statusCode"]) == ("ERROR", 11)
        assert again.content == single.content
        found = await client.get(f"/api/v2/voice/status/{result['id']}")
        assert found.json()["result"] == result
        stage.clock.advance(1)
        batch = (await client.post(BATCH, json=body)).json()
        assert [call["status"] for call in batch["result"]] == ["WAITING", "ERROR"]
        page = await client.get(f"/api/v2/voice/campaign/{batch['campaignId']}/calls")
        assert page.json()["result"]["calls"] == batch["result"]
    assert [CallStatus(row.status).name for row in stage.rows()] == ["ERROR", "WAITING", "ERROR"]
    assert len(stage.take()[1]) == 1


async def test_a_project_sees_and_uses_its_own_dialers_only(stage: Stage) -> None:
    stage.change(dialers=("spare",))
    async with stage.client() as client:
        listed = (await client.get("/api/v2/servers")).json()["result"]
        assert [each["id"] for each in listed] == ["spare"]
        refused = await client.post(SINGLE, json=stage.body(serverId="main"))
        assert code(refused) == (400, "InvalidServer")
        placed = await client.post(SINGLE, json=stage.body())
        assert code(placed) == (200, None)
        assert stage.rows()[0].dialer_id == "spare"
        stage.change(dialers=())
        assert code(await client.post(SINGLE, json=stage.body())) == (503, "Unavailable")


async def test_the_account_says_whose_token_it_is(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(currency="EUR")
    async with stage.client() as client:
        answer = (await client.get("/api/v2/account")).json()["result"]
        assert list(answer.items()) == [
            ("id", stage.project_id),
            ("name", "shop"),
            ("balance", None),
            ("currency", "EUR"),
        ]
        stage.set_balance("-12.25")
        assert (await client.get("/api/v2/account")).json()["result"]["balance"] == -12.25


async def test_a_new_project_may_place_the_largest_batch_at_once(
    make_stage: Callable[..., Stage],
) -> None:
    """With the limits that `bitel project create` gives it, whatever `batch_limit` is."""
    stage = make_stage(batch_limit=20_000)
    limits = stage.parts.settings.limits
    stage.change(
        requests_per_minute=limits.new_project_requests_per_minute,
        calls_per_minute=limits.new_project_calls_per_minute,
    )
    numbers = [f"0912{number:07}" for number in range(20_000)]
    body = {"phoneNumbers": numbers, "voiceId": stage.recording_id}
    async with stage.client() as client:
        assert code(await client.post(BATCH, json=body)) == (200, None)
        assert code(await client.post(BATCH, json=body)) == (429, "TooManyRequests")
    assert stage.queued() == 20_000
