"""Searches logs for what they must never hold: tokens, secrets, passwords, phone numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

FORBIDDEN = {
    "a token": re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\."),
    "a webhook's secret": re.compile(r"whsec_[A-Za-z0-9+/=]{8,}"),
    "a SIP password": re.compile(r"s3cret"),
    "an answer to a challenge": re.compile(r"(?i)authorization:|response=\"[0-9a-f]{32}"),
    "a phone number": re.compile(r"(?<![0-9a-f])(?:\+98|0098|0)9[0-9]{9}(?![0-9a-f])"),
}


def leaks(text: str) -> list[str]:
    """What `text` holds that it must not, with the words around it."""
    return [
        f"{what}: …{text[max(0, found.start() - 40) : found.end() + 10]}…"
        for what, pattern in FORBIDDEN.items()
        if (found := pattern.search(text))
    ]


def leaks_below(folder: Path, names: Sequence[str] = ("serve.log",)) -> list[str]:
    """The leaks of all logs of those names below `folder`."""
    return [
        f"{path}: {leak}"
        for name in names
        for path in folder.rglob(name)
        for leak in leaks(path.read_text(errors="replace"))
    ]


@pytest.fixture(autouse=True)
def no_secrets_in_logs(tmp_path: Path) -> Iterator[None]:
    """Fails a test whose service logged a token, a password, a secret or a whole number."""
    yield
    assert leaks_below(tmp_path) == []
