"""The rules that must hold whatever fails, each a function from a run's evidence to violations.

The callee's log says what happened to people. A number is never called by more than the calls that
were placed to it allow; a rule about one call's attempts is applied where its number has one call.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from tests.chaos.evidence import Entry, Event, Evidence, Fault, Invitation, Placed

EARLY: Final = 0.3
"""Seconds by which a redial may come early: clocks are read by two processes, not at once."""
RECORDED_AFTER: Final = 1.0
"""Seconds after a 18x by which ringing must be durable, so that a later crash can't hide it."""
UNREAD: Final = 1.0
"""Seconds that a response may lie unread, or a timer be late, while an INVITE is repeated."""
TIMER_B: Final = 32.0
SCHEDULE: Final = (0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5)
"""Seconds after an INVITE at which it may be repeated over UDP: timer A with T1 = 0.5 s."""
KNOWN: Final = 1.0
"""Seconds after a call's webhook from which no INVITE of it may come."""
OFF: Final = 2.0
"""Seconds by which billed and heard time may differ; one of them is rounding up."""
STOP_MARGIN: Final = 40.0
"""Seconds that the service may take to end, beyond its drain time-out."""

PERSON_BUSY: Final = frozenset({486, 600, 603})
HEARD_AS: Final = frozenset({"NORMAL", "UNKNOWN", "ERROR"})
"""The statuses that a call may have whose callee got audio; ERROR where it broke off."""


class Violation(NamedTuple):
    """A rule that was broken, and by what one can see it."""

    kind: str
    evidence: str


Rule = Callable[[Evidence], Iterator[str]]
RULES: Final[dict[str, Rule]] = {}
"""The rules by the name of what they find, in the order of the report."""


def check(evidence: Evidence) -> list[Violation]:
    """Every violation in a run."""
    return [Violation(kind, found) for kind, rule in RULES.items() for found in rule(evidence)]


