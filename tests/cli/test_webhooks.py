"""`bitel webhook` and `bitel project set --webhook`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from bitel.domain.ids import new_id
from bitel.store import projects, webhooks
from bitel.store.database import Database
from bitel.store.schema import DELIVERED, PENDING, call, webhook_event
from bitel.store.webhooks import DeliveryAttempt
from bitel.webhooks.signing import headers as signed
from bitel.webhooks.signing import verify
from tests.cli.shell import Shell

URL = "https://shop.example/calls"


class Shop(Shell):
    """Runs `bitel` on a database of its own, that of a project called shop."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(folder, capsys)
        self.project_id = self.out("project", "create", "shop").strip()

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """The exit status, and what went to stdout and stderr."""
        return super().run(*arguments, "--config", str(self.config))

    def out(self, *arguments: str) -> str:
        """What a command that must succeed prints."""
        status, out, err = self.run(*arguments)
        assert status == 0, err
        return out

    def do(self, work: Callable[[Connection], Any]) -> Any:
        with Database.open(f"sqlite:///{self.data_dir / 'bitel.db'}") as database:
            return database.write_now(work)

    def project(self) -> projects.Project:
        found = self.do(lambda conn: projects.by_id(conn, self.project_id))
        assert isinstance(found, projects.Project)
        return found

    def event(self, *tried: DeliveryAttempt) -> tuple[str, str]:
        """A call that has ended, and its event; their ids."""
        now = time.time()
        call_id, event_id = new_id(now), new_id(now)
        ended = {"id": call_id, "project_id": self.project_id, "dialer_id": "main",
                 "phone_number": "09121234567", "e164": "+989121234567", "digits": "1",
                 "lane": 1, "status": 1, "retry_count": 1, "retries_left": 1,
                 "retry_interval": 60, "requested_at": now, "expires_at": now + 60, "trouble": 0,
                 "attempts": 1, "executed_at": now, "finished_at": now, "bill_seconds": 1,
                 "price": Decimal(1), "reason": ""}  # fmt: skip
        event = {"id": event_id, "project_id": self.project_id, "call_id": call_id,
                 "created_at": now, "due_at": now, "tries": 0, "state": PENDING}  # fmt: skip

        def work(conn: Connection) -> None:
            conn.execute(insert(call).values(ended))
            conn.execute(insert(webhook_event).values(event))
            for number, one in enumerate(tried):
                webhooks.record(conn, [replace(one, event_id=event_id, at=now + number)])

        self.do(work)
        return event_id, call_id


