"""Streams the progress of campaigns to their listeners as server-sent events.

One task reads the rows of all campaigns that have a listener, once a second, so the number of
listeners of a campaign does not matter to the database. A listener gets the latest state when it is
ready for it, and never a queue of states: one that reads slowly holds no memory. Streams end with
their campaign, when their client goes, when their token is revoked, and when the server shuts down.

The format is that of the HTML standard, section "Server-sent events".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bitel.api.auth import Authenticator
from bitel.api.context import ApiContext
from bitel.api.rate_limits import RETRY_AFTER
from bitel.api.server import END_STREAM
from bitel.domain.campaign_json import CampaignState, campaign_answer
from bitel.errors import TooManyRequestsError, UnauthorizedError, UnavailableError
from bitel.exact_json import dumps as as_json
from bitel.store import campaigns

POLL_SECONDS: Final = 1.0
"""Seconds between two looks at the campaigns that have listeners."""
HEARTBEAT_SECONDS: Final = 15.0
"""Seconds without an event after which a comment is sent, so that no proxy closes the stream."""
RETRY_MILLISECONDS: Final = 3000
"""How long a browser waits before it connects again."""
MOST_LISTENERS: Final = 500
"""Streams of one process."""
MOST_OF_PROJECT: Final = 50
"""Streams of one project in one process."""

OVER: Final = "finished"
"""The id of the last event of a stream."""

HEADERS: Final = [
    (b"content-type", b"text/event-stream"),
    (b"x-accel-buffering", b"no"),  # nginx passes events on at once
]

_log = structlog.get_logger("bitel.api")


class CampaignKey(NamedTuple):
    """A campaign, and the project that may see it."""

    project_id: str
    campaign_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a campaign, as its listeners get it."""

    json: str
    is_over: bool
    """All of its calls are over, so it does not change any more."""

    @property
    def id(self) -> str:
        """The id of its event, which is that of its content."""
        return hashlib.blake2b(self.json.encode(), digest_size=8).hexdigest()


class _Topic:
    """A campaign that has listeners."""

    def __init__(self, latest: Progress) -> None:
        self.latest: Progress | None = latest
        """None: the campaign is gone."""
        self.listeners: set[_Listener] = set()

    def publish(self, progress: Progress | None) -> None:
        if progress != self.latest:
            self.latest = progress
            for listener in self.listeners:
                listener.woken.set()


class _Listener:
    """A client that gets the states of a campaign."""

    def __init__(self, topic: _Topic) -> None:
        self.topic = topic
        self.is_ended = False
        self.woken = asyncio.Event()
        """Set when there is a new state, and at the end."""

    def end(self) -> None:
        """End the stream."""
        self.is_ended = True
        self.woken.set()

    async def wait(self, seconds: float) -> None:
        """Wait until it is woken, at most that long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        self.woken.clear()


class CampaignEvents:
    """The campaigns that have listeners, and the task that reads them."""

    def __init__(self, context: ApiContext, authenticator: Authenticator) -> None:
        self._context = context
        self._authenticator = authenticator
        self._topics: dict[CampaignKey, _Topic] = {}
        self._streams = Counter[str]()
        self._poller: asyncio.Task[None] | None = None

    async def find(self, key: CampaignKey) -> Progress | None:
        """The present state of the project's campaign; None if it has no such campaign."""
        (found,) = await self._read([key])
        return found

    def stream(self, key: CampaignKey, token: str, present: Progress, last_id: str) -> Response:
        """The response that streams a campaign from its `present` state on.

        `last_id` is the id of the last event that the client has, if any. Sending it raises
        TooManyRequestsError if there are too many streams.
        """
        if last_id == OVER and present.is_over:
            # A browser connects again after the end of a stream, but not after this.
            return Response(status_code=204)
        return _EventStream(self, key, token, present, last_id)

    @contextlib.contextmanager
    def listening(self, key: CampaignKey, present: Progress) -> Iterator[_Listener]:
        """Count a listener inside the block. Raises TooManyRequestsError."""
        if self._streams.total() >= MOST_LISTENERS or self._streams[key.project_id] >= (
            MOST_OF_PROJECT
        ):
            raise TooManyRequestsError(
                f"a project may listen to {MOST_OF_PROJECT} streams of events, and all together "
                f"to {MOST_LISTENERS}; close one, or ask for the campaign instead",
                retry_after=RETRY_AFTER,
            )
        topic = self._topics.setdefault(key, _Topic(present))
        listener = _Listener(topic)
        topic.listeners.add(listener)
        self._streams[key.project_id] += 1
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            yield listener
        finally:
            topic.listeners.discard(listener)
            self._streams[key.project_id] -= 1
            if not self._streams[key.project_id]:
                del self._streams[key.project_id]
            if not topic.listeners:
                del self._topics[key]
            if not self._topics:
                self._poller.cancel()
                self._poller = None

    async def is_allowed(self, token: str) -> bool:
        """Whether the token is still valid; if that can't be known now, it is."""
        try:
            await self._authenticator.authenticate(token)
        except UnauthorizedError:
            return False
        except UnavailableError:
            pass  # the database is away for the moment
        return True

    async def _poll(self) -> None:
        """Publish the states of all campaigns that have listeners, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            topics = dict(self._topics)
            try:
                found = await self._read(list(topics))
            except UnavailableError:
                continue  # the listeners keep the last state
            except Exception:
                _log.exception("campaign_events_broke", campaigns=len(topics))
                continue
            for topic, progress in zip(topics.values(), found, strict=True):
                topic.publish(progress)

    async def _read(self, keys: Sequence[CampaignKey]) -> list[Progress | None]:
        def read(conn: Connection) -> list[CampaignState | None]:
            return [campaigns.find(conn, *key) for key in keys]

        found = await self._context.database.read(read)
        return [None if state is None else self._progress(state) for state in found]

    def _progress(self, state: CampaignState) -> Progress:
        context = self._context
        answer = campaign_answer(state, context.date, context.system_clock())
        return Progress(as_json(answer), is_over=bool(state.finished_at))


class _EventStream(Response):
    """A response without end, whose body are the events of a campaign."""

    def __init__(
        self,
        events: CampaignEvents,
        key: CampaignKey,
        token: str,
        present: Progress,
        last_id: str,
    ) -> None:
        super().__init__()
        self._events = events
        self._key = key
        self._token = token
        self._present = present
        self._last_id = last_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until one side ends the stream (ASGI)."""
        with self._events.listening(self._key, self._present) as listener:
            scope[END_STREAM] = listener.end
            client = asyncio.create_task(_wait_for_disconnect(receive, listener))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                async for text in self._texts(listener):
                    body = text.encode()
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                client.cancel()
                await asyncio.gather(client, return_exceptions=True)

    async def _texts(self, listener: _Listener) -> AsyncIterator[str]:
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        sent = self._last_id
        while not listener.is_ended and (latest := listener.topic.latest) is not None:
            if latest.id != sent:
                sent = latest.id
                yield _event("progress", sent, latest.json)
            if latest.is_over:
                yield _event("finished", OVER, latest.json)
                return
            await listener.wait(HEARTBEAT_SECONDS)
            if listener.topic.latest == latest and not listener.is_ended:
                if not await self._events.is_allowed(self._token):
                    return
                yield ":\n\n"


def _event(name: str, id_: str, data: str) -> str:
    return f"id: {id_}\nevent: {name}\ndata: {data}\n\n"


async def _wait_for_disconnect(receive: Receive, listener: _Listener) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.end()
