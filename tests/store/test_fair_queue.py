"""Whose calls are next: lanes first, then projects by turns, inside their calling windows."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitel.domain.calls import CallStatus, Lane
from bitel.store import claims, fair_queue
from tests.support import call_rows

if TYPE_CHECKING:
    from bitel.store.leases import Lease
    from tests.support.store_world import World


def place(world: World, count: int, **more: Any) -> None:
    new = [world.new_call(**more) for _ in range(count)]
    world.do(lambda conn: call_rows.place(conn, new))


def shares(world: World, lease: Lease, limit: int, **more: Any) -> list[int]:
    counts = Counter(one.project_id for one in world.claim(lease, limit, **more))
    return sorted(counts.values(), reverse=True)


def test_projects_share_what_room_there_is(world: World) -> None:
    worlds = [world, world.another("b"), world.another("c")]
    for one, count in zip(worlds, (50, 5, 1), strict=True):
        place(one, count, lane=Lane.BATCH)
    lease = world.take_over()

    assert shares(world, lease, 9) == [4, 4, 1]
    assert shares(world, lease, 9) == [8, 1]
    assert shares(world, lease, 100) == [38]


def test_within_a_project_the_longest_due_goes_first(world: World) -> None:
    late = world.place(requested_at=world.clock() - 1)
    later = world.place(requested_at=world.clock())
    early = world.place(requested_at=world.clock() - 9)
    other = world.another("b")
    others = other.place()

    claimed = [one.call_id for one in world.claim(world.take_over())]

    assert sorted(claimed, key=[early, late, later, others].index) == [early, late, later, others]
    mine = [call_id for call_id in claimed if call_id != others]
    assert mine == [early, late, later]


def test_calls_due_at_one_moment_are_each_picked_once(world: World) -> None:
    # More rounds than one: what the other project leaves goes to this one, after its last.
    other = world.another("little")
    other.place()
    same = {world.place() for _ in range(5)}

    picked = world.claim(world.take_over(), limit=5)

    assert len(picked) == len({claim.call_id for claim in picked}) == 5
    assert len(same & {claim.call_id for claim in picked}) == 4


def test_single_slots_go_round(world: World) -> None:
    worlds = [world, world.another("b"), world.another("c")]
    for one in worlds:
        place(one, 3)
    lease = world.take_over()
    last: dict[Lane, str] = {}
    served = []
    for _ in range(9):
        (claimed,) = world.claim(lease, 1, after_project=last)
        last = {Lane.SINGLE: claimed.project_id}
        served.append(claimed.project_id)

    assert served == sorted({one.project_id for one in worlds}) * 3


def test_each_lane_has_turns_of_its_own(world: World) -> None:
    b, c = world.another("b"), world.another("c")
    place(world, 5)
    place(b, 5)
    lease = world.take_over()
    last: dict[Lane, str] = {}
    served = []
    for _ in range(4):
        place(c, 1, lane=Lane.OTP)
        for _ in range(2):
            (claimed,) = world.claim(lease, 1, after_project=last)
            last[claimed.lane] = claimed.project_id
            served.append(claimed.project_id)

    assert Counter(served) == {c.project_id: 4, world.project_id: 2, b.project_id: 2}


def test_lanes_come_before_turns(world: World) -> None:
    other = world.another("b")
    place(world, 3, lane=Lane.BATCH)
    place(other, 2, lane=Lane.SINGLE)
    place(world, 1, lane=Lane.OTP)

    lanes = [one.lane for one in world.claim(world.take_over(), 5)]

    assert lanes == [Lane.OTP, Lane.SINGLE, Lane.SINGLE, Lane.BATCH, Lane.BATCH]


def test_more_projects_than_slots(world: World) -> None:
    worlds = [world, *(world.another(f"p{n}") for n in range(6))]
    for one in worlds:
        place(one, 2)
    lease = world.take_over()
    last: dict[Lane, str] = {}
    served = Counter[str]()
    for _ in range(7):
        claimed = world.claim(lease, 2, after_project=last)
        last = {Lane.SINGLE: claimed[-1].project_id}
        served.update(one.project_id for one in claimed)

    assert served == {one.project_id: 2 for one in worlds}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    waiting=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    limits=st.lists(st.integers(0, 12), min_size=1, max_size=4),
)
def test_nobody_gets_less_than_a_fair_share_and_no_room_is_wasted(
    sqlite_world: World, waiting: list[int], limits: list[int]
) -> None:
    world = sqlite_world
    lease = world.take_over()
    world.claim(lease, 10_000)  # what an earlier example has left
    name = world.clock.advance(1)
    left = {}
    for n, count in enumerate(waiting):
        one = world.another(f"{name}-{n}")
        place(one, count)
        left[one.project_id] = count
    last: dict[Lane, str] = {}
    for limit in limits:
        claimed = world.claim(lease, limit, after_project=last)
        got = Counter(one.project_id for one in claimed)
        assert len(claimed) == min(limit, sum(left.values()))
        assert len({one.call_id for one in claimed}) == len(claimed)
        for project_id, count in left.items():
            unserved = count - got[project_id]
            assert unserved >= 0
            if unserved:  # it could have used more, so nobody may have got over one more than it
                assert max(got.values(), default=0) <= got[project_id] + 1
            left[project_id] = unserved
        last |= {one.lane: one.project_id for one in claimed}


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_outside_its_window_a_project_makes_no_calls_but_passwords(world: World) -> None:
    world.clock.now = at("2026-11-20T22:00")
    world.change(window="09:00-21:00 UTC")
    opening = at("2026-11-21T09:00")
    place(world, 3, lane=Lane.BATCH)
    place(world, 2, lane=Lane.SINGLE)
    place(world, 1, lane=Lane.OTP)
    other = world.another("b")
    place(other, 1, lane=Lane.BATCH)
    lease = world.take_over()

    claimed = world.claim(lease)

    assert [(one.lane, one.project_id) for one in claimed] == [
        (Lane.OTP, world.project_id),
        (Lane.BATCH, other.project_id),
    ]
    assert (
        world.do(lambda conn: claims.next_due(conn, "main", world.clock()).earliest)
        == world.clock() + 14_400
    )
    world.clock.now = opening - 1
    assert world.claim(lease) == []
    world.clock.now = opening
    assert world.claim(lease) == []  # they lived for four hours


def test_what_lives_until_the_window_opens_is_called_then(world: World) -> None:
    world.clock.now = at("2026-11-20T22:00")
    world.change(window="09:00-21:00 UTC")
    opening = at("2026-11-21T09:00")
    place(world, 3, lane=Lane.BATCH, expires_at=opening + 60)
    lease = world.take_over()

    assert world.claim(lease) == []
    assert world.do(lambda conn: claims.next_due(conn, "main", world.clock()).earliest) == opening
    world.clock.now = opening
    assert len(world.claim(lease)) == 3


def test_what_expires_before_the_window_opens_does_so_in_time(world: World) -> None:
    world.clock.now = at("2026-11-20T22:00")
    world.change(window="09:00-21:00 UTC")
    call_id = world.place(expires_at=world.clock() + 60)
    assert world.claim(world.take_over()) == []
    world.clock.advance(60)

    assert world.do(lambda conn: claims.expire(conn, "main", world.clock())) == 1
    assert world.call(call_id).status is CallStatus.EXPIRED


def test_a_closed_project_holds_up_no_other_however_much_it_has(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_queue, "CHUNK", 2)
    world.clock.now = at("2026-11-20T22:00")
    world.change(window="09:00-21:00 UTC")
    place(world, 7)
    other = world.another("b")
    place(other, 3)
    lease = world.take_over()

    for _ in range(3):
        (claimed,) = world.claim(lease, 1)
        assert claimed.project_id == other.project_id
    now = world.clock()
    assert (
        world.do(lambda conn: claims.next_due(conn, "main", world.clock()).earliest) == now
    )  # one is left to postpone
    assert world.claim(lease, 1) == []
    later = world.do(lambda conn: claims.next_due(conn, "main", world.clock()).earliest)
    assert later is not None
    assert later > now


def test_an_expired_call_is_ended_instead_of_claimed(world: World) -> None:
    expired = world.place(expires_at=world.clock())
    fine = world.place()

    assert [one.call_id for one in world.claim(world.take_over())] == [fine]
    assert world.call(expired).status is CallStatus.EXPIRED