@pytest.fixture
def shop(shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    """In the folder that `shell` has made."""
    return Shop(tmp_path, capsys)


def failed(next_due: float | None, **values: Any) -> DeliveryAttempt:
    return DeliveryAttempt("", 0.0, 0.25, delivered=False, next_due=next_due, **values)


def test_a_webhook_is_set_with_a_secret_that_stays_when_the_url_changes(shop: Shop) -> None:
    assert shop.out("project", "set", "shop", "--webhook", URL) == ""
    first = shop.project()
    assert first.webhook_url == URL
    shop.out("project", "set", "shop", "--webhook", URL + "/2")
    second = shop.project()
    assert (second.webhook_url, second.webhook_secret) == (URL + "/2", first.webhook_secret)
    shop.out("project", "set", "shop", "--webhook", "none")
    assert shop.project().webhook_url is None
    assert shop.project().webhook_secret == first.webhook_secret


def test_a_balance_and_a_webhook_can_be_set_in_one_go(shop: Shop) -> None:
    shop.out("project", "set", "shop", "--webhook", URL, "--balance", "5")
    found = shop.project()
    assert (found.webhook_url, found.balance) == (URL, Decimal(5))


def test_setting_the_url_anew_turns_it_on_again(shop: Shop) -> None:
    shop.out("project", "set", "shop", "--webhook", URL)
    shop.do(lambda conn: webhooks.turn_off(conn, shop.project_id, URL, "it is gone"))
    assert "off: it is gone" in shop.out("webhook", "deliveries", "--project", "shop")
    shop.out("project", "set", "shop", "--webhook", URL)
    assert shop.project().webhook_off_reason is None
    assert shop.out("webhook", "deliveries", "--project", "shop") == ""


@pytest.mark.parametrize(
    "url",
    ["shop.example", "ftp://shop.example/", "https://user:word@shop.example/", "http://127.0.0.1/",
     "http://localhost:8000/", "http://169.254.169.254/latest", ""],
)  # fmt: skip
def test_a_url_that_can_be_none_changes_nothing(shop: Shop, url: str) -> None:
    status, out, err = shop.run("project", "set", "shop", "--webhook", url, "--balance", "5")
    assert (status, out) == (1, "")
    assert err.startswith("bitel: the webhook URL ")
    found = shop.project()
    assert (found.webhook_url, found.balance) == (None, None)


def test_a_private_address_is_taken_where_the_settings_allow_it(shop: Shop) -> None:
    with shop.config.open("a") as file:
        file.write("webhook_allow_private = true\n")
    shop.out("project", "set", "shop", "--webhook", "http://127.0.0.1:9000/calls")
    assert shop.project().webhook_url == "http://127.0.0.1:9000/calls"


def test_the_secret_is_printed_alone_and_can_be_made_anew(shop: Shop) -> None:
    shop.out("project", "set", "shop", "--webhook", URL)
    first = shop.out("webhook", "secret", "shop").strip()
    assert shop.out("webhook", "secret", shop.project_id).strip() == first
    assert verify(first, signed(first, "1", 1, b""), b"", 1) == "1"
    second = shop.out("webhook", "secret", "shop", "--rotate").strip()
    assert second.startswith("whsec_")
    assert second != first
    assert shop.out("webhook", "secret", "shop").strip() == second


def test_a_project_without_a_webhook_has_no_secret(shop: Shop) -> None:
    status, out, err = shop.run("webhook", "secret", "shop")
    assert (status, out) == (1, "")
    assert "--webhook URL" in err
    assert "--rotate" in err
    # Webhooks that requests name are signed with it too.
    made = shop.out("webhook", "secret", "shop", "--rotate").strip()
    assert shop.project().webhook_secret == made
    assert shop.out("webhook", "secret", "shop").strip() == made


def test_the_types_of_a_projects_events(shop: Shop) -> None:
    types = "call.completed, call.answered"
    shop.out("project", "set", "shop", "--webhook-events", types)
    assert shop.project().webhook_events == ("call.answered", "call.completed")
    (row,) = json.loads(shop.out("project", "list", "--json"))
    assert row["webhookEvents"] == ["call.answered", "call.completed"]
    status, _, err = shop.run("project", "set", "shop", "--webhook-events", "call.ended")
    assert status == 1
    assert "call.ended" in err
    assert "campaign.finished" in err
    shop.out("project", "set", "shop", "--webhook-events", "none")
    assert shop.project().webhook_events is None


def test_events_with_a_type_are_shown_and_sent_again_by_their_call(shop: Shop) -> None:
    end_id, call_id = shop.event(DeliveryAttempt("", 0.0, 0.1, delivered=True, status_code=204))
    now = time.time()
    typed = {"id": new_id(now), "project_id": shop.project_id, "call_id": call_id,
             "type": "call.answered", "body": "{}", "created_at": now, "due_at": None,
             "tries": 1, "state": DELIVERED}  # fmt: skip
    of_campaign = {**typed, "id": new_id(now), "call_id": None, "campaign_id": "c" * 32,
                   "type": "campaign.finished"}  # fmt: skip
    shop.do(lambda conn: conn.execute(insert(webhook_event), [typed | {"campaign_id": None}]))
    shop.do(lambda conn: conn.execute(insert(webhook_event), [of_campaign]))

    lines = set(shop.out("webhook", "deliveries").splitlines())
    assert {
        f"{end_id}  call {call_id}  delivered",
        f"{typed['id']}  call {call_id}  delivered  call.answered",
        f"{of_campaign['id']}  campaign {'c' * 32}  delivered  campaign.finished",
    } <= lines
    shop.out("webhook", "redeliver", call_id)
    rows = json.loads(shop.out("webhook", "deliveries", "--json"))
    assert {row["id"]: (row["type"], row["state"]) for row in rows} == {
        end_id: (None, "pending"),
        typed["id"]: ("call.answered", "pending"),
        of_campaign["id"]: ("campaign.finished", "delivered"),
    }
    shop.out("webhook", "redeliver", "c" * 32)
    rows = json.loads(shop.out("webhook", "deliveries", "--json"))
    assert {row["state"] for row in rows} == {"pending"}


def test_what_was_tried_is_shown_and_no_number_nor_secret(shop: Shop) -> None:
    shop.out("project", "set", "shop", "--webhook", URL)
    event_id, call_id = shop.event(
        failed(2e9, error="Connection refused"),
        failed(2e9, status_code=302),
        failed(1_900_000_000.0, status_code=500),
    )
    done_id, done_call = shop.event(DeliveryAttempt("", 0.0, 0.1, delivered=True, status_code=204))
    text = shop.out("webhook", "deliveries")
    lines = [line.split("  ", 1) for line in text.splitlines()]
    assert [line for line in text.splitlines() if not line.startswith(" ")] == [
        f"{done_id}  call {done_call}  delivered",
        f"{event_id}  call {call_id}  pending  next 2030-03-17T17:46:40Z",
    ]
    assert "answered 204  0.10 s" in lines[1][1]
    told = [line.split("Z  ")[1] for line in text.splitlines() if line.startswith("    ")]
    assert told[1:] == [
        "Connection refused  0.25 s",
        "answered 302 (redirects are not followed)  0.25 s",
        "answered 500  0.25 s",
    ]
    everything = text + shop.out("webhook", "deliveries", "--json")
    assert "whsec" not in everything
    assert "0912" not in everything


def test_deliveries_are_found_by_project_and_call(shop: Shop) -> None:
    shop.out("project", "set", "shop", "--webhook", URL)
    event_id, call_id = shop.event(failed(None, status_code=404))
    other_id, _ = shop.event()
    shop.out("project", "create", "other")

    def found(*arguments: str) -> list[str]:
        return [
            one["id"] for one in json.loads(shop.out("webhook", "deliveries", "--json", *arguments))
        ]

    assert found() == [other_id, event_id]
    assert found("--limit", "1") == [other_id]
    assert found("--project", "shop") == [other_id, event_id]
    assert found("--project", "other") == []
    assert found("--call", call_id) == [event_id]
    (shown,) = json.loads(shop.out("webhook", "deliveries", "--call", call_id, "--json"))
    assert (shown["state"], shown["callId"], shown["nextTryAt"]) == ("given up", call_id, None)
    (tried,) = shown["tries"]
    assert (tried["status"], tried["error"], tried["seconds"]) == (404, None, 0.25)
    assert shop.run("webhook", "deliveries", "--project", "nobody")[0] == 1


@pytest.mark.parametrize("by", ["event", "call"])
def test_an_event_is_sent_once_more(shop: Shop, by: str) -> None:
    shop.out("project", "set", "shop", "--webhook", URL)
    event_id, call_id = shop.event(DeliveryAttempt("", 0.0, 0.1, delivered=True, status_code=200))
    assert shop.out("webhook", "redeliver", {"event": event_id, "call": call_id}[by]) == ""
    (event,) = shop.do(lambda conn: webhooks.history(conn, shop.project_id))
    assert event.state == PENDING
    assert event.due_at == pytest.approx(time.time(), abs=30)
    assert event.id == event_id


def test_what_has_no_event_can_not_be_sent_once_more(shop: Shop) -> None:
    status, out, err = shop.run("webhook", "redeliver", "0" * 32)
    assert (status, out) == (1, "")
    assert "0" * 32 in err
