"""Which numbers a project may call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.api.permits import permits_of
from bitel.store.projects import Project

HOME, ABROAD = "+989121234567", "+4930123456"
prefixes = st.lists(st.from_regex(r"\A\+[0-9]{0,4}\Z"), max_size=3).map(tuple)


def allows(
    number: str,
    allowed: tuple[str, ...] | None,
    forbidden: tuple[str, ...] = (),
    region: str = "IR",
) -> bool:
    project = Project("p", "shop", 0.0, allowed_prefixes=allowed, forbidden_prefixes=forbidden)
    return permits_of(project, region).allow(number)


def test_calls_abroad_are_off_until_they_are_switched_on() -> None:
    assert allows(HOME, None)
    assert not allows(ABROAD, None)
    assert allows(ABROAD, ("+98", "+49"))
    assert allows(ABROAD, ("+",))


@pytest.mark.parametrize(
    ("region", "number"), [("IR", HOME), ("DE", ABROAD), ("US", "+12125551234")]
)
def test_calls_within_the_services_country_are_on(region: str, number: str) -> None:
    assert allows(number, None, region=region)
    assert not allows(number, None, region="FR")
    assert not allows(number, None, (number[:5],), region)


def test_no_prefix_at_all_allows_nothing() -> None:
    assert not allows(HOME, ())


@given(prefixes, prefixes)
def test_what_is_forbidden_is_so_whatever_is_allowed(
    allowed: tuple[str, ...], forbidden: tuple[str, ...]
) -> None:
    expected = any(HOME.startswith(one) for one in allowed) and not any(
        HOME.startswith(one) for one in forbidden
    )
    assert allows(HOME, allowed, forbidden) is expected
