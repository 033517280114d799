"""An HTTP server that takes webhooks and remembers them."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Event:
    """One POST."""

    webhook_id: str
    body: dict[str, Any]


@dataclass
class Receiver:
    """What has come so far, at `url`."""

    url: str = ""
    events: list[Event] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def by_call(self) -> Mapping[str, Sequence[Event]]:
        """The events of each call."""
        found: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            found[event.body["requestId"]].append(event)
        return found

    def wait_for(self, calls: int, timeout: float) -> None:
        """Wait until events of so many calls have come; AssertionError if they don't."""
        end = time.monotonic() + timeout
        with self._changed:
            while len(self.by_call()) < calls:
                left = end - time.monotonic()
                assert left > 0, f"events of {len(self.by_call())} calls came, not {calls}"
                self._changed.wait(min(left, 1.0))


@contextmanager
def receiving(take: Callable[[Event], None], host: str = "127.0.0.1") -> Iterator[str]:
    """Hand each POST to `take`, in a thread of its own, and answer 204; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            take(Event(self.headers["webhook-id"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer((host, 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}/events"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port of 127.0.0.1."""
    found = Receiver()
    with receiving(found.take) as found.url:
        yield found
