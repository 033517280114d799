"""Receives the service's webhooks and keeps them, with the time at which they came."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.chaos.evidence import Event
from tests.support import webhook_recorder as receiver


@dataclass
class Receiver:
    """The events that came to `url`."""

    url: str = ""
    events: list[Event] = field(default_factory=list)

    def calls(self) -> set[str]:
        """The calls whose end was reported."""
        return {event.call_id for event in list(self.events)}


@contextmanager
def receiving(host: str = "127.0.0.1") -> Iterator[Receiver]:
    """A receiver at a free port of an address of this machine."""
    found = Receiver()

    def take(event: receiver.Event) -> None:
        body = event.body
        found.events.append(
            Event(
                time.monotonic(),
                event.webhook_id,
                body["requestId"],
                body["cause"],
                body["billSec"],
            )
        )

    with receiver.receiving(take, host) as found.url:
        yield found
