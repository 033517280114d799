"""Every file that a page of the documentation names is in the repository."""

from __future__ import annotations

import os
import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
)

_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"(?:[\w.*-]+/)*[\w.*-]+\.(?:py|md|in|c|xml|toml|yaml|json|service|conf)")
_FOLDERS = "bench|deploy|docs|requirements|scripts|src|tests"
_BELOW_ROOT = re.compile(rf"(?<![\w/.-])(?:{_FOLDERS})/[\w./*-]*[\w/*]")
_MODULE = re.compile(r"python -m ((?:bench|bitel|scripts|tests)[\w.]*)")

MADE = {"bitel.toml", "./bitel.toml", "bench-results.json"}
"""Files that an operator or a program makes."""


@pytest.fixture(scope="module")
def files() -> frozenset[str]:
    """The files and folders of the repository, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    present = [Path(name) for name in listed if (ROOT / name).exists()]
    return frozenset(str(each) for file in present for each in (file, *file.parents))


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str, files: frozenset[str]) -> None:
    text = (ROOT / page).read_text()
    missing = [name for name in sorted(_names(text)) if not _exists(name, page, files)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_a_page_runs_exists(page: str, files: frozenset[str]) -> None:
    missing = []
    for module in _MODULE.findall((ROOT / page).read_text()):
        path = module.replace(".", "/")
        path = f"src/{path}" if path.startswith("bitel") else path
        if not {f"{path}.py", f"{path}/__main__.py"} & files:
            missing.append(module)
    assert missing == []


def test_names_of_files_are_found_among_other_words() -> None:
    text = """`store/claims.py`, `docs`, `tests/sip -k cancel`, [page](operations.md#logs)
    pytest tests/peers/test_pjsua2.py
    """
    assert _names(text) == {
        "store/claims.py", "tests/sip", "operations.md", "tests/peers/test_pjsua2.py",
    }  # fmt: skip


def _names(text: str) -> set[str]:
    """Targets of links without addresses, files in code spans, and paths below the root."""
    links = (link.partition("#")[0] for link in _LINK.findall(text) if "://" not in link)
    words = (word for code in _CODE.findall(text) for word in code.split())
    return {
        *(link for link in links if link),
        *(word for word in words if _FILE.fullmatch(word)),
        *_BELOW_ROOT.findall(text),
    }


def _exists(name: str, page: str, files: frozenset[str]) -> bool:
    """Whether `name` is below the root, `src/bitel`, `tests` or the page's folder."""
    folders = (ROOT, ROOT / "src/bitel", ROOT / "tests", (ROOT / page).parent)
    places = [os.path.relpath(folder / name, ROOT) for folder in folders]
    return name in MADE or any(fnmatchcase(file, place) for file in files for place in places)
