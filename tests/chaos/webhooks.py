"""Receives the service's webhooks and keeps them, with the time at which they came."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.chaos.evidence import Event


@dataclass
class Receiver:
    """The events that came to `url`."""

    url: str = ""
    events: list[Event] = field(default_factory=list)

    def calls(self) -> set[str]:
        """The calls whose end was reported."""
        return {event.call_id for event in list(self.events)}


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver at a free port of 127.0.0.1."""
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            event_id = self.headers["webhook-id"]
            found.events.append(
                Event(time.monotonic(), event_id, body["requestId"], body["cause"], body["billSec"])
            )
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found.url = f"http://127.0.0.1:{server.server_port}/events"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
