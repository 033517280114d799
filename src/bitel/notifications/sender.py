"""Sends notifications: a signed POST to a URL, a command with the notification on stdin, or both.

One task sends them in order. A POST is tried three times; a command once, with a time limit.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import httpx
import structlog

from bitel.domain.ids import new_id
from bitel.domain.webhooks import parse_url
from bitel.errors import InvalidRequestError, SettingsError
from bitel.notifications.conditions import Change, Kind
from bitel.settings import NotificationSettings
from bitel.webhooks import signing
from bitel.webhooks.http_client import HttpClient
from bitel.webhooks.resolver import Resolver

log = structlog.get_logger(__name__)

QUEUE_LIMIT: Final = 1000
"""Maximum number of queued notifications; beyond, the oldest is dropped."""
RETRY_AFTER: Final[Sequence[float]] = (10.0, 60.0)
"""Seconds before the second and the third try of a POST."""
COMMAND_SECONDS: Final = 30.0
"""Seconds after which a command is killed."""
LONGEST_ERROR: Final = 500
"""Bytes of a command's output in the log."""

_ENDED: Final[Mapping[Kind, str]] = {
    Kind.TRUNK_DOWN: "trunk.up",
    Kind.DIALER_PAUSED: "dialer.resumed",
    Kind.BALANCE_LOW: "balance.restored",
    Kind.DISK_LOW: "disk.restored",
}


def type_of(change: Change) -> str:
    """The notification's type, such as `trunk.down` and, at the condition's end, `trunk.up`."""
    kind = change.condition.kind
    return kind.value if change.began else _ENDED[kind]


def body_of(change: Change, now: float) -> bytes:
    """The JSON of a notification: `{type, date, data: {message, …}}`; `now` is Unix seconds."""
    condition = change.condition
    message = condition.message if change.began else f"no longer: {condition.message}"
    data = {"message": message, **condition.details}
    event = {"type": type_of(change), "date": int(now), "data": data}
    return json.dumps(event, ensure_ascii=False).encode()


def check_notifications(settings: NotificationSettings) -> None:
    """Raise SettingsError for a malformed URL or secret."""
    secret = settings.secret.get_secret_value()
    try:
        if settings.url:
            parse_url(settings.url)
    except InvalidRequestError as fault:
        message = str(fault).replace("the webhook URL", "the URL")
        raise SettingsError(f"the setting notifications.url is wrong: {message}") from None
    try:
        if secret:
            signing.sign(secret, "", 0, b"")
    except InvalidRequestError as fault:
        raise SettingsError(f"the setting notifications.secret is wrong: {fault}") from None


class NotificationSender:
    """Queues notifications and sends them in order, in the task of `run`.

    A POST is signed as the Standard Webhooks specification says, if there is a secret. A command is
    run without a shell, with the JSON on stdin and the type in `BITEL_NOTIFICATION`.

    Args:
        clock: gives Unix seconds.
        pause: waits for the given seconds.

    Raises SettingsError as `check_notifications` does.
    """

    def __init__(
        self,
        settings: NotificationSettings,
        clock: Callable[[], float],
        pause: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        check_notifications(settings)
        self._url = settings.url
        self._secret = settings.secret.get_secret_value()
        self._command = shlex.split(settings.command)
        self._client = HttpClient(Resolver(), httpx.create_ssl_context(), allow_private=True)
        self._clock = clock
        self._pause = pause
        self._queue: deque[Change] = deque()
        self._wake = asyncio.Event()

    def put(self, change: Change) -> None:
        """Queue a notification, and log it."""
        level = log.warning if change.began else log.info
        level("notification", type=type_of(change), message=change.condition.message)
        if len(self._queue) >= QUEUE_LIMIT:
            dropped = self._queue.popleft()
            log.error("notification_dropped", type=type_of(dropped), why="too many are waiting")
        self._queue.append(change)
        self._wake.set()

    async def run(self) -> None:
        """Send queued notifications, until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    await self._send(self._queue.popleft())
        finally:
            self._client.close()

    async def _send(self, change: Change) -> None:
        kind, body = type_of(change), body_of(change, self._clock())
        environment = {**os.environ, "BITEL_NOTIFICATION": kind}
        try:
            if self._command:
                await run_command(self._command, body, environment)
            if self._url:
                await self._post(kind, body)
        except Exception:
            log.exception("notification_broke", type=kind)

    async def _post(self, kind: str, body: bytes) -> None:
        message_id = f"msg_{new_id(self._clock())}"
        for pause in (*RETRY_AFTER, None):
            now = self._clock()
            headers = {"content-type": "application/json"}
            if self._secret:
                headers |= signing.headers(self._secret, message_id, int(now), body)
            response = await self._client.post(self._url, headers, body, now)
            if response.delivered:
                return
            error = response.error or f"status {response.status}"
            if pause is None:
                log.error("notification_not_posted", type=kind, error=error)
            else:
                log.warning("notification_failed", type=kind, error=error, again_in=pause)
                await self._pause(pause)


async def run_command(
    command: Sequence[str],
    body: bytes,
    environment: Mapping[str, str],
    seconds: float = COMMAND_SECONDS,
) -> None:
    """Run `command` with `body` on stdin; log a failure with the end of its output."""
    error = await asyncio.to_thread(_run, command, body, environment, seconds)
    if error:
        log.error("notification_command_failed", program=command[0], error=error)


def _run(
    command: Sequence[str], body: bytes, environment: Mapping[str, str], seconds: float
) -> str:
    """Run a command to its end, or kill it; returns the error, empty on success."""
    # Files, not pipes: a command that reads nothing, or leaves a child process, can't block us.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write(body)
        given.seek(0)
        try:
            process = subprocess.Popen(
                command,
                stdin=given,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as fault:
            return fault.strerror or str(fault)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and its children
            process.wait()
            return f"it took more than {seconds:g} s"
        if status == 0:
            return ""
        output.seek(max(0, os.fstat(output.fileno()).st_size - LONGEST_ERROR))
        text = output.read().decode(errors="replace").strip()
        return f"exit status {status}: {text}"
