"""Who calls, and how numbers are written, as the carrier wants it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.dialer.caller_identity import (
    CallerIds,
    Identification,
    NumberFormat,
    NumberRule,
    dialled_number,
    identity,
)
from bitel.domain.attempts import Outcome
from tests.support.carrier import carrier
from tests.support.sip_dialer import dialer

URI = "sip:+9821@192.0.2.1"


CALLS = [f"{number:032x}" for number in range(3000)]


def test_calls_are_spread_evenly_over_a_pool() -> None:
    ids = CallerIds(["1", "2", "3"])
    shares = Counter(ids.choose("+98912", call) for call in CALLS)
    assert all(900 < shares[caller_id] < 1100 for caller_id in "123")


def test_all_attempts_of_a_call_show_the_same_caller_id() -> None:
    ids, restarted = CallerIds(["1", "2", "3"]), CallerIds(["3", "1", "2"])
    for call in CALLS:
        assert ids.choose("+98912", call) == ids.choose("+98912", call)
        assert ids.choose("+98912", call) == restarted.choose("+98912", call)


def test_a_change_of_the_pool_moves_only_the_calls_of_what_left_it() -> None:
    before, after = CallerIds(["1", "2", "3"]), CallerIds(["1", "3"])
    for call in CALLS:
        shown = before.choose("+98912", call)
        assert shown == "2" or after.choose("+98912", call) == shown


def test_the_longest_prefix_decides_before_the_pool() -> None:
    ids = CallerIds(["pool"], {"+98": "iran", "+9821": "tehran", "+49": "germany"})
    assert ids.choose("+982112345", "a") == "tehran"
    assert ids.choose("+989121234", "a") == "iran"
    assert ids.choose("+1202555", "a") == "pool"
    assert CallerIds().choose("+98", "a") == ""


@pytest.mark.parametrize(
    ("by", "privacy", "headers"),
    [
        ("from", False, {}),
        ("from", True, {"Privacy": "id"}),
        ("pai", False, {"P-Asserted-Identity": f"<{URI}>"}),
        ("pai", True, {"P-Asserted-Identity": f"<{URI}>", "Privacy": "id"}),
        ("ppi", False, {"P-Preferred-Identity": f"<{URI}>"}),
        (
            "rpid",
            False,
            {"Remote-Party-ID": f"<{URI}>;party=calling;screen=yes;privacy=off"},
        ),
        (
            "rpid",
            True,
            {
                "Remote-Party-ID": f"<{URI}>;party=calling;screen=yes;privacy=full",
                "Privacy": "id",
            },
        ),
    ],
)
def test_headers(by: Identification, privacy: bool, headers: dict[str, str]) -> None:
    who = identity("+9821", "192.0.2.1", by, privacy)
    assert dict(who.headers) == headers
    assert who.from_uri == ("sip:anonymous@anonymous.invalid" if privacy else URI)


def test_nobody_in_particular_asserts_nothing() -> None:
    who = identity("", "2001:db8::1", "pai")
    assert who.from_uri == "sip:anonymous@[2001:db8::1]"
    assert who.headers == ()


RULES = [NumberRule("+98", 3, "0"), NumberRule("+9821", 5), NumberRule("+1", 0, "00")]


@pytest.mark.parametrize(
    ("rules", "form", "number", "dialled"),
    [
        ([], "e164", "+989121234567", "+989121234567"),
        ([], "digits", "+989121234567", "989121234567"),
        ([], "national", "+989121234567", "09121234567"),
        (RULES, "digits", "+989121234567", "09121234567"),
        (RULES, "digits", "+982112345678", "12345678"),
        (RULES, "digits", "+12025550123", "00+12025550123"),
        (RULES, "digits", "+4930123456", "4930123456"),
    ],
)
def test_numbers(
    rules: Sequence[NumberRule], form: NumberFormat, number: str, dialled: str
) -> None:
    assert dialled_number(number, form, rules) == dialled


@given(st.permutations(RULES))
def test_the_order_of_rules_does_not_matter(rules: list[NumberRule]) -> None:
    assert dialled_number("+982112345678", "e164", rules) == "12345678"


async def test_what_the_carrier_reads(tmp_path: Path) -> None:
    async with (
        carrier() as far,
        dialer(
            tmp_path,
            far.uri,
            caller_id=["021", "022"],
            identity="pai",
            privacy=True,
            number_rules=RULES,
        ) as calls,
    ):
        await calls.call("+989121234567")
    [one] = far.of("INVITE")
    assert one.header("from").startswith('"Anonymous" <sip:anonymous@anonymous.invalid>;tag=')
    assert one.header("p-asserted-identity") in {"<sip:021@127.0.0.1>", "<sip:022@127.0.0.1>"}
    assert one.header("privacy") == "id"
    assert one.uri == f"sip:09121234567@127.0.0.1:{far.port}"


async def test_a_call_shows_the_caller_id_that_its_request_names(tmp_path: Path) -> None:
    async with (
        carrier() as far,
        dialer(
            tmp_path, far.uri, caller_id=["021", "022"], caller_ids={"+98": "023"}, identity="pai"
        ) as calls,
    ):
        named = await calls.call(caller_id="022")
        unnamed = await calls.call()
    first, second = far.of("INVITE")
    assert first.header("from").startswith("<sip:022@")
    assert first.header("p-asserted-identity") == "<sip:022@127.0.0.1>"
    assert second.header("from").startswith("<sip:023@")
    assert (named.caller_id, unnamed.caller_id) == ("022", "023")


async def test_the_result_of_an_anonymous_call_or_one_without_invite_has_no_caller_id(
    tmp_path: Path,
) -> None:
    async with carrier() as far, dialer(tmp_path, far.uri) as calls:
        assert (await calls.call()).caller_id is None
    async with dialer(tmp_path, "sip:nowhere.invalid", caller_id="021") as calls:
        result = await calls.call()
    assert (result.outcome, result.caller_id) == (Outcome.TRUNK_TROUBLE, None)
