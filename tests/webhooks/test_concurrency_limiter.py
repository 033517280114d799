"""How many tries each project may have under way."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bitel.webhooks.deliverer import ConcurrencyLimiter

MOST = 8
EACH = 3

projects = st.sampled_from("abcdef")
steps = st.lists(st.tuples(projects, st.sampled_from(["begin", "fail", "succeed"])), max_size=60)


@given(steps)
def test_nobody_is_ever_given_more_than_may_be(taken: list[tuple[str, str]]) -> None:
    load = ConcurrencyLimiter(MOST, EACH)
    running: Counter[str] = Counter()
    for project, step in taken:
        if step == "begin":
            if load.free > 0 and load.taken.get(project, 0) < EACH:
                load.begin(project)
                running[project] += 1
        elif running[project]:
            load.end(project, failed=step == "fail")
            running[project] -= 1
        assert load.free == MOST - running.total() >= 0
        assert all(running[each] <= EACH for each in running)
        for each in "abcdef":
            in_trouble = EACH if running[each] else EACH - 1
            assert load.taken.get(each, 0) in (running[each], in_trouble)


def test_a_receiver_in_trouble_has_one_try_at_a_time_until_one_succeeds() -> None:
    load = ConcurrencyLimiter(MOST, EACH)
    assert load.taken == {}
    load.begin("a")
    load.begin("a")
    assert load.taken == {"a": 2}
    load.end("a", failed=True)
    assert load.taken == {"a": EACH}
    load.end("a", failed=True)
    assert load.taken == {"a": EACH - 1}
    load.begin("a")
    assert load.taken == {"a": EACH}
    load.end("a", failed=False)
    assert load.taken == {}
    assert load.free == MOST
