"""The ways of one attempt: nobody is rung twice, and no way is taken twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.calls.outcome import Outcome
from bitel.dialers.health import Health
from bitel.dialers.hops import Hop, after, in_order, redirected
from bitel.dialers.trunk import Trunk
from bitel.sip import Address, Failed, Transport
from tests.conftest import FakeClock

TRUNKS = [Trunk("a.test"), Trunk("b.test")]
hops = st.builds(
    Hop,
    st.sampled_from(TRUNKS),
    st.sampled_from([Address(f"192.0.2.{last}", 5060) for last in (1, 2, 3)]),
    st.just("sip:1@x"),
)
failures = st.builds(
    Failed,
    st.just("id"),
    st.integers(300, 699),
    st.none(),
    st.just(""),
    st.sampled_from(["response", "timeout", "transport", "canceled", "media", "auth"]),
    st.booleans(),
)


@given(hops, failures, st.sampled_from(Outcome), st.lists(hops, max_size=6))
def test_after_ringing_or_a_verdict_nothing_is_left(
    hop: Hop, failed: Failed, outcome: Outcome, left: list[Hop]
) -> None:
    still = after(hop, failed, outcome, left)
    assert set(still) <= set(left)
    if failed.rang or outcome is not Outcome.TRUNK_TROUBLE:
        assert not still
    elif failed.code == 503:
        assert still == left


@given(
    st.lists(hops, max_size=8, unique=True),
    st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2"])),
    st.lists(st.sampled_from(["192.0.2.2", "192.0.2.3"])),
)
def test_down_comes_last_and_rest_not_at_all(
    ways: list[Hop], down: list[str], resting: list[str]
) -> None:
    health = Health(FakeClock(), pinged=True)
    for host in down:
        health.failed_call(Address(host, 5060))
    for host in resting:
        health.rest(Address(host, 5060), 10)
    ordered = in_order(ways, health)
    assert sorted(map(str, ordered)) == sorted(
        str(way) for way in ways if way.address[0] not in resting
    )
    fit = [way.address[0] not in down for way in ordered]
    assert fit == sorted(fit, reverse=True)


OWN = [Address("192.0.2.1", 5060), Address("192.0.2.1", 5080)]
HOP = Hop(Trunk("a.test"), OWN[0], "sip:1@a.test")


@pytest.mark.parametrize(
    ("contacts", "address"),
    [
        (["sip:2@a.test"], OWN[0]),
        (["sip:2@A.TEST"], OWN[0]),
        (["sip:2@192.0.2.1:5080"], OWN[1]),
        (["sip:2@evil.test", "sip:2@192.0.2.1"], OWN[0]),
        (["sip:2@192.0.2.1:5090"], None),
        (["sip:2@a.test:5090"], None),
        (["sip:2@evil.test"], None),
        (["sip:2@a.test.evil.test"], None),
        (["sip:a.test@evil.test"], None),
        (["sips:2@a.test"], None),
        (["tel:+98912"], None),
        (["sip:a.test"], None),
        (["sip:", "", "x" * 5000, "sip:2@[::"], None),
        (["sip:2@192.0.2.1;transport=udp"], OWN[0]),
        (["sip:2@192.0.2.1;transport=tcp"], None),
        (["sip:2@192.0.2.1;transport=dccp"], None),
        (["sip:2@a.test;transport=tls"], None),
        ([], None),
    ],
)
def test_only_the_trunk_itself_is_followed(contacts: list[str], address: Address | None) -> None:
    failed = Failed("id", 302, None, "", "response", False, contacts=tuple(contacts))
    onward = redirected(HOP, failed, OWN)
    assert (onward.address if onward else None) == address
    if onward:
        assert redirected(onward, failed, OWN) is None, "once"


TLS_OWN = [
    Address("192.0.2.1", 5061, Transport.TLS, "a.test"),
    Address("192.0.2.2", 5060, Transport.TCP),
]
TLS_HOP = Hop(Trunk("a.test", None, Transport.TLS), TLS_OWN[0], "sip:1@a.test")


@pytest.mark.parametrize(
    ("contact", "address"),
    [
        ("sip:2@a.test", TLS_OWN[0]),
        ("sips:2@a.test", TLS_OWN[0]),
        ("sip:2@a.test;transport=tls", TLS_OWN[0]),
        ("sip:2@192.0.2.1", TLS_OWN[0]),
        ("sip:2@192.0.2.2;transport=tcp", TLS_OWN[1]),
        ("sip:2@192.0.2.2", None),
        ("sip:2@a.test;transport=udp", None),
    ],
)
def test_nobody_is_led_off_a_secure_way_unasked(contact: str, address: Address | None) -> None:
    failed = Failed("id", 302, None, "", "response", False, contacts=(contact,))
    onward = redirected(TLS_HOP, failed, TLS_OWN)
    assert (onward.address if onward else None) == address
