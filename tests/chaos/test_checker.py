"""Each rule finds its violation in a hand-made run, and finds nothing in a run that is right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos.checks import RULES, check
from tests.chaos.evidence import (
    Entry,
    Event,
    Evidence,
    Exit,
    Fault,
    FinalCall,
    Invitation,
    Placed,
    Terms,
    read_callee_log,
)

NUMBER = "9120000001"
TERMS = Terms(ring_timeout=5.0, retry_interval=5.0, uncertain_redials=1, drain_timeout=10.0)


def log_of(*lines: tuple[float, str, dict[str, Any]], call: str = "a") -> list[Invitation]:
    """The invitation of a callee's log with these lines."""
    names = {"call": call, "branch": f"z9hG4bK{call}", "number": f"+98{NUMBER}"}
    return read_callee_log(
        json.dumps({"at": at, "wall": at, "event": event, **more, **names})
        for at, event, more in lines
    )


def answered(
    at: float, call: str = "a", packets: int = 75, by: str = "service", talk: float = 1.6
) -> list[Invitation]:
    """An invitation that rings, is answered after 0.4 s, hears the recording, and ends."""
    end = at + 0.4 + talk
    lines: list[tuple[float, str, dict[str, Any]]] = [
        (at, "invite", {"repeat": False, "plan": "answer"}),
        (at + 0.001, "sent", {"code": 100}),
        (at + 0.1, "sent", {"code": 180}),
        (at + 0.4, "sent", {"code": 200}),
        (at + 0.45, "ack", {}),
    ]
    if packets:
        lines.append((at + 0.5, "audio", {}))
    lines.append((end, "bye", {"by": by}))
    lines.append((end, "over", {"by": by, "packets": packets, "first": at + 0.5, "last": end}))
    return log_of(*lines, call=call)


def refused(
    at: float,
    call: str = "a",
    code: int = 486,
    ring: int | None = 180,
    after: float = 1.0,
    ack: bool = True,
) -> list[Invitation]:
    """An invitation that ends with a failure after so many seconds."""
    lines: list[tuple[float, str, dict[str, Any]]] = [
        (at, "invite", {"repeat": False, "plan": "busy"}),
        (at + 0.001, "sent", {"code": 100}),
    ]
    if ring:
        lines.append((at + 0.1, "sent", {"code": ring}))
    lines.append((at + after, "sent", {"code": code}))
    lines.append((at + after, "over", {"by": "refused", "packets": 0, "first": 0, "last": 0}))
    if ack:
        lines.append((at + after + 0.01, "ack", {}))
    return log_of(*lines, call=call)


def ringing(at: float, call: str = "a", rings: bool = True) -> list[Invitation]:
    """An invitation that is never over."""
    return log_of(
        (at, "invite", {"repeat": False, "plan": "never answer"}),
        (at + 0.001, "sent", {"code": 100}),
        *([(at + 0.1, "sent", {"code": 180})] if rings else []),
        call=call,
    )


def copies(at: float, *offsets: float, responses: bool = False) -> list[Invitation]:
    """An INVITE and its repeats, to a callee that sends 100 at once or nothing."""
    repeats = [(at + offset, "invite", {"repeat": True}) for offset in offsets]
    return log_of(
        (at, "invite", {"repeat": False}),
        *([(at + 0.001, "sent", {"code": 100})] if responses else []),
        *repeats,
    )


def run_with(
    *invitations: list[Invitation],
    status: str = "NORMAL",
    bill: int = 2,
    price: float = -2.0,
    entries: list[float] | None = None,
    retry_count: int = 0,
    **more: Any,
) -> Evidence:
    """A run of one call, c1, that went right apart from what is given."""
    amounts = entries if entries is not None else [price] if price else []
    run = Evidence(
        terms=TERMS,
        invitations=[each for some in invitations for each in some],
        placed=[Placed("c1", NUMBER, retry_count, 0.0)],
        finals={"c1": FinalCall(status, bill, price)},
        exits=[Exit(900.0, 0, "term", 1.0)],
        events=[Event(800.0, "w1", "c1", status, bill)],
        entries=[Entry("c1", f"a{n}", amount) for n, amount in enumerate(amounts)],
        calls_stored={NUMBER: 1},
        spent=-sum(amounts),
    )
    for name, value in more.items():
        setattr(run, name, value)
    return run


