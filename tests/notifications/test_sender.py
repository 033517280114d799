"""How a notification leaves: by POST, by a command, in order, and never for ever."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
import structlog

from bitel.errors import SettingsError
from bitel.notifications import sender as notification_sender
from bitel.notifications.conditions import Change, Condition, Kind
from bitel.notifications.sender import RETRY_AFTER, NotificationSender, run_command
from bitel.settings import NotificationSettings
from bitel.webhooks.signing import new_secret, verify
from tests.support.http_server import answer, receiver
from tests.support.waiting import until

NOW = 1_700_000_000.0


def change(began: bool = True, subject: str = "main") -> Change:
    condition = Condition(Kind.DIALER_PAUSED, subject, "it places no calls", {"dialer": subject})
    return Change(condition, began)


class Pauses:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def sender(
    url: str = "", secret: str = "", command: str = "", pause: Pauses | None = None
) -> NotificationSender:
    settings = {"url": url, "secret": secret, "command": command}
    return NotificationSender(
        NotificationSettings.model_validate(settings), lambda: NOW, pause or Pauses()
    )


async def test_a_signed_post_and_one_for_the_end() -> None:
    secret = new_secret()
    async with receiver() as hook:
        one = sender(hook.url, secret)
        task = asyncio.create_task(one.run())
        one.put(change())
        one.put(change(began=False))
        first, second = await hook.until(2)
        task.cancel()
    assert json.loads(first.body) == {
        "type": "dialer.paused",
        "date": int(NOW),
        "data": {"message": "it places no calls", "dialer": "main"},
    }
    assert json.loads(second.body)["type"] == "dialer.resumed"
    assert verify(secret, first.headers, first.body, NOW) != verify(
        secret, second.headers, second.body, NOW
    )


async def test_a_receiver_that_fails_is_tried_again_with_the_same_id() -> None:
    pauses, secret = Pauses(), new_secret()
    async with receiver(answer(500)) as hook:
        one = sender(hook.url, secret, pause=pauses)
        task = asyncio.create_task(one.run())
        with structlog.testing.capture_logs() as logs:
            one.put(change())
            one.put(change(subject="spare"))
            received = await hook.until(6)
            await until(
                lambda: [each["event"] for each in logs].count("notification_not_posted") >= 2
            )
        task.cancel()
    ids = [each.headers["webhook-id"] for each in received]
    assert [ids.count(each) for each in dict.fromkeys(ids)] == [3, 3]
    assert pauses.seconds == [*RETRY_AFTER] * 2


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notification_sender, "QUEUE_LIMIT", 2)
    async with receiver() as hook:
        one = sender(hook.url)
        with structlog.testing.capture_logs() as logs:
            for subject in ("first", "second", "third"):
                one.put(change(subject=subject))
        task = asyncio.create_task(one.run())
        received = await hook.until(2)
        task.cancel()
    assert [json.loads(each.body)["data"]["dialer"] for each in received] == ["second", "third"]
    assert [each["event"] for each in logs].count("notification_dropped") == 1


async def test_a_command_gets_the_json_and_the_type(tmp_path: Path) -> None:
    script = tmp_path / "notify.sh"
    script.write_text('printf "%s %s " "$BITEL_NOTIFICATION" "$1" > "$2"; cat >> "$2"\n')
    out = tmp_path / "out"
    one = sender(command=f"sh {script} 'two words; $HOME' {out}")
    task = asyncio.create_task(one.run())
    with structlog.testing.capture_logs() as logs:
        one.put(change())
        await until(lambda: out.exists() and out.read_text().endswith("}"), 20)
    task.cancel()
    kind, _, rest = out.read_text().partition(" ")
    assert kind == "dialer.paused"
    assert rest.startswith("two words; $HOME {")
    assert [each["event"] for each in logs] == ["notification"]


@pytest.mark.parametrize(
    ("code", "seconds", "says"),
    [
        ("import sys; print('no such user'); sys.exit(3)", 30, "exit status 3: no such user"),
        ("import subprocess; subprocess.run(['sleep', '600'])", 1, "it took more than 1 s"),
        ("import sys; sys.stdout.write('x' * 10**6); sys.exit(1)", 30, "x" * 400),
    ],
)
async def test_a_command_that_fails_is_logged(code: str, seconds: float, says: str) -> None:
    with structlog.testing.capture_logs() as logs:
        await run_command([sys.executable, "-c", code], b"{}" * 100_000, {}, seconds)
    [line] = logs
    assert line["event"] == "notification_command_failed"
    assert says in line["error"]
    assert len(line["error"]) < 600


async def test_a_command_that_is_absent_is_logged() -> None:
    with structlog.testing.capture_logs() as logs:
        await run_command(["/no/such/program"], b"", {})
    assert "No such file" in logs[0]["error"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "ftp://host/"}, "notifications.url"),
        ({"url": "https://user:hunter2@host/"}, "notifications.url"),
        ({"url": "http://127.0.0.1/", "secret": "short"}, "notifications.secret"),
    ],
)
def test_what_can_not_be_sent_with_stops_the_start(settings: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        NotificationSender(NotificationSettings.model_validate(settings), lambda: NOW)
    assert "hunter2" not in str(refused.value)
