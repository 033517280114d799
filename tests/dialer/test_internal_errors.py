"""Errors on our side leave no call open, and no state in the tables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitel.dialer import sip_dialer
from bitel.dialer.call_attempt import CallLeg
from bitel.dialer.media_session import MediaSession
from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialer.trunk_health import PendingRequests
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.sip import OutgoingRequest, RequestDone, UserAgent
from bitel.sip_transport.transport import SipTransport
from tests.support.carrier import Carrier, answering, carrier
from tests.support.sip_bench import FAR
from tests.support.sip_dialer import Dialled, dialer
from tests.support.sip_party import agent_at
from tests.support.waiting import until

ORDER = DialRequest("attempt", f"{1:032x}", "+989121234567", "recording")


def break_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The first call of this function raises."""
    real = getattr(owner, name)
    raised: list[Exception] = []

    def call(*arguments: Any, **named: Any) -> Any:
        if not raised:
            raised.append(ValueError("broken"))
            raise raised[0]
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


class BrokenWatch:
    """Raises when the INVITE is about to leave."""

    def invited(self, request: DialRequest, sip_call_id: str) -> None:
        raise ValueError("broken")

    def tap(self, *message: object) -> None:
        pass

    def over(self, request: DialRequest, result: AttemptResult | None) -> None:
        pass


Part = Callable[[SipTrunkDialer], tuple[Any, str]]

BEFORE_INVITE: dict[str, Part] = {
    "playlist": lambda dialer: (dialer._playlists, "for_request"),
    "port": lambda dialer: (dialer.streamer, "open_port"),
    "clips": lambda dialer: (dialer.streamer, "prepare"),
    "trunks": lambda dialer: (dialer._trunks, "routes"),
    "breakers": lambda dialer: (dialer._trunks, "begin"),
    "INVITE": lambda dialer: (UserAgent, "invite"),
}
AFTER_ANSWER: dict[str, tuple[Part, Outcome]] = {
    "trunk health": (lambda dialer: (dialer._trunks, "learn"), Outcome.RANG_THEN_FAILED),
    "address": (lambda dialer: (sip_dialer, "check_address"), Outcome.RANG_THEN_FAILED),
    "ACK": (lambda dialer: (UserAgent, "acknowledge"), Outcome.RANG_THEN_FAILED),
    "stream": (lambda dialer: (dialer.streamer, "play"), Outcome.INTERRUPTED),
    "session": (lambda dialer: (MediaSession, "begin"), Outcome.INTERRUPTED),
    "changes": (lambda dialer: (CallLeg, "follow_media"), Outcome.INTERRUPTED),
}


async def assert_nothing_is_left(calls: Dialled, only: Carrier) -> None:
    """No state of a call that is over, and the next call works."""
    dialer = calls.dialer
    assert (dialer._legs, dialer._attempts) == ({}, {})
    assert [pool.calls for pool in dialer.streamer._pools] == [0]
    await until(lambda: dialer._sip.agent.counts().dialogs == 0)
    await until(lambda: dialer.streamer.stats().running == 0)
    only.does["INVITE"] = answering(100, 200)
    again = await calls.call()
    assert again.outcome is Outcome.ANSWERED
    assert again.media is not None
    assert again.media.sent == 2


@pytest.mark.parametrize("part", BEFORE_INVITE)
async def test_an_error_before_the_invite_spends_no_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri) as calls:
        break_once(monkeypatch, *BEFORE_INVITE[part](calls.dialer))
        result = await calls.call()
        assert result.outcome is Outcome.NOT_PLACED
        assert result.detail == "an error inside the dialer"
        assert only.of("INVITE") == []
        await assert_nothing_is_left(calls, only)


async def test_an_error_after_the_invite_cancels_it(tmp_path: Path) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri, watch=BrokenWatch()) as calls:
        only.does["INVITE"] = answering(180)
        result = await calls.call()
        assert result.outcome is Outcome.UNCERTAIN
        await until(lambda: len(only.of("CANCEL")) == 1)
        calls.dialer._observer = None
        await assert_nothing_is_left(calls, only)


@pytest.mark.parametrize("part", AFTER_ANSWER)
async def test_an_error_after_the_answer_hangs_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri) as calls:
        choose, outcome = AFTER_ANSWER[part]
        break_once(monkeypatch, *choose(calls.dialer))
        result = await calls.call()
        assert result.outcome is outcome
        assert result.ended_by == "us"
        await until(lambda: len(only.of("BYE")) == 1)
        assert [request.method for request in only.requests] == ["INVITE", "ACK", "BYE"]
        await assert_nothing_is_left(calls, only)


async def test_who_answered_is_hung_up_on_where_the_answer_can_not_be_recorded(
    tmp_path: Path,
) -> None:
    async def heard(at: float) -> bool:
        raise RuntimeError("the database has gone")

    async with carrier() as only, dialer(tmp_path, only.uri) as calls:
        result = await calls.dialer.dial(ORDER, heard)
        assert result.outcome is Outcome.RANG_THEN_FAILED
        assert result.answered_at is not None
        await until(lambda: len(only.of("BYE")) == 1)
        await assert_nothing_is_left(calls, only)


async def test_who_rings_is_rung_no_longer_when_the_attempt_is_cancelled(tmp_path: Path) -> None:
    async def heard(at: float) -> bool:
        return True

    async with carrier() as only, dialer(tmp_path, only.uri) as calls:
        only.does["INVITE"] = answering(180)
        rung_at: list[float] = []
        attempt = asyncio.create_task(calls.dialer.dial(ORDER, heard, rung_at.append))
        await until(lambda: rung_at)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await until(lambda: len(only.of("CANCEL")) == 1)
        await until(lambda: calls.dialer._sip.agent.counts().dialogs == 0)
        assert not calls.dialer._legs
        assert not calls.dialer._attempts


async def test_the_end_of_a_request_that_nobody_waits_for_is_not_that_of_the_next() -> None:
    transport = SipTransport(("127.0.0.1", 0), agent_at, lambda event: None)
    asker = PendingRequests(transport)
    later = OutgoingRequest(
        "REGISTER", "sip:192.0.2.9", FAR, "sip:a@b", "sip:a@b", call_id="one", cseq=7
    )
    waiting = asyncio.create_task(asker.ask(later))
    await asyncio.sleep(0)
    asker.receive(RequestDone("one", 408, "Request Timeout", (), "timeout", 3))
    asker.receive(RequestDone("one", 200, "OK", (), "response", 8))
    assert (await waiting).code == 200
    await transport.close()
