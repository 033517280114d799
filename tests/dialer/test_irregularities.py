"""Irregularities of answered calls that do not change their outcome, and the end of their bill."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bitel.domain.attempts import Irregularity, Outcome
from bitel.rtp import sender_process
from tests.support.carrier import carrier, sdp
from tests.support.media_carrier import MediaCarrier, media_carrier
from tests.support.sip_dialer import dialer, running_call
from tests.support.waiting import until

PACKET = 160  # bytes of 20 ms


def recording(seconds: float) -> bytes:
    return bytes(round(50 * seconds) * PACKET)


async def speak(far: MediaCarrier, seconds: float) -> float:
    """Once it hears us, the far end sends for so long; when it stopped, in Unix seconds."""
    await until(lambda: far.rtp.packets)
    return await far.rtp.speak_for(far.caller, seconds)


async def leave_bye_unanswered(far: MediaCarrier) -> float:
    """Answers no BYE; when the first one came, in Unix seconds."""
    far.answers_bye = False
    await until(lambda: "BYE" in far.methods)
    return time.time()


async def test_a_bye_without_an_answer_ends_the_bill_when_it_was_sent(tmp_path: Path) -> None:
    async with media_carrier() as far:
        async with running_call(tmp_path, far.uri, sound=recording(0.5)) as (_calls, call):
            await speak(far, 0.3)
            sent_at = await leave_bye_unanswered(far)
        result = call.result()
    assert result.outcome is Outcome.ANSWERED
    assert result.irregularities == (Irregularity.BYE_UNANSWERED,)
    assert result.detail == "our BYE was not answered"
    assert result.ended_at == pytest.approx(sent_at, abs=0.2)


@pytest.mark.parametrize("answers_bye", [True, False])
async def test_media_that_stopped_before_an_unanswered_bye_ends_the_bill(
    tmp_path: Path, answers_bye: bool
) -> None:
    async with media_carrier() as far:
        async with running_call(tmp_path, far.uri, sound=recording(7.5)) as (_calls, call):
            stopped_at = await speak(far, 0.5)
            if answers_bye:
                await until(lambda: "BYE" in far.methods)
                ended_at = time.time()
            else:
                await leave_bye_unanswered(far)
                ended_at = stopped_at
        result = call.result()
    assert result.outcome is Outcome.ANSWERED
    assert result.ended_at == pytest.approx(ended_at, abs=0.4)
    expected = "media had stopped coming before the call ended"
    if answers_bye:
        assert result.irregularities == (Irregularity.MEDIA_STOPPED,)
        assert result.detail == expected
    else:
        both = (Irregularity.BYE_UNANSWERED, Irregularity.MEDIA_STOPPED)
        assert result.irregularities == both
        assert result.detail == f"our BYE was not answered; {expected}"


async def test_who_was_hung_up_on_for_silence_and_is_gone_is_billed_until_the_silence(
    tmp_path: Path,
) -> None:
    async with media_carrier() as far:
        async with running_call(tmp_path, far.uri, sound=recording(20), media_timeout=2.0) as (
            _calls,
            call,
        ):
            stopped_at = await speak(far, 0.5)
            await leave_bye_unanswered(far)
        result = call.result()
    assert result.ended_at == pytest.approx(stopped_at, abs=0.4)
    assert result.detail == (
        "media time-out: nothing came from the far end for 2 s; our BYE was not answered"
    )


async def test_a_held_call_whose_bye_is_not_answered_is_billed_until_the_bye(
    tmp_path: Path,
) -> None:
    async with media_carrier() as far:
        async with running_call(tmp_path, far.uri, sound=recording(20)) as (calls, call):
            await speak(far, 0.3)
            held = sdp(far.rtp.port, more="a=inactive\r\n", version=2)
            assert (await far.ask("INVITE", held)).code == 200
            await far.rtp.quiet(0.5)
            calls.dialer.cancel("attempt1")
            sent_at = await leave_bye_unanswered(far)
        result = call.result()
    assert result.outcome is Outcome.ANSWERED
    assert result.irregularities == (Irregularity.BYE_UNANSWERED,)
    assert result.ended_at == pytest.approx(sent_at, abs=0.2)


@pytest.mark.parametrize("speaks", [True, False])
async def test_a_session_that_is_not_refreshed_is_billed_until_its_bye(
    tmp_path: Path, speaks: bool
) -> None:
    """The user agent sends that BYE by itself, and it is not answered either."""
    async with media_carrier() as far:
        far.headers = [("Session-Expires", "10;refresher=uas"), ("Require", "timer")]
        async with running_call(tmp_path, far.uri, sound=recording(20)) as (_, call):
            spoken_at = await speak(far, 0.4 if speaks else 0.0)
            sent_at = await leave_bye_unanswered(far)
            played = len(far.rtp.packets)
        result = call.result()
        assert len(far.rtp.packets) <= played + 5, "audio goes on after the BYE"
    assert result.outcome is Outcome.ANSWERED
    assert result.ended_by == "us"
    assert Irregularity.BYE_UNANSWERED in result.irregularities
    assert result.ended_at == pytest.approx(spoken_at if speaks else sent_at, abs=0.4)


async def test_a_lost_ack_is_noted_after_what_else_there_is_to_say(tmp_path: Path) -> None:
    """The 2xx still comes 16 T1 after our ACK, which is 0.32 s in these tests."""
    async with media_carrier() as far:
        async with running_call(tmp_path, far.uri, sound=recording(20)) as (_, call):
            await until(lambda: "ACK" in far.methods)
            acked_at = time.monotonic()
            await until(lambda: time.monotonic() > acked_at + 0.4)
            far.answer(200)
            await until(lambda: far.methods.count("ACK") == 2)
            assert (await far.ask("BYE")).code == 200
        result = call.result()
    assert (result.outcome, result.ended_by) == (Outcome.ANSWERED, "far")
    assert result.irregularities == (Irregularity.ACK_LOST,)
    assert result.detail == "the 2xx was repeated after our ACK"


async def test_a_call_in_which_all_went_well_has_nothing_irregular(tmp_path: Path) -> None:
    async with media_carrier() as far:
        async with running_call(tmp_path, far.uri, sound=recording(1.0)) as (_, call):
            await speak(far, 0.9)
        result = call.result()
    assert (result.irregularities, result.detail) == ((), "")


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "ended unexpectedly"),
        (signal.SIGSTOP, None, "has said nothing for"),
    ],
    ids=["killed", "hung"],
)
async def test_calls_of_a_lost_sender_process_end_and_others_are_played(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sent: signal.Signals,
    status: int | None,
    says: str,
) -> None:
    async with media_carrier() as far, carrier() as only:
        played = bytes(1000 * PACKET)
        async with dialer(tmp_path, only.uri, sound=played) as calls:
            streamer = calls.dialer.streamer
            running = [asyncio.create_task(calls.call(f"+98912123456{n}")) for n in range(5)]
            await until(lambda: streamer.stats().packets > 10)
            [pid] = streamer.sender_pids()
            with capture_logs() as logs:
                os.kill(pid, sent)
                monkeypatch.setattr(sender_process, "SILENCE_LIMIT", 2.0)
                ended = await asyncio.wait_for(asyncio.gather(*running), 20)
                monkeypatch.undo()
            assert {result.outcome for result in ended} == {Outcome.INTERRUPTED}
            assert {result.ended_by for result in ended} == {"us"}
            sent_of = {result.media and result.media.sent for result in ended}
            assert sent_of == {None}, "the process that counted is gone"
            assert all(says in result.detail for result in ended)
            assert len(only.of("BYE")) == 5, "no line is left open"
            [entry] = [entry for entry in logs if entry["event"] == "rtp_sender_failed"]
            assert (entry["pid"], entry["status"], entry["streams"]) == (pid, status, 5)
            assert entry["log_level"] == "error"
            assert streamer.stats().failures == 1
            assert streamer.stats().running == 0
            assert [pool.calls for pool in streamer._pools] == [0]
            assert (calls.dialer._legs, calls.dialer._attempts) == ({}, {})
        async with dialer(tmp_path, far.uri, sound=bytes(10 * PACKET)) as calls:
            streamer = calls.dialer.streamer
            [pid] = streamer.sender_pids()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: streamer.stats().failures == 1)
            result = await calls.call()
        assert result.outcome is Outcome.ANSWERED
        assert len(far.rtp.packets) == 10
