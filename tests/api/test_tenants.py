"""Two projects, every route: neither sees, spends, calls off or plays anything of the other's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import Connection, Select, select

from bitel.api import app as application
from bitel.store import projects
from bitel.store.database import Database
from bitel.store.schema import metadata

if TYPE_CHECKING:
    from tests.api.stage import Stage
    from tests.support.clocks import FakeClock

NOT_FOUND = (404, "NotFound")
NO_VOICE = (400, "InvalidRequest")
FINE = (200, None)


@dataclass(frozen=True)
class Reach:
    """What a stranger tries at a route with the owner's ids, and what must come of it."""

    path: str
    meets: tuple[int, str | None]
    body: dict[str, Any] | None = None


def routes() -> set[str]:
    """Every method and path below /api, from the application itself."""
    return {
        f"{method} {route.path_format}"
        for router in application._ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.path.startswith("/api")
        for method in route.methods or ()
    }


def reaches(call: str, campaign: str, voice: str, people: str) -> dict[str, Reach]:
    """For each route. A route that is missing here makes the test fail: say what it may do."""
    one = {"phoneNumber": "09120000009", "voiceId": voice, "text": "12"}
    many = {"phoneNumbers": ["09120000009"], "voiceId": voice, "text": "hello"}
    v1, v2 = "/api/v1/voice", "/api/v2/voice"
    files, unwanted = "/api/v2/files", "/api/v2/account/do-not-call"
    return {
        "POST /api/v2/voice/single": Reach(f"{v2}/single", NO_VOICE, one),
        "POST /api/v2/voice/batch": Reach(f"{v2}/batch", NO_VOICE, many),
        "POST /api/v2/voice/otp": Reach(f"{v2}/otp", NO_VOICE, one),
        # A text is spoken for each project anew, so these reach for nothing of the other's.
        "POST /api/v2/voice/single/tts": Reach(f"{v2}/single/tts", FINE, {**one, "text": "hello"}),
        "POST /api/v2/voice/batch/tts": Reach(f"{v2}/batch/tts", FINE, many),
        "GET /api/v2/voice/status/{call_id}": Reach(f"{v2}/status/{call}", NOT_FOUND),
        "GET /api/v2/voice/calls/{call_id}": Reach(f"{v2}/calls/{call}", NOT_FOUND),
        "DELETE /api/v2/voice/{call_id}": Reach(f"{v2}/{call}", NOT_FOUND),
        "GET /api/v2/voice/campaign/{campaign_id}": Reach(f"{v2}/campaign/{campaign}", NOT_FOUND),
        "GET /api/v2/voice/campaign/{campaign_id}/calls": Reach(
            f"{v2}/campaign/{campaign}/calls", NOT_FOUND
        ),
        "GET /api/v2/voice/campaign/{campaign_id}/events": Reach(
            f"{v2}/campaign/{campaign}/events", NOT_FOUND
        ),
        "GET /api/v2/voice/campaign/{campaign_id}/results.csv": Reach(
            f"{v2}/campaign/{campaign}/results.csv", NOT_FOUND
        ),
        "GET /api/v2/voice/calls": Reach(f"{v2}/calls?campaignId={campaign}", FINE),
        "GET /api/v2/voice/campaigns": Reach(f"{v2}/campaigns", FINE),
        "DELETE /api/v2/voice/campaign/{campaign_id}": Reach(
            f"{v2}/campaign/{campaign}", NOT_FOUND
        ),
        "PATCH /api/v2/voice/campaign/{campaign_id}": Reach(
            f"{v2}/campaign/{campaign}", NOT_FOUND, {"maxChannels": 1}
        ),
        "POST /api/v2/voice/campaign/{campaign_id}/pause": Reach(
            f"{v2}/campaign/{campaign}/pause", NOT_FOUND
        ),
        "POST /api/v2/voice/campaign/{campaign_id}/resume": Reach(
            f"{v2}/campaign/{campaign}/resume", NOT_FOUND
        ),
        "POST /api/v2/files/voice": Reach(f"{files}/voice", NO_VOICE, {"id": voice}),
        "POST /api/v2/files/tts": Reach(f"{files}/tts", FINE, {"text": "hello"}),
        "GET /api/v2/files/voice": Reach(f"{files}/voice", FINE),
        "GET /api/v2/files/voice/{voice_id}": Reach(f"{files}/voice/{voice}", NOT_FOUND),
        "HEAD /api/v2/files/voice/{voice_id}": Reach(f"{files}/voice/{voice}", NOT_FOUND),
        "DELETE /api/v2/files/voice/{voice_id}": Reach(f"{files}/voice/{voice}", NOT_FOUND),
        # Without a file.
        "POST /api/v2/files/list": Reach(f"{files}/list", NO_VOICE, {"id": people}),
        "GET /api/v2/files/list": Reach(f"{files}/list", FINE),
        "GET /api/v2/files/list/{list_id}": Reach(f"{files}/list/{people}", NOT_FOUND),
        "DELETE /api/v2/files/list/{list_id}": Reach(f"{files}/list/{people}", NOT_FOUND),
        "GET /api/v2/account/do-not-call": Reach(unwanted, FINE),
        "POST /api/v2/account/do-not-call": Reach(unwanted, FINE, {"phoneNumber": "09120000008"}),
        "POST /api/v2/account/do-not-call/import": Reach(f"{unwanted}/import", NO_VOICE, {}),
        "DELETE /api/v2/account/do-not-call/{phone_number}": Reach(
            f"{unwanted}/09350000003", NOT_FOUND
        ),
        "GET /api/v2/servers": Reach("/api/v2/servers", FINE),
        "GET /api/v2/account": Reach("/api/v2/account", FINE),
        "POST /api/v1/voice/single": Reach(f"{v1}/single", NO_VOICE, one),
        "POST /api/v1/voice/otp": Reach(f"{v1}/otp", NO_VOICE, one),
        "POST /api/v1/voice/tts": Reach(f"{v1}/tts", FINE, {**one, "text": "hello"}),
        "POST /api/v1/voice/campaign": Reach(f"{v1}/campaign", NO_VOICE, many),
        "GET /api/v1/voice/cdr/{call_id}": Reach(f"{v1}/cdr/{call}", NOT_FOUND),
        "GET /api/v1/voice/campaign/cdr/{campaign_id}": Reach(
            f"{v1}/campaign/cdr/{campaign}", NOT_FOUND
        ),
    }


