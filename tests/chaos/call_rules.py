"""Rules about calls and phones: compare the callee's log with what the API says.

A number is never called by more than the calls that were placed to it allow; a rule about one
call's attempts is applied where its number has one call.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from tests.chaos.evidence import NO_DATABASE, Evidence, Invitation
from tests.chaos.rules import finds, numbers, seconds, single, status, story

EARLY: Final = 0.3
"""Seconds by which a redial may come early: clocks are read by two processes, not at once."""
RECORDED_AFTER: Final = 1.0
"""Seconds after a 18x by which ringing must be durable, so that a later crash can't hide it."""
UNREAD: Final = 1.0
"""Seconds that a response may lie unread, or a timer be late, while an INVITE is repeated."""
TIMER_B: Final = 32.0
SCHEDULE: Final = (0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5)
"""Seconds after an INVITE at which it may be repeated over UDP: timer A with T1 = 0.5 s."""
LOST_AUDIO: Final = 0.5
"""Seconds of audio that can't be lost where the network carries it."""
T2: Final = 4.0
"""Seconds between two repeats of a CANCEL over UDP, at most (RFC 3261, 17.1.2.2)."""
KNOWN: Final = 1.0
"""Seconds after a call's webhook from which no INVITE of it may come."""
PERSON_BUSY: Final = frozenset({486, 600, 603})
HEARD_AS: Final = frozenset({"NORMAL", "UNKNOWN", "ERROR"})
"""The statuses that a call may have whose callee got audio; ERROR where it broke off."""


# Calls, and what the API says of them


@finds("accepted call lost")
def _lost(evidence: Evidence) -> Iterator[str]:
    for placed in evidence.placed:
        if placed.call_id not in evidence.finals:
            yield f"call {placed.call_id} to {placed.number} is not known any more"


@finds("call never final")
def _never_final(evidence: Evidence) -> Iterator[str]:
    for placed in evidence.placed:
        final = evidence.finals.get(placed.call_id)
        if final is not None and final.status == "WAITING":
            asked = seconds(evidence, placed.accepted_at)
            yield f"call {placed.call_id} to {placed.number}, placed at {asked}, still waits"


@finds("call placed twice")
def _placed_twice(evidence: Evidence) -> Iterator[str]:
    asked = Counter(placed.number for placed in evidence.placed)
    for number, stored in evidence.calls_stored.items():
        if stored > asked[number] and number not in evidence.doubtful:
            yield f"{number}: {asked[number]} calls accepted, {stored} stored"


@finds("status contradicts the callee")
def _contradicted(evidence: Evidence) -> Iterator[str]:
    for placed, invitations in single(evidence):
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


@finds("UNKNOWN though never answered")
def _unknown(evidence: Evidence) -> Iterator[str]:
    for number, placed, invitations in numbers(evidence):
        unknown = [each for each in placed if status(evidence, each) == "UNKNOWN"]
        answers = sum(each.answered_at is not None for each in invitations)
        if len(unknown) > answers:
            ids = ", ".join(each.call_id for each in unknown)
            yield f"{number}: {answers} answers, UNKNOWN {ids}"


@finds("NORMAL without audio, hung up by us")
def _silent_normal(evidence: Evidence) -> Iterator[str]:
    for placed, invitations in single(evidence):
        answered = [each for each in invitations if each.answered_at]
        if status(evidence, placed) != "NORMAL" or not answered:
            continue
        last = answered[-1]
        if any(each.packets for each in answered) or last.bye_by != "service":
            continue
        if not _audio_lost(evidence, last):
            yield f"call {placed.call_id}: {story(evidence, last)}"


# What the phones received


@finds("number in two attempts at once")
def _overlap(evidence: Evidence) -> Iterator[str]:
    for number, invitations in evidence.by_number().items():
        for earlier, later in _all_pairs(invitations):
            if later.first < earlier.end and not _forgotten(evidence, earlier, later):
                yield f"{number}: {story(evidence, earlier)} / {story(evidence, later)}"


