"""The process that decides for all calls: its verdicts, its failure and its restart."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from bitel.answering_machine import Decision, DetectionProcess, Reason, ToneEnd, Verdict, process
from bitel.answering_machine.messages import (
    Audio,
    End,
    Frames,
    Message,
    MessageError,
    Start,
    encode,
)
from tests.support.greeting_audio import Payload, silence, tone, word
from tests.support.waiting import until

HELLO = silence(0.5) + word(0.4) + silence(2.0)
MESSAGE = silence(0.2) + word(5.0) + silence(0.3) + tone(0.4, 1000.0) + silence(0.5)
PATIENCE = 20.0


@pytest.fixture
async def detection() -> AsyncIterator[DetectionProcess]:
    made = DetectionProcess()
    yield made
    await made.close()


async def decision_on(
    detection: DetectionProcess, payloads: list[Payload], law: str = "A"
) -> Decision:
    decided = asyncio.get_running_loop().create_future()
    watch = detection.watch(law, decided.set_result)
    for payload in payloads:
        watch.push(payload)
    async with asyncio.timeout(PATIENCE):
        decision: Decision = await decided
    assert watch.decision == decision
    return decision


async def test_no_process_runs_before_the_first_call(detection: DetectionProcess) -> None:
    assert detection.pid is None


async def test_verdicts(detection: DetectionProcess) -> None:
    human, machine, nobody = await asyncio.gather(
        decision_on(detection, HELLO),
        decision_on(detection, MESSAGE),
        decision_on(detection, silence(5.0)),
    )

    assert (human.verdict, human.reason) == (Verdict.HUMAN, Reason.GREETING_ENDED)
    assert (machine.verdict, machine.reason) == (Verdict.MACHINE, Reason.LONG_GREETING)
    assert (nobody.verdict, nobody.reason) == (None, Reason.INITIAL_SILENCE)


async def test_a_beep_is_reported_after_the_verdict(detection: DetectionProcess) -> None:
    decisions: list[Decision] = []
    ended = asyncio.get_running_loop().create_future()
    watch = detection.watch("A", decisions.append, ended.set_result)
    for payload in MESSAGE:
        watch.push(payload)

    async with asyncio.timeout(PATIENCE):
        beep: ToneEnd = await ended

    assert [each.verdict for each in decisions] == [Verdict.MACHINE]
    assert beep.ended == pytest.approx(5.9, abs=0.05)
    watch.close()


async def test_a_killed_process_leaves_verdicts_open_and_starts_again(
    detection: DetectionProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FIRST_DELAY", 0.0)
    decided = asyncio.get_running_loop().create_future()
    detection.watch("A", decided.set_result)
    first = detection.pid
    assert first is not None

    os.kill(first, signal.SIGKILL)

    async with asyncio.timeout(PATIENCE):
        assert await decided == Decision(None, Reason.WORKER_LOST, 0.0)
    assert detection.pid is None
    assert detection.failures == 1
    # Within the delay, a verdict stays open at once.
    assert (await decision_on(detection, HELLO)).reason is Reason.WORKER_LOST
    await asyncio.sleep(process.FIRST_DELAY + 0.15)
    assert (await decision_on(detection, HELLO)).verdict is Verdict.HUMAN
    assert detection.pid not in (None, first)


async def test_a_stopped_process_is_killed(
    detection: DetectionProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SILENCE_LIMIT", 0.5)
    decided = asyncio.get_running_loop().create_future()
    detection.watch("A", decided.set_result)
    assert detection.pid is not None
    await until(lambda: detection.cpu_seconds)

    os.kill(detection.pid, signal.SIGSTOP)

    async with asyncio.timeout(PATIENCE):
        assert (await decided).reason is Reason.WORKER_LOST
    assert detection.pid is None


async def test_a_slow_start_is_no_hang(
    detection: DetectionProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine it may take longer than a report may."""
    monkeypatch.setattr(process, "SILENCE_LIMIT", 0.1)
    checked = 0
    check = detection._check_alive

    def checking() -> None:
        nonlocal checked
        checked += 1
        check()

    monkeypatch.setattr(detection, "_check_alive", checking)
    decision = asyncio.create_task(decision_on(detection, HELLO))
    await until(lambda: detection.pid)
    assert detection.pid is not None
    os.kill(detection.pid, signal.SIGSTOP)
    await until(lambda: checked >= 2)
    monkeypatch.setattr(process, "SILENCE_LIMIT", 5.0)
    os.kill(detection.pid, signal.SIGCONT)
    assert (await decision).verdict is Verdict.HUMAN
    assert detection.failures == 0


async def test_a_process_that_never_starts_is_killed(
    detection: DetectionProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START_TIMEOUT", 0.5)
    decided = asyncio.get_running_loop().create_future()
    detection.watch("A", decided.set_result)
    assert detection.pid is not None
    os.kill(detection.pid, signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE):
        assert (await decided).reason is Reason.WORKER_LOST


async def test_a_full_queue_leaves_the_verdict_open(
    detection: DetectionProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "QUEUE_LIMIT", 50)

    assert await decision_on(detection, HELLO) == Decision(None, Reason.OVERLOAD, 0.0)


async def test_a_closed_watch_is_not_called(detection: DetectionProcess) -> None:
    decisions: list[Decision] = []
    watch = detection.watch("A", decisions.append)
    for payload in HELLO:
        watch.push(payload)
    watch.close()
    watch.push(b"")

    assert (await decision_on(detection, HELLO)).verdict is Verdict.HUMAN
    assert decisions == []


async def test_closing_leaves_verdicts_open() -> None:
    detection = DetectionProcess()
    decisions: list[Decision] = []
    detection.watch("U", decisions.append)
    pid = detection.pid
    assert pid is not None

    await detection.close()

    assert [each.reason for each in decisions] == [Reason.WORKER_LOST]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_process_ends_with_its_parent(detection: DetectionProcess) -> None:
    await decision_on(detection, HELLO)
    child = detection._process
    assert child is not None
    detection._disconnect()

    async with asyncio.timeout(PATIENCE):
        while child.poll() is None:
            await asyncio.sleep(0.01)
    assert child.returncode == 0


def test_frames_may_be_cut_anywhere() -> None:
    messages: list[Message] = [Start(1, "A", True), Audio(1, b"\x01\x02"), Audio(1, None), End(1)]
    data = encode(messages[:2]) + encode(messages[2:])
    frames = Frames()

    assert [each for at in range(len(data)) for each in frames.feed(data[at : at + 1])] == messages


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01x"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        Frames().feed(data)