@dataclass
class House:
    """A project that owns something of every kind, and a stranger with a token of their own."""

    stage: Stage
    stranger_id: str
    owner: httpx.AsyncClient
    stranger: httpx.AsyncClient
    reaches: dict[str, Reach]
    secrets: list[str]

    def belongings(self) -> Any:
        """Every row of the owner's, in every table that has a project."""
        mine = {}
        for table in metadata.sorted_tables:
            if table.name == "project":
                query = select(table).where(table.c.id == self.stage.project_id)
            elif "project_id" in table.c:
                query = select(table).where(table.c.project_id == self.stage.project_id)
            else:
                continue
            mine[table.name] = sorted(map(repr, self.stage.do(partial(_rows, query))))
        return mine

    def balance(self, project_id: str) -> Decimal | None:
        found = self.stage.do(lambda conn: projects.by_id(conn, project_id))
        assert found is not None
        return found.balance


def _rows(query: Select[Any], conn: Connection) -> list[Any]:
    return list(conn.execute(query))


@pytest.fixture
async def house(
    stage_of: Callable[..., Stage], database: Database, clock: FakeClock, tmp_path: Path
) -> AsyncIterator[House]:
    tariff = [{"prefix": "+98", "per_minute": "60", "increment": 1}]
    stage = stage_of(database, clock, tmp_path / "data", tariff=tariff)
    stage.set_balance("1000")
    stranger_id = stage.new_project("the stranger")
    _, token = stage.new_token(stranger_id)
    stage.do(lambda conn: projects.set_balance(conn, stranger_id, Decimal(1000), stage.clock()))
    async with stage.client() as owner, stage.client(token) as stranger:
        voice = (await owner.post("/api/v2/files/tts", json={"text": "hello"})).json()["result"]
        single = (
            await owner.post(
                "/api/v2/voice/single",
                json=stage.body(voiceId=voice["id"], phoneNumber="09350000001"),
                headers={"Idempotency-Key": "the owner's"},
            )
        ).json()["result"]
        batch = (
            await owner.post(
                "/api/v2/voice/batch",
                json={"phoneNumbers": ["09350000002"], "voiceId": voice["id"]},
            )
        ).json()
        uploaded = await owner.post(
            "/api/v2/files/list", files={"file": ("people.csv", b"09350000004")}
        )
        people = uploaded.json()["result"]["id"]
        await owner.post("/api/v2/account/do-not-call", json={"phoneNumber": "09350000003"})
        secrets = [stage.project_id, voice["id"], single["id"], batch["campaignId"], people,
                   batch["result"][0]["id"], "shop", "09350000001", "09350000002",
                   "+989350000003", "09350000004"]  # fmt: skip
        reached = reaches(single["id"], batch["campaignId"], voice["id"], people)
        yield House(stage, stranger_id, owner, stranger, reached, secrets)


