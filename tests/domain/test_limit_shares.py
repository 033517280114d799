"""Shares of workers in a limit: never more than the limit, and nothing idle that is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.limit_shares import Demand, Share, fair_shares, next_share

COUNTS = st.integers(0, 40)
ALIKE = st.just(1.0)
DEMANDS = st.lists(st.builds(Demand, COUNTS, COUNTS, st.booleans(), ALIKE), min_size=1, max_size=6)
WEIGHTED = st.lists(
    st.builds(Demand, COUNTS, COUNTS, st.booleans(), st.floats(0.1, 20)), min_size=1, max_size=6
)


@pytest.mark.parametrize(
    ("places", "demands", "shares"),
    [
        (10, [Demand(0, 0)], [10]),
        (10, [Demand(0, 0), Demand(0, 0), Demand(0, 0)], [4, 3, 3]),
        (10, [Demand(0, 10), Demand(0, 0)], [10, 0]),
        (10, [Demand(0, 10), Demand(2, 2)], [8, 2]),
        (10, [Demand(9, 9), Demand(0, 10)], [5, 5]),
        (10, [Demand(9, 10), Demand(0, 10)], [5, 5]),
        (10, [Demand(4, 10), Demand(0, 3), Demand(0, 10)], [4, 3, 3]),
        (10, [Demand(0, 0, is_able=False), Demand(0, 1)], [0, 10]),
        (1, [Demand(0, 1), Demand(0, 1)], [1, 0]),
        (2, [Demand(3, 9), Demand(1, 9)], [1, 1]),
    ],
)
def test_places_are_shared_by_what_is_wanted_then_equally(
    places: int, demands: list[Demand], shares: list[int]
) -> None:
    assert fair_shares(places, demands) == shares


@given(st.integers(0, 100), DEMANDS)
def test_shares_are_no_more_than_the_places_and_none_is_idle(
    places: int, demands: list[Demand]
) -> None:
    shares = fair_shares(places, demands)
    assert sum(shares) <= places
    wanted = sum(max(each.used, each.wanted) for each in demands)
    if wanted >= places or any(each.is_able for each in demands):
        assert sum(shares) == places


@given(st.integers(0, 100), DEMANDS)
def test_a_worker_that_wants_more_has_no_less_than_any_other(
    places: int, demands: list[Demand]
) -> None:
    shares = fair_shares(places, demands)
    for mine, demand in zip(shares, demands, strict=True):
        if mine < demand.wanted:
            assert all(other <= mine + 1 for other in shares)


@pytest.mark.parametrize(
    ("places", "demands", "shares"),
    [
        (10, [Demand(0, 10, weight=4.0), Demand(0, 10)], [8, 2]),
        (10, [Demand(0, 3, weight=4.0), Demand(0, 10)], [3, 7]),
        (5, [Demand(0, 5, weight=9.0), Demand(0, 5)], [5, 0]),
        (10, [Demand(0, 0, weight=4.0), Demand(0, 0)], [8, 2]),
        (10, [Demand(0, 9, weight=3.0), Demand(6, 9)], [8, 2]),
    ],
)
def test_places_are_shared_by_weight(places: int, demands: list[Demand], shares: list[int]) -> None:
    assert fair_shares(places, demands) == shares


@given(st.integers(0, 100), WEIGHTED)
def test_with_weights_too_no_place_is_idle_and_none_gets_more_than_its_part(
    places: int, demands: list[Demand]
) -> None:
    shares = fair_shares(places, demands)
    assert sum(shares) <= places
    wanted = sum(max(each.used, each.wanted) for each in demands)
    if wanted >= places or any(each.is_able for each in demands):
        assert sum(shares) == places
    for mine, demand in zip(shares, demands, strict=True):
        if mine < demand.wanted:
            for other, has in zip(demands, shares, strict=True):
                assert has == 0 or (has - 1) / other.weight <= (mine + 1) / demand.weight + 1e-6


NONE = Share()


@dataclass
class Worker:
    """Uses what it may, as far as it wants; what it holds is known to the others at once."""

    share: Share = NONE
    used: int = 0
    wanted: int = 0
    is_able: bool = True

    @property
    def demand(self) -> Demand:
        return Demand(self.used, max(self.used, self.wanted), self.is_able)


@dataclass
class Fleet:
    places: int
    workers: list[Worker] = field(default_factory=list)

    def update(self, mine: int) -> None:
        held = [each.share.held for each in self.workers]
        demands = [each.demand for each in self.workers]
        self.workers[mine].share = next_share(self.places, held, demands, mine)

    def check(self) -> None:
        assert sum(each.used for each in self.workers) <= self.places
        assert sum(each.share.held for each in self.workers) <= self.places
        assert all(each.used <= each.share.held for each in self.workers)
        assert all(each.share.usable <= each.share.held for each in self.workers)


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["update", "begin", "end", "want", "restart"]),
              st.integers(0, 12)),
    max_size=80,
)  # fmt: skip


@given(st.integers(0, 12), STEPS)
def test_what_is_held_never_exceeds_the_limit_whatever_happens_in_which_order(
    places: int, steps: list[tuple[int, str, int]]
) -> None:
    fleet = Fleet(places, [Worker() for _ in range(4)])
    for which, step, count in steps:
        worker = fleet.workers[which]
        if step == "update":
            fleet.update(which)
        elif step == "begin":
            worker.used += max(0, min(count, worker.share.usable - worker.used))
        elif step == "end":
            worker.used -= min(count, worker.used)
        elif step == "want":
            worker.wanted = count
        else:
            fleet.workers[which] = Worker()
        fleet.check()


@given(st.integers(1, 30), st.lists(st.integers(0, 30), min_size=2, max_size=5))
def test_what_one_worker_leaves_is_used_by_others_after_each_has_looked_twice(
    places: int, wanted: list[int]
) -> None:
    fleet = Fleet(places, [Worker(Share(places, places)), *(Worker() for _ in wanted)])
    for worker, count in zip(fleet.workers[1:], wanted, strict=True):
        worker.wanted = count
    for _ in range(2):
        for which in range(len(fleet.workers)):
            fleet.update(which)
            fleet.check()
    usable = sum(each.share.usable for each in fleet.workers[1:])
    assert usable >= min(places, sum(wanted))


def test_a_worker_that_uses_all_hands_over_as_its_calls_end() -> None:
    fleet = Fleet(10, [Worker(Share(10, 10), used=10, wanted=10), Worker(wanted=10)])
    for _ in range(6):
        fleet.update(0)
        fleet.update(1)
        first, second = fleet.workers
        second.used = second.share.usable
        first.used -= 1
        first.used += max(0, min(1, first.share.usable - first.used))  # it would begin the next
        fleet.check()
    fleet.update(1)
    assert [each.share.held for each in fleet.workers] == [5, 5]