@finds("redialled too early after a crash")
def _early_after_crash(evidence: Evidence) -> Iterator[str]:
    """An INVITE that a crash has forgotten may ring until ring time-out + 32 s after it left."""
    for number, invitations in evidence.by_number().items():
        for position, earlier in enumerate(invitations):
            later = next((each for each in invitations[position + 1 :] if not each.silent), None)
            if later is None or earlier.silent:
                continue
            death = _forgotten(evidence, earlier, later)
            wait = later.left - earlier.left
            if death is not None and wait < evidence.terms.crash_wait - EARLY:
                yield (
                    f"{number}: {story(evidence, earlier)}, crash at {seconds(evidence, death)}, "
                    f"called again {wait:.1f} s after its INVITE"
                )


@finds("called again after having heard audio")
def _again_after_audio(evidence: Evidence) -> Iterator[str]:
    for number, placed, invitations in numbers(evidence):
        heard = sorted(each.audio_at for each in invitations if each.audio_at is not None)
        if len(heard) < len(placed):
            continue
        enough = heard[len(placed) - 1] if placed else float("-inf")
        for each in invitations:
            if each.first > enough:
                since = each.first - enough
                yield f"{number}: audio {since:.1f} s before {story(evidence, each)}"


@finds("rang more often than allowed")
def _rang_too_often(evidence: Evidence) -> Iterator[str]:
    for number, placed, invitations in numbers(evidence):
        rings = [each for each in invitations if each.rang_at is not None]
        excused = [each for each in rings if _may_be_forgotten(evidence, each)]
        allowed = sum(1 + each.retry_count for each in placed)
        if len(rings) - len(excused) > allowed:
            times = ", ".join(seconds(evidence, each.first) for each in rings)
            yield (
                f"{number} ({rings[0].plan}): rang {len(rings)} times, {allowed} allowed"
                f" and {len(excused)} cut off: {times}"
            )


@finds("uncertain attempt redialled too often")
def _uncertain_too_often(evidence: Evidence) -> Iterator[str]:
    for number, placed, invitations in numbers(evidence):
        late = [each for each in invitations if _is_uncertain(each)]
        sure = [each for each in late if not _cut_off(evidence, each)]
        extra = evidence.terms.uncertain_redials
        allowed = sum(1 + each.retry_count + extra for each in placed)
        if len(sure) > allowed:
            times = ", ".join(seconds(evidence, each.first) for each in late)
            yield f"{number} ({late[0].plan}): {len(sure)} times, {allowed} allowed: {times}"


@finds("redialled sooner than retryInterval")
def _too_soon(evidence: Evidence) -> Iterator[str]:
    for _, invitations in single(evidence):
        for earlier, later in itertools.pairwise(invitations):
            if earlier.silent or _forgotten(evidence, earlier, later) or earlier.end > later.first:
                continue
            wait = later.first - earlier.end
            if wait < evidence.terms.retry_interval - EARLY:
                yield f"{wait:.1f} s: {story(evidence, earlier)} / {story(evidence, later)}"


@finds("INVITE repeated late")
def _late_repeat(evidence: Evidence) -> Iterator[str]:
    """A copy that RFC 3261 (17.1.1.2) has no place for.

    It comes after timer B; or when a response lay there to be read; or after the ring time-out and
    off the schedule, as when a process that was stopped sends again what was due meanwhile.
    """
    for invitation in evidence.invitations:
        answered = min((at for at, _ in invitation.received), default=float("inf"))
        for at in invitation.sent[1:]:
            after = at - invitation.left
            off = after - max(each for each in SCHEDULE if each <= after + 0.1)
            if after > TIMER_B + UNREAD:
                why = "after timer B"
            elif at - answered > UNREAD:
                why = f"{at - answered:.1f} s after the first response"
            elif after > evidence.terms.ring_timeout and off > UNREAD:
                why = f"after the ring time-out, {off:.1f} s behind the schedule"
            else:
                continue
            line = story(evidence, invitation)
            yield f"{invitation.number}: {after:.1f} s after the first, {why}: {line}"
            break


@finds("INVITE for a call that was final")
def _after_final(evidence: Evidence) -> Iterator[str]:
    final_at = {event.call_id: event.at for event in reversed(evidence.events)}
    for placed, invitations in single(evidence):
        final = final_at.get(placed.call_id)
        if final is None:
            continue
        for each in invitations:
            late = [at for at in each.sent if at > final + KNOWN]
            if late:
                yield (
                    f"call {placed.call_id} was final at {seconds(evidence, final)}, "
                    f"INVITE at {seconds(evidence, late[0])}: {story(evidence, each)}"
                )