def failed(*invitations: list[Invitation], status: str = "NO_ANSWER", **more: Any) -> Evidence:
    """A run whose call failed, and cost nothing."""
    return run_with(*invitations, status=status, bill=0, price=0.0, **more)


def killed(at: float) -> dict[str, Any]:
    return {"exits": [Exit(at, -9, "kill")], "faults": [Fault("kill", at, at + 2.0)]}


CAUSE = [
    "2026-11-26T01:33:04Z [error] request failed",
    "Traceback (most recent call last):",
    '  File "x", line 1',
    "sqlalchemy.exc.OperationalError: disk I/O error",
    "[SQL: INSERT INTO call",
    *[f"    line {n}" for n in range(50)],
    "(Background on this error at: https://sqlalche.me/e/20/e3q8)",
    "",
    "The above exception was the direct cause of the following exception:",
    "",
    "Traceback (most recent call last):",
    '  File "y", line 2',
    "bitel.store.db_errors.StoreUnavailable: try again later",
]

RIGHT = {
    "answered": run_with(answered(0.0)),
    "hung up by the callee before any audio": run_with(
        answered(0.0, packets=0, by="callee", talk=0.9), bill=1, price=-1.0
    ),
    "busy, then answered": run_with(
        refused(0.0, "a"), answered(6.1, "b"), retry_count=1, bill=2, price=-2.0
    ),
    "refused at once again and again": run_with(
        *[refused(20.0 * n, f"r{n}", 503, None, 0.01) for n in range(5)], answered(100.0, "b")
    ),
    "not answered": failed(refused(0.0, code=487, after=5.0)),
    "uncertain, and redialled once": failed(
        *[refused(10.0 * n, f"r{n}", 504, None, 4.5) for n in range(2)]
    ),
    "cut off by a crash": failed(ringing(0.0), refused(38.0, "b"), retry_count=1, **killed(3.0)),
    "cut off by a crash before ringing was written": failed(
        ringing(0.0), refused(38.0, "b"), **killed(0.5)
    ),
    "rang when the service was dead": failed(ringing(0.0), refused(38.0, "b"), **killed(0.05)),
    "stopped twice in a row before ringing was written, then killed": failed(
        ringing(0.0),
        refused(48.0, "b"),
        exits=[Exit(10.2, -9, "kill")],
        faults=[
            Fault("stop", 0.05, 5.0),
            Fault("stop", 5.04, 10.14),
            Fault("kill", 10.2, 11.0),
        ],
    ),
    "repeated as RFC 3261 says": failed(
        copies(0.0, 0.5, 1.5, 3.5, 7.499, 15.5, 31.501), status="EXPIRED"
    ),
    "BYE was dropped": failed(
        log_of(
            (0.0, "invite", {"repeat": False, "plan": "answer"}),
            (0.1, "sent", {"code": 180}),
            (4.0, "sent", {"code": 200}),
            (4.1, "ack", {"dropped": True}),
            (4.2, "bye", {"by": "service", "dropped": True}),
            (36.0, "bye", {"by": "not acknowledged"}),
            (36.0, "over", {"by": "not acknowledged", "packets": 0, "first": 0, "last": 0}),
        ),
        refused(10.0, "b"),
        retry_count=1,
    ),
    "the callee hung up long before a crash": failed(
        log_of(
            (0.0, "invite", {"repeat": False, "plan": "answer"}),
            (0.1, "sent", {"code": 180}),
            (0.4, "sent", {"code": 200}),
            (0.9, "bye", {"by": "callee"}),
            (0.9, "over", {"by": "callee", "packets": 0, "first": 0, "last": 0}),
            (0.91, "bye answered", {"code": 200}),
        ),
        refused(20.0, "b"),
        retry_count=1,
        **killed(15.0),
    ),
    "the first copies of an INVITE were dropped": failed(
        log_of(
            (0.0, "invite", {"dropped": True}),
            (0.5, "invite", {"dropped": True}),
            (1.5, "invite", {"repeat": False, "plan": "never answer"}),
            (1.501, "sent", {"code": 100}),
            (1.6, "sent", {"code": 180}),
        ),
        refused(37.1, "b"),
        retry_count=1,
        **killed(3.0),
    ),
    "repeated late, and still ringing for us": failed(copies(0.0, 3.0), status="EXPIRED"),
    "refused with 503 and a cause in the log": run_with(answered(0.0), log=CAUSE),
    "UNKNOWN after an answer": run_with(
        answered(0.0, packets=9), status="UNKNOWN", bill=0, price=0.0, **killed(1.0)
    ),
    "billed wrongly while the service was stopped": run_with(
        answered(0.0, talk=9.0), faults=[Fault("stop", 1.0, 9.0)]
    ),
    "one number, two calls": run_with(
        answered(0.0), answered(3.0, "b"), placed=[Placed("c1", NUMBER, 0, 0.0)] * 2,
        calls_stored={NUMBER: 2},
    ),
    "no start without a database": run_with(
        answered(0.0),
        exits=[Exit(50.0, 1, "by itself")],
        faults=[Fault("db-freeze", 40.0, 51.0)],
    ),
}  # fmt: skip

