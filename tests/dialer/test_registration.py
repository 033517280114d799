"""Registration: the rules under a fake clock, then the whole against a registrar of the test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from bitel.dialer.registration import LONGEST_EXPIRY, LONGEST_PAUSE, Registration
from bitel.dialer.resolver import Resolver
from bitel.dialer.trunk import Trunk
from bitel.dialer.trunk_monitor import TrunkMonitor
from bitel.domain.attempts import Outcome
from bitel.sip import Credentials, OutgoingRequest, RequestDone
from bitel.sip.grammar import Address, Transport
from bitel.sip.message import Request
from tests.support.carrier import Answer, answering, carrier, silent
from tests.support.clocks import FakeClock
from tests.support.dns_server import dns_server
from tests.support.sip_dialer import dialer
from tests.support.waiting import until

HERE = {Transport.UDP: "192.0.2.1:5070", Transport.TCP: "192.0.2.1:5070"}
ADDRESS = Address("192.0.2.9", 5060)


@pytest.fixture
def here() -> dict[Transport, str]:
    return dict(HERE)


@pytest.fixture
def registration(clock: FakeClock, here: dict[Transport, str]) -> Registration:
    return Registration(
        Trunk("carrier.test"),
        Credentials("acme", "s3cret"),
        lambda transport: here[transport],
        clock,
        rng=random.Random(3),
    )


def done(
    code: int,
    *headers: tuple[str, str],
    why: Literal["response", "timeout", "transport"] = "response",
    cseq: int = 1,
) -> RequestDone:
    return RequestDone("call", code, "", headers, why, cseq, "tag")


def test_the_first_register(registration: Registration) -> None:
    request = registration.request(ADDRESS)
    assert (request.method, request.request_uri) == ("REGISTER", "sip:carrier.test")
    assert request.from_uri == request.to_uri == "sip:acme@carrier.test"
    assert dict(request.headers) == {"Contact": "<sip:acme@192.0.2.1:5070>", "Expires": "600"}
    assert not registration.valid


def test_the_contact_says_the_transport_that_we_came_by(registration: Registration) -> None:
    request = registration.request(Address("192.0.2.9", 5060, Transport.TCP))
    assert dict(request.headers)["Contact"] == "<sip:acme@192.0.2.1:5070;transport=tcp>"
    bound = ("contact", "<sip:acme@192.0.2.1:5070;transport=tcp>;expires=90")
    assert registration.receive(done(200, ("contact", "<sip:o@192.0.2.7>;expires=7"), bound)) > 70


def test_a_new_address_is_bound_and_the_old_one_taken_back(
    registration: Registration, here: dict[Transport, str]
) -> None:
    registration.request(ADDRESS)
    registration.receive(done(200))
    assert not registration.stale
    here[Transport.UDP] = "198.51.100.7:5070"
    again = registration.request(ADDRESS)
    assert dict(again.headers)["Contact"] == "<sip:acme@198.51.100.7:5070>"
    registration.receive(done(200, cseq=2))
    assert registration.stale
    drop = registration.drop_stale(ADDRESS)
    assert dict(drop.headers) == {"Contact": "<sip:acme@192.0.2.1:5070>", "Expires": "0"}
    assert (drop.call_id, drop.cseq) == ("call", 3)
    assert not registration.stale
    assert registration.valid
    leave = registration.leave(ADDRESS)
    assert dict(leave.headers) == {"Contact": "<sip:acme@198.51.100.7:5070>", "Expires": "0"}
    assert leave.cseq is not None
    assert leave.cseq > 5, "the one before may have been sent anew, being challenged"


def test_what_expired_meanwhile_is_not_taken_back(
    registration: Registration, here: dict[Transport, str], clock: FakeClock
) -> None:
    registration.request(ADDRESS)
    registration.receive(done(200))
    clock.advance(601)
    here[Transport.UDP] = "198.51.100.7:5070"
    registration.request(ADDRESS)
    registration.receive(done(200))
    assert not registration.stale


@pytest.mark.parametrize(
    ("headers", "granted"),
    [
        ((), 600),
        ((("expires", "120"),), 120),
        ((("contact", "<sip:acme@192.0.2.1:5070>;expires=90"), ("expires", "120")), 90),
        (
            (
                ("contact", "<sip:acme@192.0.2.77:5060>;expires=30"),
                ("contact", '"x" <sip:acme@192.0.2.1:5070>;q=1;Expires=60'),
            ),
            60,
        ),
        ((("contact", "<sip:acme@192.0.2.1:5070>;expires=99999999999999"),), 600),
        (
            (
                ("contact", "<sip:other@192.0.2.77"),
                ("contact", '"never closed <sip:other@192.0.2.78>;expires=7'),
                ("contact", "<sip:acme@192.0.2.1:5070>;expires=60"),
            ),
            60,
        ),
        ((("contact", "<sip:acme@192.0.2.1:5070"), ("expires", "120")), 120),
        ((("contact", "*"), ("expires", "soon")), 600),
        ((("contact", "*"),), 600),
        ((("contact", ""), ("contact", ",,;=<>"), ("expires", "-1")), 600),
        ((("contact", "<sip:acme@192.0.2.1:5070>;expires=;expires"),), 600),
    ],
)
def test_it_is_refreshed_before_it_expires(
    registration: Registration,
    clock: FakeClock,
    headers: Sequence[tuple[str, str]],
    granted: float,
) -> None:
    registration.request(ADDRESS)
    pause = registration.receive(done(200, *headers, cseq=2))
    assert granted * 0.8 <= pause <= granted * 0.9
    clock.advance(granted - 1)
    assert registration.valid
    clock.advance(1)
    assert not registration.valid
    again = registration.request(ADDRESS)
    assert (again.call_id, again.from_tag, again.cseq) == ("call", "tag", 3)


def test_too_brief_an_interval_is_asked_for_anew_at_once(registration: Registration) -> None:
    assert registration.receive(done(423, ("min-expires", "1800"))) == 0
    assert dict(registration.request(ADDRESS).headers)["Expires"] == "1800"
    # The same again would go on for ever.
    assert registration.receive(done(423, ("min-expires", "1800"))) == 5
    assert registration.receive(done(423, ("min-expires", "much"))) == 10


@pytest.mark.parametrize("headers", [(), (("min-expires", "much"),), (("min-expires", ""),)])
def test_too_brief_by_how_much_is_not_said(
    registration: Registration, headers: Sequence[tuple[str, str]]
) -> None:
    for pause, asked in ((5, "1200"), (10, "2400"), (20, "4800")):
        assert registration.receive(done(423, *headers)) == pause
        assert dict(registration.request(ADDRESS).headers)["Expires"] == asked
    for _ in range(9):
        registration.receive(done(423, *headers))
    assert dict(registration.request(ADDRESS).headers)["Expires"] == str(LONGEST_EXPIRY)


def test_failures_back_off(registration: Registration) -> None:
    pauses = [registration.receive(done(403)) for _ in range(9)]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    registration.receive(done(200))
    assert registration.receive(done(503, ("retry-after", "60"))) == 60
    assert registration.receive(done(503, ("retry-after", "4000000000"))) == LONGEST_PAUSE


def test_a_binding_outlives_silence_but_no_refusal(
    registration: Registration, clock: FakeClock
) -> None:
    registration.receive(done(200))
    registration.receive(done(408, why="timeout"))
    assert registration.valid
    registration.receive(done(403))
    assert not registration.valid


def test_granted_nothing(registration: Registration) -> None:
    assert registration.receive(done(200, ("expires", "0"))) == 5
    assert not registration.valid


def challenged(then: Answer) -> object:
    def respond(request: Request) -> Sequence[Answer]:
        if request.header("authorization"):
            return [then]
        return [Answer(401, [("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth"')])]

    return respond


async def test_a_dialer_is_up_once_registered_and_leaves_at_the_end(tmp_path: Path) -> None:
    async with carrier() as registrar:
        registrar.does["REGISTER"] = challenged(Answer(200, [("Expires", "60")]))  # type: ignore[assignment]
        async with dialer(
            tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret")
        ) as calls:
            assert not calls.dialer.up
            await until(lambda: calls.dialer.up, 5)
        registers = registrar.of("REGISTER")
    assert len({request.call_id for request in registers}) == 1
    assert len({request.from_tag for request in registers}) == 1
    cseqs = [request.cseq for request in registers]
    assert cseqs == sorted(set(cseqs))
    assert registers[1].header("expires") == "600"
    assert registers[-1].header("expires") == "0"
    assert registers[-1].header("authorization")


async def test_bindings_that_cannot_be_read_end_no_registration(tmp_path: Path) -> None:
    bindings = [("Contact", "<sip:other@192.0.2.77"), ("Contact", '"x <sip:y@z>'), ("Expires", "2")]
    async with carrier() as registrar:
        registrar.does["REGISTER"] = lambda _: [Answer(200, bindings)]
        async with dialer(
            tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret")
        ) as calls:
            await until(lambda: calls.dialer.up)
            await until(lambda: len(registrar.of("REGISTER")) >= 2)
            assert calls.dialer.up
            assert (await calls.call()).outcome is Outcome.ANSWERED


async def test_of_several_workers_one_registers_and_another_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.dialer.registration.TURN_INTERVAL", 0.05)
    first = True
    async with carrier() as registrar:
        registrar.does["REGISTER"] = answering(200)
        async with dialer(
            tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret"),
            registers=lambda: first,
        ):  # fmt: skip
            await until(lambda: len(registrar.of("REGISTER")) == 1)
            first = False
            async with dialer(
                tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret"),
                registers=lambda: first,
            ) as other:  # fmt: skip
                await until(lambda: other.dialer.up)
                assert len(registrar.of("REGISTER")) == 1
                first = True
                await until(lambda: len(registrar.of("REGISTER")) == 2)
    contacts = {request.header("contact") for request in registrar.of("REGISTER")[:2]}
    assert len(contacts) == 2


async def test_an_unexpected_error_is_logged_and_registers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bitel.dialer.trunk_monitor.RESTART_PAUSE", 0.01)
    receive = Registration.receive

    def failing_once(registration: Registration, answer: RequestDone) -> float:
        monkeypatch.setattr(Registration, "receive", receive)
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(Registration, "receive", failing_once)
    async with (
        carrier() as registrar,
        dialer(
            tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret")
        ) as calls,
    ):
        await until(lambda: calls.dialer.up)
        assert (await calls.call()).outcome is Outcome.ANSWERED
    said = "".join(capsys.readouterr())
    assert "task_failed" in said
    assert "RuntimeError: unforeseen" in said


async def test_an_unexpected_error_ends_no_pings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bitel.dialer.trunk_monitor.RESTART_PAUSE", 0.01)
    failures = [RuntimeError("unforeseen")] * 2
    options_to = TrunkMonitor._options_to

    def failing(carriers: TrunkMonitor, address: Address, sent_by: str) -> OutgoingRequest:
        if failures:
            raise failures.pop()
        return options_to(carriers, address, sent_by)

    monkeypatch.setattr(TrunkMonitor, "_options_to", failing)
    async with carrier() as only, dialer(tmp_path, only.uri, ping_interval=0.02):
        await until(lambda: len(only.of("OPTIONS")) >= 2)
    assert "ping_failed" in "".join(capsys.readouterr())


async def test_it_stops_in_time_though_nobody_lets_it_go(tmp_path: Path) -> None:
    async with carrier() as registrar:
        async with dialer(
            tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret")
        ) as calls:
            await until(lambda: calls.dialer.up, 5)
            registrar.does["REGISTER"] = silent
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 4


async def test_refused_it_is_down(tmp_path: Path) -> None:
    async with carrier() as registrar:
        registrar.does["REGISTER"] = answering(403)
        with capture_logs() as logs:
            async with dialer(
                tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret")
            ) as calls:
                await until(lambda: [each["event"] for each in logs] == ["registration_failed"])
                assert not calls.dialer.up
    assert len(registrar.requests) == 1


async def test_a_new_address_of_ours_reaches_the_carrier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ["127.0.0.1"]
    monkeypatch.setattr("bitel.dialer.local_address.address_toward", lambda _: ours[0])
    monkeypatch.setattr("bitel.dialer.local_address.CHECK_INTERVAL", 0.05)
    async with carrier() as registrar:
        async with dialer(
            tmp_path,
            registrar.uri,
            bind=("0.0.0.0", 0),
            register=True,
            credentials=Credentials("acme", "s3cret"),
        ) as calls:
            await until(lambda: calls.dialer.up)
            ours[0] = "127.0.0.2"
            await until(lambda: len(registrar.of("REGISTER")) == 3)
            assert (await calls.call()).outcome is Outcome.ANSWERED
        first, second, third, last = registrar.of("REGISTER")
    (invite,) = registrar.of("INVITE")
    assert [each.header("expires") for each in (first, second, third, last)] == [
        "600",
        "600",
        "0",
        "0",
    ]
    assert first.header("contact") == third.header("contact")
    assert second.header("contact") == last.header("contact")
    for header in (second.header("contact"), second.header("via"), *invite.values("via")):
        assert "127.0.0.2:" in header
    assert "@127.0.0.2" in invite.header("from")
    assert b"c=IN IP4 127.0.0.2" in invite.body
    assert len({each.call_id for each in registrar.of("REGISTER")}) == 1
    cseqs = [each.cseq for each in registrar.of("REGISTER")]
    assert cseqs == sorted(set(cseqs))


async def test_where_nobody_is_there_the_next_address_is_tried(tmp_path: Path) -> None:
    async with carrier(transport=Transport.TCP) as registrar, dns_server() as zone:
        zone.add(
            "_sip._tcp.c.test",
            "SRV",
            "1 1 9 host.c.test.",
            f"2 1 {registrar.port} host.c.test.",
        )
        zone.add("host.c.test", "A", "127.0.0.1")
        async with dialer(
            tmp_path,
            "sip:c.test;transport=tcp",
            register=True,
            credentials=Credentials("acme", "s3cret"),
            targets=Resolver(FakeClock(), resolver=zone.resolver()),
        ) as calls:
            await until(lambda: calls.dialer.up, timeout=4)
    assert registrar.of("REGISTER")[0].uri == "sip:c.test"
