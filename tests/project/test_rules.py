"""What holds for the tree as a whole: who imports whom, what is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from scripts import interop_docs
from scripts.settings_docs import PAGE, render

ROOT = Path(__file__).parent.parent.parent


def test_every_room_imports_only_what_it_may() -> None:
    found = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


def test_the_page_of_settings_is_the_settings() -> None:
    assert PAGE.read_text() == render(), "run: python -m scripts.settings_docs"


def test_the_page_of_interoperability_lists_the_cases_of_the_tests() -> None:
    listed = interop_docs.cases_of(interop_docs.PAGE.read_text())
    assert sorted(listed) == interop_docs.collect(), "run: make peers"


def test_the_hooks_before_a_commit_are_those_of_make_check() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    commands = [line.strip() for line in recipe.splitlines() if line.startswith("\t.venv/")]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = [line.partition("entry: ")[2] for line in hooks.splitlines() if "entry: " in line]
    assert entries == commands


def test_every_event_of_the_log_is_in_the_operations_guide() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    listed = re.findall(r"^\| `([a-z_]+)` \| (?:info|warning|error|critical) \|", guide, re.M)
    assert listed == sorted(set(listed))
    written: set[str] = set()
    for file in (ROOT / "src" / "bitel").rglob("*.py"):
        if "test_phone" not in file.parts:
            written |= _events(file.read_text())
    assert written == set(listed)


def _events(source: str) -> set[str]:
    """The names of log events at `info` or above, as they are written in calls."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func).rpartition(".")[2]
        if function not in _LEVELS or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        if re.fullmatch(r"[a-z]+(_[a-z]+)*", str(node.args[0].value)):
            names.add(str(node.args[0].value))
    return names


_LEVELS = frozenset({"info", "warning", "error", "critical", "exception", "level", "_log_fault"})


def test_tests_share_helpers_by_the_support_folder_alone() -> None:
    """Nothing is imported from a conftest, and no folder of tests imports from another's."""
    wrong = []
    for file in (ROOT / "tests").rglob("*.py"):
        own = file.relative_to(ROOT / "tests").parts[0]
        for module in re.findall(r"^ *from tests\.([\w.]+) import", file.read_text(), re.M):
            folder = module.partition(".")[0]
            if module.endswith("conftest") or folder not in {own, "support"}:
                wrong.append(f"{file.relative_to(ROOT)}: tests.{module}")
    assert wrong == []