def _finds(kind: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES[kind] = rule
        return rule

    return add


# Calls, and what the API says of them


@_finds("accepted call lost")
def _lost(evidence: Evidence) -> Iterator[str]:
    for placed in evidence.placed:
        if placed.call_id not in evidence.finals:
            yield f"call {placed.call_id} to {placed.number} is not known any more"


@_finds("call never final")
def _never_final(evidence: Evidence) -> Iterator[str]:
    for placed in evidence.placed:
        final = evidence.finals.get(placed.call_id)
        if final is not None and final.status == "WAITING":
            asked = _seconds(evidence, placed.accepted_at)
            yield f"call {placed.call_id} to {placed.number}, placed at {asked}, still waits"


@_finds("call placed twice")
def _placed_twice(evidence: Evidence) -> Iterator[str]:
    asked = Counter(placed.number for placed in evidence.placed)
    for number, stored in evidence.calls_stored.items():
        if stored > asked[number]:
            yield f"{number}: {asked[number]} calls accepted, {stored} stored"


@_finds("status contradicts the callee")
def _contradicted(evidence: Evidence) -> Iterator[str]:
    for placed, invitations in _single(evidence):
        final = evidence.finals.get(placed.call_id)
        if final is None:
            continue
        codes = {code for each in invitations for _, code in each.responses}
        packets = max((each.packets for each in invitations), default=0)
        answered = any(each.answered_at for each in invitations)
        what = f"call {placed.call_id} to {placed.number} is {final.status}"
        if final.status == "NORMAL" and not answered:
            yield f"{what}, but never answered"
        elif final.status == "USER_BUSY" and not codes & PERSON_BUSY:
            yield f"{what}, but the callee sent {sorted(codes)}"
        elif packets and final.status != "WAITING" and final.status not in HEARD_AS:
            yield f"{what}, but the callee got {packets} packets of audio"
        elif final.status == "ERROR" and not answered and not codes & {404}:
            yield f"{what}, but the callee sent {sorted(codes)}"


@_finds("UNKNOWN though never answered")
def _unknown(evidence: Evidence) -> Iterator[str]:
    for number, placed, invitations in _numbers(evidence):
        unknown = [each for each in placed if _status(evidence, each) == "UNKNOWN"]
        answers = sum(each.answered_at is not None for each in invitations)
        if len(unknown) > answers:
            ids = ", ".join(each.call_id for each in unknown)
            yield f"{number}: {answers} answers, UNKNOWN {ids}"


@_finds("NORMAL without audio, hung up by us")
def _silent_normal(evidence: Evidence) -> Iterator[str]:
    for placed, invitations in _single(evidence):
        answered = [each for each in invitations if each.answered_at]
        if _status(evidence, placed) != "NORMAL" or not answered:
            continue
        last = answered[-1]
        if not any(each.packets for each in answered) and last.bye_by == "service":
            yield f"call {placed.call_id}: {_story(evidence, last)}"


# What people's phones went through


@_finds("number in two attempts at once")
def _overlap(evidence: Evidence) -> Iterator[str]:
    deaths = evidence.deaths()
    for number, invitations in evidence.by_number().items():
        for earlier, later in _all_pairs(invitations):
            if later.first < earlier.end and not _forgotten(earlier, later, deaths):
                yield f"{number}: {_story(evidence, earlier)} / {_story(evidence, later)}"


@_finds("redialled too early after a crash")
def _early_after_crash(evidence: Evidence) -> Iterator[str]:
    deaths = evidence.deaths()
    for number, invitations in evidence.by_number().items():
        for earlier, later in _all_pairs(invitations):
            death = _forgotten(earlier, later, deaths)
            if death is None:
                continue
            last = max(at for at in earlier.sent if at <= death)
            wait = later.first - last
            if wait < evidence.terms.crash_wait - EARLY:
                yield (
                    f"{number}: {_story(evidence, earlier)}, crash at {_seconds(evidence, death)}, "
                    f"called again {wait:.1f} s after its INVITE"
                )


@_finds("called again after having heard audio")
def _again_after_audio(evidence: Evidence) -> Iterator[str]:
    for number, placed, invitations in _numbers(evidence):
        heard = sorted(each.audio_at for each in invitations if each.audio_at is not None)
        if len(heard) < len(placed):
            continue
        enough = heard[len(placed) - 1] if placed else float("-inf")
        for each in invitations:
            if each.first > enough:
                since = each.first - enough
                yield f"{number}: audio {since:.1f} s before {_story(evidence, each)}"


@_finds("rang more often than allowed")
def _rang_too_often(evidence: Evidence) -> Iterator[str]:
    for number, placed, invitations in _numbers(evidence):
        rings = [each for each in invitations if each.rang_at is not None]
        excused = [each for each in rings if _may_be_forgotten(evidence, each)]
        allowed = sum(1 + each.retry_count for each in placed)
        if len(rings) - len(excused) > allowed:
            times = ", ".join(_seconds(evidence, each.first) for each in rings)
            yield (
                f"{number} ({rings[0].plan}): rang {len(rings)} times, {allowed} allowed"
                f" and {len(excused)} cut off: {times}"
            )


@_finds("uncertain attempt redialled too often")
def _uncertain_too_often(evidence: Evidence) -> Iterator[str]:
    for number, placed, invitations in _numbers(evidence):
        late = [each for each in invitations if _is_uncertain(each)]
        sure = [each for each in late if not _cut_off(evidence, each)]
        extra = evidence.terms.uncertain_redials
        allowed = sum(1 + each.retry_count + extra for each in placed)
        if len(sure) > allowed:
            times = ", ".join(_seconds(evidence, each.first) for each in late)
            yield f"{number} ({late[0].plan}): {len(sure)} times, {allowed} allowed: {times}"


@_finds("redialled sooner than retryInterval")
def _too_soon(evidence: Evidence) -> Iterator[str]:
    deaths = evidence.deaths()
    for _, invitations in _single(evidence):
        for earlier, later in itertools.pairwise(invitations):
            if earlier.silent or _forgotten(earlier, later, deaths) or earlier.end > later.first:
                continue
            wait = later.first - earlier.end
            if wait < evidence.terms.retry_interval - EARLY:
                yield f"{wait:.1f} s: {_story(evidence, earlier)} / {_story(evidence, later)}"


@_finds("INVITE repeated late")
def _late_repeat(evidence: Evidence) -> Iterator[str]:
    """A copy that RFC 3261 (17.1.1.2) has no place for.

    It comes after timer B; or when a response lay there to be read; or after the ring time-out and
    off the schedule, as when a process that was stopped sends again what was due meanwhile.
    """
    for invitation in evidence.invitations:
        answered = min((at for at, _ in invitation.responses), default=float("inf"))
        for at in invitation.sent[1:]:
            after = at - invitation.first
            off = after - max(each for each in SCHEDULE if each <= after + 0.1)
            if after > TIMER_B + UNREAD:
                why = "after timer B"
            elif at - answered > UNREAD:
                why = f"{at - answered:.1f} s after the first response"
            elif after > evidence.terms.ring_timeout and off > UNREAD:
                why = f"after the ring time-out, {off:.1f} s behind the schedule"
            else:
                continue
            story = _story(evidence, invitation)
            yield f"{invitation.number}: {after:.1f} s after the first, {why}: {story}"
            break


@_finds("INVITE for a call that was final")
def _after_final(evidence: Evidence) -> Iterator[str]:
    final_at = {event.call_id: event.at for event in reversed(evidence.events)}
    for placed, invitations in _single(evidence):
        final = final_at.get(placed.call_id)
        if final is None:
            continue
        for each in invitations:
            late = [at for at in each.sent if at > final + KNOWN]
            if late:
                yield (
                    f"call {placed.call_id} was final at {_seconds(evidence, final)}, "
                    f"INVITE at {_seconds(evidence, late[0])}: {_story(evidence, each)}"
                )


# Money


@_finds("billed without an answer")
def _billed_unanswered(evidence: Evidence) -> Iterator[str]:
    for placed, invitations in _single(evidence):
        final = evidence.finals.get(placed.call_id)
        answered = any(each.answered_at for each in invitations)
        if final and (final.bill_seconds or final.price) and not answered:
            yield f"call {placed.call_id} to {placed.number}: {final}"


@_finds("billed time differs from the callee's")
def _billed_wrongly(evidence: Evidence) -> Iterator[str]:
    for placed, invitations in _single(evidence):
        final = evidence.finals.get(placed.call_id)
        answered = [each for each in invitations if each.answered_at and each.over_at]
        if final is None or final.status != "NORMAL" or not answered:
            continue
        last = answered[-1]
        assert last.answered_at is not None
        if _disturbed(evidence.faults, last.first, last.end):
            continue
        talked = last.end - last.answered_at
        if abs(final.bill_seconds - talked) > OFF:
            story = _story(evidence, last)
            yield f"call {placed.call_id}: {final.bill_seconds} s billed, {talked:.1f} s: {story}"


@_finds("ledger entries of an attempt or call not one")
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


@_finds("zero ledger entry beside a real one")
def _zero_entries(evidence: Evidence) -> Iterator[str]:
    for call_id, entries in _entries_of(evidence).items():
        amounts = [entry.amount for entry in entries]
        if 0 in amounts and any(amounts):
            yield f"call {call_id}: {amounts}"


@_finds("ledger differs from price or balance")
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


@_finds("webhook missing")
def _webhook_missing(evidence: Evidence) -> Iterator[str]:
    told = {event.call_id for event in evidence.events}
    for call_id, final in evidence.finals.items():
        if final.status != "WAITING" and call_id not in told:
            yield f"call {call_id} is {final.status}, and no event of it came"


@_finds("webhook with another id or content")
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


@_finds("SIGTERM not followed cleanly")
def _term(evidence: Evidence) -> Iterator[str]:
    limit = evidence.terms.drain_timeout + STOP_MARGIN
    for each in evidence.exits:
        when = _seconds(evidence, each.at)
        if each.why == "hung":
            yield f"at {when}: not ended {each.seconds:.1f} s after SIGTERM"
        elif each.why == "term" and (each.status or each.seconds > limit):
            yield f"at {when}: status {each.status} after {each.seconds:.1f} s"


@_finds("service ended by itself")
def _ended(evidence: Evidence) -> Iterator[str]:
    for each in evidence.exits:
        # A start without a database fails, in one sentence, and is tried again.
        storage = [fault for fault in evidence.faults if fault.kind.startswith("db-")]
        if each.why == "by itself" and not _disturbed(storage, each.at - 1, each.at, 10.0):
            yield f"at {_seconds(evidence, each.at)}: status {each.status}"


@_finds("answer that the API must not give")
def _http(evidence: Evidence) -> Iterator[str]:
    yield from evidence.http_problems


_TRACEBACK: Final = "Traceback (most recent call last)"
_RAISED: Final = re.compile(r"^[A-Za-z_][\w.]*(: |$)")
_BEGINS: Final = re.compile(r"^(\d{4}-\d\d-\d\d|Traceback)")
_CHAINED: Final = ("The above exception was the direct", "During handling of the above")
_ANSWERED_503: Final = ("bitel.errors.UnavailableError", "bitel.store.faults.StoreUnavailable")
"""Exceptions that a request was refused with, and whose cause is logged for the operator."""


@_finds("traceback in the service's log")
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


# What the rules share


def _numbers(
    evidence: Evidence,
) -> Iterator[tuple[str, Sequence[Placed], Sequence[Invitation]]]:
    """Each number with its calls and invitations."""
    calls, invitations = evidence.calls_of(), evidence.by_number()
    for number in sorted(calls.keys() | invitations.keys()):
        yield number, calls.get(number, ()), invitations.get(number, ())


def _single(evidence: Evidence) -> Iterator[tuple[Placed, Sequence[Invitation]]]:
    """Each number that has one call, with its invitations."""
    for _, placed, invitations in _numbers(evidence):
        if len(placed) == 1:
            yield placed[0], invitations


def _all_pairs(invitations: Sequence[Invitation]) -> Iterator[tuple[Invitation, Invitation]]:
    """Each invitation with every later one; those that reached nobody are left out."""
    return itertools.combinations([each for each in invitations if not each.silent], 2)


def _forgotten(earlier: Invitation, later: Invitation, deaths: Sequence[float]) -> float | None:
    """When a crash made the service forget `earlier` before it knew its final response."""
    settled = earlier.settled_at if earlier.settled_at is not None else float("inf")
    for death in deaths:
        if earlier.first <= death < min(settled, later.first):
            return death
    return None


def _cut_off(evidence: Evidence, invitation: Invitation) -> bool:
    """Whether the service died, or was stopped, before it had the final response."""
    until = invitation.settled_at or invitation.end
    return any(invitation.first <= at <= until + RECORDED_AFTER for at in _ends(evidence))


def _may_be_forgotten(evidence: Evidence, invitation: Invitation) -> bool:
    """Whether the service could not make durable that it rang, or gave the attempt back itself."""
    rang = invitation.rang_at
    assert rang is not None
    if any(rang <= death <= rang + RECORDED_AFTER for death in evidence.deaths()):
        return True
    for fault in evidence.faults:
        if fault.kind in _HIDING and _disturbed([fault], rang, rang, RECORDED_AFTER):
            until = fault.until + RECORDED_AFTER
            if any(rang <= death <= until for death in evidence.deaths()):
                return True
    terms = [each for each in evidence.exits if each.why == "term"]
    # A drain ends what rings, by CANCEL; whether that spends a retry is the service's choice.
    return invitation.canceled_at is not None and any(
        each.at - each.seconds <= invitation.canceled_at <= each.at for each in terms
    )


_HIDING: Final = frozenset({"stop", "db-kill", "db-freeze", "db-full", "db-unwritable"})
"""Faults during which ringing can't be made durable."""


def _is_uncertain(invitation: Invitation) -> bool:
    refused = invitation.refused_at
    if invitation.rang_at is not None or refused is None or invitation.canceled_at:
        return False
    return refused - invitation.responses[0][0] > 4.0


def _ends(evidence: Evidence) -> list[float]:
    return [each.at for each in evidence.exits]


def _disturbed(faults: Sequence[Fault], begin: float, end: float, margin: float = 1.0) -> bool:
    """Whether a fault lay between two moments, or near them."""
    return any(fault.at - margin <= end and begin <= fault.until + margin for fault in faults)


def _entries_of(evidence: Evidence) -> Mapping[str, Sequence[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in evidence.entries:
        found[entry.call_id].append(entry)
    return found


def _status(evidence: Evidence, placed: Placed) -> str:
    final = evidence.finals.get(placed.call_id)
    return final.status if final else ""


def _seconds(evidence: Evidence, at: float) -> str:
    return f"{at - evidence.begun:.2f}"


def _story(evidence: Evidence, invitation: Invitation) -> str:
    """An invitation in one line, with times since the run's begin."""
    words = [f"{invitation.plan or 'invitation'} ({invitation.call[:12]})"]
    words.append("INVITE " + ", ".join(_seconds(evidence, at) for at in invitation.sent))
    words += [f"{code} {_seconds(evidence, at)}" for at, code in invitation.responses]
    marks = (
        ("ACK", invitation.settled_at),
        ("CANCEL", invitation.canceled_at),
        ("audio", invitation.audio_at),
        (f"BYE by {invitation.bye_by}", invitation.bye_at),
    )
    words += [f"{name} {_seconds(evidence, at)}" for name, at in marks if at is not None]
    if invitation.packets:
        words.append(f"{invitation.packets} packets")
    return "; ".join(words)
