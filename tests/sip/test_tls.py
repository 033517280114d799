"""Agents on TLS: who is believed to be who (RFC 5922), and whom to listen to."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from bitel.sip import Answered, Confirmed, Ended, Failed, Incoming
from bitel.sip.grammar import Address, Transport
from bitel.sip_transport.tls import TlsFileError, TlsFiles
from tests.support.certificates import Authority, Certificate
from tests.support.sip_party import Party, answers, one_call

DOMAIN = "carrier.test"
TLS = Transport.TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def carrier(authority: Authority) -> Certificate:
    return authority.sign(f"DNS:{DOMAIN}")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Certificate:
    return authority.sign("DNS:client.test")


def trusting(authority: Authority, own: Certificate | None = None) -> TlsFiles:
    ca = authority.files.certificate
    return TlsFiles(ca) if own is None else TlsFiles(ca, own.certificate, own.key)


def showing(own: Certificate) -> TlsFiles:
    return TlsFiles(certificate=own.certificate, key=own.key)


@asynccontextmanager
async def parties(
    caller_files: TlsFiles | None, callee_files: TlsFiles
) -> AsyncIterator[tuple[Party, Party]]:
    caller = await Party.open(tls=caller_files)
    callee = await Party.open(tls=callee_files)
    callee.on_event = answers(callee)
    try:
        yield caller, callee
    finally:
        await caller.transport.close()
        await callee.transport.close()


async def fails(caller: Party, destination: Address) -> None:
    caller.invite(destination)
    failed = await caller.until(Failed)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.why) == (503, "transport")


async def test_a_call_from_end_to_end(authority: Authority, carrier: Certificate) -> None:
    async with parties(trusting(authority), showing(carrier)) as (caller, callee):
        await one_call(caller, callee, TLS, DOMAIN)


def test_on_uvloop_too(authority: Authority, carrier: Certificate) -> None:
    async def main() -> None:
        async with parties(trusting(authority), showing(carrier)) as (caller, callee):
            await one_call(caller, callee, TLS, DOMAIN)
            caller.events.clear()
            await fails(caller, callee.at(TLS, "another.test"))

    uvloop.run(main())


async def test_an_address_may_stand_in_the_certificate(authority: Authority) -> None:
    own = showing(authority.sign("IP:127.0.0.1"))
    async with parties(trusting(authority), own) as (caller, callee):
        await one_call(caller, callee, TLS)


async def test_another_name_is_refused(
    authority: Authority, carrier: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    async with parties(trusting(authority), showing(carrier)) as (caller, callee):
        with caplog.at_level(logging.WARNING):
            await fails(caller, callee.at(TLS, "another.test"))
        assert "another.test" in caplog.text
        caller.events.clear()
        await fails(caller, callee.at(TLS))
        assert callee.events == []


async def test_who_is_not_trusted_is_refused(carrier: Certificate) -> None:
    async with parties(None, showing(carrier)) as (caller, callee):
        await fails(caller, callee.at(TLS, DOMAIN))
        assert callee.events == []


async def test_a_client_certificate_may_be_demanded(
    authority: Authority, carrier: Certificate, client: Certificate
) -> None:
    demanding = TlsFiles(
        authority.files.certificate, carrier.certificate, carrier.key, ask_clients=True
    )
    async with parties(trusting(authority, client), demanding) as (caller, callee):
        await one_call(caller, callee, TLS, DOMAIN)
    async with parties(trusting(authority), demanding) as (caller, callee):
        await fails(caller, callee.at(TLS, DOMAIN))
        assert callee.events == []


async def test_a_callee_hangs_up_over_the_connection_of_one_who_does_not_listen(
    authority: Authority, carrier: Certificate
) -> None:
    async with parties(trusting(authority), showing(carrier)) as (caller, callee):
        call_id = caller.invite(callee.at(TLS, DOMAIN))
        await caller.until(Answered)
        await callee.until(Confirmed)
        callee.transport.agent.hang_up(call_id, callee.transport.now())
        callee.transport.flush()
        assert await caller.until(Ended) == Ended(call_id, "far", 16)
        assert len(callee.transport._streams) == 1


async def test_an_invite_knows_of_the_end_of_a_connection_that_it_only_shared(
    authority: Authority, carrier: Certificate
) -> None:
    async with parties(trusting(authority), showing(carrier)) as (caller, callee):
        # The connection can't leave from the port that the caller's Contact names.
        with socket.create_server(caller.at(TLS)[:2]):
            await one_call(caller, callee, TLS, DOMAIN)
        # Over the connection that the other has opened (RFC 5923).
        call_id = callee.invite(caller.at(TLS))
        await caller.until(Incoming)
        (connection,) = callee.transport._streams._connections.values()
        assert connection.address != caller.at(TLS)
        callee.transport.agent.cancel(call_id, callee.transport.now())
        connection.abort()
        failed = await callee.until(Failed)
        assert isinstance(failed, Failed)
        assert (failed.why, failed.delivered) == ("canceled", True)


async def test_plain_text_meets_no_answer_at_the_port_for_tls(carrier: Certificate) -> None:
    async with parties(None, showing(carrier)) as (_, callee):
        reader, writer = await asyncio.open_connection(*callee.at(TLS)[:2])
        writer.write(b"OPTIONS sip:a SIP/2.0\r\n\r\n")
        async with asyncio.timeout(5):
            data = await reader.read()
        writer.close()
        assert b"SIP/2.0" not in data


async def test_without_a_certificate_nobody_listens_for_tls(authority: Authority) -> None:
    party = await Party.open(tls=trusting(authority))
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection(*party.at(TLS)[:2])
    await party.transport.close()


def test_old_versions_are_not_spoken(authority: Authority, carrier: Certificate) -> None:
    server = showing(carrier).server_context()
    assert server is not None
    for context in (trusting(authority).client_context(), server):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert trusting(authority).server_context() is None


def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, authority: Authority, carrier: Certificate, client: Certificate
) -> None:
    missing, garbage = tmp_path / "missing.pem", tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", carrier.key, "-out", locked, "-passout", "pass:word"],
        check=True,
    )
    ca = authority.files.certificate
    for files, name, why in (
        (TlsFiles(missing), "missing.pem", "can't be read"),
        (TlsFiles(garbage), "garbage.pem", "holds no certificates"),
        (TlsFiles(ca, missing), "missing.pem", "can't be read"),
        (TlsFiles(ca, carrier.certificate, missing), "missing.pem", "can't be read"),
        (TlsFiles(ca, garbage), "garbage.pem", "not a certificate and its key"),
        (TlsFiles(ca, carrier.certificate), carrier.certificate.name, "not a certificate and its"),
        (TlsFiles(ca, carrier.certificate, client.key), client.key.name, "is not that of"),
        (TlsFiles(ca, carrier.certificate, locked), "locked.key", "without a passphrase"),
        (TlsFiles(ca, None, client.key), client.key.name, "without its certificate"),
    ):
        with pytest.raises(TlsFileError, match=why) as caught:
            files.client_context()
        assert name in str(caught.value)
    demanding = TlsFiles(certificate=carrier.certificate, key=carrier.key, ask_clients=True)
    with pytest.raises(TlsFileError, match="name the CA"):
        demanding.server_context()


async def test_a_bad_file_leaves_no_socket_behind(tmp_path: Path) -> None:
    with pytest.raises(TlsFileError):
        await Party.open(tls=TlsFiles(tmp_path / "missing.pem"))
