"""Trunks by UDP, TCP and TLS, over IPv4 and IPv6: real sockets, real certificates, real DNS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import wave
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitel.dialer.resolver import Resolver
from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialer.trunk_monitor import TrunkState
from bitel.domain.attempts import Outcome
from bitel.errors import BitelError
from bitel.sip import Address, Credentials, Transport
from bitel.sip_transport.tls import TlsFiles
from bitel.test_phone.phone import Phone, PhoneConfig
from bitel.test_phone.rules import parse_rules
from tests.support.carrier import Answer, answering, carrier
from tests.support.certificates import Authority, Certificate
from tests.support.clocks import FakeClock
from tests.support.dns_server import dns_server
from tests.support.sip_dialer import dialer
from tests.support.waiting import until

UDP, TCP, TLS = Transport.UDP, Transport.TCP, Transport.TLS


@dataclass(frozen=True)
class Papers:
    """An authority, and what it has signed."""

    authority: Authority
    by_address: Certificate
    by_name: Certificate

    @property
    def trust(self) -> TlsFiles:
        return TlsFiles(ca=self.authority.files.certificate)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    authority = Authority.make(tmp_path_factory.mktemp("papers"))
    return Papers(authority, authority.sign("IP:127.0.0.1"), authority.sign("DNS:sbc.carrier.test"))


def shows(certificate: Certificate, asks: Path | None = None) -> ssl.SSLContext:
    """The far end's side: what it shows, and whose clients it takes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    if asks is not None:
        context.load_verify_locations(asks)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def refusing_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


async def test_calls_by_tcp_share_a_connection(tmp_path: Path) -> None:
    async with carrier(transport=TCP) as only, dialer(tmp_path, only.uri) as calls:
        for _ in range(3):
            assert (await calls.call()).outcome is Outcome.ANSWERED
    assert len(only.connections) == 1
    assert [request.method for request in only.requests] == ["INVITE", "ACK", "BYE"] * 3
    for request in only.requests:
        assert request.values("via")[0].startswith("SIP/2.0/TCP 127.0.0.1:")
    contact = only.of("INVITE")[0].header("contact")
    assert contact.endswith(";transport=tcp>")


@pytest.mark.parametrize("transport", [TCP, TLS])
async def test_registered_and_pinged_over_a_connection(
    tmp_path: Path, papers: Papers, transport: Transport
) -> None:
    context = shows(papers.by_address) if transport is TLS else None
    async with (
        carrier(transport=transport, tls=context) as only,
        dialer(
            tmp_path,
            only.uri,
            register=True,
            credentials=Credentials("acme", "s3cret"),
            ping_interval=0.05,
            tls=papers.trust,
        ) as calls,
    ):
        await until(lambda: calls.dialer.up and len(only.of("OPTIONS")) >= 2)
        (state,) = calls.dialer.trunks()
        await calls.dialer.close()
    assert state.registered
    assert state.usable
    register, *_, leave = only.of("REGISTER")
    assert register.header("contact").startswith("<sip:acme@127.0.0.1:")
    assert register.header("contact").endswith(f";transport={transport.lower()}>")
    assert leave.header("expires") == "0"
    assert only.of("OPTIONS")[0].uri == only.uri
    assert len(only.connections) == 1


@pytest.mark.parametrize("transport", [TCP, TLS])
async def test_who_refuses_the_connection_is_left_at_once(
    tmp_path: Path, papers: Papers, transport: Transport
) -> None:
    nobody = f"sip:127.0.0.1:{refusing_port()};transport={transport.lower()}"
    async with (
        carrier() as second,
        dialer(tmp_path, nobody, second.uri, t1=0.5, tls=papers.trust) as calls,
        asyncio.timeout(4),
    ):
        assert (await calls.call()).outcome is Outcome.ANSWERED
        first, other = calls.dialer.trunks()
    assert (first.trunk, first.usable, first.answered_at) == (nobody, False, None)
    assert other.usable
    assert len(second.of("INVITE")) == 1


