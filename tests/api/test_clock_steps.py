"""What clients see where the system clock is set while the API runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitel.api.app import build_app
from tests.support.clocks import STEPS, Machine

if TYPE_CHECKING:
    from tests.api.stage import Stage

V1, V2 = "/api/v1/voice", "/api/v2/voice"


@pytest.fixture
def machine(tmp_path: Path, stage: Stage) -> Machine:
    """The machine that the API of `stage` runs on."""
    machine = Machine(tmp_path / "data")
    clock = machine.open()
    stage.parts = dataclasses.replace(
        stage.parts,
        clock=clock,
        date=clock.date,
        system_clock=machine.system,
        monotonic=lambda: machine.boot_time,
    )
    stage.app = build_app(stage.parts)
    return machine


async def read(stage: Stage, path: str) -> Any:
    async with stage.client() as client:
        return (await client.get(path)).json()["result"]


@pytest.mark.parametrize("step", STEPS)
async def test_dates_are_what_the_system_clock_showed(
    stage: Stage, machine: Machine, step: float
) -> None:
    before = int(machine.system_time)
    async with stage.client() as client:
        first = (await client.post(f"{V2}/single", json=stage.body())).json()["result"]
        machine.passes(100.0)
        machine.system_time += step
        machine.passes(100.0)
        after = int(machine.system_time)
        numbers = {"phoneNumbers": ["09120000001"], "voiceId": stage.recording_id}
        campaign = (await client.post(f"{V2}/batch", json=numbers)).json()
    (second,), campaign_id = campaign["result"], campaign["campaignId"]
    assert abs(first["requestDate"] - before) <= 1
    assert abs(second["requestDate"] - after) <= 1
    stage.clock.now = stage.parts.clock()
    lease, taken = stage.take()
    stage.answer(lease, taken, seconds=10)
    machine.passes(1000.0)
    for path, placed_at in ((first["id"], before), (second["id"], after)):
        call = await read(stage, f"{V2}/status/{path}")
        assert abs(call["requestDate"] - placed_at) <= 1
        assert abs(call["executionDate"] - after) <= 1
        assert call["billSec"] == 0 or call["billSec"] == 10
        record = await read(stage, f"{V1}/cdr/{path}")
        assert record["requestDate"] == call["requestDate"]
        assert record["executionDate"] == call["executionDate"]
    state = await read(stage, f"{V2}/campaign/{campaign_id}")
    assert abs(state["requestDate"] - after) <= 1
    assert abs(state["finishedDate"] - after - 10) <= 1
    (listed,) = (await read(stage, f"{V2}/campaign/{campaign_id}/calls"))["calls"]
    assert listed["requestDate"] == second["requestDate"]
    (recorded,) = await read(stage, f"{V1}/campaign/cdr/{campaign_id}")
    assert recorded["requestDate"] == second["requestDate"]


async def test_what_has_not_happened_has_no_date(stage: Stage, machine: Machine) -> None:
    machine.system_time += 3600.0
    async with stage.client() as client:
        placed = (await client.post(f"{V2}/single", json=stage.body())).json()["result"]
    call = await read(stage, f"{V2}/status/{placed['id']}")
    assert call["executionDate"] == 0


@pytest.mark.parametrize("step", STEPS)
async def test_a_time_to_live_is_counted_from_the_request(
    stage: Stage, machine: Machine, step: float
) -> None:
    machine.system_time += step
    begun = stage.parts.clock()
    async with stage.client() as client:
        await client.post(f"{V2}/single", json=stage.body(timeToLive=300))
    (row,) = stage.rows()
    assert row.expires_at - begun == pytest.approx(300.0)
    assert row.due_at == pytest.approx(begun)


@pytest.mark.parametrize("step", STEPS)
async def test_a_limit_per_minute_lasts_as_long_as_before(
    stage: Stage, machine: Machine, step: float
) -> None:
    stage.change(requests_per_minute=2)
    async with stage.client() as client:
        assert [(await client.get("/api/v2/account")).status_code for _ in range(3)][2] == 429
        machine.system_time += step
        assert (await client.get("/api/v2/account")).status_code == 429
        machine.passes(31.0)
        assert (await client.get("/api/v2/account")).status_code == 200


async def test_a_token_expires_by_the_system_clock(stage: Stage, machine: Machine) -> None:
    # Its signature has no expiry, so that what decides here is the store.
    _, token = stage.new_token(stage.project_id)
    token_id, _ = stage.new_token(stage.project_id, machine.system_time + 1800.0)
    claims = dataclasses.replace(stage.parts.tokens.verify(token), token_id=token_id)
    expiring = stage.parts.tokens.issue(claims.project_id, claims.token_id)
    async with stage.client(expiring) as client:
        assert (await client.get("/api/v2/account")).status_code == 200
        machine.system_time += 3600.0
        assert (await client.get("/api/v2/account")).status_code == 401
