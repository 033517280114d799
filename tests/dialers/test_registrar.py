"""Registration: the rules under a fake clock, then the whole against a registrar of the test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from bitel.dialers.registrar import LONGEST_PAUSE, Account, Registration
from bitel.dialers.trunk import Trunk
from bitel.sip import Credentials, RequestDone
from bitel.sip.message import Request
from tests.conftest import FakeClock
from tests.dialers.calling import dialer
from tests.dialers.carrier import Answer, answering, carrier, silent

ACCOUNT = Account(Trunk("carrier.test"), Credentials("acme", "s3cret"), "192.0.2.1:5070")
ADDRESS = ("192.0.2.9", 5060)


@pytest.fixture
def registration(clock: FakeClock) -> Registration:
    return Registration(ACCOUNT, clock, random.Random(3))


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
    ],
)
def test_it_is_refreshed_before_it_expires(
    registration: Registration,
    clock: FakeClock,
    headers: Sequence[tuple[str, str]],
    granted: float,
) -> None:
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
            async with asyncio.timeout(5):
                while not calls.dialer.up:
                    await asyncio.sleep(0.01)
        registers = registrar.of("REGISTER")
    assert len({request.call_id for request in registers}) == 1
    assert len({request.from_tag for request in registers}) == 1
    cseqs = [request.cseq for request in registers]
    assert cseqs == sorted(set(cseqs))
    assert registers[1].header("expires") == "600"
    assert registers[-1].header("expires") == "0"
    assert registers[-1].header("authorization")


async def test_it_stops_in_time_though_nobody_lets_it_go(tmp_path: Path) -> None:
    async with carrier() as registrar:
        async with dialer(
            tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret")
        ) as calls:
            async with asyncio.timeout(5):
                while not calls.dialer.up:
                    await asyncio.sleep(0.01)
            registrar.does["REGISTER"] = silent
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 4


async def test_refused_it_is_down(tmp_path: Path) -> None:
    async with carrier() as registrar:
        registrar.does["REGISTER"] = answering(403)
        async with dialer(
            tmp_path, registrar.uri, register=True, credentials=Credentials("acme", "s3cret")
        ) as calls:
            async with asyncio.timeout(5):
                while not registrar.requests:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert not calls.dialer.up
    assert len(registrar.requests) == 1
