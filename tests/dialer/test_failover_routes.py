"""The routes of one attempt: no phone rings twice, and no route is taken twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.dialer.failover import (
    AGAIN,
    TO_ANOTHER_HOST,
    TO_ANOTHER_NUMBER,
    TO_NO_URI,
    TO_PRIVATE_ADDRESS,
    Dialled,
    Proxy,
    Route,
    after,
    in_order,
    redirected,
)
from bitel.dialer.trunk import Trunk
from bitel.dialer.trunk_health import AddressHealth
from bitel.domain.attempts import Outcome
from bitel.sip import Address, Failed, Transport
from tests.support.clocks import FakeClock

TRUNKS = [Trunk("a.test"), Trunk("b.test")]
hops = st.builds(
    Route,
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
    hop: Route, failed: Failed, outcome: Outcome, left: list[Route]
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
    ways: list[Route], down: list[str], resting: list[str]
) -> None:
    health = AddressHealth(FakeClock(), pinged=True)
    for host in down:
        health.failed_call(Address(host, 5060))
    for host in resting:
        health.rest(Address(host, 5060), 10)
    ordered = in_order(ways, health, health.rests)
    assert sorted(map(str, ordered)) == sorted(
        str(way) for way in ways if way.address[0] not in resting
    )
    fit = [way.address[0] not in down for way in ordered]
    assert fit == sorted(fit, reverse=True)


OWN = [Address("192.0.2.1", 5060), Address("192.0.2.1", 5080)]
DIALLED = Dialled("+982112345678", "02112345678", "IR")
NUMBER = "+982112345678"
HOP = Route(Trunk("a.test"), OWN[0], "sip:02112345678@a.test")


def moved(*contacts: str) -> Failed:
    return Failed("id", 302, None, "", "response", False, contacts=contacts)


def address_of(onward: Route | str) -> Address | None:
    return onward.address if isinstance(onward, Route) else None


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
        (["SIP:2@A.test;self=1"], OWN[0]),
        (["sip:2@192.0.2.1;self;%73elf=2;transport=tcp"], None),
        (["sip:2@a.test?Subject=x"], OWN[0]),
        (["sip:2@192.0.2.1;transport=tcp"], None),
        (["sip:2@192.0.2.1;transport=dccp"], None),
        (["sip:2@a.test;transport=tls"], None),
        ([], None),
    ],
)
def test_only_the_trunk_itself_is_followed(contacts: list[str], address: Address | None) -> None:
    failed = moved(*(contact.replace(":2@", f":{NUMBER}@") for contact in contacts))
    onward = redirected(HOP, failed, DIALLED, OWN)
    assert address_of(onward) == address
    if isinstance(onward, Route):
        assert redirected(onward, failed, DIALLED, OWN) == AGAIN
    else:
        assert onward == (TO_ANOTHER_HOST if contacts else TO_NO_URI)


@pytest.mark.parametrize(
    "user",
    [
        "02112345678",
        "+982112345678",
        "982112345678",
        "00982112345678",
        "%2B98-21-1234(5678)",
        "+98.21.12345678;rn=+98935;npdi",
        "+982112345678;phone-context=example.com:secret",
        "021-1234-5678",
        "02112345678;phone-context=+98",
        "02112345678;phone-context=carrier.test",
    ],
)
def test_a_redirection_may_write_the_number_in_any_way(user: str) -> None:
    contact = f"SIP:{user}@a.test;user=phone;self?Priority=normal"
    onward = redirected(HOP, moved(contact), DIALLED, OWN)
    assert isinstance(onward, Route)
    assert onward.request_uri == f"sip:{user}@a.test;user=phone;self"


@pytest.mark.parametrize(
    "user",
    [
        "+982112345679",
        "+98211234567",
        "+12025550123",
        "02112345679",
        "2112345678%3B9",
        "%2B982112345678%40premium",
        "+982112345678a",
        "operator",
        "99",
        "+12025550123;rn=+982112345678",
        "02112345678;phone-context=+49",
        "02112345678;rn=+98;phone-context=%2B1-2",
    ],
)
def test_a_redirection_to_another_number_is_not_followed(user: str) -> None:
    contacts = [f"sip:{user}@evil.test", f"sip:{user}@a.test", f"sip:{user}@192.0.2.1:5080"]
    assert redirected(HOP, moved(*contacts), DIALLED, OWN) == TO_ANOTHER_NUMBER
    onward = redirected(HOP, moved(*contacts, f"sip:{NUMBER}@a.test"), DIALLED, OWN)
    assert address_of(onward) == OWN[0], "that one is the number dialled"


def test_a_national_number_is_another_one_where_the_country_is_not_known() -> None:
    dialled = Dialled("+49301234567", "+49301234567")
    hop = HOP._replace(request_uri="sip:+49301234567@a.test")
    assert redirected(hop, moved("sip:0301234567@a.test"), dialled, OWN) == TO_ANOTHER_NUMBER
    dialled = dialled._replace(region="IR")
    assert redirected(hop, moved("sip:0301234567@a.test"), dialled, OWN) == TO_ANOTHER_NUMBER
    dialled = dialled._replace(region="DE")
    assert address_of(redirected(hop, moved("sip:0301234567@a.test"), dialled, OWN)) == OWN[0]


PROXY = Proxy(Trunk("proxy.test"), [Address("192.0.2.8", 5060), Address("192.0.2.9", 5060)])


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("a.test", PROXY.addresses[0]),
        ("192.0.2.1:5080", PROXY.addresses[0]),
        ("proxy.test", PROXY.addresses[0]),
        ("192.0.2.9", PROXY.addresses[1]),
        ("evil.test", None),
        ("192.0.2.9:5090", None),
    ],
)
def test_a_redirection_is_followed_by_way_of_the_proxy(place: str, address: Address | None) -> None:
    hop = HOP._replace(address=PROXY.addresses[0])
    onward = redirected(hop, moved(f"sip:{NUMBER}@{place}"), DIALLED, OWN, PROXY)
    assert address_of(onward) == address


TLS_OWN = [
    Address("192.0.2.1", 5061, Transport.TLS, "a.test"),
    Address("192.0.2.2", 5060, Transport.TCP),
]
TLS_HOP = Route(Trunk("a.test", None, Transport.TLS), TLS_OWN[0], "sip:1@a.test")


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
    failed = moved(contact.replace(":2@", f":{NUMBER}@"))
    assert address_of(redirected(TLS_HOP, failed, DIALLED, TLS_OWN)) == address


@pytest.mark.parametrize("near", ["10.0.0.1", "169.254.0.1", "127.0.0.1"])
def test_a_redirection_leads_no_nearer_even_within_the_trunk(near: str) -> None:
    hop = Route(Trunk("a.test"), Address("203.0.113.10", 5060), f"sip:{NUMBER}@a.test")
    own = [hop.address, Address(near, 5060), Address("203.0.113.11", 5060)]
    failed = moved(f"sip:{NUMBER}@{near}")
    assert redirected(hop, failed, DIALLED, own) == TO_PRIVATE_ADDRESS
    assert address_of(redirected(hop, failed, DIALLED, own, follow_private=True)) == own[1]
    both = moved(f"sip:{NUMBER}@{near}", f"sip:{NUMBER}@203.0.113.11")
    assert address_of(redirected(hop, both, DIALLED, own)) == own[2]
    within = hop._replace(address=Address("127.0.0.2", 5060))
    assert address_of(redirected(within, failed, DIALLED, own)) == own[1]
