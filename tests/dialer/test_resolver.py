"""Where a trunk's requests go (RFC 3263, RFC 2782), against a DNS server of our own."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.dialer.resolver import (
    KEPT_AFTER_FAILURE,
    LONGEST_KEPT,
    SHORTEST_KEPT,
    Resolver,
    Server,
    in_order,
)
from bitel.dialer.trunk import Trunk
from bitel.sip.grammar import Address, Transport
from tests.support.clocks import FakeClock
from tests.support.dns_server import Zone, dns_server

UDP, TCP, TLS = Transport.UDP, Transport.TCP, Transport.TLS


async def nothing_known(host: str, family: int) -> Sequence[str]:
    return []


@pytest.fixture
async def zone() -> AsyncIterator[Zone]:
    async with dns_server() as zone:
        yield zone


@pytest.fixture
def targets(zone: Zone, clock: FakeClock) -> Resolver:
    random.seed(7)  # the order of SRV records is drawn
    return Resolver(
        clock,
        resolver=zone.resolver(),
        system_lookup=nothing_known,
    )


def with_srv(zone: Zone, *lines: str) -> None:
    zone.add("_sip._udp.carrier.test", "SRV", *lines)
    for number in range(1, 5):
        zone.add(f"s{number}.carrier.test", "A", f"192.0.2.{number}")


async def test_a_numeric_host_is_itself_and_nobody_is_asked(zone: Zone, targets: Resolver) -> None:
    assert await targets.find(Trunk("192.0.2.9", 5070)) == [Address("192.0.2.9", 5070)]
    assert await targets.find(Trunk("192.0.2.9")) == [Address("192.0.2.9", 5060)]
    assert await targets.find(Trunk("2001:db8::1")) == [Address("2001:db8::1", 5060)]
    assert not zone.asked


async def test_a_port_rules_out_srv(zone: Zone, targets: Resolver) -> None:
    with_srv(zone, "1 1 5080 s1.carrier.test.")
    zone.add("carrier.test", "A", "192.0.2.50", "192.0.2.51")
    found = await targets.find(Trunk("carrier.test", 5070))
    assert sorted(found) == [Address("192.0.2.50", 5070), Address("192.0.2.51", 5070)]
    assert set(zone.asked) == {("carrier.test", "A")}


async def test_a_host_of_media(zone: Zone, targets: Resolver, clock: FakeClock) -> None:
    zone.add("media.test", "A", "0.0.0.0", "224.0.0.1", "192.0.2.7")
    found = await asyncio.gather(*(targets.find_host("media.test") for _ in range(5)))
    assert found == ["192.0.2.7"] * 5
    assert zone.asked["media.test", "A"] == 1, "all share one question"
    zone.add("media.test", "A", "192.0.2.8")
    clock.advance(59)
    assert await targets.find_host("media.test") == "192.0.2.7"
    clock.advance(1)
    assert await targets.find_host("media.test") == "192.0.2.8"


async def test_a_host_of_media_without_an_address(
    zone: Zone, targets: Resolver, clock: FakeClock
) -> None:
    zone.add("nowhere.test", "A", "0.0.0.0")
    for host, why in (("unknown.test", "no A record"), ("nowhere.test", "can be sent to")):
        for _ in range(2):
            with pytest.raises(OSError, match=why):
                await targets.find_host(host)
        assert zone.asked[host, "A"] == 1, "that is remembered for a moment"
    zone.add("unknown.test", "A", "192.0.2.7")
    clock.advance(SHORTEST_KEPT)
    assert await targets.find_host("unknown.test") == "192.0.2.7"


async def test_a_host_of_media_of_which_dns_says_nothing(
    zone: Zone, targets: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.dialer.resolver.QUERY_TIMEOUT", 0.2)
    zone.dumb = True
    with pytest.raises(OSError, match=r"DNS does not say what media\.test is"):
        await targets.find_host("media.test")


async def test_so_many_hosts_of_media_are_remembered_only(
    zone: Zone, targets: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.dialer.resolver.MAX_HOSTS", 3)
    for number in range(5):
        zone.add(f"m{number}.test", "A", "192.0.2.7")
        await targets.find_host(f"m{number}.test")
    for number in (4, 3, 2, 1, 0):
        await targets.find_host(f"m{number}.test")
    assert [zone.asked[f"m{number}.test", "A"] for number in range(5)] == [2, 2, 1, 1, 1]
    zone.dumb = True
    tasks = [asyncio.create_task(targets.find_host(f"x{number}.test")) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="too many"):
        await targets.find_host("x3.test")
    for task in tasks:
        task.cancel()


async def test_srv_by_priority(zone: Zone, targets: Resolver) -> None:
    with_srv(zone, "20 0 5060 s3.carrier.test.", "10 0 5081 s1.carrier.test.")
    found = await targets.find(Trunk("carrier.test"))
    assert found == [Address("192.0.2.1", 5081), Address("192.0.2.3", 5060)]


async def test_srv_by_weight(zone: Zone, targets: Resolver) -> None:
    with_srv(zone, "10 75 5060 s1.carrier.test.", "10 25 5060 s2.carrier.test.")
    firsts = Counter(
        [(await targets.find(Trunk("carrier.test")))[0][0] for _ in range(1000)],
    )
    assert 700 < firsts["192.0.2.1"] < 800
    assert firsts.total() == 1000
    assert zone.asked["_sip._udp.carrier.test", "SRV"] == 1


async def test_naptr_names_the_srv_records(zone: Zone, targets: Resolver) -> None:
    zone.add(
        "carrier.test",
        "NAPTR",
        '10 10 "s" "SIPS+D2T" "" _sips._tcp.carrier.test.',
        '30 10 "s" "SIP+D2U" "" second.carrier.test.',
        '20 20 "s" "SIP+D2U" "" third.carrier.test.',
        '20 10 "s" "SIP+D2U" "" first.carrier.test.',
    )
    zone.add("first.carrier.test", "SRV", "1 1 5099 s1.carrier.test.")
    zone.add("s1.carrier.test", "A", "192.0.2.1")
    assert await targets.find(Trunk("carrier.test")) == [Address("192.0.2.1", 5099)]


async def test_without_srv_the_address_at_5060(zone: Zone, targets: Resolver) -> None:
    zone.add("carrier.test", "A", "192.0.2.8")
    assert await targets.find(Trunk("carrier.test")) == [Address("192.0.2.8", 5060)]


async def test_ipv6_asks_for_aaaa(zone: Zone, clock: FakeClock) -> None:
    zone.add("carrier.test", "AAAA", "2001:db8::8")
    targets = Resolver(clock, True, zone.resolver(), system_lookup=nothing_known)
    assert await targets.find(Trunk("carrier.test", 5060)) == [Address("2001:db8::8", 5060)]


async def test_a_server_without_an_address_is_passed_over(zone: Zone, targets: Resolver) -> None:
    with_srv(zone, "1 1 5060 gone.carrier.test.", "2 1 5060 s2.carrier.test.")
    assert await targets.find(Trunk("carrier.test")) == [Address("192.0.2.2", 5060)]


async def test_an_unknown_name(targets: Resolver) -> None:
    with pytest.raises(OSError, match=r"nowhere\.test has no A record"):
        await targets.find(Trunk("nowhere.test"))


async def test_a_name_that_only_this_machine_knows(zone: Zone, clock: FakeClock) -> None:
    targets = Resolver(clock, resolver=zone.resolver())
    assert await targets.find(Trunk("localhost", 5062)) == [Address("127.0.0.1", 5062)]


@pytest.mark.parametrize(("ttl", "kept"), [(0, 5), (60, 60), (86400, LONGEST_KEPT)])
async def test_an_answer_is_kept_for_its_ttl_within_limits(
    zone: Zone, targets: Resolver, clock: FakeClock, ttl: int, kept: float
) -> None:
    zone.ttl = ttl
    zone.add("carrier.test", "A", "192.0.2.8")
    trunk = Trunk("carrier.test", 5060)
    await targets.find(trunk)
    zone.add("carrier.test", "A", "192.0.2.9")
    clock.advance(kept - 1)
    assert await targets.find(trunk) == [Address("192.0.2.8", 5060)]
    clock.advance(2)
    assert await targets.find(trunk) == [Address("192.0.2.9", 5060)]


@pytest.mark.parametrize("how", ["broken", "dumb"])
async def test_what_was_found_last_serves_on_while_dns_fails(
    zone: Zone, targets: Resolver, clock: FakeClock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.dialer.resolver.QUERY_TIMEOUT", 0.3)
    with_srv(zone, "1 1 5060 s1.carrier.test.")
    trunk = Trunk("carrier.test")
    await targets.find(trunk)
    setattr(zone, how, True)
    clock.advance(LONGEST_KEPT + 1)
    assert await targets.find(trunk) == [Address("192.0.2.1", 5060)]
    asked = zone.asked.total()
    assert await targets.find(trunk) == [Address("192.0.2.1", 5060)]
    assert zone.asked.total() == asked, "a server in trouble is left in peace for a while"
    setattr(zone, how, False)
    with_srv(zone, "1 1 5060 s2.carrier.test.")
    clock.advance(KEPT_AFTER_FAILURE + 1)
    assert await targets.find(trunk) == [Address("192.0.2.2", 5060)]


async def test_dns_that_fails_from_the_start(zone: Zone, targets: Resolver) -> None:
    zone.broken = True
    with pytest.raises(OSError, match=r"DNS does not say what carrier\.test is"):
        await targets.find(Trunk("carrier.test"))


async def test_calls_at_once_share_one_question(zone: Zone, targets: Resolver) -> None:
    zone.add("carrier.test", "A", "192.0.2.8")
    await asyncio.gather(*(targets.find(Trunk("carrier.test", 5060)) for _ in range(50)))
    assert zone.asked == {("carrier.test", "A"): 1}


servers = st.lists(
    st.builds(
        Server,
        st.integers(0, 3),
        st.integers(0, 100),
        st.integers(1, 65535).map(lambda port: (("192.0.2.1", port),)),
    ),
    max_size=12,
)


@given(servers)
def test_every_address_once_and_by_priority(servers: list[Server]) -> None:
    ordered = in_order(servers)
    assert sorted(ordered) == sorted(a for server in servers for a in server.addresses)
    by_priority = sorted(servers, key=lambda server: server.priority)
    rest = list(ordered)
    for priority in dict.fromkeys(server.priority for server in by_priority):
        group = [s.addresses[0] for s in by_priority if s.priority == priority]
        assert sorted(rest[: len(group)]) == sorted(group)
        rest = rest[len(group) :]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sip:carrier.test;transport=sctp", "use transport=udp, tcp or tls"),
        ("sips:carrier.test;transport=udp", "never spoken over UDP"),
        ("tel:+98", "neither sip: nor sips:"),
    ],
)
def test_no_trunk(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Trunk.parse(text)


@pytest.mark.parametrize(
    ("text", "trunk", "uri"),
    [
        ("sip:192.0.2.1", Trunk("192.0.2.1"), "sip:09@192.0.2.1"),
        ("sip:192.0.2.1:5060", Trunk("192.0.2.1", 5060), "sip:09@192.0.2.1"),
        ("sip:c.test:5070;transport=UDP", Trunk("c.test", 5070, UDP), "sip:09@c.test:5070"),
        ("sip:c.test;lr;Transport=tcp", Trunk("c.test", None, TCP), "sip:09@c.test"),
        ("sip:c.test;transport=TLS", Trunk("c.test", None, TLS), "sip:09@c.test"),
        ("SIP:c.test;self=1;transport=tcp", Trunk("c.test", None, TCP), "sip:09@c.test"),
        ("sips:c.test", Trunk("c.test", None, TLS), "sip:09@c.test"),
        ("sips:c.test:5061;transport=tcp", Trunk("c.test", 5061, TLS), "sip:09@c.test:5061"),
        ("sip:[2001:db8::1]:5070", Trunk("2001:db8::1", 5070), "sip:09@[2001:db8::1]:5070"),
    ],
)
def test_what_a_trunk_is_called(text: str, trunk: Trunk, uri: str) -> None:
    assert Trunk.parse(text) == trunk
    assert trunk.uri_for("09") == uri
    assert Trunk.parse(trunk.text) == trunk or trunk.port == 5060


@pytest.mark.parametrize(
    ("trunk", "address"),
    [
        (Trunk("192.0.2.9", transport=TCP), Address("192.0.2.9", 5060, TCP)),
        (Trunk("192.0.2.9", transport=TLS), Address("192.0.2.9", 5061, TLS, "192.0.2.9")),
        (Trunk("::1", 5070, TLS), Address("::1", 5070, TLS, "::1")),
    ],
)
async def test_numeric_by_every_transport(
    targets: Resolver, trunk: Trunk, address: Address
) -> None:
    assert await targets.find(trunk) == [address]
    assert targets.known(trunk) == [address]


@pytest.mark.parametrize(
    ("transport", "name", "domain"),
    [
        (UDP, "_sip._udp.carrier.test", ""),
        (TCP, "_sip._tcp.carrier.test", ""),
        (TLS, "_sips._tcp.carrier.test", "carrier.test"),
    ],
)
async def test_a_named_transport_has_srv_records_of_its_own(
    zone: Zone, targets: Resolver, transport: Transport, name: str, domain: str
) -> None:
    zone.add("carrier.test", "NAPTR", '1 1 "s" "SIP+D2U" "" _sip._udp.carrier.test.')
    zone.add(name, "SRV", "1 1 5099 s1.carrier.test.")
    zone.add("s1.carrier.test", "A", "192.0.2.1")
    found = await targets.find(Trunk("carrier.test", None, transport))
    assert found == [Address("192.0.2.1", 5099, transport, domain)]
    assert zone.asked == {(name, "SRV"): 1, ("s1.carrier.test", "A"): 1}


async def test_without_srv_a_named_transport_has_its_usual_port(
    zone: Zone, targets: Resolver
) -> None:
    zone.add("carrier.test", "A", "192.0.2.8")
    for transport, port in ((TCP, 5060), (TLS, 5061)):
        (found,) = await targets.find(Trunk("carrier.test", None, transport))
        assert found[:3] == ("192.0.2.8", port, transport)


async def test_naptr_has_every_transport_that_we_speak_in_its_order(
    zone: Zone, targets: Resolver
) -> None:
    zone.add(
        "carrier.test",
        "NAPTR",
        '10 1 "s" "SIP+D2S" "" _sip._sctp.carrier.test.',
        '10 2 "s" "SIPS+D2T" "" _sips._tcp.carrier.test.',
        '20 9 "s" "SIP+D2U" "" _sip._udp.carrier.test.',
        '20 3 "s" "SIP+D2T" "" elsewhere.test.',
    )
    zone.add("_sips._tcp.carrier.test", "SRV", "1 1 5061 s1.carrier.test.")
    zone.add("elsewhere.test", "SRV", "1 1 5062 s2.carrier.test.")
    zone.add("_sip._udp.carrier.test", "SRV", "1 1 5060 s3.carrier.test.")
    for number in range(1, 4):
        zone.add(f"s{number}.carrier.test", "A", f"192.0.2.{number}")
    assert await targets.find(Trunk("carrier.test")) == [
        Address("192.0.2.1", 5061, TLS, "carrier.test"),
        Address("192.0.2.2", 5062, TCP),
        Address("192.0.2.3", 5060, UDP),
    ]
    assert not any("_sctp" in name for name, _ in zone.asked)


async def test_without_naptr_tcp_after_udp(zone: Zone, targets: Resolver) -> None:
    zone.add("_sip._tcp.carrier.test", "SRV", "1 1 5099 s1.carrier.test.")
    zone.add("s1.carrier.test", "A", "192.0.2.1")
    assert await targets.find(Trunk("carrier.test")) == [Address("192.0.2.1", 5099, TCP)]
    assert zone.asked["_sip._udp.carrier.test", "SRV"] == 1


async def test_a_carrier_may_say_that_it_has_no_udp(zone: Zone, targets: Resolver) -> None:
    zone.add("_sip._udp.carrier.test", "SRV", "0 0 0 .")
    zone.add("_sip._tcp.carrier.test", "SRV", "1 1 5099 s1.carrier.test.")
    zone.add("s1.carrier.test", "A", "192.0.2.1")
    assert await targets.find(Trunk("carrier.test")) == [Address("192.0.2.1", 5099, TCP)]


async def test_a_transport_whose_servers_have_no_address_leaves_the_others(
    zone: Zone, targets: Resolver
) -> None:
    zone.add(
        "carrier.test",
        "NAPTR",
        '1 1 "s" "SIP+D2T" "" _sip._tcp.carrier.test.',
        '2 1 "s" "SIP+D2U" "" _sip._udp.carrier.test.',
    )
    zone.add("_sip._tcp.carrier.test", "SRV", "1 1 5060 gone.carrier.test.")
    with_srv(zone, "1 1 5060 s1.carrier.test.")
    assert await targets.find(Trunk("carrier.test")) == [Address("192.0.2.1", 5060)]
    zone.add("_sip._udp.carrier.test", "SRV", "1 1 5060 gone.carrier.test.")
    other = Resolver(FakeClock(), resolver=zone.resolver(), system_lookup=nothing_known)
    with pytest.raises(OSError, match="none of the servers that DNS names"):
        await other.find(Trunk("carrier.test"))
