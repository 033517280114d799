"""docs/api.md: every endpoint and code is in it, and its examples are what the service answers.

The requests of the page are sent from top to bottom. Identifiers differ each time, so the ones that
an answer brings take the place of those that the page has there. `scripts/api-docs` writes the
answers anew, after a change that is meant.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi.routing import APIRoute

from bitel.api import app as application
from bitel.errors import BitelError
from bitel.recordings.sample import write_sample
from bitel.store.number_exclusion import PARKED_FOR

if TYPE_CHECKING:
    from tests.api.stage import Stage

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
REWRITE = "BITEL_TEST_WRITE_DOCS"
MOVING = frozenset({"duration", "size", "nextCursor"})
"""Keys whose values depend on the version of the speech engine, or on identifiers."""

PEOPLE = "name;phone;reference\nسارا;09121234567;A-1\nعلی;9351234567;A-2\nرضا;0912;A-3\n"
"""The list that the page uploads."""

BLOCK = re.compile(
    r"^(?:<!-- then: (?P<event>\w+) -->"
    r"|```(?P<kind>http|json|text)\n(?P<text>.*?)```)$",
    re.DOTALL | re.MULTILINE,
)
ID = re.compile("[0-9a-f]{32}")


@dataclass
class Tour:
    """The page, walked from top to bottom on a stage."""

    stage: Stage
    folder: Path
    fresh: dict[str, str] = field(default_factory=dict)
    """For identifiers on the page, those of this run."""

    async def walk(self, page: str) -> list[tuple[re.Match[str], str]]:
        """Each block, and what it would say after this run."""
        found = []
        answer: httpx.Response | None = None
        async with self.stage.client() as client:
            for block in BLOCK.finditer(page):
                # Time goes on, so that what is made later sorts behind what was made before.
                self.stage.clock.advance(1)
                if block["event"]:
                    self.stage.clock.advance(3)
                    # Calls to one number are made one after the other.
                    lease, claimed = self.stage.take()
                    while claimed:
                        self.stage.answer(lease, claimed, price="4.5", seconds=3)
                        self.stage.clock.advance(PARKED_FOR)
                        lease, claimed = self.stage.take()
                elif block["kind"] == "http":
                    answer = await self.ask(client, block["text"])
                    found.append((block, self.renewed(block["text"])))
                else:
                    assert answer is not None
                    found.append((block, self.said(block, answer)))
                    answer = None
        return found

    async def ask(self, client: httpx.AsyncClient, text: str) -> httpx.Response:
        head, _, body = self.renewed(text).partition("\n\n")
        line, *fields = head.strip().splitlines()
        method, path = line.split()
        headers = dict(each.split(": ", 1) for each in fields)
        if body.startswith("file=@"):
            form = dict(each.split("=", 1) for each in body.strip().splitlines())
            file = self.folder / form.pop("file").removeprefix("@")
            if file.suffix == ".csv":
                file.write_text(PEOPLE)
            else:
                write_sample(file, 2.0)
            with file.open("rb") as opened:
                return await client.request(method, path, files={"file": opened}, data=form)
        content = body.strip().encode() or None
        return await client.request(method, path, content=content, headers=headers)

    def said(self, block: re.Match[str], answer: httpx.Response) -> str:
        if block["kind"] == "text":
            return answer.headers["content-type"] + "\n"
        new = answer.json()
        self.learn(json.loads(block["text"]), new)
        return pretty(new) + "\n"

    def learn(self, old: Any, new: Any) -> None:
        """Note which identifiers of the page are which of this run."""
        if isinstance(old, dict) and isinstance(new, dict):
            for key in old.keys() & new.keys():
                self.learn(old[key], new[key])
        elif isinstance(old, list) and isinstance(new, list):
            for one, other in zip(old, new, strict=False):
                self.learn(one, other)
        elif isinstance(old, str) and isinstance(new, str) and ID.fullmatch(old):
            self.fresh[old] = new

    def renewed(self, text: str) -> str:
        return ID.sub(lambda found: self.fresh.get(found[0], found[0]), text)


def pretty(value: Any, indent: str = "") -> str:
    """JSON that breaks lines only where one would be long."""
    short = json.dumps(value, ensure_ascii=False)
    if len(indent + short) <= 100 or not isinstance(value, dict | list):
        return short
    inner = indent + "  "
    if isinstance(value, list):
        rows = [f"{inner}{pretty(each, inner)}" for each in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    rows = [f'{inner}"{key}": {pretty(each, inner)}' for key, each in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def without_moving(value: Any) -> Any:
    """`value`, with types in place of what moves, and the order of keys as part of it."""
    if isinstance(value, dict):
        return [(key, type(each) if key in MOVING else without_moving(each))
                for key, each in value.items()]  # fmt: skip
    if isinstance(value, list):
        return [without_moving(each) for each in value]
    return value


@pytest.fixture
def tour(make_stage: Callable[..., Stage], tmp_path: Path) -> Tour:
    stage = make_stage(tariff=[{"prefix": "+98", "per_minute": "90", "increment": 1}])
    stage.set_balance("15000.5")
    stage.do(stage.remove_recording)
    return Tour(stage, tmp_path)


async def test_the_examples_are_what_the_service_answers(tour: Tour) -> None:
    page = PAGE.read_text()
    found = await tour.walk(page)
    if os.environ.get(REWRITE):
        PAGE.write_text(_rewritten(page, found))
        return
    for block, now in found:
        line = page.count("\n", 0, block.start()) + 1
        if block["kind"] != "json":
            assert tour.renewed(block["text"]) == now, f"docs/api.md:{line}"
            continue
        documented = json.loads(tour.renewed(block["text"]))
        assert without_moving(documented) == without_moving(json.loads(now)), f"docs/api.md:{line}"


def _rewritten(page: str, found: list[tuple[re.Match[str], str]]) -> str:
    for block, text in reversed(found):
        page = page[: block.start("text")] + text + page[block.end("text") :]
    return page


def headings(page: str) -> Iterator[str]:
    for match in re.finditer(r"^### ((?:GET|POST|PATCH|DELETE) \S+)$", page, re.MULTILINE):
        yield match[1]


def test_every_endpoint_is_on_the_page_with_an_example() -> None:
    page = PAGE.read_text()
    served = {
        f"{method} {route.path_format}"
        for router in application._ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods or ()
    }
    listed = list(headings(page))
    assert sorted(listed) == sorted(served)
    for part in page.split("\n### ")[1:]:
        kinds = [block["kind"] for block in BLOCK.finditer(part) if block["kind"]]
        assert kinds[0] == "http", part[:60]
        assert len(kinds) >= 2, part[:60]


def test_every_code_is_on_the_page_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", PAGE.read_text(), re.MULTILINE))
    known = {kind.code: str(kind.http_status) for kind in BitelError.__subclasses__()}
    known[BitelError.code] = str(BitelError.http_status)
    assert rows == known
