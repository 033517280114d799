"""A campaign by way of a real PgBouncer, and one while the database refuses the service's work."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from sqlalchemy import make_url

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.e2e.campaigns import (
    TARIFF,
    begin,
    check_events,
    check_money,
    check_nobody_called_wrongly,
    place,
)
from tests.support import phone_log
from tests.support.pgbouncer import Mode, pgbouncer
from tests.support.postgres_server import own_postgres
from tests.support.waiting import wait_until
from tests.support.webhook_recorder import receiver

CALLS = 40
DIALER = {"ring_timeout": 5, "max_channels": 10, "calls_per_second": 20}


def stage_on(url: str, folder: Path) -> Stage:
    extra = f'webhook_allow_private = true\ndatabase_url = "{url}"\n{TARIFF}'
    rules = ["*=answer:after=0.1"]
    return Stage(folder, rules, record=False, dialer=DIALER, extra=extra)


@pytest.mark.parametrize(
    ("mode", "pool_size", "ignores"),
    [
        # Fewer connections to the server than the service has to PgBouncer.
        ("transaction", 2, ""),
        ("transaction", 2, "options"),
        ("session", 20, ""),
        ("session", 20, "options"),
    ],
)
def test_a_campaign_by_way_of_pgbouncer(
    tmp_path: Path, mode: Mode, pool_size: int, ignores: str
) -> None:
    with (
        own_postgres() as own,
        pgbouncer(own.url, mode, pool_size=pool_size, ignores=ignores) as url,
        receiver() as events,
        stage_on(url, tmp_path) as stage,
    ):
        token, campaign = begin(stage, events, CALLS)
        with Client(token, stage.url) as client:
            client.wait_campaign(campaign, 60)
            calls = list(client.campaign_calls(campaign, 1000))
            assert client.status(calls[0]["id"]) == calls[0]
        check_money(stage, token, calls)
        events.wait_for(CALLS, 60.0)
        assert httpx.get(f"{stage.url}/readyz").json()["status"] == "ready"
        assert stage.stop_service() == 0
        log = stage.service_log.read_text()
    assert {call["status"] for call in calls} == {"NORMAL"}
    check_events(events, calls)
    check_nobody_called_wrongly(phone_log.read(stage.phone_log))
    assert "error" not in log.lower()


def test_a_right_that_is_taken_away_in_a_campaign(tmp_path: Path) -> None:
    """The service says that it can't work, loses and bills nothing wrongly, and goes on later."""
    with own_postgres() as own, receiver() as events:
        own.administer(
            "CREATE ROLE app LOGIN",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app",
        )
        url = make_url(own.url).set(username="app").render_as_string(hide_password=False)
        with stage_on(url, tmp_path) as stage, httpx.Client(base_url=stage.url) as http:
            token, campaign = begin(stage, events, CALLS)
            with Client(token, stage.url) as client:
                wait_until(lambda: client.campaign(campaign)["byStatus"].get("NORMAL", 0) >= 5)
                own.administer('REVOKE UPDATE ON "call", attempt FROM app')
                # However far the others have come, there are calls to claim.
                second = place(stage, token, 5)
                wait_until(lambda: http.get("/readyz").status_code == 503)
                reason = http.get("/readyz").json()["reason"]
                assert reason.startswith("the dialer main can't claim calls or write their ends")
                assert http.get("/healthz").status_code == 200
                assert client.campaign(second)["byStatus"]["WAITING"] == 5
                own.administer('GRANT UPDATE ON "call", attempt TO app')
                wait_until(lambda: http.get("/readyz").status_code == 200)
                calls = []
                for each in (campaign, second):
                    client.wait_campaign(each, 60)
                    calls += list(client.campaign_calls(each, 1000))
            check_money(stage, token, calls)
            assert stage.stop_service() == 0
            log = stage.service_log.read_text()
    seen = phone_log.read(stage.phone_log)
    for call in calls:
        if call["status"] == "NORMAL":
            assert call["billSec"] >= 1
            assert call["price"] < 0
        else:
            # It was answered when that could not be written, so it was hung up in silence.
            assert (call["status"], call["price"]) == ("UNKNOWN", 0)
            assert any(each.audio_at is None for each in seen["+98" + call["phoneNumber"][1:]])
    assert sum(call["status"] == "NORMAL" for call in calls) >= CALLS - DIALER["max_channels"]
    assert "permission denied for table" in log
    assert "attempt_left_open" not in log
