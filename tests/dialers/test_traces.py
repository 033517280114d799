"""What is kept of a call's SIP messages, for how many calls, and what never is."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.calls.outcome import Attempted, Outcome
from bitel.dialers import tracing
from bitel.dialers.traces import LARGEST_FILE, Traces
from bitel.dialers.tracing import Traced
from bitel.dialing.dialer import Order
from bitel.sip import Credentials
from bitel.sip.message import Request
from tests.dialers.calling import dialer
from tests.dialers.carrier import Answer, answering, carrier

FAR = ("192.0.2.9", 5060)


def order(number: int, attempt: int = 1) -> Order:
    return Order(f"{number}-{attempt}", f"{number:032x}", "+98912", None)


def message(call_id: str, *headers: str) -> bytes:
    lines = ("INVITE sip:1@far SIP/2.0", f"Call-ID: {call_id}", *headers, "", "")
    return "\r\n".join(lines).encode()


def trace_one(traces: Traces, which: Order, outcome: Outcome, data: bytes | None = None) -> None:
    traces.invited(which, which.attempt_id)
    traces.tap("out", data or message(which.attempt_id), FAR, 1.5)
    traces.over(which, Attempted(outcome, 1.0, 2.0, detail="why"))


def kept(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jsonl"))


def test_the_last_calls_and_those_that_went_wrong(tmp_path: Path) -> None:
    traces = Traces(tmp_path / "t", kept=2, kept_errors=2)
    for number in range(4):
        trace_one(traces, order(number), Outcome.BAD_NUMBER)
    for number in range(10, 14):
        trace_one(traces, order(number), Outcome.ANSWERED)
    traces.close()
    assert kept(tmp_path / "t") == [
        *(f"{n:032x}.jsonl" for n in (12, 13)),
        *(f"errors/{n:032x}.jsonl" for n in (2, 3)),
    ]


def test_a_new_start_knows_the_old_files(tmp_path: Path) -> None:
    for number in range(3):
        traces = Traces(tmp_path, kept=2)
        trace_one(traces, order(number), Outcome.ANSWERED)
        traces.close()
    assert kept(tmp_path) == [f"{n:032x}.jsonl" for n in (1, 2)]


def test_a_call_that_goes_wrong_later_takes_its_earlier_attempts_along(tmp_path: Path) -> None:
    traces = Traces(tmp_path)
    trace_one(traces, order(7, 1), Outcome.BUSY)
    trace_one(traces, order(7, 2), Outcome.REFUSED)
    trace_one(traces, order(7, 3), Outcome.BUSY)
    traces.close()
    assert kept(tmp_path) == [f"errors/{7:032x}.jsonl"]
    found = tracing.find(tmp_path, f"{7:032x}")
    assert found is not None
    entries = list(tracing.read(found))
    assert [isinstance(entry, Traced) for entry in entries] == [True, False] * 3
    assert entries[3] == "attempt 7-2 ended as refused by policy: why"


def test_files_are_for_this_user_alone_and_bounded(tmp_path: Path) -> None:
    traces = Traces(tmp_path / "t")
    fat = message("1-1", "X: " + "x" * 8000)
    for _ in range(5):
        traces.invited(order(1), "1-1")
        for _ in range(300):
            traces.tap("in", fat, FAR, 1.0)
        traces.over(order(1), None)
    traces.close()
    (path,) = (tmp_path / "t").rglob("*.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o700
    assert path.stat().st_size <= LARGEST_FILE


def test_strangers_are_not_kept(tmp_path: Path) -> None:
    traces = Traces(tmp_path)
    traces.invited(order(1), "1-1")
    traces.tap("in", message("another"), FAR, 1.0)
    traces.tap("in", b"\r\n\r\n", FAR, 1.0)
    traces.tap("in", b"\xff" * 70000, FAR, 1.0)
    trace_one(traces, order(1), Outcome.BUSY)
    traces.close()
    found = tracing.find(tmp_path, f"{1:032x}")
    assert found is not None
    assert len([entry for entry in tracing.read(found) if isinstance(entry, Traced)]) == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 32, "", "1" * 31])
def test_only_ids_of_calls_are_looked_for(tmp_path: Path, name: str) -> None:
    assert tracing.find(tmp_path, name) is None


def test_a_half_written_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('{"at": 1, "direction": "in"\n[]\n5\n{"outcome": "busy"}\n')
    assert list(tracing.read(path)) == []


@pytest.mark.parametrize(
    "name", ["Authorization", "authorization", "PROXY-AUTHORIZATION", "Proxy-Authorization"]
)
@given(secret=st.text('abc=", ', min_size=3), folded=st.booleans())
def test_credentials_never_show(name: str, secret: str, folded: bool) -> None:
    value = "Digest" + ("\r\n " if folded else " ") + f"response={secret}END"
    data = message("c", f"{name}: {value}", "Subject: stays")
    shown = Traced.of("out", data, FAR, 1.0).message
    assert "END" not in shown
    assert f"{name}: ***\nSubject: stays\n" in shown


@given(st.binary(max_size=300))
def test_hostile_bytes_can_be_shown(data: bytes) -> None:
    traced = Traced.of("in", data, FAR, 1.0)
    for text in (tracing.arrow(traced), tracing.in_full(traced).replace("\n", "")):
        assert text.isprintable()
    tracing.sip_call_id(data)


def test_the_ladder() -> None:
    invite = tracing.arrow(Traced(0.25, "out", "192.0.2.9:5060", "INVITE sip:09@c SIP/2.0\n"))
    assert invite.endswith("─▶  192.0.2.9:5060")
    assert " INVITE sip:09@c ─" in invite
    ringing = "SIP/2.0 180 Ringing\nCSeq: 1 INVITE\n"
    assert " 180 Ringing (INVITE) ─" in tracing.arrow(Traced(0, "in", "x", ringing))
    assert ".250  ├" in invite


async def test_a_call_from_end_to_end(tmp_path: Path) -> None:
    def challenge(request: Request) -> Sequence[Answer]:
        if request.header("proxy-authorization"):
            return [Answer(100), Answer(180), Answer(200, sdp=True)]
        return [Answer(407, [("Proxy-Authenticate", 'Digest realm="r", nonce="n"')])]

    traces = Traces(tmp_path / "traces")
    async with carrier() as busy, carrier() as far:
        busy.does["INVITE"] = answering(503)
        far.does["INVITE"] = challenge
        credentials = Credentials("acme", "s3cret")
        async with dialer(
            tmp_path, busy.uri, far.uri, watch=traces, credentials=credentials
        ) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
    traces.close()
    found = tracing.find(tmp_path / "traces", f"{1:032x}")
    assert found is not None
    entries = list(tracing.read(found))
    firsts = [each.message.split("\n")[0] for each in entries if isinstance(each, Traced)]
    words = [
        line.split(" ")[1] if line.startswith("SIP") else line.split(" ")[0] for line in firsts
    ]
    assert words == [
        *("INVITE", "503", "ACK"),
        *("INVITE", "407", "ACK", "INVITE", "100", "180", "200", "ACK", "BYE", "200"),
    ]
    assert entries[-1] == "attempt attempt1 ended as answered"
    assert "response=" not in found.read_text()
    assert "Proxy-Authorization: ***" in found.read_text()
