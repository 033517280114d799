"""The cases of docs/interop.md, and a plugin for pytest that collects them and their results.

A case of a stack is a test with the marker `interop(case, rfc)`; fields in braces of `case` are
filled in from the test's parameters. A case of SIPp is a scenario, whose comment says the same.
`pytest -p tests.peers.interop` with a file's path in BITEL_TEST_INTEROP writes them there as JSON:
after a run with the result of each, with `--collect-only` without.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from tests.peers import sipp

OUTPUT = "BITEL_TEST_INTEROP"
"""The environment variable that names the file to write."""

STACKS = {
    "asterisk": "Asterisk",
    "pjsua2": "PJSIP",
    "baresip": "baresip",
    "kamailio": "Kamailio",
    "sipp": "SIPp",
}
"""The stack that a module tests with, by the second word of its name."""

_PROPERTY = "interop"
_COMMENT = re.compile(r"(?P<rfc>RFC \d+ §[^:]*): (?P<case>.+)")


class Case(NamedTuple):
    """A row of the page: what the stack does, and the RFC section that it is about."""

    stack: str
    case: str
    rfc: str


class Result(NamedTuple):
    """A case and whether all tests of it passed; None if none was run."""

    case: Case
    passed: bool | None


def scenario_case(name: str) -> Case:
    """The case that a scenario of SIPp is. Raises ValueError if its comment names no section."""
    text = (sipp.SCENARIOS / f"{name}.xml").read_text()
    comment = " ".join(text.partition("<!--")[2].partition("-->")[0].split())
    found = _COMMENT.fullmatch(comment)
    if found is None:
        raise ValueError(f"the comment of {name}.xml must begin with RFC, section and colon")
    return Case(STACKS["sipp"], found["case"].rstrip("."), found["rfc"])


def scenario_cases() -> list[Case]:
    """The cases of all scenarios."""
    return [scenario_case(path.stem) for path in sorted(sipp.SCENARIOS.glob("*.xml"))]


def marked_case(item: pytest.Item) -> Case | None:
    """The case of a test; None if it has none, as a test that runs scenarios."""
    stack = item.path.stem.split("_")[1]
    marker = item.get_closest_marker("interop")
    if marker is None:
        if stack in STACKS and stack != "sipp":
            raise pytest.UsageError(f"{item.nodeid} has no marker interop(case, rfc)")
        return None
    parameters = (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
    return Case(STACKS[stack], marker.args[0].format(**parameters), marker.kwargs["rfc"])


class Recorder:
    """The plugin. Workers of pytest-xdist send what they find with their reports."""

    def __init__(self) -> None:
        self._found: dict[Case, bool | None] = {}
        self._item: pytest.Item | None = None
        self._run_sipp = sipp.sipp

    def take_the_place_of_sipp(self) -> None:
        """Note which scenarios a test runs. Tests import `sipp` by name, so this comes first."""
        sipp.sipp = self._noted

    @asynccontextmanager
    async def _noted(self, scenario: str, *values: Any, **named: Any) -> AsyncIterator[sipp.Sipp]:
        assert self._item is not None
        self._item.user_properties.append((_PROPERTY, [*scenario_case(scenario)]))
        async with self._run_sipp(scenario, *values, **named) as running:
            yield running

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._item = item
        return (yield)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if (case := marked_case(item)) is not None:
                item.user_properties.append((_PROPERTY, [*case]))
                self._found.setdefault(case, None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name != _PROPERTY:
                continue
            case = Case(*cast(list[str], value))
            if report.failed:
                self._found[case] = False
            elif report.when == "call" and report.passed and self._found.get(case) is None:
                self._found[case] = True

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            rows = [Result(case, passed) for case, passed in self._found.items()]
            Path(os.environ[OUTPUT]).write_text(json.dumps(rows))


def pytest_configure(config: pytest.Config) -> None:
    """Begin to record."""
    recorder = Recorder()
    recorder.take_the_place_of_sipp()
    config.pluginmanager.register(recorder)


def read(output: Path) -> list[Result]:
    """What a run of the plugin has written."""
    return [Result(Case(*case), passed) for case, passed in json.loads(output.read_text())]
