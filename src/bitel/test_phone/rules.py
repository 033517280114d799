"""Rules of the phone: which behaviour each call gets. Parsed from the command line.

The grammar:

    rule      = pattern "=" step *("," step)
    step      = behaviour ["*" count]
    behaviour = "answer" [":after=" seconds] [":hangup=" seconds] [":keys=" keys] [":by=" way]
                 [":play=" file]
              / "busy" / "reject:" code / "ring" / "silent"

    keys      = 1*key "@" seconds *("+" 1*key "@" seconds)
    way       = "event" / "info" / "tone"

`keys=12@3+9@8` presses 1 and 2 three seconds after the answer, and 9 at eight, as telephone events
(RFC 4733), by SIP INFO, or as tones in the audio.

`play=greeting.wav` plays a WAV of 16-bit mono PCM at 8 kHz, as an answering machine does; its name
has no colon, comma or star.

`pattern` is a glob (`fnmatch`: `*`, `?`, `[0-9]`), matched with the number as received and without
its leading `+`. The steps apply to the number's first call, its second, and so on; the last one is
repeated. `+9891*=busy*2,answer:after=2` is busy twice for each matching number, then answers after
two seconds.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Final, Literal

MAX_SECONDS: Final = 86400.0
"""Longest time in a rule: one day."""

MAX_COUNT: Final = 1_000_000
"""Largest count of a step."""

BUSY_CODE: Final = 486


class RuleError(ValueError):
    """A rule that can't be parsed; the text says in a sentence why."""


KeyWay = Literal["event", "info", "tone"]
KEY_WAYS: Final[tuple[KeyWay, ...]] = ("event", "info", "tone")


@dataclass(frozen=True, slots=True)
class KeyPresses:
    """Keys of 0-9*#ABCD that are pressed one after the other, `after` seconds after the answer."""

    keys: str
    after: float
    by: KeyWay = "event"
    pause: float = 0.2
    """Seconds between two keys."""

    def __str__(self) -> str:
        return f"{self.keys}@{_seconds_text(self.after)}"


@dataclass(frozen=True, slots=True)
class Answer:
    """Rings for `after` seconds, answers, presses keys, and hangs up after `hangup` seconds (None:
    never)."""

    after: float = 1.0
    hangup: float | None = None
    presses: tuple[KeyPresses, ...] = ()
    play: str = ""
    """A WAV file that is played after the answer; empty: nothing is."""

    def __str__(self) -> str:
        text = f"answer:after={_seconds_text(self.after)}"
        if self.hangup is not None:
            text += f":hangup={_seconds_text(self.hangup)}"
        if self.presses:
            text += f":keys={'+'.join(map(str, self.presses))}:by={self.presses[0].by}"
        return text + (f":play={self.play}" if self.play else "")


@dataclass(frozen=True, slots=True)
class Reject:
    """Rejects the call with a final response, 300 to 699. 486 is written `busy`."""

    code: int = BUSY_CODE

    def __str__(self) -> str:
        return "busy" if self.code == BUSY_CODE else f"reject:{self.code}"


@dataclass(frozen=True, slots=True)
class Ring:
    """Rings (180) and never answers."""

    def __str__(self) -> str:
        return "ring"


@dataclass(frozen=True, slots=True)
class Silent:
    """Sends no response at all."""

    def __str__(self) -> str:
        return "silent"


Behaviour = Answer | Reject | Ring | Silent


@dataclass(frozen=True, slots=True)
class Step:
    """One behaviour for `count` calls of a number, 1 to `MAX_COUNT`."""

    behaviour: Behaviour
    count: int = 1

    def __str__(self) -> str:
        return str(self.behaviour) if self.count == 1 else f"{self.behaviour}*{self.count}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of numbers, and the steps for their calls, at least one."""

    pattern: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.pattern}={','.join(map(str, self.steps))}"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Parse a rule. Raises RuleError."""
        pattern, equals, steps = text.partition("=")
        if not equals or not pattern:
            raise RuleError(f"{text!r} is not of the form PATTERN=BEHAVIOUR, as in 98912*=busy")
        return cls(pattern, tuple(_step(step) for step in steps.split(",")))

    def matches(self, number: str) -> bool:
        """Whether the pattern matches `number`, with or without its leading `+`."""
        return fnmatchcase(number, self.pattern) or fnmatchcase(
            number.removeprefix("+"), self.pattern
        )

    def behaviour(self, earlier: int) -> Behaviour:
        """The behaviour for a number's next call after `earlier` ones."""
        for step in self.steps:
            if earlier < step.count:
                return step.behaviour
            earlier -= step.count
        return self.steps[-1].behaviour


DEFAULT_RULE: Final = Rule("*", (Step(Answer()),))
"""Applies to numbers that no rule matches."""


