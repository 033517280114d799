"""A group of dialers in a service: two carriers, of which one goes away, and shares by weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitel.client import Client
from bitel.demo.stage import Stage, free_port
from tests.support import phone_log
from tests.support.service_calls import token, upload
from tests.support.waiting import wait_until

RULES = ["*=answer:after=0.1:hangup=0.3"]


@contextmanager
def two_carriers(folder: Path, extra: str, group: str, **dialer: Any) -> Iterator[list[Stage]]:
    """A service with the dialers `main` and `backup`, and a phone for the carrier of each."""
    folder.mkdir()
    with Stage(folder / "backup", rules=RULES, record=False) as other:
        backup = f"""
{extra}
[[dialer_groups]]
id = "both"
dialers = ["main", "backup"]
{group}
[[dialers]]
id = "backup"
trunks = ["sip:127.0.0.1:{other.ports.phone}"]
bind = "127.0.0.1:{free_port()}"
rtp_ports = "17000-17199"
caller_id = ["02191000000", "02191000001"]
calls_per_second = 40
ping_interval = 1
"""
        options = {"calls_per_second": 40, "ping_interval": 1, "rtp_ports": "16800-16999", **dialer}
        with Stage(
            folder / "main", rules=RULES, record=False, extra=backup, dialer=options
        ) as stage:
            stage.start_phone()
            other.start_phone()
            stage.start_service()
            yield [stage, other]


def reached(stage: Stage) -> set[str]:
    return set(phone_log.read(stage.phone_log)) if stage.phone_log.exists() else set()


def test_the_next_carrier_is_used_while_the_first_is_gone(tmp_path: Path) -> None:
    with two_carriers(tmp_path / "e2e", "", "") as (first, second):
        with Client(token(first), first.url) as client:
            servers = {each["id"]: each for each in client.servers()}
            assert set(servers) == {"main", "backup", "both"}
            wait_until(lambda: all(each["up"] for each in client.servers()), 10)
            voice = upload(first, client, 1.0)
            before = [f"0912000{n:04}" for n in range(20)]
            campaign = client.batch(before, voice, server_id="both")["campaignId"]
            wait_until(lambda: client.campaign(campaign)["state"] == "FINISHED", 30)
            assert len(reached(first)) == 20
            assert reached(second) == set()

            assert first.phone is not None
            first.phone.kill()
            first.phone.wait()
            after = [f"0912001{n:04}" for n in range(20)]
            campaign = client.batch(after, voice, server_id="both")["campaignId"]
            alone = client.call("09120020001", voice, server_id="both")["id"]
            wait_until(lambda: client.campaign(campaign)["state"] == "FINISHED", 60)
            wait_until(lambda: client.status(alone)["status"] == "NORMAL", 30)
            assert client.campaign(campaign)["byStatus"]["NORMAL"] == 20
        assert len(reached(second)) == 21
        assert phone_log.in_two_calls_at_once(phone_log.read(second.phone_log)) == []
        assert "Traceback" not in first.service_log.read_text()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_carriers_share_a_campaign_by_weight(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    extra = ""
    if database == "postgresql":
        extra = f'database_url = "{request.getfixturevalue("postgres_url")}"'
    with two_carriers(tmp_path / "e2e", extra, "weights = [3, 1]") as (first, second):
        with Client(token(first), first.url) as client:
            wait_until(lambda: all(each["up"] for each in client.servers()), 10)
            voice = upload(first, client, 0.5)
            numbers = [f"0912000{n:04}" for n in range(120)]
            placed = client.batch(numbers, voice, server_id="both", calls_per_second=16)
            campaign = placed["campaignId"]
            wait_until(lambda: client.campaign(campaign)["state"] == "FINISHED", 60)
            assert client.campaign(campaign)["byStatus"]["NORMAL"] == 120
        of_first, of_second = len(reached(first)), len(reached(second))
        assert of_first + of_second == 120
        assert 65 <= of_first <= 105, (of_first, of_second)
        starts = sorted(
            seen.invited_at
            for stage in (first, second)
            for calls in phone_log.read(stage.phone_log).values()
            for seen in calls
        )
        most = max(sum(at <= each < at + 1.0 for each in starts) for at in starts)
        assert most <= 17, "the campaign's rate holds for both together"
