"""What a dialer reports while the phone rings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bitel.domain.attempts import DialRequest, Outcome
from tests.support.carrier import answering, carrier
from tests.support.sip_dialer import dialer

ORDER = DialRequest("attempt", f"{1:032x}", "+989121234567", "recording")


async def heard(at: float) -> bool:
    return True


@pytest.mark.parametrize(
    ("codes", "times"),
    [
        ((100, 200), 0),
        ((100, 199, 486), 0),
        ((180, 200), 1),
        ((181, 486), 1),
        ((183, 180, 189, 486), 1),
        ((180, 503), 1),
    ],
)
async def test_the_first_18x_is_reported_once(
    tmp_path: Path, codes: tuple[int, ...], times: int
) -> None:
    rang: list[float] = []
    begun = time.time()
    async with carrier() as only, dialer(tmp_path, only.uri) as calls:
        only.does["INVITE"] = answering(*codes)
        result = await calls.dialer.dial(ORDER, heard, rang.append)
    assert len(rang) == times
    assert all(begun <= at <= result.ended_at for at in rang)


async def test_of_several_trunks_the_one_that_rings_counts(tmp_path: Path) -> None:
    rang: list[float] = []
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = answering(503)
        second.does["INVITE"] = answering(180, 200)
        async with dialer(tmp_path, first.uri, second.uri) as calls:
            result = await calls.dialer.dial(ORDER, heard, rang.append)
    assert result.outcome is Outcome.ANSWERED
    assert len(rang) == 1
