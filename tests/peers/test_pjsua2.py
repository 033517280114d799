"""The dialer against pjsua2 (PJSIP): the audio received, call flows, results and bills."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bitel.demo.play import read_wav
from bitel.domain.attempts import Outcome
from bitel.store.database import Database
from tests.peers.phone_process import PhoneProcess, Transport
from tests.peers.pjsua2_phone import HoldKind, Reliable, pjsua2_phone, why_missing
from tests.support.prerequisites import need_peer
from tests.support.switchboard import Record, assert_answered, sample, share_received, switchboard

T1 = 0.5
"""Seconds: RFC 3261's own, as PJSIP's is."""

LEAST_SHARE = 0.9
"""Least share of the recording to be received: what pjsua2 has buffered at the BYE is lost."""


class Play:
    """Places a call to a pjsua2 that follows `steps`, and plays a recording."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder = folder
        self._database = database
        self.record: Record
        self.share = 0.0
        """The share of the recording that was received, 0 to 1."""

    @asynccontextmanager
    async def __call__(
        self, *steps: str, seconds: float = 2.0, ring_timeout: float = 10.0, **options: Any
    ) -> AsyncIterator[PhoneProcess]:
        """The phone, once the call is over and its result is in `record` and `share`."""
        sound = sample(seconds)
        recording = self._folder / "received.wav"
        async with pjsua2_phone(*steps, record=recording, **options) as phone:
            async with switchboard(
                self._folder,
                self._database,
                phone.trunk,
                sound=sound,
                t1=T1,
                ring_timeout=ring_timeout,
            ) as board:
                self.record = await board.call()
            await phone.saw("closed")
            if "established" in phone.events:
                await phone.saw("recorded")
                self.share = share_received(sound, read_wav(recording))
            yield phone


@pytest.fixture
def play(tmp_path: Path, sqlite_database: Database) -> Play:
    sentence = why_missing()
    need_peer(not sentence, sentence)
    return Play(tmp_path, sqlite_database)


@pytest.mark.interop("answers in {codec} over {transport}, records what we play", rfc="RFC 3264 §6")
@pytest.mark.parametrize(
    ("codec", "transport"), [("PCMA", "udp"), ("PCMU", "udp"), ("PCMA", "tcp")]
)
async def test_the_whole_recording_is_received(
    play: Play, codec: str, transport: Transport
) -> None:
    steps = "180", "wait 0.3", "200"
    async with play(*steps, seconds=3.0, codec=codec, transport=transport):
        assert play.share >= LEAST_SHARE
    assert_answered(play.record)
    assert play.record.attempt.rang_at is not None
    media = play.record.attempt.media
    assert media is not None
    assert media.received > 100
    assert media.loss is not None, "its RTCP says what it missed"


@pytest.mark.interop("rejects with {code}", rfc="RFC 3261 §21.4")
@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (404, Outcome.BAD_NUMBER),
        (480, Outcome.NO_ANSWER),
        (486, Outcome.BUSY),
        (488, Outcome.MEDIA_MISMATCH),
        (603, Outcome.BUSY),
    ],
)
async def test_rejected(play: Play, code: int, outcome: Outcome) -> None:
    async with play(str(code)):
        pass
    assert (play.record.outcome, play.record.attempt.sip_code) == (outcome, code)
    assert play.record.bills == 0


@pytest.mark.interop("rings until we cancel", rfc="RFC 3261 §9.1")
async def test_cancelled(play: Play) -> None:
    async with play("180", ring_timeout=1.0):
        pass
    assert (play.record.outcome, play.record.attempt.sip_code) == (Outcome.NO_ANSWER, 487)


@pytest.mark.interop("plays early media, then answers; 100rel {reliable}", rfc="RFC 3262 §5")
@pytest.mark.parametrize("reliable", ["off", "optional", "required"])
async def test_early_media(play: Play, reliable: Reliable) -> None:
    async with play("183", "wait 0.5", "200", reliable=reliable):
        assert play.share >= LEAST_SHARE, "nothing is played before the answer"
    assert_answered(play.record)
    attempt = play.record.attempt
    assert attempt.ended_at is not None
    assert attempt.ended_at - attempt.started_at > play.record.talked + 0.4


