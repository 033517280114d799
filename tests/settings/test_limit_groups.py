"""Dialers that share the limits of a trunk."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bitel.settings import DialerSettings, Settings


def dialer(name: str, port: int, group: str, **more: Any) -> DialerSettings:
    return DialerSettings(
        id=name, trunks=["sip:127.0.0.1:9"], bind=f"127.0.0.1:{port}", limit_group=group, **more
    )


def test_the_dialers_of_a_group_are_those_that_name_it() -> None:
    settings = Settings(
        dialers=[dialer("a", 5070, "x"), dialer("b", 5072, ""), dialer("c", 5074, "x")]
    )
    groups = [settings.limit_group_of(each) for each in settings.dialers]
    assert groups == [("a", "c"), ("b",), ("a", "c")]


@pytest.mark.parametrize("name", ["max_channels", "otp_channels", "calls_per_second"])
def test_limits_that_differ_in_a_group_are_refused(name: str) -> None:
    same = dialer("a", 5070, "x", max_channels=50, otp_channels=5)
    other = {"max_channels": 50, "otp_channels": 5, name: 7}
    said = rf"'a' and 'b' share the limit_group 'x', so {name} must be the same, not [0-9]+ and 7"
    with pytest.raises(ValidationError, match=said):
        Settings(dialers=[same, dialer("b", 5072, "x", **other)])
