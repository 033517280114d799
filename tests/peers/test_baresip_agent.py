"""The user agent and the streamer as a caller against baresip, which records what it hears."""

from __future__ import annotations

import asyncio
import wave
from pathlib import Path

import numpy as np
import pytest

from bitel.g711 import Pcm, alaw_decode, alaw_encode
from bitel.recordings.audio_match import match
from bitel.recordings.sample import write_sample
from bitel.rtp.packet import PCMA
from bitel.rtp.shared_clip import read_clip
from bitel.rtp.streamer import Streamer, StreamReport, StreamSpec
from bitel.sip.events import Answered, Ended, Failed, Provisional
from tests.peers.baresip_phone import baresip_phone
from tests.support.sip_caller import HOST, caller
from tests.support.waiting import until

RTP_PORTS = range(30000, 32000)


async def play(rtp_port: int, streamer: Streamer, answered: Answered, clip: Path) -> StreamReport:
    """Play an A-law clip into an answered call, to its end."""
    ended: asyncio.Future[StreamReport] = asyncio.get_running_loop().create_future()
    far = (answered.answer.address, answered.answer.port)
    assert answered.answer.codecs[0].name == "PCMA"
    spec = StreamSpec(rtp_port, far, PCMA, "alaw")
    streamer.play(spec, [read_clip(clip)], ended.set_result)
    return await asyncio.wait_for(ended, 30)


def make_clip(folder: Path, seconds: float) -> tuple[Path, Pcm]:
    """A sample recording as an A-law file, and as it will be heard."""
    source = folder / "sample.wav"
    write_sample(source, seconds)
    with wave.open(str(source)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        step = file.getframerate() // 8000
    codes = alaw_encode(np.ascontiguousarray(pcm[::step]))
    clip = folder / "sample.alaw"
    clip.write_bytes(codes.tobytes())
    return clip, alaw_decode(codes)


@pytest.mark.interop("answers, and records all that we play", rfc="RFC 3264 §6")
async def test_baresip_hears_what_was_sent(tmp_path: Path) -> None:
    clip, sent = make_clip(tmp_path, seconds=4)
    recording = tmp_path / "heard.wav"
    streamer = Streamer(HOST, RTP_PORTS)
    await streamer.start()
    try:
        async with baresip_phone("answer", record=recording) as phone, caller(phone.address) as one:
            port = streamer.open_port()
            call = one.call("+989121234567", rtp_port=port)
            answered = await one.settled(call)
            assert isinstance(answered, Answered)
            # baresip drops what comes before it has dealt with the ACK.
            await phone.saw("established")
            report = await play(port, streamer, answered, clip)
            assert report.finished
            # baresip may be behind; what it still holds would be lost with the call.
            await asyncio.sleep(0.3)
            one.hang_up(call)
            assert (await one.saw(call, Ended)).by == "us"
            await phone.saw("recorded")
            assert phone.events.count("incoming") == 1
    finally:
        await streamer.stop()
    with wave.open(str(recording)) as file:
        heard = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    result = match(sent, heard)
    assert result.correlation >= 0.98, result
    assert result.longest_gap_ms <= 20, result
    assert result.covered >= 0.98, result


@pytest.mark.interop("hangs up", rfc="RFC 3261 §15.1")
async def test_baresip_hangs_up_early() -> None:
    async with baresip_phone("answer", hang_up_after=0.3) as phone, caller(phone.address) as one:
        call = one.call("+989121234567")
        assert isinstance(await one.settled(call), Answered)
        assert (await one.saw(call, Ended)).by == "far"


@pytest.mark.interop("sends a re-INVITE right after our ACK", rfc="RFC 3261 §14.2")
async def test_a_reinvite_of_baresip_is_answered_and_the_call_goes_on() -> None:
    async with baresip_phone("answer", reinvite=True) as phone, caller(phone.address) as one:
        call = one.call("+989121234567")
        assert isinstance(await one.settled(call), Answered)
        await until(lambda: one.transport.agent.counts().server_transactions != 0, 5)
        # Longer than it takes until an answer without ACK is repeated.
        await asyncio.sleep(0.8)
        assert one.transport.agent.counts().retransmissions == 0
        one.hang_up(call)
        assert (await one.saw(call, Ended)).by == "us"
        await phone.saw("closed")


@pytest.mark.interop("rejects with 486", rfc="RFC 3261 §21.4.24")
async def test_baresip_rejects() -> None:
    async with baresip_phone("reject") as phone, caller(phone.address) as one:
        failed = await one.settled(one.call("+989121234567"))
        assert isinstance(failed, Failed)
        assert (failed.code, failed.why) == (486, "response")


@pytest.mark.interop("rings until we cancel", rfc="RFC 3261 §9.1")
async def test_baresip_rings_until_we_give_up() -> None:
    async with baresip_phone("ring") as phone, caller(phone.address) as one:
        call = one.call("+989121234567")
        assert (await one.saw(call, Provisional)).code == 180
        await asyncio.sleep(0.3)  # it goes on ringing
        assert one.result(call) is None
        one.cancel(call)
        failed = await one.settled(call)
        assert isinstance(failed, Failed)
        assert (failed.code, failed.why, failed.rang) == (487, "canceled", True)
