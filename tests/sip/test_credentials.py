"""Whom our credentials are for: the trunk, in one realm, and nobody behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitel.sip import Answered, Credentials, Failed
from tests.support.sip_bench import ANSWER, INVITATION, Bench, reply

OURS = Credentials("us", "s3cret")
CARRIER = 'Proxy-Authenticate: Digest realm="carrier", nonce="n1"'
CALLEE = 'WWW-Authenticate: Digest realm="callee", nonce="n2"'


def called(bench: Bench, credentials: Credentials = OURS, *trusted: str) -> str:
    """A call that the trunk has asked credentials for, and got."""
    invitation = INVITATION._replace(credentials=credentials, trusted=frozenset(trusted))
    call_id, invite = bench.invite(invitation)
    bench.receive(reply(invite, 407, headers=(CARRIER,)))
    return call_id


@pytest.mark.parametrize("rings", [True, False])
def test_another_realm_gets_nothing_once_the_trunk_has_asked(rings: bool) -> None:
    bench = Bench()
    call_id = called(bench)
    _, second = bench.sent()
    assert 'realm="carrier"' in second.request.header("proxy-authorization")
    bench.receive(reply(second.request, 180 if rings else 100))
    bench.events()
    bench.receive(reply(second.request, 401, headers=(CALLEE,)))
    bench.one("ACK")
    expected = Failed(
        call_id, 401, None, "Phrase", "auth", rings, progress_for=None if rings else 0.0
    )
    assert bench.events() == [expected]
    bench.run_out()


def test_nor_one_beside_the_trunks_own() -> None:
    bench = Bench()
    called(bench)
    _, second = bench.sent()
    stale = CARRIER.replace('"n1"', '"n3", stale=true')
    bench.receive(reply(second.request, 407, headers=(CALLEE.replace("WWW", "Proxy"), stale)))
    _, third = bench.sent()
    (answer,) = third.request.headers["proxy-authorization"]
    assert 'realm="carrier"' in answer


def test_a_realm_that_is_set_is_the_only_one() -> None:
    bench = Bench()
    call_id = called(bench, replace(OURS, realm="other"))
    bench.one("ACK")
    assert bench.events() == [Failed(call_id, 407, None, "Phrase", "auth", False)]
    called(bench, replace(OURS, realm="carrier"))
    assert bench.names() == ["ACK", "INVITE"]


@pytest.mark.parametrize(
    ("contact", "routes", "trusted", "sent"),
    [
        ("192.0.2.9", (), (), True),
        ("192.0.2.9:5099", (), (), True),
        ("sbc.carrier.test", (), (), True),
        ("198.51.100.5", (), (), False),
        ("198.51.100.5", (), ("198.51.100.5",), True),
        ("198.51.100.5", ("Record-Route: <sip:192.0.2.9;lr>",), (), True),
        ("192.0.2.9", ("Record-Route: <sip:198.51.100.5;lr>",), (), False),
    ],
)
def test_who_is_reached_past_the_trunk_gets_no_digest(
    contact: str, routes: tuple[str, ...], trusted: tuple[str, ...], sent: bool
) -> None:
    bench = Bench()
    call_id = called(bench, OURS, *trusted)
    invite = bench.sent()[-1].request
    headers = (f"Contact: <sip:far@{contact}>", *routes)
    bench.receive(reply(invite, 200, ANSWER, headers=headers))
    ack = bench.one("ACK").request
    assert any(isinstance(event, Answered) for event in bench.events())
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE").request
    assert ("proxy-authorization" in ack.headers, "proxy-authorization" in bye.headers) == (
        sent,
        sent,
    )
    bench.receive(reply(bye, 401, headers=('WWW-Authenticate: Digest realm="carrier", nonce="m"',)))
    assert bench.names() == (["BYE"] if sent else [])


def test_a_reliable_response_gets_none_past_the_trunk_either() -> None:
    bench = Bench()
    called(bench)
    invite = bench.sent()[-1].request
    headers = ("Contact: <sip:far@198.51.100.5>", "Require: 100rel", "RSeq: 7")
    bench.receive(reply(invite, 183, headers=headers))
    prack = bench.one("PRACK")
    assert prack.destination.host == "198.51.100.5"
    assert "proxy-authorization" not in prack.request.headers
