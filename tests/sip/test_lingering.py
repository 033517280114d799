"""What is kept of a call that is over: its transactions linger for up to 32 s, many at a time."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest

from bitel.sip import Answered, Ended, Invitation, SessionDescription
from bitel.sip.invite_client import InviteClient
from bitel.sip.invite_dialog import InviteDialog
from bitel.sip.transaction import ClientTransaction
from tests.support.sip_bench import ANSWER, INVITATION, Bench, reply

CALL = (Invitation, SessionDescription, InviteClient, InviteDialog, Answered)


def held_by(root: object) -> Iterator[object]:
    """Everything that `root` keeps alive, but for classes, functions and modules."""
    seen: dict[int, object] = {}
    waiting: list[object] = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type) or callable(one):
            continue
        if type(one).__module__ == "builtins" and type(one).__name__ == "module":
            continue
        seen[id(one)] = one
        yield one
        waiting += gc.get_referents(one)


def answered(bench: Bench) -> str:
    """A call that rang, was answered and acknowledged; returns its handle."""
    call_id, invite = bench.invite()
    for code, body in ((100, ""), (180, ""), (200, ANSWER)):
        bench.receive(reply(invite, code, body))
    assert [sent.name for sent in bench.sent()] == ["ACK"]
    bench.events()
    return call_id


def hung_up(bench: Bench, call_id: str) -> None:
    bench.agent.hang_up(call_id, bench.now)
    bench.receive(reply(bench.one("BYE").request, 200))
    assert [type(event) for event in bench.events()] == [Ended]


def test_a_call_that_is_over_is_held_by_nothing_that_lingers() -> None:
    bench = Bench()
    hung_up(bench, answered(bench))
    kept = list(held_by(bench.agent))
    lingering = [one.state.value for one in kept if isinstance(one, ClientTransaction)]
    assert sorted(lingering) == ["accepted", "completed"]
    assert [one for one in kept if isinstance(one, CALL)] == []


def test_a_session_is_held_while_it_lasts() -> None:
    bench = Bench()
    answered(bench)
    assert {type(one) for one in held_by(bench.agent) if isinstance(one, CALL)} == {
        InviteDialog,
        SessionDescription,
    }


@pytest.mark.parametrize("code", [486, 200])
def test_a_call_that_failed_is_held_by_nothing_that_lingers(code: int) -> None:
    """Refused, or answered with nothing that could be used."""
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, code))
    bench.sent()
    bench.events()
    assert bench.agent.counts().client_transactions > 0
    assert [one for one in held_by(bench.agent) if isinstance(one, Invitation)] == []


def test_what_lingers_is_small() -> None:
    """Bytes for each call whose INVITE waits for repeated answers, and for each that failed."""
    calls = 300

    def end_many(bench: Bench) -> None:
        for number in range(calls):
            destination = INVITATION._replace(request_uri=f"sip:+98912{number:07}@192.0.2.9")
            call_id, invite = bench.invite(destination)
            if number % 2:
                bench.receive(reply(invite, 486))
            else:
                bench.receive(reply(invite, 200, ANSWER))
                bench.agent.hang_up(call_id, bench.now)
                bye = bench.sent()[-1].request
                bench.receive(reply(bye, 200))
            bench.sent()
            bench.events()
        bench.advance(6)

    end_many(Bench())
    bench = Bench()
    gc.collect()
    tracemalloc.start()
    try:
        end_many(bench)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert bench.agent.counts().client_transactions == calls
    assert kept / calls < 2_500
    bench.run_out()


def test_another_phone_that_answers_late_is_hung_up_still() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER))
    (first,) = bench.sent()
    bench.events()
    hung_up(bench, call_id)
    bench.advance(20)
    bench.receive(reply(invite, 200, ANSWER, tag="other"))
    ack, bye = bench.sent()
    assert (ack.name, bye.name) == ("ACK", "BYE")
    assert ack.request.to_tag == bye.request.to_tag == "other"
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.one("ACK").data == first.data
    bench.run_out()
