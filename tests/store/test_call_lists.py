"""Lists of calls and campaigns hold what their filters say, page by page, in both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, update

from bitel.domain.calls import CallStatus
from bitel.domain.campaign_json import CampaignPhase
from bitel.domain.ids import first_id_at, new_id, new_ids
from bitel.store import call_lists, campaigns
from bitel.store.call_lists import AFTER_LAST_ID, CallFilter, Page, Span
from bitel.store.campaigns import Campaign
from bitel.store.schema import call, campaign
from tests.support.store_world import World

if TYPE_CHECKING:
    from bitel.store.call_lists import ListedCall

STATUSES = [CallStatus.WAITING, CallStatus.NORMAL, CallStatus.ERROR]
NUMBERS = ["+989120000001", "+989120000002"]
REFERENCES = [None, "a", "b"]
CAMPAIGNS = [None, f"{1:032x}", f"{2:032x}"]

ONE = st.tuples(
    st.sampled_from(STATUSES),
    st.sampled_from(NUMBERS),
    st.sampled_from(REFERENCES),
    st.sampled_from(CAMPAIGNS),
)
FILTER = st.builds(
    CallFilter,
    st.none() | st.frozensets(st.sampled_from(STATUSES), min_size=1),
    st.none() | st.sampled_from(NUMBERS),
    st.none() | st.sampled_from(["a", "b"]),
    st.none() | st.sampled_from([f"{1:032x}", f"{2:032x}"]),
)


def fits(row: dict[str, Any], wanted: CallFilter) -> bool:
    return (
        (wanted.statuses is None or row["status"] in wanted.statuses)
        and wanted.e164 in (None, row["e164"])
        and wanted.reference in (None, row["reference"])
        and wanted.campaign_id in (None, row["campaign_id"])
    )


def row_of(world: World, number: int, **columns: Any) -> dict[str, Any]:
    at = world.clock() + number
    return {
        "id": new_id(at),
        "project_id": world.project_id,
        "dialer_id": "main",
        "phone_number": "0912",
        "recording_id": world.recording_id,
        "lane": 2,
        "retry_count": 0,
        "retries_left": 0,
        "retry_interval": 60,
        "requested_at": at,
        "expires_at": at + 60,
        "trouble": 0,
        "attempts": 0,
        "executed_at": 0.0,
        "bill_seconds": 0,
        "price": 0,
        "reason": "",
        "e164": NUMBERS[0],
        "status": 0,
        **columns,
    }


def campaigns_of(world: World) -> dict[str | None, str | None]:
    """Two campaigns of the project, by the ids that stand for them in examples."""
    at = world.clock() - 1
    made: dict[str | None, str | None] = {None: None}
    for number in (1, 2):
        new = Campaign(new_id(at), world.project_id, "main", world.recording_id, at, 1)
        world.do(lambda conn: campaigns.add(conn, new))  # noqa: B023
        made[f"{number:032x}"] = new.id
    return made


def pages(find: Callable[[Span], Page[Any]], span: Span) -> Iterator[Page[Any]]:
    for _ in range(1000):
        page = find(span)
        yield page
        if page.next_before is None:
            return
        assert page.next_before < span.before  # each page gets further
        span = Span(span.first, page.next_before)
    raise AssertionError("the list does not end")


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(ONE, max_size=25), FILTER, st.integers(1, 6), st.integers(1, 30),
    st.integers(0, 25), st.integers(0, 25),
)  # fmt: skip
def test_pages_hold_all_calls_that_fit_and_no_others(
    world: World,
    placed: list[tuple[Any, ...]],
    wanted: CallFilter,
    limit: int,
    most_read: int,
    since: int,
    until: int,
) -> None:
    world = world.another(
        f"shop {new_id(world.clock())}"
    )  # of another project than the examples before
    stranger = world.another(f"shop {new_id(world.clock() + 1)}")
    mine, others = campaigns_of(world), campaigns_of(stranger)
    wanted = replace(wanted, campaign_id=mine[wanted.campaign_id])
    names = ("status", "e164", "reference")
    rows = [
        row_of(world, number, **dict(zip(names, one, strict=False)), campaign_id=mine[one[3]])
        for number, one in enumerate(placed)
    ]
    theirs = [
        row_of(stranger, number, **dict(zip(names, one, strict=False)), campaign_id=others[one[3]])
        for number, one in enumerate(placed)
    ]
    if rows:
        world.do(lambda conn: conn.execute(insert(call), [*rows, *theirs]))
    now = world.clock()
    span = Span(first_id_at(now + since), first_id_at(now + until))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_lists, "MOST_READ", most_read)
        found: list[ListedCall] = []
        for page in pages(
            lambda part: world.do(
                lambda conn: call_lists.find_calls(conn, world.project_id, wanted, part, limit)
            ),
            span,
        ):
            assert len(page.entries) <= limit
            found += page.entries
    expected = [row for row in reversed(rows[since:until]) if fits(row, wanted)]
    assert [one.call.id for one in found] == [row["id"] for row in expected]
    assert [one.reference for one in found] == [row["reference"] for row in expected]


def test_a_page_reads_few_calls_and_says_that_more_follow(world: World) -> None:
    rows = [row_of(world, number, reference="a") for number in range(20)]
    rows[0]["status"] = int(CallStatus.UNKNOWN)
    world.do(lambda conn: conn.execute(insert(call), rows))
    wanted = CallFilter(frozenset({CallStatus.UNKNOWN}), reference="a")

    def find(span: Span) -> Page[ListedCall]:
        return world.do(lambda conn: call_lists.find_calls(conn, world.project_id, wanted, span, 5))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_lists, "MOST_READ", 8)
        first, second, third = pages(find, Span())
    assert (first.entries, second.entries) == ([], [])
    assert first.next_before == rows[12]["id"]
    assert second.next_before == rows[4]["id"]
    assert [one.call.id for one in third.entries] == [rows[0]["id"]]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(*(st.sampled_from([None, -5.0, 5.0]) for _ in range(4))), min_size=1, max_size=12
    ),
    st.none() | st.frozensets(st.sampled_from(list(CampaignPhase)), min_size=1),
    st.integers(1, 5),
    st.integers(1, 15),
)
def test_campaigns_are_listed_by_their_state(
    world: World,
    placed: list[tuple[float | None, ...]],
    phases: frozenset[CampaignPhase] | None,
    limit: int,
    most_read: int,
) -> None:
    world = world.another(f"shop {new_id(world.clock())}")
    now = world.clock()
    ids = new_ids(now, len(placed))

    def add(conn: Any) -> None:
        for id_, (canceled, finished, paused, start) in zip(ids, placed, strict=True):
            new = Campaign(id_, world.project_id, "main", world.recording_id, now, 1,
                           start_at=None if start is None else now + start)  # fmt: skip
            campaigns.add(conn, new)
            conn.execute(
                update(campaign)
                .where(campaign.c.id == id_)
                .values(canceled_at=canceled, finished_at=finished, paused_at=paused)
            )

    world.do(add)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_lists, "MOST_READ", most_read)
        found = [
            state
            for page in pages(
                lambda part: world.do(
                    lambda conn: call_lists.find_campaigns(
                        conn, world.project_id, phases, now, part, limit
                    )
                ),
                Span(),
            )
            for state in page.entries
        ]
    every = [world.do(lambda conn, id_=id_: campaigns.find(conn, world.project_id, id_))  # type: ignore[misc]
             for id_ in reversed(ids)]  # fmt: skip
    expected = [
        state for state in every if state and (phases is None or state.phase(now) in phases)
    ]
    assert found == expected


def test_an_unknown_campaign_has_no_calls(world: World) -> None:
    world.place()
    wanted = CallFilter(frozenset({CallStatus.WAITING}), campaign_id=f"{9:032x}")
    page = world.do(
        lambda conn: call_lists.find_calls(
            conn, world.project_id, wanted, Span(before=AFTER_LAST_ID), 10
        )
    )
    assert page == Page([], None)
