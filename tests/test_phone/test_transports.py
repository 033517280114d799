"""The phone takes calls by every transport, over IPv4 and IPv6."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bitel.sip import Address, Answered, Ended, Transport
from bitel.sip_transport.tls import TlsFiles
from bitel.test_phone.phone import Phone, PhoneConfig
from bitel.test_phone.rules import parse_rules
from tests.support.certificates import Authority
from tests.support.sip_party import Party
from tests.test_phone.test_command import running, start

NAME = "DNS:phone.test"


@asynccontextmanager
async def talking(
    host: str, tls: TlsFiles | None = None, ca: Path | None = None
) -> AsyncIterator[tuple[Party, Phone]]:
    phone = Phone(PhoneConfig((host, 0), parse_rules(["*=answer:after=0:hangup=0.1"]), tls=tls))
    caller = await Party.open(bind=(host, 0), tls=TlsFiles(ca))
    await phone.start()
    yield caller, phone
    await caller.transport.close()
    await phone.stop()


async def call(caller: Party, destination: Address) -> None:
    """One call, which the phone ends."""
    call_id = caller.invite(destination)
    answered = await caller.until(Answered)
    assert isinstance(answered, Answered)
    assert answered.answer.address == destination.host
    assert await caller.until(Ended) == Ended(call_id, "far", 16)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
async def test_a_call(host: str, transport: Transport) -> None:
    async with talking(host) as (caller, phone):
        await call(caller, Address(*phone.address, transport))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


async def test_a_call_over_tls(authority: Authority) -> None:
    own = authority.sign(NAME)
    files = TlsFiles(certificate=own.certificate, key=own.key)
    async with talking("127.0.0.1", files, authority.files.certificate) as (caller, phone):
        host, port = phone.address
        await call(caller, Address(host, port + 1, Transport.TLS, "phone.test"))


async def test_the_command_over_tls(authority: Authority) -> None:
    own = authority.sign(NAME)
    options = ("--tls-certificate", str(own.certificate), "--tls-key", str(own.key))
    async with running("--rule", "*=answer:after=0:hangup=0.1", *options) as (_, port):
        caller = await Party.open(tls=TlsFiles(authority.files.certificate))
        await call(caller, Address("127.0.0.1", port + 1, Transport.TLS, "phone.test"))
        await caller.transport.close()


async def test_a_certificate_that_cannot_be_used_stops_the_command(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    process = await start("--listen", "127.0.0.1:0", "--tls-certificate", str(missing))
    _, stderr = await process.communicate()
    assert process.returncode
    text = " ".join(stderr.decode().split())
    assert f"{missing} can't be read" in text
    assert "Traceback" not in text
