"""A fixture for all tests that run a real service: its log is searched for secrets afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.secrecy import leaks_below


@pytest.fixture(autouse=True)
def no_secrets_in_logs(tmp_path: Path) -> Iterator[None]:
    """Fails a test whose service logged a token, a password, a secret or a whole number."""
    yield
    assert leaks_below(tmp_path) == []
