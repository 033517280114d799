from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.test_phone.rules import (
    DEFAULT_RULE,
    MAX_COUNT,
    MAX_SECONDS,
    Answer,
    Behaviour,
    CallHistory,
    KeyPresses,
    Reject,
    Ring,
    Rule,
    RuleError,
    Silent,
    Step,
    first_match,
    parse_rules,
)

seconds = st.floats(0, MAX_SECONDS) | st.integers(0, 100).map(float)
behaviours: st.SearchStrategy[Behaviour] = st.one_of(
    st.builds(Answer, seconds, st.none() | seconds),
    st.builds(Reject, st.integers(300, 699)),
    st.just(Ring()),
    st.just(Silent()),
)
steps = st.builds(Step, behaviours, st.integers(1, MAX_COUNT))
patterns = st.text(st.characters(exclude_characters="=", codec="utf-8"), min_size=1)
rules = st.builds(Rule, patterns, st.lists(steps, min_size=1, max_size=5).map(tuple))


@given(rules)
def test_a_rule_reads_back_as_it_was_written(rule: Rule) -> None:
    assert Rule.parse(str(rule)) == rule


@given(st.text())
def test_any_text_is_a_rule_or_a_rule_error(text: str) -> None:
    try:
        rule = Rule.parse(text)
    except RuleError:
        return
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "behaviour"),
    [
        ("1=answer", Answer(1.0, None)),
        ("1=answer:after=0", Answer(0.0, None)),
        ("1=answer:after=2.5:hangup=8", Answer(2.5, 8.0)),
        ("1=answer:hangup=8:after=2.5", Answer(2.5, 8.0)),
        ("1=busy", Reject(486)),
        ("1=reject:404", Reject(404)),
        ("1=ring", Ring()),
        ("1=silent", Silent()),
    ],
)
def test_each_behaviour_as_the_operator_types_it(text: str, behaviour: Behaviour) -> None:
    assert Rule.parse(text) == Rule("1", (Step(behaviour),))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "PATTERN=BEHAVIOUR"),
        ("98912", "PATTERN=BEHAVIOUR"),
        ("=busy", "PATTERN=BEHAVIOUR"),
        ("1=", "''"),
        ("1=bussy", "'bussy'"),
        ("1=busy:3", "'busy:3'"),
        ("1=busy*0", "'busy*0'"),
        ("1=busy*1000001", "'busy*1000001'"),
        ("1=busy,,ring", "''"),
        ("1=reject", "'reject'"),
        ("1=reject:200", "'200'"),
        ("1=reject:700", "'700'"),
        ("1=answer:after=-1", "'-1'"),
        ("1=answer:after=1e3", "'1e3'"),
        ("1=answer:after=86401", "'86401'"),
        ("1=answer:after=1:after=2", "after=SECONDS once"),
        ("1=answer:before=1", "after=SECONDS once"),
    ],
)
def test_a_wrong_rule_names_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(RuleError) as caught:
        Rule.parse(text)
    assert named in str(caught.value)


def test_the_first_rule_that_matches_wins() -> None:
    rules = parse_rules(["98912*=busy", "989*=ring", "98??=silent"])
    assert first_match(rules, "989121234567") is rules[0]
    assert first_match(rules, "989351234567") is rules[1]
    assert first_match(rules, "9821") is rules[2]
    assert first_match(rules, "4930123456") is DEFAULT_RULE


def test_no_match_answers_after_a_second() -> None:
    assert first_match((), "0912").behaviour(0) == Answer(after=1.0)


@pytest.mark.parametrize("pattern", ["+98912*", "98912*", "[+]98912*"])
def test_a_number_matches_with_its_plus_as_well(pattern: str) -> None:
    assert Rule.parse(f"{pattern}=busy").matches("+989121234567")


def test_a_pattern_with_a_plus_is_not_for_a_number_without() -> None:
    assert not Rule.parse("+98912*=busy").matches("989121234567")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 20))
def test_steps_follow_one_another_and_the_last_goes_on(counts: list[int], earlier: int) -> None:
    rule = Rule("*", tuple(Step(Reject(400 + i), count) for i, count in enumerate(counts)))
    codes = [400 + i for i, count in enumerate(counts) for _ in range(count)]
    expected = codes[earlier] if earlier < len(codes) else codes[-1]
    assert rule.behaviour(earlier) == Reject(expected)


def test_each_number_goes_through_the_steps_by_itself() -> None:
    memory = CallHistory(parse_rules(["*=busy*2,answer"]))
    met = [str(memory.decide(f"call-{i}", "1")) for i in range(4)]
    assert met == ["busy", "busy", "answer:after=1", "answer:after=1"]
    assert str(memory.decide("call-9", "2")) == "busy"


def test_a_number_with_and_without_plus_is_one_number() -> None:
    memory = CallHistory(parse_rules(["*=busy,ring"]))
    assert memory.decide("a", "+98912") == Reject()
    assert memory.decide("b", "98912") == Ring()


def test_a_repeated_invite_is_no_second_call() -> None:
    memory = CallHistory(parse_rules(["*=busy,ring"]))
    assert memory.decide("a", "1") == Reject()
    assert memory.decide("a", "1") == Reject()
    assert memory.next_for("1") == Ring()
    assert memory.decide("b", "1") == Ring()


def test_memory_is_bounded_and_keeps_what_is_in_use() -> None:
    memory = CallHistory(parse_rules(["*=busy*3,ring"]), limit=3)
    for i in range(50):
        memory.decide(f"call-{i}", "busy-number" if i % 2 else f"stranger-{i}")
    assert memory.next_for("busy-number") == Ring()
    assert memory.next_for("stranger-0") == Reject()
    assert memory.decided("call-0") is None
    assert memory.decided("call-49") == Ring()


@pytest.mark.parametrize(
    ("text", "presses"),
    [
        ("1=answer:after=1:keys=1@3:by=event", (KeyPresses("1", 3.0),)),
        ("1=answer:after=1:keys=*#@3+9@8.5:by=info",
         (KeyPresses("*#", 3.0, "info"), KeyPresses("9", 8.5, "info"))),
        ("1=answer:after=1:hangup=9:keys=0A@0:by=tone", (KeyPresses("0A", 0.0, "tone"),)),
    ],
)  # fmt: skip
def test_keys_are_pressed_at_their_times(text: str, presses: tuple[KeyPresses, ...]) -> None:
    rule = Rule.parse(text)
    (step,) = rule.steps
    assert isinstance(step.behaviour, Answer)
    assert step.behaviour.presses == presses
    assert str(rule) == text
    again = Rule.parse(f"1={step.behaviour}*3,busy")
    assert [each.count for each in again.steps] == [3, 1]


@pytest.mark.parametrize(
    "wrong", ["keys=1", "keys=@1", "keys=x@1", "keys=1@x", "by=info", "keys=1@1:by=hand"]
)
def test_keys_that_are_not_written_so_are_refused(wrong: str) -> None:
    with pytest.raises(RuleError, match=r"KEYS@SECONDS|not a number of seconds"):
        Rule.parse(f"1=answer:{wrong}")