WRONG: list[tuple[str, Evidence]] = [
    ("accepted call lost", run_with(answered(0.0), finals={})),
    ("call never final", failed(status="WAITING")),
    ("call placed twice", run_with(answered(0.0), calls_stored={NUMBER: 2})),
    ("status contradicts the callee", run_with(refused(0.0))),
    ("status contradicts the callee", failed(ringing(0.0), status="USER_BUSY")),
    ("status contradicts the callee", failed(answered(0.0), status="EXPIRED")),
    ("status contradicts the callee", failed(refused(0.0, code=480), status="ERROR")),
    ("UNKNOWN though never answered", failed(ringing(0.0), status="UNKNOWN")),
    ("NORMAL without audio, hung up by us", run_with(answered(0.0, packets=0))),
    ("number in two attempts at once", failed(ringing(0.0), refused(20.0, "b"), retry_count=1)),
    (
        "number in two attempts at once",
        # Of two calls too, and also where another attempt lies between.
        failed(ringing(0.0), refused(50.0, "b"), refused(70.0, "c"), retry_count=5),
    ),
    (
        "redialled too early after a crash",
        failed(ringing(0.0), refused(27.0, "b"), retry_count=1, **killed(3.0)),
    ),
    (
        "redialled too early after a crash",
        # The failure was sent, but the service died before it had it.
        failed(refused(0.0, ack=False), refused(7.0, "b"), retry_count=1, **killed(0.9)),
    ),
    ("called again after having heard audio", run_with(answered(0.0), answered(40.0, "b"))),
    (
        "called again after having heard audio",
        run_with(
            *[answered(10.0 * n, f"x{n}") for n in range(3)],
            placed=[Placed("c1", NUMBER, 0, 0.0), Placed("c2", NUMBER, 0, 0.0)],
        ),
    ),
    ("rang more often than allowed", failed(refused(0.0, code=480), refused(6.5, "b", code=480))),
    (
        "rang more often than allowed",
        # A crash hides no ringing that lay seconds before it.
        failed(ringing(0.0), refused(38.0, "b"), **killed(3.0)),
    ),
    (
        "uncertain attempt redialled too often",
        failed(*[refused(10.0 * n, f"r{n}", 504, None, 4.5) for n in range(3)]),
    ),
    (
        "redialled sooner than retryInterval",
        failed(refused(0.0, after=1.0), refused(5.0, "b"), retry_count=1),
    ),
    ("INVITE repeated late", failed(copies(0.0, 0.5, 9.0), status="EXPIRED")),
    ("INVITE repeated late", failed(copies(0.0, 33.5), status="EXPIRED")),
    ("INVITE repeated late", failed(copies(0.0, 1.5, responses=True), status="EXPIRED")),
    (
        "INVITE for a call that was final",
        failed(refused(0.0), events=[Event(-3.0, "w1", "c1", "NO_ANSWER", 0)]),
    ),
    ("billed without an answer", run_with(ringing(0.0), status="UNKNOWN")),
    ("billed time differs from the callee's", run_with(answered(0.0, talk=9.0))),
    ("ledger entries of an attempt or call not one", run_with(answered(0.0), entries=[-2.0, -2.0])),
    ("ledger entries of an attempt or call not one", run_with(answered(0.0), price=0.0)),
    ("zero ledger entry beside a real one", run_with(answered(0.0), entries=[-2.0, 0.0])),
    ("ledger differs from price or balance", run_with(answered(0.0), spent=3.0)),
    ("ledger differs from price or balance", run_with(answered(0.0), entries=[-3.0])),
    ("webhook missing", run_with(answered(0.0), events=[])),
    (
        "webhook with another id or content",
        run_with(answered(0.0), events=[Event(9.0, w, "c1", "NORMAL", 2) for w in ("w1", "w2")]),
    ),
    (
        "webhook with another id or content",
        run_with(answered(0.0), events=[Event(9.0, "w1", "c1", "UNKNOWN", 0)]),
    ),
    ("SIGTERM not followed cleanly", run_with(answered(0.0), exits=[Exit(9.0, 1, "term", 1.0)])),
    ("SIGTERM not followed cleanly", run_with(answered(0.0), exits=[Exit(99.0, 0, "term", 51.0)])),
    ("SIGTERM not followed cleanly", run_with(answered(0.0), exits=[Exit(99.0, -9, "hung", 55.0)])),
    ("service ended by itself", run_with(answered(0.0), exits=[Exit(50.0, 1, "by itself")])),
    (
        "answer that the API must not give",
        run_with(answered(0.0), http_problems=["/api/v2/files/tts: 500"]),
    ),
    (
        "traceback in the service's log",
        run_with(
            answered(0.0),
            log=["error", "Traceback (most recent call last):", "  File x", "ValueError: no"],
        ),
    ),
]


@pytest.mark.parametrize("name", RIGHT)
def test_a_run_that_is_right_has_no_violation(name: str) -> None:
    assert check(RIGHT[name]) == []


@pytest.mark.parametrize(("kind", "evidence"), WRONG)
def test_a_violation_is_found(kind: str, evidence: Evidence) -> None:
    assert kind in {violation.kind for violation in check(evidence)}


def test_every_rule_is_shown_to_fail() -> None:
    assert {kind for kind, _ in WRONG} == set(RULES)


def test_two_entries_of_one_attempt_are_found() -> None:
    entries = [Entry("c1", "a0", -1.0), Entry("c2", "a0", -1.0)]
    run = run_with(answered(0.0), entries=[])
    run.entries = entries
    found = [each.evidence for each in check(run) if "ledger entries" in each.kind]
    assert "attempt a0: 2 entries" in found


def test_a_violation_names_number_call_and_times() -> None:
    [found] = check(failed(ringing(0.0), refused(27.0, "b"), retry_count=1, **killed(3.0)))
    assert NUMBER in found.evidence
    assert "crash at 3.00" in found.evidence
    assert "27.0 s after its INVITE" in found.evidence
