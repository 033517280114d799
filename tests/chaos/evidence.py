"""The evidence of a run, as values: callee log, faults, API answers, ledger, webhooks.

All times are seconds of CLOCK_MONOTONIC, which every process of a machine shares.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

NO_CARRIER: Final = frozenset({"carrier-cut", "link-down"})
"""Faults during which a worker can't reach the carrier."""
NO_DATABASE: Final = frozenset(
    {"db-kill", "db-freeze", "db-full", "db-unwritable", "db-cut", "link-down"}
)
"""Faults during which a process can't write to the database."""
SERVER: Final = "server"
"""The detail of a fault of the database server, which all processes feel."""


@dataclass(slots=True)
class Invitation:
    """An INVITE transaction as the callee saw it, and the call that it became."""

    call: str
    """Its SIP Call-ID."""
    number: str
    """Its last ten digits, as in `Placed`."""
    plan: str = ""
    branch: str = ""
    """The transaction's branch."""
    worker: str = ""
    """The worker that sent it, where its datagrams were captured."""
    sent: list[float] = field(default_factory=list)
    """When each copy of the INVITE arrived; the first is the request itself."""
    dropped: list[float] = field(default_factory=list)
    """When a copy was sent that the callee dropped, or that the network lost."""
    responses: list[tuple[float, int]] = field(default_factory=list)
    """Those that the callee sent."""
    reached: list[tuple[float, int]] | None = None
    """Those that reached the service; None where this was not captured."""
    known: list[float] = field(default_factory=list)
    """When the service showed that it knew the final response or the end: by its ACK, its BYE, or
    200 to the callee's BYE; also where that was dropped or lost."""
    hung_up_at: float | None = None
    """When the service first sent BYE, also where it was dropped or lost."""
    canceled_at: float | None = None
    audio_at: float | None = None
    """When its first RTP packet arrived."""
    packets: int = 0
    bye_at: float | None = None
    bye_by: str = ""
    """"service", or what made the callee hang up: "callee", "silence", "not acknowledged"."""
    over_at: float | None = None
    over_by: str = ""

    @property
    def first(self) -> float:
        """When it reached the callee."""
        return self.sent[0]

    @property
    def left(self) -> float:
        """When the service sent it."""
        return min([self.sent[0], *self.dropped])

    @property
    def silent(self) -> bool:
        """Whether the callee sent no packet at all."""
        return not self.responses

    @property
    def rang_at(self) -> float | None:
        """When the callee first said that it rings."""
        return next((at for at, code in self.responses if 180 <= code < 190), None)

    @property
    def received(self) -> list[tuple[float, int]]:
        """The responses that reached the service, as far as is known."""
        return self.responses if self.reached is None else self.reached

    @property
    def answered_at(self) -> float | None:
        """When the callee answered."""
        return next((at for at, code in self.responses if 200 <= code < 300), None)

    @property
    def refused_at(self) -> float | None:
        """When the callee sent a final response that is no answer."""
        return next((at for at, code in self.responses if code >= 300), None)

    @property
    def settled_at(self) -> float | None:
        """When the service had the final response for certain, or knew of the end."""
        return min(self.known, default=None)

    @property
    def end(self) -> float:
        """When either side had ended it; infinite if neither did."""
        if self.silent:
            return self.sent[-1]
        ends = [at for at in (self.over_at, self.hung_up_at) if at is not None]
        return min(ends, default=float("inf"))


class Placed(NamedTuple):
    """A call that the service has accepted with 200."""

    call_id: str
    number: str
    retry_count: int
    accepted_at: float


class FinalCall(NamedTuple):
    """A call as the API shows it at the end."""

    status: str
    bill_seconds: int
    price: float


class Fault(NamedTuple):
    """A fault that was injected. `at` equals `until` where it is a moment."""

    kind: str
    at: float
    until: float
    detail: str = ""


class Exit(NamedTuple):
    """An end of the service process."""

    at: float
    status: int
    why: str
    """"kill" or "term", as it was asked to, "hung" if it was killed after SIGTERM was not
    followed, or "by itself"."""
    seconds: float = 0.0
    """From SIGTERM to the end."""
    name: str = ""
    """The process, where there are several."""


class Event(NamedTuple):
    """A webhook that arrived."""

    at: float
    webhook_id: str
    call_id: str
    status: str
    bill_seconds: int


