"""What a finished attempt leaves behind."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from bitel.domain.attempts import Media, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.pricing import Bill
from bitel.domain.retry import Finish, Requeue, RetryAt
from bitel.store import balances, call_details, do_not_call, projects
from bitel.store.schema import FINISHED, ledger_entry
from bitel.store.settling import Settlement
from tests.support.factories import NORMAL, answered, settlement

if TYPE_CHECKING:
    from tests.support.store_world import World


@pytest.mark.parametrize(
    ("wanted", "code", "listed"),
    [
        (True, 607, True),
        (True, 603, False),
        (True, 608, False),
        (False, 607, False),
    ],
)
def test_an_unwanted_call_puts_its_number_on_the_do_not_call_list(
    world: World, wanted: bool, code: int, listed: bool
) -> None:
    world.change(unwanted_to_do_not_call=wanted)
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    refused = Finish(CallStatus.ERROR, f"{code} Unwanted")
    done = settlement(claimed, refused, Outcome.REFUSED_FOR_GOOD, sip_code=code)
    assert world.settle(lease, done)
    on_list = world.do(lambda conn: do_not_call.listing(conn, world.project_id))
    assert on_list == ([claimed.e164] if listed else [])
    assert world.call(call_id).reason == f"{code} Unwanted"
    again = world.place(e164=claimed.e164)
    assert world.call(again).status is (CallStatus.ERROR if listed else CallStatus.WAITING)


def test_uncertain_redials_are_counted(world: World) -> None:
    world.place(retry_count=0)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    due = world.clock()
    world.settle(lease, settlement(claimed, RetryAt(due, False, 0, uncertain=1), Outcome.UNCERTAIN))
    (claimed,) = world.claim(lease)
    assert (claimed.rule.uncertain, claimed.rule.retries_left) == (1, 0)
    world.settle(lease, settlement(claimed, Requeue(due)))
    (claimed,) = world.claim(lease)
    assert claimed.rule.uncertain == 1, "what was not dialled changes nothing"


def test_an_answered_call_is_final_and_billed(world: World) -> None:
    world.set_balance(Decimal(100))
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.heard(lease, claimed)

    assert world.settle(lease, answered(claimed)) == {claimed.attempt_id}

    call = world.call(call_id)
    assert call.status is CallStatus.NORMAL
    assert call.executed_at == claimed.started_at + 0.25
    assert (call.bill_seconds, call.price) == (12, Decimal("34.2"))
    assert world.balance() == Decimal("65.8")
    assert sorted(world.ledger()) == [Decimal("-34.2"), Decimal(100)]
    (row,) = world.attempts(call_id)
    assert row.claim == FINISHED
    assert row.outcome is Outcome.ANSWERED
    assert (row.sip_code, row.q850, row.ended_by) == (200, 16, "far")
    assert (row.answered_at, row.ended_at) == (claimed.started_at + 8, claimed.started_at + 20)
    world.clock.advance(1000)
    assert world.claim(lease) == []


@pytest.mark.parametrize("media", [None, Media(), Media(250, 240, "12*#A", 0.125, 3.5)])
def test_what_was_heard_is_kept_with_the_attempt(world: World, media: Media | None) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.heard(lease, claimed)
    done = answered(claimed, price="0")
    world.settle(lease, done._replace(result=done.result._replace(media=media)))
    (row,) = world.attempts(call_id)
    assert row.media == media


def test_an_attempt_is_settled_once(world: World) -> None:
    world.set_balance(Decimal(100))
    world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    assert world.settle(lease, answered(claimed), answered(claimed)) == {claimed.attempt_id}
    assert world.settle(lease, answered(claimed, "50")) == set()

    assert world.balance() == Decimal("65.8")
    assert world.count(ledger_entry) == 2


def test_a_free_answered_attempt_has_its_entry_too(world: World) -> None:
    world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    world.settle(lease, answered(claimed, "0"))

    assert world.ledger() == [Decimal(0)]


@pytest.mark.parametrize(
    "outcome",
    [each for each in Outcome if each is not Outcome.ANSWERED],
    ids=lambda each: each.name,
)
def test_an_attempt_that_is_not_billed_has_no_entry_though_somebody_answered(
    world: World, outcome: Outcome
) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    not_played = settlement(
        claimed,
        RetryAt(world.clock(), spends_retry=False, trouble=1),
        outcome,
        answered_at=claimed.started_at + 8,
    )
    world.settle(lease, not_played)
    (claimed,) = world.claim(lease)
    world.settle(lease, answered(claimed, "2"))

    assert world.call(call_id).price == 2
    assert world.ledger() == [Decimal(-2)]


def test_an_unlimited_project_keeps_a_ledger_and_no_balance(world: World) -> None:
    world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    world.settle(lease, answered(claimed, "34.2"))

    assert world.balance() is None
    assert world.ledger() == [Decimal("-34.2")]
    world.set_balance(Decimal(100))
    assert sum(world.ledger()) == world.balance() == 100


def test_a_retry_is_spent_and_the_call_due_again(world: World) -> None:
    call_id = world.place(retry_count=2)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    due_at = world.clock() + 80

    world.settle(lease, settlement(claimed, RetryAt(due_at, spends_retry=True, trouble=0)))

    assert world.call(call_id).status is CallStatus.WAITING
    assert world.ledger() == []
    world.clock.advance(79.9)
    assert world.claim(lease) == []
    world.clock.advance(0.1)
    (again,) = world.claim(lease)
    assert again.call_id == call_id
    assert (again.rule.retries_left, again.rule.trouble) == (1, 0)


def test_trunk_trouble_is_counted_and_spends_no_retry(world: World) -> None:
    world.place(retry_count=2)
    lease = world.take_over()
    for trouble in (1, 2, 3):
        (claimed,) = world.claim(lease)
        assert claimed.rule.trouble == trouble - 1
        again = RetryAt(world.clock(), spends_retry=False, trouble=trouble)
        world.settle(lease, settlement(claimed, again, Outcome.TRUNK_TROUBLE))
    (claimed,) = world.claim(lease)
    assert (claimed.rule.retries_left, claimed.rule.trouble) == (2, 3)


def test_an_attempt_handed_back_leaves_the_call_as_it_was(world: World) -> None:
    call_id = world.place(retry_count=2)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.settle(
        lease,
        settlement(claimed, RetryAt(world.clock(), spends_retry=False, trouble=4)),
    )
    (claimed,) = world.claim(lease)

    world.settle(lease, settlement(claimed, Requeue(world.clock() + 3), Outcome.NO_ANSWER))

    assert world.attempts(call_id)[-1].outcome is Outcome.CANCELED
    assert world.claim(lease) == []
    world.clock.advance(3)
    (again,) = world.claim(lease)
    assert (again.rule.retries_left, again.rule.trouble) == (2, 4)


@pytest.mark.parametrize(
    "decision", [RetryAt(1.0, spends_retry=True, trouble=0), Requeue(1.0)], ids=["again", "back"]
)
def test_whoever_was_heard_is_never_due_again_whatever_the_decision(
    world: World, decision: RetryAt | Requeue
) -> None:
    call_id = world.place(retry_count=5)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.heard(lease, claimed)

    world.settle(lease, settlement(claimed, decision, Outcome.TRUNK_TROUBLE))

    assert world.call(call_id).status is CallStatus.UNKNOWN
    world.clock.advance(1000)
    assert world.claim(lease) == []


def test_an_error_says_why(world: World) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    world.settle(
        lease, settlement(claimed, Finish(CallStatus.ERROR, "no such number"), Outcome.BAD_NUMBER)
    )

    call = world.call(call_id)
    assert (call.status, call.reason) == (CallStatus.ERROR, "no such number")
    assert (call.bill_seconds, call.price) == (0, Decimal(0))


def test_a_worker_that_was_taken_over_settles_nothing(world: World) -> None:
    world.set_balance(Decimal(100))
    call_id = world.place()
    old = world.take_over("old")
    (claimed,) = world.claim(old)
    new = world.take_over("new")
    before = (world.call(call_id), world.attempts(call_id))

    assert world.settle(old, answered(claimed)) == set()
    assert world.settle(new, answered(claimed)) == set()

    assert (world.call(call_id), world.attempts(call_id)) == before
    assert world.ledger() == [Decimal(100)]


def test_a_settlement_that_names_another_call_is_refused(world: World) -> None:
    first, second = world.place(), world.place()
    lease = world.take_over()
    claimed = {one.call_id: one for one in world.claim(lease)}
    wrong = answered(claimed[first])
    wrong = Settlement(wrong.attempt_id, second, wrong.result, wrong.decision, wrong.bill)

    assert world.settle(lease, wrong) == set()
    assert world.call(second).status is CallStatus.WAITING


@pytest.mark.parametrize("detail", ["busy\0here", "\ud83d half a pair", "x" * 5000, "شلوغ"])
def test_what_a_far_end_says_can_always_be_stored(world: World, detail: str) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    hostile = settlement(
        claimed,
        Finish(CallStatus.ERROR, detail),
        Outcome.REFUSED,
        detail=detail,
        sip_code=99_999_999_999,
        q850=-5,
    )
    assert world.settle(lease, hostile) == {claimed.attempt_id}

    (row,) = world.attempts(call_id)
    assert (row.sip_code, row.q850) == (None, None)
    assert 0 < len(row.detail) <= 200
    assert world.call(call_id).reason == row.detail


def test_many_are_settled_in_one_go(world: World) -> None:
    world.set_balance(Decimal(1000))
    ids = [world.place() for _ in range(30)]
    lease = world.take_over()
    claimed = world.claim(lease)

    offered = [answered(one, "0.0001") for one in claimed[:10]]
    offered += [settlement(one, Finish(CallStatus.USER_BUSY)) for one in claimed[10:20]]
    offered += [settlement(one, RetryAt(world.clock(), True, 0)) for one in claimed[20:]]
    assert len(world.settle(lease, *offered)) == 30

    statuses = [world.call(call_id).status for call_id in ids]
    assert statuses.count(CallStatus.NORMAL) == 10
    assert statuses.count(CallStatus.USER_BUSY) == 10
    assert world.balance() == Decimal("999.999")
    assert len(world.claim(lease)) == 10


@pytest.mark.parametrize(
    ("reserve", "price", "amount", "note"),
    [
        ("10", "9.5", "9.5", ""),
        ("10", "10", "10", ""),
        ("10", "12.25", "10", "12.25 for 12 s, and no more than was reserved"),
    ],
)
def test_the_ledger_says_why_length_and_price_do_not_agree(
    world: World, reserve: str, price: str, amount: str, note: str
) -> None:
    world.do(lambda conn: projects.set_balance(conn, world.project_id, Decimal(50), world.clock()))
    call_id = world.place(reserve=Decimal(reserve))
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.heard(lease, claimed)
    world.settle(lease, answered(claimed, price=price))
    entries = world.do(lambda conn: balances.entries(conn, world.project_id))
    (entry,) = [one for one in entries if one.call_id == call_id]
    assert (-entry.amount, entry.note) == (Decimal(amount), note)
    assert (world.call(call_id).bill_seconds, world.call(call_id).price) == (12, Decimal(amount))


def test_an_answer_without_a_common_codec_is_billed_and_an_error(world: World) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    done = settlement(
        claimed,
        Finish(CallStatus.ERROR),
        Outcome.MEDIA_MISMATCH,
        Bill(1, Decimal("1.5")),
        answered_at=claimed.started_at + 19.5,
    )
    world.settle(lease, done)
    assert world.call(call_id).status is CallStatus.ERROR
    assert (world.call(call_id).bill_seconds, world.call(call_id).price) == (1, Decimal("1.5"))
    assert [-one.amount for one in world.do(lambda c: balances.entries(c, world.project_id))] == [
        Decimal("1.5")
    ]


def test_a_call_that_a_fault_of_ours_cut_off_is_not_billed(world: World) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.heard(lease, claimed)
    done = settlement(
        claimed,
        Finish(CallStatus.UNKNOWN),
        Outcome.INTERRUPTED,
        Bill(12, Decimal("1.5")),
        answered_at=claimed.started_at + 8,
    )
    world.settle(lease, done)
    assert (world.call(call_id).bill_seconds, world.call(call_id).price) == (0, Decimal(0))
    assert world.do(lambda conn: balances.entries(conn, world.project_id)) == []


@pytest.mark.parametrize("caller_id", [None, "+" + "9" * 32])
def test_the_caller_id_that_an_attempt_showed_is_kept(world: World, caller_id: str | None) -> None:
    world.place()
    lease = world.take_over()
    [claimed] = world.claim(lease)
    world.settle(lease, settlement(claimed, NORMAL, caller_id=caller_id))
    found = world.do(lambda conn: call_details.find(conn, world.project_id, claimed.call_id))
    assert found
    assert [each.caller_id for each in found.attempts] == [caller_id]
