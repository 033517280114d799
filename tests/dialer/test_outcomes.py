"""What a carrier's responses come to: whether the phone rang decides."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from bitel.domain import attempts as outcomes
from bitel.domain.attempts import Outcome
from bitel.sip import Credentials
from tests.support.carrier import Answer, answering, carrier
from tests.support.sip_dialer import dialer
from tests.support.waiting import until


def because(code: int, *reasons: str) -> Answer:
    return Answer(code, [("Reason", reason) for reason in reasons])


ANALYTICS = 'SIP;cause=603;text="v=analytics1;url=https://example.com/redress"'


@pytest.mark.parametrize(
    "final",
    [
        because(480, "Q.850;cause=41"),
        because(480, "Q.850;cause=42"),
        because(480, "Q.850;cause=47"),
        500,
        502,
        503,
        Answer(503, [("Retry-After", "30")]),
        504,
        because(487, "Q.850;cause=27"),
        because(408, "Q.850;cause=102"),
        403,
        488,
        433,
    ],
    ids=str,
)
@pytest.mark.parametrize("ringing", [180, 181, 182, 183])
async def test_after_ringing_nothing_is_taken_for_trunk_trouble(
    tmp_path: Path, ringing: int, final: Answer | int
) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = answering(100, ringing, final)
        async with dialer(tmp_path, first.uri, second.uri) as calls:
            result = await calls.call()
    assert result.outcome in {Outcome.RANG_THEN_FAILED, Outcome.NO_ANSWER}
    assert not second.requests


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        ([because(486, "Q.850;cause=34")], Outcome.BUSY),
        ([180, because(486, "Q.850;cause=41")], Outcome.BUSY),
        ([180, because(603, "Q.850;cause=27")], Outcome.BUSY),
        ([because(603, ANALYTICS)], Outcome.REFUSED_FOR_GOOD),
        ([180, because(603, ANALYTICS)], Outcome.REFUSED_FOR_GOOD),
        ([because(603, "Q.850;cause=21", ANALYTICS)], Outcome.REFUSED_FOR_GOOD),
        ([607], Outcome.REFUSED_FOR_GOOD),
        ([180, 607], Outcome.REFUSED_FOR_GOOD),
        ([608], Outcome.REFUSED_FOR_GOOD),
        ([699], Outcome.REFUSED_FOR_GOOD),
        ([501], Outcome.REFUSED_FOR_GOOD),
        ([505], Outcome.REFUSED_FOR_GOOD),
        ([513], Outcome.REFUSED_FOR_GOOD),
        ([183, 404], Outcome.BAD_NUMBER),
        ([because(480, "Q.850;cause=41")], Outcome.TRUNK_TROUBLE),
    ],
    ids=str,
)
async def test_what_it_comes_to(
    tmp_path: Path, sent: Sequence[Answer | int], outcome: Outcome
) -> None:
    async with carrier() as far:
        far.does["INVITE"] = answering(100, *sent)
        async with dialer(tmp_path, far.uri) as calls:
            result = await calls.call()
    assert result.outcome is outcome
    assert result.detail


@pytest.mark.parametrize("final", [504, 408, because(480, "Q.850;cause=41")], ids=str)
async def test_a_late_failure_after_100_is_uncertain(
    tmp_path: Path, final: Answer | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 0.2
    monkeypatch.setattr(outcomes, "PROGRESS_LIMIT", limit)
    last = final if isinstance(final, Answer) else Answer(final)
    async with carrier() as far, carrier() as spare:
        far.does["INVITE"] = answering(100)
        async with dialer(tmp_path, far.uri, spare.uri, ring_timeout=30.0) as calls:
            call = asyncio.create_task(calls.call())
            await until(lambda: far.of("INVITE"))
            await asyncio.sleep(limit + 0.1)  # what is measured is this time itself
            far.say(far.of("INVITE")[0], last)
            result = await call
    assert result.outcome is Outcome.UNCERTAIN
    assert not spare.requests


async def test_a_carrier_that_says_nothing_for_the_whole_ring_time_rang_no_phone(
    tmp_path: Path,
) -> None:
    async with carrier() as far:
        far.does["INVITE"] = answering()
        async with dialer(tmp_path, far.uri, ring_timeout=0.3) as calls:
            result = await calls.call()
    assert result.outcome is Outcome.TRUNK_TROUBLE


@pytest.mark.parametrize("ringing", [180, 183])
@pytest.mark.parametrize(
    "final",
    [
        Answer(401, [("WWW-Authenticate", 'Digest realm="r", nonce="n"')]),
        Answer(407, [("Proxy-Authenticate", 'Digest realm="r", nonce="n"')]),
        Answer(422, [("Min-SE", "7200")]),
    ],
    ids=str,
)
async def test_after_ringing_no_other_invite_leaves_for_what_it_would_say_better(
    tmp_path: Path, ringing: int, final: Answer
) -> None:
    async with carrier() as far:
        far.does["INVITE"] = answering(100, ringing, final)
        async with dialer(tmp_path, far.uri, credentials=Credentials("me", "secret")) as calls:
            result = await calls.call()
    assert result.outcome is Outcome.RANG_THEN_FAILED
    assert result.sip_code == final.code
    assert len(far.of("INVITE")) == 1
