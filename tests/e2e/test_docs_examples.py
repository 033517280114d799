"""Every example of the documentation runs, page by page from top to bottom, against a service.

Shell blocks (`sh`) run in bash with a real `bitel` and `curl`, Python blocks share one namespace,
`toml` is loaded as settings, and `json` fits the schema that the comment above it names, as in
`<!-- file: campaign.json; schema: BatchBody -->`; with `file` the block is also written to a file.
A block that can't run says why: `<!-- not run: it takes an hour -->`. `text` is never run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from bitel import settings
from bitel.api import responses, schemas, webhook_document
from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample
from bitel.webhooks import signing
from tests.support import service_calls

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
OTHERWISE = {
    "docs/api.md": {"http", "json", "text"},
    "docs/sip-states.md": {"mermaid"},
}
"""Pages whose blocks are run by tests of their own: tests/api/test_docs.py, and the one that
generates the diagrams."""
KINDS = {"sh", "python", "toml", "json", "csv", "text"}
MOST_NOT_RUN = 8
ADDRESS = "http://127.0.0.1:8080"
"""The service's in the examples."""

_BLOCK = re.compile(
    r"^(?:(?P<indent> *)<!-- (?P<note>[^\n]*) -->\n)?"
    r"(?P<space> *)```(?P<kind>\w*)\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """An example."""

    page: str
    line: int
    kind: str
    text: str
    notes: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("kind")) + 1
        notes = dict(each.split(": ", 1) for each in (match["note"] or "").split("; ") if each)
        yield Block(name, line, match["kind"], textwrap.dedent(match["text"]), notes)


BLOCKS = {str(page.relative_to(ROOT)): list(blocks_of(page)) for page in PAGES}
RUN = [
    name
    for name, blocks in BLOCKS.items()
    if name not in OTHERWISE
    and any(block.kind != "text" and "not run" not in block.notes for block in blocks)
]


def test_every_block_has_a_kind_and_few_are_not_run() -> None:
    every = [block for blocks in BLOCKS.values() for block in blocks]
    assert sum(page.read_text().count("```") for page in PAGES) == 2 * len(every)
    for block in every:
        assert block.kind in OTHERWISE.get(block.page, KINDS), block.place
        assert set(block.notes) <= {"not run", "file", "schema", "then"}, block.place
    reasons = [block.notes["not run"] for block in every if "not run" in block.notes]
    assert all(len(reason) >= 10 for reason in reasons)
    assert len(reasons) <= MOST_NOT_RUN


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("docs")
    rules = ["*9999=busy", "*=answer:after=0"]
    with Stage(folder, rules=rules, dialer={"max_channels": 20}) as made:
        made.start_phone()
        made.start_service()
        yield made


@pytest.fixture(scope="module")
def token(stage: Stage) -> str:
    return service_calls.token(stage)


@pytest.mark.parametrize("page", RUN)
def test_every_example_of_a_page_runs(
    page: str, stage: Stage, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path / "hello.mp3", 0.5)
    (tmp_path / "numbers.csv").write_text("name,phone\nSara,09121230001\nAli,09121230002\n")
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("BITEL_CONFIG", str(stage.config))
    monkeypatch.setenv("BITEL_URL", stage.url)
    monkeypatch.setenv("BITEL_TOKEN", token)
    names: dict[str, Any] = {"__name__": "example"}
    for block in BLOCKS[page]:
        if "not run" in block.notes:
            continue
        text = block.text.replace(ADDRESS, stage.url)
        if "file" in block.notes:
            (tmp_path / block.notes["file"]).write_text(text)
        if block.kind == "python":
            code = compile("\n" * block.line + text, str(ROOT / page), "exec")
            exec(code, names)
        elif block.kind == "sh":
            run_shell(block, text)
        elif block.kind == "toml":
            load_settings(tmp_path, text)
        elif block.kind == "json":
            check_schema(block)
    if "receive" in names:
        check_receiver(names["receive"])


def run_shell(block: Block, text: str) -> None:
    """Run a block in bash, with the variables of the blocks above it on the page."""
    script = f"set -euo pipefail\n[ ! -e .variables ] || . ./.variables\nset -a\n{text}\n"
    script += "export -p > .variables\n"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"
    # curl succeeds whatever the service answers.
    assert '"error":"' not in done.stdout, f"{block.place}: {done.stdout}"
    if "curl" in text and "events" not in text:
        assert '"error":null' in done.stdout, f"{block.place}: {done.stdout}"


def load_settings(folder: Path, text: str) -> None:
    """Load the settings, with the files that they name."""
    for name in re.findall(r'_file = "([^"]+)"', text):
        (folder / name).write_text("secret")
        (folder / name).chmod(0o600)
    (folder / "bitel.toml").write_text(text)
    loaded = settings.load(folder / "bitel.toml")
    for section in tomllib.loads(text):
        assert getattr(loaded, section), section


def check_schema(block: Block) -> None:
    """Check JSON against the schema that its note names, whole and strictly."""
    name = block.notes.get("schema", "")
    for module in (responses, schemas, webhook_document):
        shape = getattr(module, name, None)
        if isinstance(shape, type) and issubclass(shape, BaseModel):
            content = json.loads(block.text)
            shape.model_validate(content, strict=True)
            known = {field.alias or key for key, field in shape.model_fields.items()}
            assert set(content) <= known, block.place
            return
    pytest.fail(f"{block.place}: a JSON block needs the name of a schema, not {name!r}")


def check_receiver(receive: Any) -> None:
    """Have the receiver of the page take an event once, and refuse a forged one."""
    secret = signing.new_secret()
    headers = signing.headers(secret, "msg_1", int(time.time()), b"{}")
    assert receive(secret, headers, b"{}") == 204
    assert receive(secret, headers, b"{ }") == 401
