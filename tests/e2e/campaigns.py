"""A campaign whose callees do all that callees do, and checks of what became of its calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from bitel.client import Call, Client
from bitel.demo.stage import Stage
from tests.support import phone_log
from tests.support.phone_log import Seen
from tests.support.service_calls import upload
from tests.support.webhook_recorder import Receiver

CALLS = 1000
RULES = (
    "*[0-3]=answer:after=0.3",
    "*[4-5]=answer:after=0.3:hangup=0.6",
    "*6=busy,answer:after=0.3",
    "*7=busy*2,reject:486",
    "*8=reject:404",
    "*9=reject:480",
)
EXPECTED = {"NORMAL": 700, "USER_BUSY": 100, "NO_ANSWER": 100, "ERROR": 100}
ATTEMPTS = {"0": 1, "1": 1, "2": 1, "3": 1, "4": 1, "5": 1, "6": 2, "7": 2, "8": 1, "9": 2}
DIALER = {"ring_timeout": 2, "calls_per_second": 100, "max_channels": 300}
TARIFF = '[[tariff]]\nprefix = "+98"\nper_minute = 60\nincrement = 1\n'
EXTRA = "webhook_allow_private = true\n"
BALANCE = Decimal(1_000_000)


def stage_at(folder: Path, data_dir: Path | None = None, **dialer: float) -> Stage:
    # `extra` stands before the first section, the tariff is a section of its own.
    return Stage(
        folder,
        rules=RULES,
        record=False,
        dialer={**DIALER, **dialer},
        extra=EXTRA + TARIFF,
        data_dir=data_dir,
    )


def begin(stage: Stage, events: Receiver, count: int = CALLS) -> tuple[str, str]:
    """Start the phone, the service and a campaign; the project's token and the campaign's id."""
    stage.start_phone()
    stage.start_service()
    token = open_project(stage, events)
    return token, place(stage, token, count)


def open_project(stage: Stage, events: Receiver) -> str:
    """A token of a project with a balance and a webhook."""
    project = stage.command("project", "create", "acme")
    stage.command("project", "set", project, "--balance", str(BALANCE), "--webhook", events.url)
    return stage.command("token", "create", project)


def place(stage: Stage, token: str, count: int = CALLS) -> str:
    """A campaign to so many numbers, each with one retry; its id."""
    with Client(token, stage.url) as client:
        voice = upload(stage, client, 1.0)
        numbers = [f"0912{n:07}" for n in range(count)]
        placed = client.batch(numbers, voice, retry_count=1, retry_interval=5)
        return placed["campaignId"]


def finish(stage: Stage, token: str, campaign: str, timeout: float) -> list[Call]:
    """All calls of the campaign, once they are over."""
    with Client(token, stage.url) as client:
        client.wait_campaign(campaign, timeout)
        return list(client.campaign_calls(campaign, 1000))


def billed(calls: Sequence[Call]) -> Decimal:
    return -sum((Decimal(str(call["price"])) for call in calls), Decimal(0))


def check_money(stage: Stage, token: str, calls: Sequence[Call]) -> None:
    with Client(token, stage.url) as client:
        balance = client.account()["balance"]
    assert balance is not None
    assert BALANCE - Decimal(str(balance)) == billed(calls)


def check_events(events: Receiver, calls: Sequence[Call]) -> None:
    """At least one event for each call, all of one call with the same id."""
    by_call = events.by_call()
    assert set(by_call) == {call["id"] for call in calls}
    for call in calls:
        seen = by_call[call["id"]]
        assert len({event.webhook_id for event in seen}) == 1
        assert {event.body["cause"] for event in seen} == {call["status"]}
        assert {event.body["billSec"] for event in seen} == {call["billSec"]}


def check_nobody_called_wrongly(seen: Mapping[str, Sequence[Seen]]) -> None:
    assert phone_log.called_again_after_audio(seen) == []
    assert phone_log.in_two_calls_at_once(seen) == []


def e164(call: Call) -> str:
    return "+98" + call["phoneNumber"].removeprefix("0")


def check_statuses(calls: Sequence[Call]) -> None:
    """Trouble in between may end a call as UNKNOWN, but as nothing else that is not so."""
    by_digit = {"7": "USER_BUSY", "8": "ERROR", "9": "NO_ANSWER"}
    for call in calls:
        expected = by_digit.get(call["phoneNumber"][-1], "NORMAL")
        allowed = {expected, "UNKNOWN"} if expected == "NORMAL" else {expected}
        if call["phoneNumber"][-1] == "6":
            # An attempt that was cut off counts at the phone, which is then no longer busy.
            allowed.add("USER_BUSY")
        assert call["status"] in allowed, call
