"""What each call was met with, and how many calls each number has had; both bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from bitel.test_phone.rules import Behaviour, Rule, Silent, first_match


class Memory:
    """Decides once per call. A repeated INVITE gets the decision of the first one.

    At most `limit` calls and `limit` numbers are remembered; the ones not seen for longest are
    forgotten first, so that a stranger who invents numbers costs no more memory than that.
    """

    def __init__(self, rules: Sequence[Rule], limit: int = 100_000) -> None:
        self._rules = tuple(rules)
        self._limit = limit
        self._decided: OrderedDict[str, Behaviour] = OrderedDict()
        self._calls: OrderedDict[str, int] = OrderedDict()

    @property
    def knows_silence(self) -> bool:
        """Whether any rule has a silent step."""
        return any(isinstance(s.behaviour, Silent) for rule in self._rules for s in rule.steps)

    def decide(self, call_id: str, number: str) -> Behaviour:
        """What the call `call_id` to `number` meets. Counts it as one more call of that number."""
        known = self._decided.get(call_id)
        if known is not None:
            return known
        behaviour = first_match(self._rules, number).behaviour(self._count(number))
        self._decided[call_id] = behaviour
        if len(self._decided) > self._limit:
            self._decided.popitem(last=False)
        return behaviour

    def decided(self, call_id: str) -> Behaviour | None:
        """What was decided for a call, None for one that never came or is long forgotten."""
        return self._decided.get(call_id)

    def next_for(self, number: str) -> Behaviour:
        """What the number's next call will meet; counts nothing."""
        return first_match(self._rules, number).behaviour(self._calls.get(_key(number), 0))

    def _count(self, number: str) -> int:
        """How many calls the number had before this one."""
        key = _key(number)
        earlier = self._calls.pop(key, 0)
        self._calls[key] = earlier + 1
        if len(self._calls) > self._limit:
            self._calls.popitem(last=False)
        return earlier


def _key(number: str) -> str:
    return number.removeprefix("+")
