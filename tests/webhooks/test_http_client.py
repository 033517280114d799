"""One try: what a receiver may do, and what is made of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bitel.ip_addresses import IPAddress
from bitel.webhooks import http_client
from bitel.webhooks.http_client import DeliveryResponse, HttpClient, TimeLimits
from bitel.webhooks.resolver import Resolver
from tests.support.http_server import (
    Answerer,
    Received,
    Receiver,
    answer,
    endless,
    hang,
    raw,
    receiver,
)
from tests.support.prerequisites import need_openssl
from tests.support.tcp_server import tcp_server

NOW = 1_700_000_000.0
BODY = b'{"requestId":"1"}'
SHORT = TimeLimits(connect=0.2, answer=0.4, body=0.3)


class Names:
    """A resolver that says what it is told, one answer after the other, and counts."""

    def __init__(self, *answers: str | Sequence[str]) -> None:
        self._answers = [[one] if isinstance(one, str) else one for one in answers]
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[IPAddress]:
        self.asked.append(host)
        found = self._answers[min(len(self.asked), len(self._answers)) - 1]
        return [ipaddress.ip_address(one) for one in found]


@contextlib.asynccontextmanager
async def client(resolve: Any = None, **changes: Any) -> AsyncIterator[HttpClient]:
    """A client that is closed at the end of the block."""
    fields: dict[str, Any] = {"tls": ssl.create_default_context(), "allow_private": True}
    with contextlib.closing(HttpClient(resolve or Resolver(), **fields | changes)) as one:
        yield one


async def post(to: Receiver | str, **changes: Any) -> DeliveryResponse:
    url = to if isinstance(to, str) else to.url
    async with client(**changes) as one:
        return await one.post(url, {"webhook-id": "1"}, BODY, NOW)


async def test_an_event_is_posted_whole() -> None:
    async with receiver(answer(204, b"")) as one:
        result = await post(one.url + "?a=b")
    (got,) = one.received
    assert (got.path, got.body, got.headers["webhook-id"]) == ("/hook?a=b", BODY, "1")
    assert got.headers["host"] == f"127.0.0.1:{one.port}"
    assert got.headers["user-agent"].startswith("bitel")
    assert (result.status, result.error, result.retry_after) == (204, "", None)
    assert 0 < result.seconds < 5


async def test_a_connection_is_used_again() -> None:
    async with receiver() as one, client() as sender:
        for _ in range(3):
            assert (await sender.post(one.url, {}, BODY, NOW)).status == 200
    assert [got.connection for got in one.received] == [0, 0, 0]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore",
    ],
)
async def test_one_that_can_not_be_used_again_is_not(head: bytes) -> None:
    async with receiver(raw(head)) as one, client() as sender:
        for _ in range(2):
            assert (await sender.post(one.url, {}, BODY, NOW)).status == 200
    assert [got.connection for got in one.received] == [0, 1]


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with receiver(raw(b"HTTP/1.1 202 X\r\n\r\nsome words", close=True)) as one:
        result = await post(one)
    assert (result.status, result.error) == (202, "")


async def test_interim_answers_are_passed_over() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with receiver(raw(interim + b"HTTP/1.1 204 X\r\n\r\n")) as one, client() as sender:
        for _ in range(2):
            assert (await sender.post(one.url, {}, BODY, NOW)).status == 204
    assert one.connections == 1


async def test_a_kept_connection_that_was_closed_meanwhile_costs_no_try() -> None:
    async def answer_once(got: Received, writer: asyncio.StreamWriter) -> None:
        if len([one for one in server.received if one.connection == got.connection]) > 1:
            writer.close()
        else:
            await answer()(got, writer)

    async with receiver(answer_once) as server, client() as sender:
        for _ in range(3):
            result = await sender.post(server.url, {"webhook-id": "1"}, BODY, NOW)
            assert (result.status, result.error) == (200, "")
    # The second went to the first connection too, and was repeated on one of its own.
    assert [got.connection for got in server.received] == [0, 0, 1, 1, 2]


async def test_what_comes_unasked_on_a_kept_connection_is_no_answer() -> None:
    ready = asyncio.Event()

    async def talk(got: Received, writer: asyncio.StreamWriter) -> None:
        await answer(500)(got, writer)
        await ready.wait()
        await answer(200)(got, writer)

    async with receiver(talk) as one, client() as sender:
        assert (await sender.post(one.url, {}, BODY, NOW)).status == 500
        ready.set()
        await asyncio.sleep(0.05)  # until our side has read what it did not ask for
        assert (await sender.post(one.url, {}, BODY, NOW)).status == 500
    assert one.connections == 2


async def test_few_connections_are_kept_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "IDLE_SECONDS", 0.1)
    async with receiver() as one, client(max_idle=2) as sender:
        await asyncio.gather(*(sender.post(one.url, {}, BODY, NOW) for _ in range(5)))
        assert one.connections == 5
        await asyncio.gather(*(sender.post(one.url, {}, BODY, NOW) for _ in range(3)))
        assert one.connections == 6
        await asyncio.sleep(0.2)  # longer than a connection is kept
        await sender.post(one.url, {}, BODY, NOW)
        assert one.connections == 7


@pytest.mark.parametrize("status", [302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with receiver() as other, receiver(answer(status, Location=other.url)) as one:
        result = await post(one)
    assert (result.status, other.received) == (status, [])


async def test_retry_after_is_read_whatever_its_case() -> None:
    async with receiver(answer(503, RETRY_AFTER="77")) as one:
        result = await post(one)
    assert (result.status, result.error, result.retry_after) == (503, "", 77.0)


async def test_a_receiver_that_never_answers_runs_out_of_time() -> None:
    async with receiver(hang) as one:
        result = await post(one, limits=SHORT)
    assert (result.status, result.error) == (None, "no answer within 0.4 s")


async def test_a_server_that_never_accepts_tls_runs_out_of_time() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with tcp_server(silent) as (_, port):
        result = await post(f"https://127.0.0.1:{port}/", limits=SHORT)
    assert result.status is None
    assert result.error in ("no connection within 0.2 s", "no answer within 0.4 s")


async def test_of_an_endless_body_little_is_read_and_the_status_counts() -> None:
    async with receiver(endless) as one:
        begun = asyncio.get_running_loop().time()
        result = await post(one, limits=TimeLimits(body=30))
        took = asyncio.get_running_loop().time() - begun
    assert (result.status, result.error) == (200, "")
    assert took < 10


async def test_a_body_that_never_comes_costs_little_and_the_status_counts() -> None:
    head = raw(b"HTTP/1.1 201 X\r\nContent-Length: 10\r\n\r\nx")
    async with receiver(head) as one, client(limits=SHORT) as sender:
        for _ in range(2):
            result = await sender.post(one.url, {}, BODY, NOW)
            assert (result.status, result.error) == (201, "")
    assert [got.connection for got in one.received] == [0, 1]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (raw(b"", close=True), "closed the connection without an answer"),
        (raw(b"HTTP/1.1 200", close=True), "in the middle of its answer"),
        (raw(b"SSH-2.0-OpenSSH_9\r\n", close=True), ""),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000, close=True), ""),
        (raw(b"HTTP/1.1 999999 OK\r\n\r\n", close=True), ""),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, close=True), "in the middle"),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000), "bytes of head"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), ""),
        (raw(b"\xff\xfe\r\n\r\n\0", close=True), ""),
    ],
)
async def test_bytes_that_are_no_answer_are_a_failure_in_one_line(
    bad: Answerer, error: str
) -> None:
    async with receiver(bad) as one:
        result = await post(one, limits=SHORT)
    assert result.status is None
    assert error in result.error
    assert 0 < len(result.error) <= 200
    assert result.error.isprintable()


async def test_nobody_at_the_port_is_said_so() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but nobody listens
        result = await post(f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert (result.status, result.error) == (None, "Connection refused")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "nonsense"])
async def test_a_url_that_is_none_is_an_answer_too(url: str) -> None:
    result = await post(url)
    assert result.status is None
    assert result.error.startswith("the webhook URL ")


async def test_a_name_that_nobody_knows_is_said_so() -> None:
    result = await post("http://nobody.invalid/", limits=TimeLimits(connect=3))
    assert result.status is None
    assert "nobody.invalid" in result.error or result.error == "no connection within 3 s"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "0x7f.1", "0177.0.0.1", "2130706433", "127.1", "[::1]",
     "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0", "[::]"],
)  # fmt: skip
async def test_this_machine_is_refused_however_it_is_written(host: str) -> None:
    async with receiver() as one:
        result = await post(f"http://{host}:{one.port}/", allow_private=False)
    assert (result.status, one.connections) == (None, 0)
    # What the system reads as an address is refused as one; the rest is no host at all.
    words = ("refused: ", "the webhook URL can't be read")
    assert result.error.startswith(words) or "can't be resolved" in result.error


async def test_a_name_for_a_private_address_is_refused() -> None:
    async with receiver() as one:
        url = f"http://hook.example:{one.port}/"
        result = await post(url, resolve=Names("127.0.0.1"), allow_private=False)
    assert (result.status, one.connections) == (None, 0)
    assert result.error == "refused: 127.0.0.1 is a loopback address"


async def test_of_mixed_addresses_only_public_ones_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = watch_connections(monkeypatch)
    names = Names(["127.0.0.1", "192.0.2.7", "::1", "8.8.8.8", "2606:4700::1111"])
    async with receiver() as one:
        await post(f"http://hook.example:{one.port}/", resolve=names, allow_private=False)
    assert (tried, one.connections) == (["8.8.8.8", "2606:4700::1111"], 0)


async def test_a_name_that_changes_its_mind_gets_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = watch_connections(monkeypatch)
    names = Names("93.184.216.34", "127.0.0.1")
    async with receiver() as one, client(names, allow_private=False) as sender:
        url = f"http://hook.example:{one.port}/"
        first = await sender.post(url, {}, BODY, NOW)
        second = await sender.post(url, {}, BODY, NOW)
    # The first look said a public address: it alone is connected to, and nobody asks again.
    assert tried == ["93.184.216.34"]
    assert names.asked == ["hook.example", "hook.example"]
    assert (first.status, second.status, one.connections) == (None, None, 0)
    assert first.error == "Network is unreachable"
    assert second.error == "refused: 127.0.0.1 is a loopback address"


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as proxy, receiver() as one:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await post(one)).status == 200
    assert (len(one.received), proxy.connections) == (1, 0)


async def test_addresses_share_the_time_to_connect() -> None:
    # Nothing listens on the first; the second is there.
    names = Names(["127.0.0.2", "127.0.0.1"])
    async with receiver() as one:
        assert (await post(f"http://hook.example:{one.port}/", resolve=names)).status == 200


async def test_tls_and_host_go_by_the_name_not_the_address(tmp_path: Path) -> None:
    server, trusting = certificates(tmp_path, "hook.example")
    async with receiver(tls=server) as one:
        url = f"https://hook.example:{one.port}/"
        right = await post(url, resolve=Names("127.0.0.1"), tls=trusting)
        wrong = await post(url.replace("hook", "other"), resolve=Names("127.0.0.1"), tls=trusting)
        unknown = await post(url, resolve=Names("127.0.0.1"))
    assert (right.status, right.error) == (200, "")
    (got,) = one.received
    assert (got.server_name, got.headers["host"]) == ("hook.example", f"hook.example:{one.port}")
    for failed in (wrong, unknown):
        assert failed.status is None
        assert "certificate verify failed" in failed.error


async def test_a_name_that_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = socket.getaddrinfo
    hold = os.pipe()

    def getaddrinfo(host: str, *arguments: Any, **named: Any) -> Any:
        asked.append(host)
        if host == "slow.example":
            os.read(hold[0], 1)
        return real("127.0.0.1", *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with receiver() as one, client(limits=SHORT) as sender:
        slow = [sender.post("http://slow.example/", {}, BODY, NOW) for _ in range(100)]
        others = [sender.post(f"http://n{n}.example:{one.port}/", {}, BODY, NOW) for n in range(3)]
        results = await asyncio.gather(*slow, *others)
        os.write(hold[1], b"x")
    assert {one.error for one in results[:100]} == {"no connection within 0.2 s"}
    assert [one.status for one in results[100:]] == [200, 200, 200]
    assert asked.count("slow.example") == 1


def watch_connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that connections are made to, none of which succeeds."""
    tried: list[str] = []

    async def create_connection(
        self: object, factory: object, host: str, port: int, **named: Any
    ) -> Any:
        tried.append(host)
        raise OSError(101, os.strerror(101))

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(type(loop), "create_connection", create_connection)
    return tried