class Entry(NamedTuple):
    """A ledger entry of a call."""

    call_id: str
    attempt_id: str
    amount: float


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of the service that rules depend on, in seconds."""

    ring_timeout: float = 5.0
    retry_interval: float = 5.0
    uncertain_redials: int = 1
    drain_timeout: float = 10.0

    @property
    def crash_wait(self) -> float:
        """How long an INVITE that a crash has forgotten counts as alive."""
        return self.ring_timeout + 32.0


@dataclass(slots=True)
class Evidence:
    """Everything that the checks look at."""

    terms: Terms = field(default_factory=Terms)
    invitations: list[Invitation] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    doubtful: set[str] = field(default_factory=set)
    """Numbers of requests that were never answered: what they may be called is not known."""
    finals: dict[str, FinalCall] = field(default_factory=dict)
    """By call id; calls that the API does not know are missing."""
    faults: list[Fault] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    calls_stored: dict[str, int] = field(default_factory=dict)
    """How many calls the database holds for each number."""
    spent: float = 0.0
    """By how much the balance fell."""
    http_problems: list[str] = field(default_factory=list)
    """Answers of the API that it must never give, such as 500."""
    log: list[str] = field(default_factory=list)
    """The lines of the service's log."""
    lost_invites: list[float] = field(default_factory=list)
    """When an INVITE was sent of which no copy reached the callee."""
    taken_over: list[tuple[str, float]] = field(default_factory=list)
    """The workers whose lease others have ended, and when they recovered its calls."""
    workers: frozenset[str] = frozenset()
    """The names of the workers, where there are several."""
    begun: float = 0.0
    ended: float = 0.0
    is_fleet: bool = False
    """Several processes dial: the end of one leaves the attempts of others as they are."""

    def by_number(self) -> Mapping[str, Sequence[Invitation]]:
        """The invitations of each number, in the order in which they came."""
        found: dict[str, list[Invitation]] = defaultdict(list)
        for invitation in sorted(self.invitations, key=lambda each: each.first):
            found[invitation.number].append(invitation)
        return found

    def calls_of(self) -> Mapping[str, Sequence[Placed]]:
        """The calls that were placed to each number."""
        found: dict[str, list[Placed]] = defaultdict(list)
        for placed in self.placed:
            found[placed.number].append(placed)
        return found

    def exits_of(self, worker: str) -> list[Exit]:
        """The ends of a worker, or of every process where it is not known which one."""
        return [each for each in self.exits if not worker or each.name in ("", worker)]

    def faults_of(self, worker: str) -> list[Fault]:
        """The faults that a worker feels, or all where it is not known which one."""
        return [each for each in self.faults if not worker or each.detail in (worker, SERVER)]

    def deaths(self, worker: str = "") -> list[float]:
        """When a worker, or any process, died, or its calls were taken from it as if it had."""
        taken = [at for name, at in self.taken_over if worker in ("", name)]
        died = [each.at for each in self.exits_of(worker) if each.why != "term"]
        return sorted(taken + died)

    def cut_off(self, worker: str, begin: float, end: float) -> float:
        """Seconds between two moments in which a worker and the carrier could not reach each other.

        Of faults that overlap, the longest counts.
        """
        spans = [
            min(fault.until, end) - max(fault.at, begin)
            for fault in self.faults
            if fault.detail == worker and fault.kind in NO_CARRIER
        ]
        return max([0.0, *spans])


def digits_of(number: str) -> str:
    """The last ten digits, by which numbers in any notation are compared."""
    return number[-10:]


def read_callee_log(lines: Iterable[str]) -> list[Invitation]:
    """The invitations in a callee's log."""
    found: dict[tuple[str, str], Invitation] = {}
    for line in lines:
        entry = json.loads(line)
        if "branch" not in entry:
            continue
        key = entry["call"], entry["branch"]
        if key not in found:
            number = digits_of(entry["number"])
            call, branch = key
            found[key] = Invitation(call, number, entry.get("plan", ""), branch)
        _add(found[key], entry)
    return [invitation for invitation in found.values() if invitation.sent]


def read_callee_file(path: Path) -> list[Invitation]:
    """The invitations of a callee's log file."""
    with path.open() as lines:
        return read_callee_log(lines)


def _add(invitation: Invitation, entry: dict[str, Any]) -> None:
    at = entry["at"]
    match entry["event"]:
        case "invite" if entry.get("dropped"):
            invitation.dropped.append(at)
        case "invite":
            invitation.plan = entry.get("plan", invitation.plan)
            invitation.sent.append(at)
        case "sent":
            invitation.responses.append((at, entry["code"]))
        case "ack":
            invitation.known.append(at)
        case "bye answered" if entry["code"] == 200:
            invitation.known.append(at)
        case "cancel":
            invitation.canceled_at = invitation.canceled_at or at
        case "audio":
            invitation.audio_at = at
        case "bye":
            if entry["by"] == "service":
                invitation.known.append(at)
                invitation.hung_up_at = invitation.hung_up_at or at
            if not entry.get("dropped"):
                invitation.bye_at, invitation.bye_by = at, entry["by"]
        case "over" if entry["by"] != "quit":
            invitation.over_at, invitation.over_by = at, entry["by"]
            invitation.packets = entry["packets"]
        case "over":
            invitation.over_by = "quit"
            invitation.packets = entry["packets"]