def first_match(rules: Iterable[Rule], number: str) -> Rule:
    """The first of `rules` that matches `number`, else `DEFAULT_RULE`."""
    return next((rule for rule in rules if rule.matches(number)), DEFAULT_RULE)


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Parse rules, in the order in which they are tried. Raises RuleError."""
    return tuple(Rule.parse(text) for text in texts)


def _step(text: str) -> Step:
    # A star may also be a key.
    behaviour, star, count = text.rpartition("*")
    if not star or "@" in count:
        return Step(_behaviour(text))
    if not re.fullmatch(r"[1-9][0-9]{0,6}", count, re.ASCII) or int(count) > MAX_COUNT:
        raise RuleError(f"{text!r} repeats {count!r} times; a whole number from 1 would be right")
    return Step(_behaviour(behaviour), int(count))


_WITHOUT_OPTIONS: Final = {str(each): each for each in (Reject(BUSY_CODE), Ring(), Silent())}


def _behaviour(text: str) -> Behaviour:
    if (plain := _WITHOUT_OPTIONS.get(text)) is not None:
        return plain
    name, *options = text.split(":")
    if name == "answer":
        return _answer(text, options)
    if name == "reject" and len(options) == 1:
        return Reject(_code(options[0]))
    raise RuleError(
        f"{text!r} is not a behaviour; the behaviours are answer[:after=S][:hangup=S]"
        "[:keys=KEYS@S][:by=event|info|tone][:play=FILE], busy, "
        "reject:CODE, ring and silent"
    )


def _answer(text: str, options: Iterable[str]) -> Answer:
    given: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in {"after", "hangup", "keys", "by", "play"} or name in given:
            raise RuleError(
                f"{text!r} may say after=SECONDS once, hangup=SECONDS once, keys=KEYS@SECONDS "
                "once, by=event|info|tone once and play=FILE once"
            )
        given[name] = value
    by = next((way for way in KEY_WAYS if way == given.get("by", "event")), None)
    if by is None or ("by" in given and "keys" not in given):
        raise RuleError(f"{text!r}: by is event, info or tone, and needs keys=KEYS@SECONDS")
    return Answer(
        _seconds(given["after"]) if "after" in given else Answer().after,
        _seconds(given["hangup"]) if "hangup" in given else None,
        _presses(given["keys"], by) if "keys" in given else (),
        given.get("play", ""),
    )


def _presses(text: str, by: KeyWay) -> tuple[KeyPresses, ...]:
    presses = []
    for each in text.split("+"):
        keys, _, after = each.partition("@")
        if not re.fullmatch(r"[0-9*#A-D]{1,32}", keys, re.ASCII):
            raise RuleError(f"{each!r} is not KEYS@SECONDS, with keys of 0-9*#ABCD")
        presses.append(KeyPresses(keys, _seconds(after), by))
    return tuple(presses)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text, re.ASCII) or float(text) > MAX_SECONDS:
        raise RuleError(f"{text!r} is not a number of seconds from 0 to {MAX_SECONDS:.0f}")
    return float(text)


def _seconds_text(seconds: float) -> str:
    # The shortest digits of the same float, without an exponent.
    return format(Decimal(repr(seconds)), "f").removesuffix(".0")


def _code(text: str) -> int:
    if not re.fullmatch(r"[3-6][0-9]{2}", text, re.ASCII):
        raise RuleError(f"{text!r} is not a code to reject with; 300 to 699 are")
    return int(text)


class CallHistory:
    """The behaviour of each call, and the number of calls of each number.

    A repeated INVITE gets the behaviour of the first one. Only the latest `limit` calls and `limit`
    numbers are kept, to limit memory.
    """

    def __init__(self, rules: Sequence[Rule], limit: int = 100_000) -> None:
        self._rules = tuple(rules)
        self._limit = limit
        self._decided: OrderedDict[str, Behaviour] = OrderedDict()
        self._calls: OrderedDict[str, int] = OrderedDict()

    @property
    def has_silent_rules(self) -> bool:
        """Whether any rule has a silent step."""
        return any(isinstance(s.behaviour, Silent) for rule in self._rules for s in rule.steps)

    def decide(self, call_id: str, number: str) -> Behaviour:
        """Choose the behaviour of a call, and count it as a call of the number."""
        known = self._decided.get(call_id)
        if known is not None:
            return known
        behaviour = self.next_for(number)
        key = number.removeprefix("+")
        self._calls[key] = self._calls.pop(key, 0) + 1
        self._decided[call_id] = behaviour
        for kept in (self._calls, self._decided):
            if len(kept) > self._limit:
                kept.popitem(last=False)
        return behaviour

    def decided(self, call_id: str) -> Behaviour | None:
        """The behaviour of a call; None if it is unknown or no longer kept."""
        return self._decided.get(call_id)

    def next_for(self, number: str) -> Behaviour:
        """The behaviour that the number's next call will get."""
        earlier = self._calls.get(number.removeprefix("+"), 0)
        return first_match(self._rules, number).behaviour(earlier)