async def test_one_attempt_over_three_transports(tmp_path: Path, papers: Papers) -> None:
    """TCP is refused, TLS says 503, UDP answers: each its own INVITE, and one bill."""
    nobody = f"sip:127.0.0.1:{refusing_port()};transport=tcp"
    async with carrier(transport=TLS, tls=shows(papers.by_address)) as second, carrier() as third:
        second.does["INVITE"] = answering(503)
        async with dialer(tmp_path, nobody, second.uri, third.uri, tls=papers.trust) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
    (one,), (other,) = second.of("INVITE"), third.of("INVITE")
    assert one.branch != other.branch
    assert one.call_id != other.call_id
    assert one.values("via")[0].startswith("SIP/2.0/TLS")
    assert other.values("via")[0].startswith("SIP/2.0/UDP")
    assert len(third.of("BYE")) == 1


async def test_a_trunk_by_tls_must_bear_the_name_in_the_settings(
    tmp_path: Path, papers: Papers
) -> None:
    async with (
        carrier(transport=TLS, tls=shows(papers.by_name)) as named,
        carrier(transport=TLS, tls=shows(papers.by_address)) as other,
        dns_server() as zone,
    ):
        # DNS may say what it likes of the server's name: that is not what is checked.
        zone.add("_sips._tcp.sbc.carrier.test", "SRV", f"1 1 {named.port} node7.elsewhere.test.")
        zone.add("_sips._tcp.c.test", "SRV", f"1 1 {named.port} sbc.carrier.test.")
        zone.add("node7.elsewhere.test", "A", "127.0.0.1")
        zone.add("sbc.carrier.test", "A", "127.0.0.1")
        targets = Resolver(FakeClock(), resolver=zone.resolver())
        for trunk, outcome in [
            ("sips:sbc.carrier.test", Outcome.ANSWERED),
            ("sips:c.test", Outcome.TRUNK_TROUBLE),
            (f"sip:sbc.carrier.test:{other.port};transport=tls", Outcome.TRUNK_TROUBLE),
            (f"sips:127.0.0.1:{other.port}", Outcome.ANSWERED),
            (f"sips:127.0.0.1:{named.port}", Outcome.TRUNK_TROUBLE),
        ]:
            async with dialer(tmp_path, trunk, targets=targets, tls=papers.trust) as calls:
                assert (await calls.call()).outcome is outcome, trunk
    (invite,) = named.of("INVITE")
    assert invite.uri == "sip:+989121234567@sbc.carrier.test"
    assert invite.header("contact").endswith(";transport=tls>")


async def test_nobody_is_trusted_whom_the_authority_does_not_know(
    tmp_path: Path, papers: Papers
) -> None:
    async with (
        carrier(transport=TLS, tls=shows(papers.by_address)) as only,
        dialer(tmp_path, only.uri) as calls,
    ):
        result = await calls.call()
    assert result.outcome is Outcome.TRUNK_TROUBLE
    assert result.detail == f"{only.place}/TLS can't be reached"
    assert not only.requests


async def test_a_carrier_that_asks_for_our_certificate_gets_it(
    tmp_path: Path, papers: Papers
) -> None:
    ca, ours = papers.authority.files.certificate, papers.by_address
    async with carrier(transport=TLS, tls=shows(papers.by_address, asks=ca)) as only:
        async with dialer(tmp_path, only.uri, tls=papers.trust) as calls:
            assert (await calls.call()).outcome is Outcome.TRUNK_TROUBLE
        files = TlsFiles(ca, ours.certificate, ours.key)
        async with dialer(tmp_path, only.uri, tls=files) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "says"),
    [
        ("missing", None, None, "missing can't be read: No such file or directory"),
        ("text", None, None, "text holds no certificates as PEM"),
        (None, "ours", "text", "are not a certificate and its key as PEM"),
        (None, "ours", "other", "other is not that of"),
    ],
)
async def test_a_file_of_no_use_stops_the_start(
    tmp_path: Path,
    papers: Papers,
    ca: str | None,
    certificate: str | None,
    key: str | None,
    says: str,
) -> None:
    (tmp_path / "text").write_text("this is no PEM\n")
    paths = {
        "missing": tmp_path / "missing",
        "text": tmp_path / "text",
        "ours": papers.by_address.certificate,
        "other": tmp_path / "other",
    }
    paths["other"].write_bytes(papers.by_name.key.read_bytes())
    first, second, third = (paths[name] if name else None for name in (ca, certificate, key))
    files = TlsFiles(first, second, third)
    with pytest.raises(BitelError) as refused:
        async with dialer(tmp_path, "sip:127.0.0.1:9", tls=files):
            pass
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_naptr_leads_from_one_transport_to_the_next(tmp_path: Path) -> None:
    async with carrier(transport=TCP) as first, carrier() as second, dns_server() as zone:
        zone.add(
            "c.test",
            "NAPTR",
            '10 1 "s" "SIP+D2T" "" _sip._tcp.c.test.',
            '20 1 "s" "SIP+D2U" "" _sip._udp.c.test.',
        )
        zone.add("_sip._tcp.c.test", "SRV", f"1 1 {first.port} host.c.test.")
        zone.add("_sip._udp.c.test", "SRV", f"1 1 {second.port} host.c.test.")
        zone.add("host.c.test", "A", "127.0.0.1")
        targets = Resolver(FakeClock(), resolver=zone.resolver())
        first.does["INVITE"] = answering(503)
        async with dialer(tmp_path, "sip:c.test", targets=targets) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            states = calls.dialer.trunks()
    assert (len(first.of("INVITE")), len(second.of("INVITE"))) == (1, 1)
    assert [(state.trunk, state.address) for state in states] == [
        ("sip:c.test", Address("127.0.0.1", first.port, TCP)),
        ("sip:c.test", Address("127.0.0.1", second.port, UDP)),
    ]


