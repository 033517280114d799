"""Our own address: which it is, when it changes, and whether the carrier sees another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bitel.dialer.local_address import LocalAddress, where_seen
from bitel.sip import Address, RequestDone
from tests.support.carrier import carrier
from tests.support.sip_dialer import dialer
from tests.support.waiting import until


async def nowhere() -> Address:
    raise OSError("no carrier has an address")


def done(*vias: str) -> RequestDone:
    return RequestDone("call", 200, "OK", tuple(("via", via) for via in vias), "response")


async def test_a_plain_address_is_ours_and_nobody_is_asked() -> None:
    assert await LocalAddress("192.0.2.1", "", nowhere).find() == "192.0.2.1"
    assert await LocalAddress("0.0.0.0", "203.0.113.1", nowhere).find() == "203.0.113.1"


async def test_everywhere_is_where_packets_to_the_carrier_leave_from() -> None:
    async def carrier_at() -> Address:
        return Address("127.0.0.1", 5060)

    assert await LocalAddress("0.0.0.0", "", carrier_at).find() == "127.0.0.1"
    with pytest.raises(OSError, match="no carrier"):
        await LocalAddress("::", "", nowhere).find()


@pytest.mark.parametrize(
    ("via", "seen"),
    [
        (
            "SIP/2.0/UDP 10.0.0.1:5070;rport=6000;received=203.0.113.9;branch=b",
            ("10.0.0.1:5070", "203.0.113.9:6000"),
        ),
        ("SIP/2.0/UDP 10.0.0.1:5070;rport=6000;branch=b", ("10.0.0.1:5070", "10.0.0.1:6000")),
        ("SIP/2.0/UDP 10.0.0.1:5070;received=10.0.0.1", ("10.0.0.1:5070", "10.0.0.1:5070")),
        ("SIP/2.0/UDP [::1]:5070;received=[::1];rport=5070", ("[::1]:5070", "[::1]:5070")),
        ("SIP/2.0/UDP [::1]:5070;received=::1;rport=5070", ("[::1]:5070", "[::1]:5070")),
        ("SIP/2.0/TCP 10.0.0.1:5070;rport=40000;received=10.0.0.1", ("10.0.0.1", "10.0.0.1")),
        ("SIP/2.0/UDP 10.0.0.1:5070;rport;branch=b", ("", "")),
        ("", ("", "")),
    ],
)
def test_what_the_carrier_sees(via: str, seen: tuple[str, str]) -> None:
    assert where_seen(done(via)) == seen


@given(st.text())
def test_whatever_stands_in_via(text: str) -> None:
    where_seen(done(text))
    where_seen(done())


async def test_the_operator_hears_of_nat_once(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with carrier() as only, dialer(tmp_path, only.uri, ping_interval=0.05):
            only.seen_as = ("203.0.113.9", 6000)
            await until(lambda: len(only.of("OPTIONS")) >= 3)
    (said,) = [line for line in logs if line["event"] == "carrier_sees_another_address"]
    assert said["carrier_sees"] == "203.0.113.9:6000"
    assert "public_address" in said["why"]


async def test_who_has_set_a_public_address_does_not(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with (
            carrier() as only,
            dialer(tmp_path, only.uri, ping_interval=0.05, public_address="198.51.100.1"),
        ):
            only.seen_as = ("203.0.113.9", 6000)
            await until(lambda: len(only.of("OPTIONS")) >= 2)
    assert not [line for line in logs if line["event"] == "carrier_sees_another_address"]
