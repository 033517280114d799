"""Groups of dialers in the settings."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bitel.settings import DialerSettings, Settings


def settings(*groups: dict[str, Any]) -> Settings:
    dialers = [
        DialerSettings(id=name, trunks=["sip:127.0.0.1:9"], bind=f"127.0.0.1:{port}")
        for port, name in enumerate("abc", 5070)
    ]
    return Settings(dialers=dialers, dialer_groups=groups)  # type: ignore[arg-type]


def test_a_group_may_be_named_as_a_dialer_may() -> None:
    given = settings({"id": "any", "dialers": ["c", "a"], "weights": [3, 1]})
    assert given.server_ids == ("a", "b", "c", "any")
    assert [each.id for each in given.dialers_behind("any")] == ["c", "a"]
    assert [each.id for each in given.dialers_behind("b")] == ["b"]
    assert given.dialers_behind("other") == ()


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"id": "a", "dialers": ["a", "b"]}, "a dialer or another group has the id 'a', too"),
        ({"id": "x", "dialers": ["a", "d"]}, "x names the dialer 'd', which is not among"),
        ({"id": "x", "dialers": ["a", "a"]}, "x has the dialer 'a' twice"),
        ({"id": "x", "dialers": ["a"]}, "at least 2 items"),
        ({"id": "x", "dialers": ["a", "b"], "weights": [1]}, "2 dialers and 1 weights"),
        ({"id": "x", "dialers": ["a", "b"], "weights": [1, 0]}, "greater than 0"),
    ],
)
def test_a_group_that_cannot_work_is_refused(group: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(group)


def test_two_groups_have_different_ids() -> None:
    group = {"id": "x", "dialers": ["a", "b"]}
    with pytest.raises(ValidationError, match="another group has the id 'x'"):
        settings(group, group)
