"""Which addresses are special, and which lead nearer to this machine than who named them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.ip_addresses import Nearness, leads_nearer, nearness, special_purpose


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("8.8.8.8", Nearness.PUBLIC),
        ("203.0.113.10", Nearness.PUBLIC),
        ("2606:4700::1111", Nearness.PUBLIC),
        ("10.1.2.3", Nearness.PRIVATE),
        ("100.64.0.1", Nearness.PRIVATE),
        ("192.0.0.8", Nearness.PRIVATE),
        ("fd00::1", Nearness.PRIVATE),
        ("4000::1", Nearness.PRIVATE),
        ("169.254.169.254", Nearness.LINK_LOCAL),
        ("fe80::1", Nearness.LINK_LOCAL),
        ("127.0.0.1", Nearness.LOOPBACK),
        ("127.255.255.255", Nearness.LOOPBACK),
        ("0.0.0.0", Nearness.LOOPBACK),
        ("0.1.2.3", Nearness.LOOPBACK),
        ("::", Nearness.LOOPBACK),
        ("::1", Nearness.LOOPBACK),
        ("::ffff:127.0.0.1", Nearness.LOOPBACK),
        ("::127.0.0.1", Nearness.LOOPBACK),
        ("64:ff9b::a9fe:a9fe", Nearness.LINK_LOCAL),
        ("2002:a00:1::", Nearness.PRIVATE),
    ],
)
def test_an_address_is_as_near_as_where_it_leads(host: str, expected: Nearness) -> None:
    assert nearness(host) is expected


def test_a_name_has_no_nearness() -> None:
    with pytest.raises(ValueError, match=r"sip\.example"):
        nearness("sip.example")


@given(st.ip_addresses(), st.ip_addresses())
def test_of_two_addresses_at_most_one_leads_nearer(
    one: ipaddress.IPv4Address, other: ipaddress.IPv4Address
) -> None:
    assert not (leads_nearer(str(one), str(other)) and leads_nearer(str(other), str(one)))
    assert not leads_nearer(str(one), str(one))


@given(st.ip_addresses())
def test_what_python_calls_private_is_special(address: ipaddress.IPv4Address) -> None:
    if not address.is_global and getattr(address, "ipv4_mapped", None) is None:
        assert special_purpose(address) is not None


@pytest.mark.parametrize(
    ("origin", "host", "nearer"),
    [
        ("203.0.113.10", "10.0.0.1", True),
        ("203.0.113.10", "169.254.169.254", True),
        ("203.0.113.10", "127.0.0.1", True),
        ("203.0.113.10", "198.51.100.1", False),
        ("10.0.0.1", "192.168.7.7", False),
        ("10.0.0.1", "203.0.113.10", False),
        ("10.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "10.0.0.1", False),
    ],
)
def test_only_what_is_nearer_than_its_origin_is_refused(
    origin: str, host: str, nearer: bool
) -> None:
    assert leads_nearer(origin, host) is nearer