def test_every_route_is_walked() -> None:
    assert set(reaches("", "", "", "")) == routes()


async def test_a_stranger_reaches_nothing(house: House) -> None:
    before = house.belongings()
    for name, reach in house.reaches.items():
        method = name.partition(" ")[0]
        headers = {"Idempotency-Key": "the owner's"} if method == "POST" else {}
        answer = await house.stranger.request(method, reach.path, json=reach.body, headers=headers)
        if method == "HEAD":
            assert answer.status_code == reach.meets[0], name
            continue
        found = (answer.status_code, answer.json()["error"])
        # The stranger's own key serves one request; the rest of theirs conflict with themselves.
        assert found in (reach.meets, (409, "Conflict")), name
        again = await house.stranger.request(method, reach.path, json=reach.body)
        assert (again.status_code, again.json()["error"]) == reach.meets, name
        for text in (answer.text, again.text):
            for secret in house.secrets:
                assert secret not in text, name
        assert house.belongings() == before, name


async def test_each_pays_for_what_they_do_themselves(house: House) -> None:
    stage = house.stage
    body = {"phoneNumber": "09120000009", "text": "hello"}
    assert (await house.stranger.post("/api/v2/voice/single/tts", json=body)).status_code == 200
    lease, taken = stage.take()
    theirs = [one for one in taken if one.project_id == house.stranger_id]
    mine = [one for one in taken if one.project_id == stage.project_id]
    assert (len(theirs), len(mine)) == (1, 2)
    stage.answer(lease, theirs, price="2")
    assert house.balance(stage.project_id) == 1000
    assert house.balance(house.stranger_id) == 998
    stage.answer(lease, mine, price="1")
    assert house.balance(stage.project_id) == 998
    assert house.balance(house.stranger_id) == 998


async def test_without_a_token_nobody_gets_anywhere(house: House) -> None:
    before = house.belongings()
    for token in (None, "Bearer nonsense", f"Bearer {house.stage.token[:-4]}aaaa"):
        for name, reach in house.reaches.items():
            headers = {} if token is None else {"Authorization": token}
            house.stranger.headers.pop("Authorization", None)
            answer = await house.stranger.request(
                name.partition(" ")[0], reach.path, json=reach.body, headers=headers
            )
            assert answer.status_code == 401, name
    assert house.belongings() == before


async def test_the_owner_may_do_all_of_it(house: House) -> None:
    """Else the strangers' refusals would prove nothing."""
    deletes = [name for name in house.reaches if name.startswith("DELETE")]
    streams = [name for name in house.reaches if name.endswith("/events")]
    others = [name for name in house.reaches if name not in (*deletes, *streams)]
    # A stream of events ends with its campaign, so it comes after that is called off.
    for name in (*others, *sorted(deletes, key=lambda name: "files" in name), *streams):
        reach = house.reaches[name]
        answer = await house.owner.request(name.partition(" ")[0], reach.path, json=reach.body)
        if reach.meets == NO_VOICE and (
            name.startswith("POST /api/v2/files/") or name.endswith("/import")
        ):
            # Its body has no file.
            assert answer.status_code == 400
        elif name == "DELETE /api/v2/files/voice/{voice_id}":
            # The calls that the owner has just placed need it.
            assert answer.status_code == 409
        else:
            assert answer.status_code == 200, (name, answer.text)
