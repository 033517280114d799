"""Rules about money, webhooks, the process and its log."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tests.chaos.evidence import NO_DATABASE, SERVER, Entry, Event, Evidence
from tests.chaos.rules import disturbed, finds, seconds, single, story

OFF: Final = 2.0
"""Seconds by which billed and heard time may differ; one of them is rounding up."""
STOP_MARGIN: Final = 40.0
"""Seconds that the service may take to end, beyond its drain time-out."""


# Money


@finds("billed without an answer")
def _billed_unanswered(evidence: Evidence) -> Iterator[str]:
    for placed, invitations in single(evidence):
        final = evidence.finals.get(placed.call_id)
        answered = any(each.answered_at for each in invitations)
        if final and (final.bill_seconds or final.price) and not answered:
            yield f"call {placed.call_id} to {placed.number}: {final}"


@finds("billed time differs from the callee's")
def _billed_wrongly(evidence: Evidence) -> Iterator[str]:
    for placed, invitations in single(evidence):
        final = evidence.finals.get(placed.call_id)
        answered = [each for each in invitations if each.answered_at and each.over_at]
        if final is None or final.status != "NORMAL" or not answered:
            continue
        last = answered[-1]
        assert last.answered_at is not None
        if disturbed(evidence.faults, last.first, last.end):
            continue
        talked = last.end - last.answered_at
        if abs(final.bill_seconds - talked) > OFF:
            line = story(evidence, last)
            yield f"call {placed.call_id}: {final.bill_seconds} s billed, {talked:.1f} s: {line}"


@finds("ledger entries of an attempt or call not one")
def _entries(evidence: Evidence) -> Iterator[str]:
    attempts = Counter(entry.attempt_id for entry in evidence.entries)
    for attempt_id, count in attempts.items():
        if count > 1:
            yield f"attempt {attempt_id}: {count} entries"
    of_call = _entries_of(evidence)
    for placed in evidence.placed:
        final = evidence.finals.get(placed.call_id)
        if final is None:
            continue
        entries = of_call.get(placed.call_id, [])
        real = [entry for entry in entries if entry.amount]
        if len(real) > 1 or (final.status == "NORMAL" and not entries):
            amounts = [entry.amount for entry in entries]
            yield f"call {placed.call_id} is {final.status} with entries {amounts}"


@finds("zero ledger entry beside a real one")
def _zero_entries(evidence: Evidence) -> Iterator[str]:
    for call_id, entries in _entries_of(evidence).items():
        amounts = [entry.amount for entry in entries]
        if 0 in amounts and any(amounts):
            yield f"call {call_id}: {amounts}"


@finds("ledger differs from price or balance")
def _sums(evidence: Evidence) -> Iterator[str]:
    total = -sum(entry.amount for entry in evidence.entries)
    if abs(total - evidence.spent) > 0.001:
        yield f"the balance fell by {evidence.spent}, the entries add up to {total}"
    of_call = _entries_of(evidence)
    for call_id, final in evidence.finals.items():
        amount = sum(entry.amount for entry in of_call.get(call_id, ()))
        if abs(amount - final.price) > 0.001:
            yield f"call {call_id}: price {final.price}, entries {amount}"


# Webhooks and the process


@finds("webhook missing")
def _webhook_missing(evidence: Evidence) -> Iterator[str]:
    reported = {event.call_id for event in evidence.events}
    for call_id, final in evidence.finals.items():
        if final.status != "WAITING" and call_id not in reported:
            yield f"call {call_id} is {final.status}, and no event of it came"


@finds("webhook with another id or content")
def _webhook_differs(evidence: Evidence) -> Iterator[str]:
    by_call: dict[str, list[Event]] = defaultdict(list)
    by_id: dict[str, set[str]] = defaultdict(set)
    for event in evidence.events:
        by_call[event.call_id].append(event)
        by_id[event.webhook_id].add(event.call_id)
    for call_id, events in by_call.items():
        ids = {event.webhook_id for event in events}
        if len(ids) > 1:
            yield f"call {call_id}: events {sorted(ids)}"
        final = evidence.finals.get(call_id)
        said = {(event.status, event.bill_seconds) for event in events}
        if final and said != {(final.status, final.bill_seconds)}:
            yield f"call {call_id} is {final}, its events said {sorted(said)}"
    for webhook_id, calls in by_id.items():
        if len(calls) > 1:
            yield f"event {webhook_id} is of {len(calls)} calls"


@finds("SIGTERM not followed cleanly")
def _term(evidence: Evidence) -> Iterator[str]:
    limit = evidence.terms.drain_timeout + STOP_MARGIN
    for each in evidence.exits:
        when = seconds(evidence, each.at)
        if each.why == "hung":
            yield f"at {when}: not ended {each.seconds:.1f} s after SIGTERM"
        elif each.why == "term" and (each.status or each.seconds > limit):
            yield f"at {when}: status {each.status} after {each.seconds:.1f} s"


@finds("service ended by itself")
def _ended(evidence: Evidence) -> Iterator[str]:
    for each in evidence.exits:
        # A start without a database fails, in one sentence, and is tried again.
        storage = [
            fault
            for fault in evidence.faults
            if fault.kind in NO_DATABASE and (not each.name or fault.detail in (each.name, SERVER))
        ]
        if each.why == "by itself" and not disturbed(storage, each.at - 1, each.at, 10.0):
            yield f"at {seconds(evidence, each.at)}: status {each.status}"


@finds("answer that the API must not give")
def _http(evidence: Evidence) -> Iterator[str]:
    yield from evidence.http_problems


_TRACEBACK: Final = "Traceback (most recent call last)"
_RAISED: Final = re.compile(r"^[A-Za-z_][\w.]*(: |$)")
_BEGINS: Final = re.compile(r"^(\d{4}-\d\d-\d\d|Traceback)")
_CHAINED: Final = ("The above exception was the direct", "During handling of the above")
_ANSWERED_503: Final = ("bitel.errors.UnavailableError", "bitel.store.db_errors.StoreUnavailable")
"""Exceptions that a request was refused with, and whose cause is logged for the operator."""


@finds("traceback in the service's log")
def _tracebacks(evidence: Evidence) -> Iterator[str]:
    found: Counter[str] = Counter()
    places: dict[str, int] = {}
    for number, event, raised in _raised(evidence.log):
        if not raised.startswith(_ANSWERED_503):
            what = f"{raised[:200]} | {_TIME.sub('', event)[:200]}"
            found[what] += 1
            places.setdefault(what, number)
    for what, count in found.items():
        yield f"{count} times, first at line {places[what]}: {what}"


_TIME: Final = re.compile(r"^[\d:TZ., -]+")


def _raised(log: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """The last exception of each chain of tracebacks: its line, the event above, and itself."""
    event, begin = "", 0
    for number, line in enumerate(log):
        if not line.startswith(_TRACEBACK):
            continue
        before = next((each for each in log[max(0, number - 2) : number][::-1] if each), "")
        if not before.startswith(_CHAINED):
            event, begin = before, number + 1
        for end in range(number + 1, len(log)):
            if _RAISED.match(log[end]):
                # Some exceptions say more, in lines of their own.
                rest = itertools.takewhile(lambda each: not _BEGINS.match(each), log[end + 1 :])
                is_last = not any(each.startswith(_CHAINED) for each in rest)
                break
        else:
            end, is_last = number, True
        if is_last:
            yield begin, event, log[end]


def _entries_of(evidence: Evidence) -> Mapping[str, Sequence[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in evidence.entries:
        found[entry.call_id].append(entry)
    return found
