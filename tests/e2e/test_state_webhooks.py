"""Webhooks of every state, sent by a running service: what receivers get, also after a kill."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitel.demo.stage import Stage
from bitel.domain.webhooks import EVENT_TYPES
from bitel.webhooks.signing import verify
from tests.support.service_calls import upload_to
from tests.support.waiting import wait_until

RULES = ("*1=answer:after=0.3:hangup=0.6", "*2=busy,answer:after=0.3", "*3=busy")
DIALER = {"ring_timeout": 2, "calls_per_second": 50}
OF_CALLS = EVENT_TYPES[:4]
ANSWERED = ["call.initiated", "call.ringing", "call.answered", "call.completed"]


@dataclass(frozen=True)
class Post:
    """One POST, as it came."""

    id: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)
        return found

    @property
    def type(self) -> str:
        """Its type; `end` for the event at the end of a call."""
        return str(self.body.get("type", "end"))

    @property
    def about(self) -> str:
        """The call, or campaign, that it is about."""
        return str(self.body["requestId"] if self.type == "end" else self.body["data"]["id"])


@dataclass
class Receiver:
    """A receiver at `url` that answers `status`."""

    url: str = ""
    status: int = 204
    posts: list[Post] = field(default_factory=list)

    def types(self, about: str) -> list[str]:
        """The types of the events of a call or a campaign, as they came."""
        return [post.type for post in self.posts if post.about == about]

    def of(self, about: str, type_: str) -> list[Post]:
        return [post for post in self.posts if (post.about, post.type) == (about, type_)]


@contextmanager
def receiver(status: int = 204) -> Iterator[Receiver]:
    """A receiver on a free port of 127.0.0.1."""
    found = Receiver(status=status)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            found.posts.append(Post(self.headers["webhook-id"], dict(self.headers), raw))
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_port}/events"
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Shop:
    """A project of a running service, with a recording."""

    http: httpx.Client
    project: str
    secret: str
    voice: str

    def place(self, path: str, **fields: Any) -> dict[str, Any]:
        """Place calls without retries; the whole answer."""
        body = {"voiceId": self.voice, "retryCount": 0, **fields}
        done = self.http.post(f"/api/v2/voice/{path}", json=body)
        assert done.status_code == 200, done.text
        found: dict[str, Any] = done.json()
        return found

    def single(self, number: str, **fields: Any) -> str:
        """Place one call; its id."""
        return str(self.place("single", phoneNumber=number, **fields)["result"]["id"])

    def get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/api/v2/voice/{path}").json()["result"]
        return found


@contextmanager
def opened(folder: Path, own_url: str | None = None) -> Iterator[tuple[Stage, Shop]]:
    """A service, a phone, and a project that may have a webhook of its own."""
    extra = "webhook_allow_private = true\n"
    with Stage(folder, rules=RULES, record=False, dialer=DIALER, extra=extra) as stage:
        stage.start_phone()
        stage.start_service()
        project = stage.command("project", "create", "shop")
        if own_url is not None:
            stage.command("project", "set", project, "--webhook", own_url)
        options = () if own_url is not None else ("--rotate",)
        secret = stage.command("webhook", "secret", project, *options)
        with stage.client(stage.command("token", "create", project)) as http:
            yield stage, Shop(http, project, secret, upload_to(folder, http))


@pytest.fixture
def own() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


@pytest.fixture
def named() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


def test_receivers_get_what_was_asked_for_and_nothing_else(
    tmp_path: Path, own: Receiver, named: Receiver
) -> None:
    with opened(tmp_path, own.url) as (stage, shop):
        plain = shop.single("09121230001")
        ends_only = shop.single("09121230011", webhook={"url": named.url})
        every_state = shop.single("09121230021", webhook={"url": named.url, "events": OF_CALLS})
        wait_until(lambda: len(named.types(every_state)) == 5, 30)
        wait_until(lambda: len(named.types(ends_only)) == 1, 10)
        wait_until(lambda: own.types(plain) == ["end"], 10)

        stage.command("project", "set", shop.project, "--webhook-events", "call.answered")
        answered = shop.single("09121230031")
        busy = shop.single("09121230003")
        wait_until(lambda: len(own.types(answered)) == 2, 30)
        wait_until(lambda: len(own.types(busy)) == 1, 10)

        shown = shop.get(f"calls/{every_state}")
        assert stage.stop_service() == 0
    assert [one for one in named.types(every_state) if one != "end"] == ANSWERED
    assert named.types(ends_only) == ["end"]
    assert own.types(plain) == ["end"]
    assert sorted(own.types(answered)) == ["call.answered", "end"]
    assert own.types(busy) == ["end"]
    assert {post.about for post in own.posts} == {plain, answered, busy}
    for post in [*own.posts, *named.posts]:
        at = float(post.headers["webhook-timestamp"])
        assert verify(shop.secret, post.headers, post.raw, at) == post.id
    assert len({post.id for post in [*own.posts, *named.posts]}) == 1 + 1 + 5 + 2 + 1
    check_states(named, every_state, shown)


def check_states(receiver: Receiver, call_id: str, shown: Mapping[str, Any]) -> None:
    """Each event of a call that was answered at once shows it as it was."""
    bodies = {type_: receiver.of(call_id, type_)[0].body for type_ in ANSWERED}
    assert all(list(body) == ["type", "date", "data"] for body in bodies.values())
    assert all(list(body["data"]) == list(shown) for body in bodies.values())
    assert bodies["call.completed"]["data"] == shown
    attempts = {type_: body["data"]["attempts"] for type_, body in bodies.items()}
    assert all(len(each) == 1 for each in attempts.values())
    dates = {
        type_: [bool(each[0][f"{name}Date"]) for name in ("start", "ring", "answer", "end")]
        for type_, each in attempts.items()
    }
    assert dates == {
        "call.initiated": [True, False, False, False],
        "call.ringing": [True, True, False, False],
        "call.answered": [True, True, True, False],
        "call.completed": [True, True, True, True],
    }
    assert [bodies[type_]["data"]["status"] for type_ in ANSWERED] == ["WAITING"] * 3 + ["NORMAL"]
    [attempt] = shown["attempts"]
    initiated = attempts["call.initiated"][0]["startDate"]
    assert bodies["call.initiated"]["date"] == initiated <= attempt["startDate"]
    assert bodies["call.ringing"]["date"] == attempt["ringDate"]
    assert bodies["call.answered"]["date"] == attempt["answerDate"]


def test_a_campaign_reports_each_attempt_and_its_end(tmp_path: Path, named: Receiver) -> None:
    with opened(tmp_path) as (stage, shop):
        webhook = {"url": named.url, "events": ["campaign.finished", "call.completed"]}
        numbers = ["09121230001", "09121230002", "09121230003"]
        placed = shop.place("batch", phoneNumbers=numbers, retryCount=1, retryInterval=5,
                            webhook=webhook)  # fmt: skip
        ids, campaign = [each["id"] for each in placed["result"]], placed["campaignId"]
        wait_until(lambda: named.types(campaign) == ["campaign.finished"], 60)
        wait_until(lambda: len(named.posts) == 1 + 3 + 5, 10)
        shown, calls = shop.get(f"campaign/{campaign}"), [shop.get(f"calls/{one}") for one in ids]
        assert stage.stop_service() == 0
    [finished] = named.of(campaign, "campaign.finished")
    assert finished.body["data"] == shown
    assert (shown["state"], finished.body["date"]) == ("FINISHED", shown["finishedDate"])
    for call, attempts in zip(calls, (1, 2, 2), strict=True):
        completed = named.of(call["id"], "call.completed")
        seen = [len(post.body["data"]["attempts"]) for post in completed]
        assert seen == list(range(1, attempts + 1))
        assert completed[-1].body["data"] == call
        assert len(named.of(call["id"], "end")) == 1


def test_a_kill_loses_no_event_and_changes_none(tmp_path: Path, named: Receiver) -> None:
    named.status = 503
    with opened(tmp_path) as (stage, shop):
        webhook = {"url": named.url, "events": OF_CALLS}
        ids = [shop.single(f"091212300{n}1", webhook=webhook) for n in range(8)]
        wait_until(lambda: len(named.posts) >= 4, 30)
        stage.kill_service()
        before = {post.id for post in named.posts}
        named.status = 204
        stage.start_service()
        for one in ids:
            wait_until(partial(ended, named, one), 120)
        completed = {one: shop.get(f"calls/{one}") for one in ids}
        expected = sum(len(facts(call)) + 1 for call in completed.values())
        wait_until(lambda: len({post.id for post in named.posts}) == expected, 120)
        wait_until(lambda: all(len(of_id(named, one)) > 1 for one in before), 90)
        assert stage.stop_service() == 0
    bodies: defaultdict[str, set[bytes]] = defaultdict(set)
    for post in named.posts:
        bodies[post.id].add(post.raw)
    assert all(len(each) == 1 for each in bodies.values()), "the same bytes on every try"
    first = {post.id: post for post in named.posts}
    for call_id, call in completed.items():
        types = Counter(post.type for post in first.values() if post.about == call_id)
        assert types == Counter([*facts(call), "end"])


def ended(receiver: Receiver, call_id: str) -> bool:
    return "end" in receiver.types(call_id)


def of_id(receiver: Receiver, event_id: str) -> list[Post]:
    return [post for post in receiver.posts if post.id == event_id]


def facts(call: Mapping[str, Any]) -> list[str]:
    """The types of the events of what has happened in a call's attempts."""
    names = {"startDate": "call.initiated", "ringDate": "call.ringing",
             "answerDate": "call.answered", "endDate": "call.completed"}  # fmt: skip
    return [names[key] for each in call["attempts"] for key in names if each[key]]
