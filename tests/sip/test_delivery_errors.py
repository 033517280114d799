"""ICMP errors: only those that quote a request without a response count, and none ends a call."""

from __future__ import annotations

import pytest

from bitel.sip import DeliveryDoubted, Failed, Provisional
from bitel.sip.grammar import Address
from bitel.sip.message import quoted_branch
from tests.support.sip_bench import FAR, Bench, reply


def test_an_error_that_quotes_an_invite_is_a_doubt_and_no_failure() -> None:
    bench = Bench()
    call_id, _ = bench.invite()
    quoted = bench.last_data[:400]
    for _ in range(3):
        bench.agent.receive_delivery_error(quoted, FAR)
    assert bench.events() == [DeliveryDoubted(call_id, FAR)]
    bench.advance(1.0)
    assert "INVITE" in bench.names(), "the INVITE is repeated as before"


def test_an_error_that_quotes_too_little_changes_nothing() -> None:
    bench = Bench()
    bench.invite()
    data = bench.last_data
    end_of_branch = data.index(b"\r\n", data.index(b";branch="))
    for length in (0, 8, 28, data.index(b";branch=") + 20, end_of_branch):
        bench.agent.receive_delivery_error(data[:length], FAR)
    assert bench.events() == []


def test_an_error_about_another_address_changes_nothing() -> None:
    bench = Bench()
    bench.invite()
    elsewhere = FAR._replace(port=FAR.port + 1)
    bench.agent.receive_delivery_error(bench.last_data, elsewhere)
    assert bench.events() == []


def test_an_error_without_the_branch_changes_nothing() -> None:
    bench = Bench()
    bench.invite()
    branch = quoted_branch(bench.last_data)
    forged = bench.last_data.replace(branch.encode(), b"z9hG4bKforged")
    bench.agent.receive_delivery_error(forged, FAR)
    assert bench.events() == []


@pytest.mark.parametrize("code", [100, 180])
def test_an_error_about_an_invite_with_a_response_changes_nothing(code: int) -> None:
    bench = Bench()
    _, invite = bench.invite()
    data = bench.last_data
    bench.receive(reply(invite, code))
    bench.agent.receive_delivery_error(data, FAR)
    assert not [e for e in bench.events() if not isinstance(e, Provisional)]


def test_only_the_end_of_the_timer_fails_the_call() -> None:
    bench = Bench()
    call_id, _ = bench.invite()
    bench.agent.receive_delivery_error(bench.last_data, FAR)
    bench.run_out()
    failures = [event for event in bench.events() if isinstance(event, Failed)]
    assert [(each.call_id, each.why) for each in failures] == [(call_id, "timeout")]
    assert bench.now >= 32


@pytest.mark.parametrize(
    ("quoted", "branch"),
    [
        (b"BYE x SIP/2.0\r\nVia: SIP/2.0/UDP h;rport;branch=z9hG4bKab12\r\nMax", "z9hG4bKab12"),
        (b"BYE x SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKab12;rport\r\n", "z9hG4bKab12"),
        (b"BYE x SIP/2.0\r\nVia: SIP/2.0/UDP h;rport;branch=z9hG4bKab12", ""),
        (b"\x80\x00\x01", ""),
        (b"", ""),
    ],
)  # fmt: skip
def test_the_branch_is_read_from_the_beginning_of_a_message(quoted: bytes, branch: str) -> None:
    assert quoted_branch(quoted) == branch


def test_an_error_from_an_unknown_address_is_no_fault() -> None:
    Bench().agent.receive_delivery_error(b"\0" * 600, Address("192.0.2.77", 1))