def certificates(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for a server called `name`, and for a client that trusts it."""
    need_openssl()
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)

    def note(_: ssl.SSLObject, asked_for: str | None, context: ssl.SSLContext) -> None:
        context.asked_for = asked_for  # type: ignore[attr-defined]

    server.sni_callback = note
    return server, ssl.create_default_context(cafile=str(certificate))


# The collector of cyclic garbage hardly ever runs in a service at work.

SHORT_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx"
REFUSED = "http://127.0.0.1:9/"


def once_a_connection() -> Answerer:
    """Closes a connection at its second request."""
    answered: set[int] = set()

    async def work(got: Received, writer: asyncio.StreamWriter) -> None:
        if got.connection in answered:
            writer.close()
        else:
            answered.add(got.connection)
            await answer()(got, writer)

    return work


@pytest.mark.parametrize(
    "answerer",
    [
        answer(200),
        answer(503),
        raw(b"nonsense\r\n\r\n"),
        hang,
        raw(SHORT_BODY),
        once_a_connection(),
        None,
    ],
    ids=["taken", "refused", "nonsense", "no answer", "short body", "closed idle", "no connection"],
)
def test_posts_leave_no_reference_cycles(answerer: Answerer | None) -> None:
    async def main() -> list[object]:
        limits = TimeLimits(connect=0.2, answer=0.05, body=0.05)
        async with receiver(answerer or answer(200)) as one, client(limits=limits) as sender:
            url = one.url if answerer else REFUSED
            for _ in range(3):
                await sender.post(url, {}, BODY, NOW)
            gc.collect()
            gc.disable()
            for _ in range(20):
                await sender.post(url, {}, BODY, NOW)
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                gc.collect()
                return list(gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()

    # uvloop is what the service runs on; asyncio's own transports refer to themselves.
    left = uvloop.run(main())
    assert [type(each).__name__ for each in left] == []
