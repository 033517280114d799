"""What is kept of a call's SIP messages, for how many calls, and what never is."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitel.dialer import sip_trace
from bitel.dialer.sip_trace import (
    DAY,
    MAX_BYTES,
    MAX_WAITING,
    MAX_WAITING_ERRORS,
    Entry,
    Keep,
    Share,
    Traced,
    TraceFiles,
    TraceStore,
)
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.errors import NotFoundError
from bitel.sip import Credentials
from bitel.sip.grammar import Address
from bitel.sip.message import Request
from tests.support.carrier import Answer, answering, carrier
from tests.support.sip_dialer import OneClip, dialer
from tests.support.waiting import wait_until

FAR = Address("192.0.2.9", 5060)


def order(number: int, attempt: int = 1) -> DialRequest:
    return DialRequest(f"{number}-{attempt}", f"{number:032x}", "+98912", None)


def message(call_id: str, *headers: str) -> bytes:
    lines = ("INVITE sip:1@far SIP/2.0", f"Call-ID: {call_id}", *headers, "", "")
    return "\r\n".join(lines).encode()


def trace_one(
    traces: TraceStore, which: DialRequest, outcome: Outcome, data: bytes | None = None
) -> None:
    traces.invited(which, which.attempt_id)
    traces.tap("out", data or message(which.attempt_id), FAR, 1.5)
    traces.over(which, AttemptResult(outcome, 1.0, 2.0, detail="why"))


def kept(folder: Path, numbers: Iterable[int]) -> list[int]:
    """Which of the calls have a trace."""
    return [n for n in numbers if sip_trace.read(folder, f"{n:032x}")]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.trace"))


def test_the_last_calls_and_those_that_ended_in_error(tmp_path: Path) -> None:
    traces = TraceStore(tmp_path, Keep(attempts=2, errors=3))
    for number in range(5):
        trace_one(traces, order(number), Outcome.BAD_NUMBER)
    for number in range(10, 15):
        trace_one(traces, order(number), Outcome.ANSWERED)
    traces.close()
    assert kept(tmp_path, range(20)) == [2, 3, 4, 13, 14]


@pytest.mark.parametrize("outcome", [Outcome.BAD_NUMBER, Outcome.REFUSED, Outcome.MEDIA_MISMATCH])
def test_an_error_outlives_the_last_calls_and_nothing_else_does(
    tmp_path: Path, outcome: Outcome
) -> None:
    traces = TraceStore(tmp_path, Keep(attempts=1))
    trace_one(traces, order(1), outcome)
    trace_one(traces, order(2), Outcome.TRUNK_TROUBLE)
    trace_one(traces, order(3), Outcome.BUSY)
    traces.close()
    assert kept(tmp_path, range(5)) == [1, 3]


def test_of_a_burst_the_last_are_kept(tmp_path: Path) -> None:
    traces = TraceStore(tmp_path, Keep(attempts=50))
    for number in range(MAX_WAITING):
        trace_one(traces, order(number), Outcome.ANSWERED)
    traces.close()
    numbers = kept(tmp_path, range(MAX_WAITING - 60, MAX_WAITING))
    assert numbers[-50:] == list(range(MAX_WAITING - 50, MAX_WAITING))


def test_in_a_burst_of_errors_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sip_trace, "PAUSE", 0.01)
    traces = TraceStore(tmp_path)
    for number in range(MAX_WAITING_ERRORS):
        trace_one(traces, order(number), Outcome.REFUSED)
    # Long before the pause of a burst is over.
    wait_until(lambda: kept(tmp_path, [0, MAX_WAITING_ERRORS - 1]) == [0, MAX_WAITING_ERRORS - 1])
    traces.close()


@pytest.mark.parametrize(("attempts", "errors", "left"), [(0, 9, [2]), (9, 0, [1, 2]), (0, 0, [])])
def test_nothing_of_what_is_not_wanted(
    tmp_path: Path, attempts: int, errors: int, left: list[int]
) -> None:
    traces = TraceStore(tmp_path, Keep(attempts, errors))
    trace_one(traces, order(1), Outcome.ANSWERED)
    trace_one(traces, order(2), Outcome.BAD_NUMBER)
    traces.close()
    assert kept(tmp_path, range(5)) == left


def test_a_new_start_knows_the_old_files(tmp_path: Path) -> None:
    for number in range(4):
        traces = TraceStore(tmp_path, Keep(attempts=2, errors=2))
        trace_one(traces, order(number), Outcome.ANSWERED)
        trace_one(traces, order(10 + number), Outcome.REFUSED)
        traces.close()
    assert kept(tmp_path, range(20)) == [2, 3, 12, 13]


def test_a_call_that_goes_wrong_later_takes_its_earlier_attempts_along(tmp_path: Path) -> None:
    for _ in range(2):  # what an earlier run has left is known too
        traces = TraceStore(tmp_path, Keep(attempts=2))
        trace_one(traces, order(7, 1), Outcome.BUSY)
        traces.close()
    traces = TraceStore(tmp_path, Keep(attempts=2))
    trace_one(traces, order(7, 2), Outcome.REFUSED)
    traces.close()
    entries = sip_trace.read(tmp_path, f"{7:032x}")
    for other in range(3):
        traces = TraceStore(tmp_path, Keep(attempts=2))
        trace_one(traces, order(other), Outcome.BUSY)
        traces.close()
    assert sip_trace.read(tmp_path, f"{7:032x}") == entries
    assert [isinstance(entry, Traced) for entry in entries] == [True, False] * 2
    assert entries[1] == "attempt 7-1 ended as busy: why"
    assert entries[3] == "attempt 7-2 ended as refused by policy: why"


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    traces = TraceStore(tmp_path / "t")
    trace_one(traces, order(1), Outcome.ANSWERED)
    trace_one(traces, order(2), Outcome.BAD_NUMBER)
    traces.close()
    files = [path for path in (tmp_path / "t").rglob("*") if path.is_file()]
    folders = [tmp_path / "t", tmp_path / "t" / "errors"]
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_an_attempt_that_talks_and_talks_is_bounded(tmp_path: Path) -> None:
    traces = TraceStore(tmp_path)
    fat = message("1-1", "X: " + "x" * 60_000)
    traces.invited(order(1), "1-1")
    for _ in range(300):
        traces.tap("in", fat, FAR, 1.0)
    traces.over(order(1), None)
    traces.close()
    assert 0 < size(tmp_path) < MAX_BYTES


@pytest.mark.parametrize("limit", [5000, 50_000])
def test_the_size_of_all_is_bounded(tmp_path: Path, limit: int) -> None:
    files = TraceFiles(tmp_path, Share(attempts=1000, size=limit, days=1), lambda: 0.0)
    files.prepare()
    for number in range(200):
        files.add([(f"{number:032x}", b"x" * 1000)])
        assert size(tmp_path) <= limit
    assert size(tmp_path) > limit * 0.7


def test_the_old_are_forgotten(tmp_path: Path) -> None:
    now = 1e9

    def entry(number: int) -> tuple[str, bytes]:
        return f"{number:032x}", Entry(f"{number:032x}", f"{number}-1", "busy", "", []).encode()

    files = TraceFiles(tmp_path, Share(attempts=8, size=10**6, days=3), lambda: now)
    files.prepare()
    files.add([entry(1)])
    now += 2 * DAY
    files.add([entry(2)])
    now += 1.5 * DAY
    files.forget()
    assert kept(tmp_path, range(5)) == [2]
    now += 3 * DAY
    files.forget()
    assert kept(tmp_path, range(5)) == []
    files.add([entry(3)])
    assert kept(tmp_path, range(5)) == [3]


def test_an_error_before_any_message_is_told_too(tmp_path: Path) -> None:
    traces = TraceStore(tmp_path)
    traces.over(order(1), AttemptResult(Outcome.MEDIA_MISMATCH, 1.0, 2.0, detail="no recording"))
    traces.over(order(2), AttemptResult(Outcome.TRUNK_TROUBLE, 1.0, 2.0, detail="no port"))
    traces.close()
    assert sip_trace.read(tmp_path, f"{1:032x}") == [
        "attempt 1-1 ended as media mismatch: no recording"
    ]
    assert kept(tmp_path, range(3)) == [1]


async def test_a_call_with_nothing_to_play_leaves_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> None:
        raise NotFoundError("the recording is gone")

    monkeypatch.setattr(OneClip, "for_request", gone)
    traces = TraceStore(tmp_path / "traces")
    async with dialer(tmp_path, "sip:127.0.0.1:9", watch=traces) as calls:
        result = await calls.call()
    traces.close()
    assert result.outcome is Outcome.MEDIA_MISMATCH
    assert sip_trace.read(tmp_path / "traces", f"{1:032x}") == [
        "attempt attempt1 ended as media mismatch: the recording is gone"
    ]


def test_strangers_are_not_kept(tmp_path: Path) -> None:
    traces = TraceStore(tmp_path)
    traces.invited(order(1), "1-1")
    traces.tap("in", message("another"), FAR, 1.0)
    traces.tap("in", b"\r\n\r\n", FAR, 1.0)
    traces.tap("in", b"\xff" * 70000, FAR, 1.0)
    trace_one(traces, order(1), Outcome.BUSY)
    traces.close()
    entries = sip_trace.read(tmp_path, f"{1:032x}")
    assert len([entry for entry in entries if isinstance(entry, Traced)]) == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 32, "", "1" * 31])
def test_only_ids_of_calls_are_looked_for(tmp_path: Path, name: str) -> None:
    assert sip_trace.read(tmp_path, name) == []


def test_what_a_crash_cut_off_ends_its_file_and_no_other(tmp_path: Path) -> None:
    traces = TraceStore(tmp_path)
    for number in (1, 2):
        trace_one(traces, order(number), Outcome.BUSY)
    traces.close()
    (path,) = tmp_path.glob("*.trace")
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        assert kept(tmp_path, (1, 2)) in ([], [1])
    traces = TraceStore(tmp_path)
    trace_one(traces, order(3), Outcome.BUSY)
    traces.close()
    assert kept(tmp_path, range(5)) == [1, 3]


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_broken_file_is_no_trace(tmp_path: Path, data: bytes) -> None:
    call_id = "a" * 32
    heads: list[bytes] = [data, b"[]", b'{"messages": 5}', b'{"messages": [[1, 2, 3, -9]]}']
    heads += [b'{"call": "%s", "messages": [[1, "up", "x", 1]]}' % call_id.encode()]
    for head in heads:
        (tmp_path / "1.trace").write_bytes(head + b"\n" + data)
        assert sip_trace.read(tmp_path, call_id) == []


@pytest.mark.parametrize(
    "name", ["Authorization", "authorization", "PROXY-AUTHORIZATION", "Proxy-Authorization"]
)
@given(secret=st.text('abc=", ', min_size=3), folded=st.booleans())
def test_credentials_never_show(name: str, secret: str, folded: bool) -> None:
    value = "Digest" + ("\r\n " if folded else " ") + f"response={secret}END"
    data = message("c", f"{name}: {value}", "Subject: stays")
    shown = Traced.of("out", data, FAR, 1.0).message
    kept = Entry("c", "a", "busy", "", [(1.0, "out", "far", data)]).encode().decode()
    assert "END" not in kept
    assert f"{name}: ***\r\nSubject: stays\r\n" in kept
    assert "END" not in shown
    assert f"{name}: ***\nSubject: stays\n" in shown


@given(st.binary(max_size=300))
def test_hostile_bytes_can_be_shown(data: bytes) -> None:
    traced = Traced.of("in", data, FAR, 1.0)
    for text in (sip_trace.arrow(traced), sip_trace.in_full(traced).replace("\n", "")):
        assert text.isprintable()
    sip_trace.sip_call_id(data)


@pytest.mark.parametrize(
    "line", ["Call-ID: 1@here", "Call-ID: 1@here ", "call-id :\t1@here", "i:1@here", "I: 1@here"]
)
def test_whose_a_message_is(line: str) -> None:
    text = f"BYE sip:1@far SIP/2.0\r\nVia: SIP/2.0/UDP here\r\n{line}\r\nCSeq: 1 BYE\r\n\r\n"
    assert sip_trace.sip_call_id(text.encode()) == b"1@here"
    broken_off = text[: text.index(line) + len(line)]
    assert sip_trace.sip_call_id(broken_off.encode()) == b"1@here"


def test_the_ladder() -> None:
    invite = sip_trace.arrow(Traced(0.25, "out", "192.0.2.9:5060", "INVITE sip:09@c SIP/2.0\n"))
    assert invite.endswith("─▶  192.0.2.9:5060")
    assert " INVITE sip:09@c ─" in invite
    ringing = "SIP/2.0 180 Ringing\nCSeq: 1 INVITE\n"
    assert " 180 Ringing (INVITE) ─" in sip_trace.arrow(Traced(0, "in", "x", ringing))
    assert ".250  ├" in invite


async def test_a_call_from_end_to_end(tmp_path: Path) -> None:
    def challenge(request: Request) -> Sequence[Answer]:
        if request.header("proxy-authorization"):
            return [Answer(100), Answer(180), Answer(200, sdp=True)]
        return [Answer(407, [("Proxy-Authenticate", 'Digest realm="r", nonce="n"')])]

    traces = TraceStore(tmp_path / "traces")
    async with carrier() as busy, carrier() as far:
        busy.does["INVITE"] = answering(503)
        far.does["INVITE"] = challenge
        credentials = Credentials("acme", "s3cret")
        async with dialer(
            tmp_path, busy.uri, far.uri, watch=traces, credentials=credentials
        ) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
    traces.close()
    entries = sip_trace.read(tmp_path / "traces", f"{1:032x}")
    firsts = [each.message.split("\n")[0] for each in entries if isinstance(each, Traced)]
    words = [
        line.split(" ")[1] if line.startswith("SIP") else line.split(" ")[0] for line in firsts
    ]
    assert words == [
        *("INVITE", "503", "ACK"),
        *("INVITE", "407", "ACK", "INVITE", "100", "180", "200", "ACK", "BYE", "200"),
    ]
    assert entries[-1] == "attempt attempt1 ended as answered"
    (path,) = (tmp_path / "traces").glob("*.trace")
    assert b"response=" not in path.read_bytes()
    assert b"Proxy-Authorization: ***" in path.read_bytes()
