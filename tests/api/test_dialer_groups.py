"""Groups of dialers over HTTP: named as a dialer is, and listed beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bitel.store import leases, pausing
from bitel.store.leases import WorkerState
from bitel.store.pausing import Pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.stage import Stage

SINGLE = "/api/v2/voice/single"
TRUNK = ["sip:127.0.0.1:5060"]


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    dialers = [
        {"id": "main", "trunks": TRUNK, "bind": "127.0.0.1:5070", "caller_id": "111"},
        {"id": "spare", "trunks": TRUNK, "bind": "127.0.0.1:5072", "caller_id": ["222", "333"]},
        {"id": "third", "trunks": TRUNK, "bind": "127.0.0.1:5074", "caller_id": "444"},
    ]
    return make_stage(dialers=dialers, dialer_groups=[{"id": "any", "dialers": ["main", "spare"]}])


async def test_a_group_is_listed_as_its_dialers_together(stage: Stage) -> None:
    now = stage.clock()

    def begin(name: str, **state: object) -> None:
        lease = stage.do(lambda conn: leases.take(conn, leases.Slot(name), name, now))
        stage.do(lambda conn: leases.renew(conn, lease, now, WorkerState(**state)))  # type: ignore[arg-type]

    begin("main", up=False, channels=3)
    begin("spare", channels=4, calls_per_second=1.5)
    stage.do(lambda conn: pausing.add(conn, Pause("dialer", "main", "repairs", now)))
    async with stage.client() as client:
        listed = {e["id"]: e for e in (await client.get("/api/v2/servers")).json()["result"]}
        assert list(listed) == ["main", "spare", "third", "any"]
        group = listed["any"]
        assert (group["up"], group["workers"], group["channels"]) == (True, 2, 7)
        assert (group["callsPerSecond"], group["paused"]) == (1.5, None)
        assert (listed["main"]["up"], listed["main"]["paused"]) == (False, "repairs")
        stage.do(lambda conn: pausing.add(conn, Pause("dialer", "spare", "more", now)))
        listed = {e["id"]: e for e in (await client.get("/api/v2/servers")).json()["result"]}
        assert listed["any"]["paused"] == "repairs"


async def test_calls_for_a_group_may_show_the_caller_ids_of_its_dialers(stage: Stage) -> None:
    async with stage.client() as client:
        for caller_id in ("111", "333"):
            body = stage.body(serverId="any", callerId=caller_id)
            assert (await client.post(SINGLE, json=body)).status_code == 200
        refused = await client.post(SINGLE, json=stage.body(serverId="any", callerId="444"))
    assert refused.json()["message"] == (
        "callerId must be one of the dialer's caller ids: 111, 222, 333"
    )
    assert [row.dialer_id for row in stage.rows()] == ["any", "any"]
    assert stage.rung == ["any", "any"]


async def test_a_project_may_have_a_group_alone(stage: Stage) -> None:
    stage.change(dialers=("any",), default_dialer="any")
    async with stage.client() as client:
        listed = (await client.get("/api/v2/servers")).json()["result"]
        assert [each["id"] for each in listed] == ["any"]
        assert (await client.post(SINGLE, json=stage.body())).status_code == 200
        refused = await client.post(SINGLE, json=stage.body(serverId="main"))
    assert refused.json()["error"] == "InvalidServer"
    assert [row.dialer_id for row in stage.rows()] == ["any"]
