"""Reads a campaign's server-sent events, and decides when to connect again.

The format is that of the HTML standard, section "Server-sent events". `EventReader` does no I/O;
`bitel.client` connects, and passes on what arrives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Final

import httpx

from bitel.client_requests import check_stream
from bitel.client_types import CampaignEvent
from bitel.errors import BitelError, TooManyRequestsError, UnavailableError

FINISHED: Final = "finished"
"""Type of the last event of a campaign."""
LONGEST_EVENT: Final = 1 << 20
"""Bytes of one event."""
LONGEST_SILENCE: Final = 60.0
"""Seconds without a byte after which a connection counts as broken; the service sends one at least
every 15 s."""
RECONNECT_FOR: Final = 300.0
"""Seconds without an answer of the service after which following it fails."""
LONGEST_RETRY: Final = 60.0
"""Seconds between two attempts to connect, at most."""


class EventReader:
    """The events of one campaign, over any number of connections."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.is_finished = False
        """There are no more events."""
        self.retry_seconds = 3.0
        """How long to wait before connecting again."""
        self._now = now
        self._last_id = ""
        self._reached_at = now()
        self._partial = b""
        self._type = ""
        self._data: list[str] = []
        self._size = 0

    @property
    def headers(self) -> dict[str, str]:
        """Those of the next request."""
        accept = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        return {**accept, "Last-Event-ID": self._last_id} if self._last_id else accept

    def connected(self, response: httpx.Response) -> None:
        """Check the response to a request, whose body has been read if it is no success.

        Raises the error that the service reported.
        """
        check_stream(response)
        self._partial, self._type, self._data, self._size = b"", "", [], 0
        self._reached_at = self._now()
        # 204: the campaign was over at the last event.
        self.is_finished = response.status_code == httpx.codes.NO_CONTENT

    def receive(self, data: bytes) -> Iterator[CampaignEvent]:
        """Yield the events that `data` completes. Raises UnavailableError for one too long."""
        self._reached_at = self._now()
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            event = self._line(line.removesuffix(b"\r").decode("utf-8", "replace"))
            if event is not None:
                self.is_finished = event.type == FINISHED
                yield event
        if self._size + len(self._partial) > LONGEST_EVENT:
            raise UnavailableError(f"an event is longer than {LONGEST_EVENT} bytes")

    def wait_after(self, error: Exception | None) -> float:
        """Seconds until the next attempt to connect, after a connection ended with `error`.

        Raises `error` if another attempt would not help, or none has succeeded for too long.
        """
        if isinstance(error, BitelError) and not isinstance(
            error, UnavailableError | TooManyRequestsError
        ):
            raise error
        if error is not None and self._now() - self._reached_at > RECONNECT_FOR:
            raise error
        if isinstance(error, TooManyRequestsError):
            return min(max(self.retry_seconds, float(error.retry_after)), LONGEST_RETRY)
        return self.retry_seconds

    def _line(self, line: str) -> CampaignEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
            self._size += len(value)
        elif name == "id" and "\0" not in value:
            self._last_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_seconds = min(int(value[:9]) / 1000, LONGEST_RETRY)
        return None

    def _dispatch(self) -> CampaignEvent | None:
        kind, data = self._type or "message", "\n".join(self._data)
        self._type, self._data, self._size = "", [], 0
        if not data:
            return None
        try:
            return CampaignEvent(kind, json.loads(data))
        except ValueError:
            raise UnavailableError(f"the event {kind!r} of the service is no JSON") from None