# What these rules share


def _all_pairs(invitations: Sequence[Invitation]) -> Iterator[tuple[Invitation, Invitation]]:
    """Each invitation with every later one; those without any response are left out."""
    return itertools.combinations([each for each in invitations if not each.silent], 2)


def _forgotten(evidence: Evidence, earlier: Invitation, later: Invitation) -> float | None:
    """When a crash made the service forget `earlier` before it knew its final response."""
    settled = earlier.settled_at if earlier.settled_at is not None else float("inf")
    if evidence.is_fleet and earlier.settled_at is not None and not earlier.worker:
        return None  # it may be another process that died
    for death in evidence.deaths(earlier.worker):
        if earlier.left <= death < min(settled, later.first):
            return death
    return None


def _cut_off(evidence: Evidence, invitation: Invitation) -> bool:
    """Whether the service died, or was stopped, before it had the final response."""
    until = invitation.settled_at or invitation.end
    worker = invitation.worker
    ends = [each.at for each in evidence.exits_of(worker)] + evidence.deaths(worker)
    if any(invitation.first <= at <= until + RECORDED_AFTER for at in ends):
        return True
    # It was stopped when the response came, or could not write it, and died before it could.
    writable = _hidden_until(evidence, worker, until) + RECORDED_AFTER
    return any(until <= at <= writable for at in ends)


def _may_be_forgotten(evidence: Evidence, invitation: Invitation) -> bool:
    """Whether the service could not make durable that it rang, or gave the attempt back itself."""
    rang = next((at for at, code in invitation.received if 180 <= code < 300), None)
    if rang is None:
        return True  # every 18x was lost on its way
    deaths = evidence.deaths(invitation.worker)
    # Also where the service was dead already when the callee began to ring.
    if any(invitation.left <= death <= rang + RECORDED_AFTER for death in deaths):
        return True
    writable = _hidden_until(evidence, invitation.worker, rang) + RECORDED_AFTER
    if any(rang <= death <= writable for death in deaths):
        return True
    if evidence.is_fleet and _lapsed(evidence, invitation):
        return True
    terms = [each for each in evidence.exits if each.why == "term"]
    # A drain cancels what rings; whether that spends a retry is for the service to decide.
    return invitation.canceled_at is not None and any(
        each.at - each.seconds <= invitation.canceled_at <= each.at for each in terms
    )


def _lapsed(evidence: Evidence, invitation: Invitation) -> bool:
    """Whether the service canceled it while a lease may have lapsed.

    As with a drain, whether that spends a retry is for the service to decide.
    """
    canceled = invitation.canceled_at
    if canceled is None:
        return False
    faults = [each for each in evidence.faults_of(invitation.worker) if each.kind in _HIDING]
    # What arrives soon after a link was down may be the repeat of a CANCEL that was sent meanwhile.
    down = [each for each in faults if each.kind == "link-down" and canceled <= each.until + T2]
    begun = min([canceled, *(each.at for each in down if each.at <= canceled)])
    return begun < invitation.left + evidence.terms.ring_timeout - EARLY and any(
        each.at <= canceled and begun <= each.until + RECORDED_AFTER for each in faults
    )


def _hidden_until(evidence: Evidence, worker: str, at: float) -> float:
    """Until when faults in a row kept a worker from writing what happened at `at`."""
    until = at
    for fault in sorted(evidence.faults_of(worker), key=lambda fault: fault.at):
        if fault.kind in _HIDING and fault.at - RECORDED_AFTER <= until:
            until = max(until, fault.until)
    return until


_HIDING: Final = NO_DATABASE | {"stop"}
"""Faults during which ringing can't be made durable."""


def _is_uncertain(invitation: Invitation) -> bool:
    received = invitation.received
    refused = next((at for at, code in received if code >= 300), None)
    if refused is None or invitation.canceled_at:
        return False
    if any(180 <= code < 190 for _, code in received):
        return False
    return refused - received[0][0] > 4.0


def _audio_lost(evidence: Evidence, invitation: Invitation) -> bool:
    """Whether the network may have lost all audio, because it carried less than half a second."""
    begin, end = invitation.settled_at, invitation.end
    if begin is None:
        return False
    cut = evidence.cut_off(invitation.worker, begin, end)
    return cut > 0.0 and end - begin - cut < LOST_AUDIO