async def test_a_connection_that_is_lost_is_made_anew(tmp_path: Path) -> None:
    async with carrier(transport=TCP) as only, dialer(tmp_path, only.uri) as calls:
        assert (await calls.call()).outcome is Outcome.ANSWERED
        only.connections[0].abort()
        await asyncio.sleep(0.05)  # until the dialer has read that it is lost
        assert (await calls.call()).outcome is Outcome.ANSWERED
    assert len(only.connections) == 2


@pytest.mark.parametrize(("transport", "bind"), [(UDP, "::1"), (TCP, "::1"), (UDP, "::")])
async def test_ipv6_to_the_phone(tmp_path: Path, transport: Transport, bind: str) -> None:
    """SIP and RTP over IPv6, as the callee hears them."""
    folder = tmp_path / "heard"
    phone = Phone(PhoneConfig(("::1", 0), parse_rules(["*=answer:after=0"]), record=folder))
    await phone.start()
    trunk = f"sip:[::1]:{phone.address[1]};transport={transport.lower()}"
    try:
        async with dialer(tmp_path, trunk, bind=(bind, 0), t1=0.5) as calls:
            result = await calls.call()
    finally:
        await phone.stop(grace=0.5)
    assert result.outcome is Outcome.ANSWERED
    (heard,) = folder.glob("*.wav")
    with wave.open(str(heard)) as recording:
        assert recording.getnframes() >= 320


async def test_tls_to_the_phone(tmp_path: Path, papers: Papers) -> None:
    ours = papers.by_address
    phone = Phone(
        PhoneConfig(
            ("127.0.0.1", 0),
            parse_rules(["*=answer:after=0"]),
            tls=TlsFiles(certificate=ours.certificate, key=ours.key),
        )
    )
    await phone.start()
    trunk = f"sips:127.0.0.1:{phone.address[1] + 1}"
    try:
        async with dialer(tmp_path, trunk, tls=papers.trust) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
    finally:
        await phone.stop(grace=0.5)


async def test_how_trunks_stand(tmp_path: Path) -> None:
    async with carrier() as resting, carrier() as well, dns_server() as zone:
        zone.broken = True

        async def nothing(host: str, family: int) -> list[str]:
            return []

        targets = Resolver(FakeClock(), resolver=zone.resolver(), system_lookup=nothing)
        resting.does["INVITE"] = lambda _: [Answer(503, [("Retry-After", "60")])]
        async with dialer(
            tmp_path, resting.uri, well.uri, "sip:unknown.test", targets=targets
        ) as calls:
            assert await _answered(calls.dialer) == [None, None, None]
            await calls.call()
            first, second, third = calls.dialer.trunks()
    assert (first.usable, first.rests, first.registered) == (False, True, None)
    assert (second.usable, second.rests) == (True, False)
    assert first.answered_at is not None
    assert second.answered_at is not None
    assert third == TrunkState("sip:unknown.test", None, False, False, None, None)


async def _answered(made: SipTrunkDialer) -> list[float | None]:
    return [state.answered_at for state in made.trunks()]