@pytest.mark.interop("sends a reliable 183 and an UPDATE before it answers", rfc="RFC 3311 §5.1")
async def test_early_update(play: Play) -> None:
    async with play("183", "wait 0.2", "update", "wait 0.2", "200", reliable="required") as phone:
        assert "UPDATE 200" in phone.events
        assert play.share >= LEAST_SHARE
    assert_answered(play.record)


@pytest.mark.interop("puts the call on hold by {by} ({kind}), and resumes it", rfc="RFC 3264 §8.4")
@pytest.mark.parametrize(
    ("by", "kind"),
    [("INVITE", "rfc3264"), ("INVITE", "rfc2543"), ("UPDATE", "rfc3264")],
)
async def test_hold(play: Play, by: str, kind: HoldKind) -> None:
    hold = "hold" if by == "INVITE" else "hold by update"
    steps = "200", "wait 0.5", hold, "wait 1", "resume"
    async with play(*steps, hold=kind) as phone:
        assert f"{by} 200" in phone.events
        assert "resume" in phone.events
        assert play.share >= LEAST_SHARE
    assert_answered(play.record)
    assert play.record.talked > 2.9, "two seconds of recording, and a second of hold"
    assert play.record.attempt.media is not None
    assert play.record.attempt.media.sent == 100


@pytest.mark.interop("sends the same offer again, by {method}", rfc="RFC 3264 §8")
@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
async def test_the_same_offer(play: Play, method: str) -> None:
    step = "reinvite" if method == "INVITE" else "update"
    async with play("200", "wait 0.3", step) as phone:
        assert f"{method} 200" in phone.events
        assert play.share >= LEAST_SHARE
    assert_answered(play.record)


@pytest.mark.interop("sends a re-INVITE without an offer", rfc="RFC 3261 §14.2")
async def test_an_offer_is_asked_for(play: Play) -> None:
    async with play("200", "wait 0.3", "reinvite without offer") as phone:
        assert "INVITE 200" in phone.events
        assert play.share >= LEAST_SHARE
    assert_answered(play.record)


@pytest.mark.interop("offers another codec in a re-INVITE", rfc="RFC 3264 §8.3.2")
async def test_another_codec(play: Play) -> None:
    """Whether it is taken or refused with 488, the recording goes on."""
    async with play("200", "wait 0.3", "codec PCMU", "reinvite") as phone:
        answers = [event for event in phone.events if event.startswith("INVITE ")]
        assert answers in (["INVITE 200"], ["INVITE 488"])
        assert play.share >= LEAST_SHARE
    assert_answered(play.record)


@pytest.mark.interop("keys digits by {method}", rfc="RFC 4733 §2.5, RFC 6086 §4")
@pytest.mark.parametrize("method", ["rfc4733", "info"])
async def test_digits(play: Play, method: str) -> None:
    async with play("200", "wait 0.2", f"{method} 159#", seconds=3.0) as phone:
        if method == "info":
            assert phone.events.count("INFO 200") == 4
    assert_answered(play.record)
    assert play.record.attempt.media is not None
    assert play.record.attempt.media.digits == "159#"


@pytest.mark.interop("asks for a transfer, which is refused", rfc="RFC 3515 §2.4.2")
async def test_refer(play: Play) -> None:
    async with play("200", "wait 0.3", "refer") as phone:
        (answer,) = (event for event in phone.events if event.startswith("REFER "))
        assert int(answer.split()[1]) >= 400
        assert play.share >= LEAST_SHARE
    assert_answered(play.record)


@pytest.mark.interop("hangs up", rfc="RFC 3261 §15.1")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_it_hangs_up(play: Play, transport: Transport) -> None:
    async with play("200", "wait 0.5", "hang up", seconds=5.0, transport=transport):
        pass
    assert_answered(play.record, by="far")


@pytest.mark.soak
@pytest.mark.interop("requires a session timer, and the session is refreshed", rfc="RFC 4028 §7.4")
async def test_session_timer(play: Play) -> None:
    """90 s are the shortest session that the RFC allows: half of it passes until the refresh."""
    async with play("200", seconds=50.0, timer="required"):
        assert play.share >= LEAST_SHARE
    assert_answered(play.record)
