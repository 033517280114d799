"""The whole service against baresip, a phone that nobody here wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bitel.demo.play import read_wav
from bitel.demo.stage import Stage
from bitel.recordings.audio_match import match
from tests.peers.baresip_phone import baresip_phone
from tests.peers.phone_process import PhoneProcess
from tests.support.service_calls import call_all, reports, sent

NUMBER = ["09121234567"]


def stage_for(phone: PhoneProcess, tmp_path: Path) -> Stage:
    dialer = {"ring_timeout": 3}
    return Stage(tmp_path / "stage", dialer=dialer, trunk=f"sip:127.0.0.1:{phone.port}")


@pytest.mark.interop("answers the whole service, and records all that it plays", rfc="RFC 3264 §6")
async def test_baresip_hears_the_recording_whole(tmp_path: Path) -> None:
    recording = tmp_path / "heard.wav"
    async with baresip_phone("answer", record=recording) as phone:
        with stage_for(phone, tmp_path) as stage:
            calls = await asyncio.to_thread(call_all, stage, NUMBER, 4.0)
            await phone.saw("recorded")
            found = match(sent(stage), read_wav(recording))
    assert reports(calls) == [("NORMAL", 5)]
    assert found.correlation >= 0.98, found
    assert found.longest_gap_ms <= 20.0, found


@pytest.mark.interop(
    "sends a re-INVITE right after the ACK, and records all that is played", rfc="RFC 3261 §14.2"
)
async def test_a_reinvite_of_baresip_leaves_the_recording_whole(tmp_path: Path) -> None:
    recording = tmp_path / "heard.wav"
    async with baresip_phone("answer", record=recording, reinvite=True) as phone:
        with stage_for(phone, tmp_path) as stage:
            calls = await asyncio.to_thread(call_all, stage, NUMBER, 4.0)
            await phone.saw("recorded")
            found = match(sent(stage), read_wav(recording))
    assert reports(calls) == [("NORMAL", 5)]
    assert found.correlation >= 0.98, found


@pytest.mark.interop("hangs up", rfc="RFC 3261 §15.1")
async def test_baresip_hangs_up_early(tmp_path: Path) -> None:
    async with baresip_phone("answer", hang_up_after=1.2) as phone:
        with stage_for(phone, tmp_path) as stage:
            calls = await asyncio.to_thread(call_all, stage, NUMBER, 8.0)
    assert reports(calls) == [("NORMAL", 2)]


@pytest.mark.interop("rejects with 486", rfc="RFC 3261 §21.4.24")
async def test_baresip_rejects(tmp_path: Path) -> None:
    async with baresip_phone("reject") as phone:
        with stage_for(phone, tmp_path) as stage:
            calls = await asyncio.to_thread(call_all, stage, NUMBER)
    assert reports(calls) == [("USER_BUSY", 0)]


@pytest.mark.interop("rings until we cancel", rfc="RFC 3261 §9.1")
async def test_baresip_stays_silent(tmp_path: Path) -> None:
    async with baresip_phone("ring") as phone:
        with stage_for(phone, tmp_path) as stage:
            calls = await asyncio.to_thread(call_all, stage, NUMBER)
        assert "established" not in phone.events
    assert reports(calls) == [("NO_ANSWER", 0)]
