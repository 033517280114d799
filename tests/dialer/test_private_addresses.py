"""No trunk leads us to addresses nearer to us than its own: not by Contact, Record-Route, SDP or a
redirection. The call is placed all the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bitel.dialer import media_session
from bitel.domain.attempts import AttemptResult, Irregularity, Outcome
from tests.support.carrier import Answer, carrier, sdp
from tests.support.media_carrier import MediaCarrier, RtpPort, media_carrier
from tests.support.network_namespace import need_network_namespaces, run_with_addresses
from tests.support.sip_dialer import dialer
from tests.support.waiting import until

US, PUBLIC, PRIVATE = "203.0.113.1", "203.0.113.10", "10.9.9.9"
LOOPBACK, LINK_LOCAL = "127.0.0.1", "169.254.7.7"
SOUND = b"\xd5" * 1600
"""200 ms."""


def in_network(test: Callable[[], Awaitable[None]]) -> None:
    need_network_namespaces()
    run_with_addresses([US, PUBLIC, PRIVATE, LINK_LOCAL], test)


def rtp_port(far: MediaCarrier) -> tuple[str, int]:
    found = re.search(rb"m=audio (\d+)", far.invite.body)
    assert found is not None
    return US, int(found[1])


async def call_with_sdp(
    tmp_path: Path, trunk: str, named: str, speaks_from: str | None = None, **config: Any
) -> tuple[AttemptResult, int, int]:
    """A call to a trunk whose SDP names the host `named`; what is heard there and at the trunk.

    A phone at `speaks_from` sends RTP to us and gets what it waits for.
    """
    async with media_carrier(trunk) as far:
        there = RtpPort(named) if named != trunk else far.rtp
        far.body = sdp(there.port, host=named)
        mouth = RtpPort(speaks_from) if speaks_from else None
        async with dialer(tmp_path, far.uri, bind=(US, 0), sound=SOUND, **config) as calls:
            call = asyncio.create_task(calls.call())
            await until(lambda: "ACK" in far.methods)
            while not call.done():
                if mouth is not None:
                    mouth.speak(rtp_port(far), 1)
                await asyncio.wait([call], timeout=0.05)
            result = await call
        heard = mouth.packets if mouth is not None else []
        at_named = len(there.packets)
        for ear in {there, *([mouth] if mouth else [])}:
            ear.close()
    return result, at_named, len(heard)


@pytest.mark.parametrize("named", [PRIVATE, LINK_LOCAL, LOOPBACK])
def test_audio_waits_for_the_trunk_s_own_where_sdp_names_a_private_address(
    tmp_path: Path, named: str
) -> None:
    async def test() -> None:
        result, at_named, at_trunk = await call_with_sdp(tmp_path, PUBLIC, named, PUBLIC)
        assert result.outcome is Outcome.ANSWERED
        assert result.irregularities == (Irregularity.ADDRESS_NOT_FOLLOWED,)
        assert (at_named, at_trunk) == (0, 10)

    in_network(test)


def test_nothing_is_sent_where_nothing_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_session, "AWAITED_FOR", 0.3)

    async def test() -> None:
        result, at_named, _ = await call_with_sdp(tmp_path, PUBLIC, PRIVATE)
        assert result.outcome is Outcome.MEDIA_MISMATCH
        assert Irregularity.ADDRESS_NOT_FOLLOWED in result.irregularities
        assert "must not be sent to" in result.detail
        assert at_named == 0

    in_network(test)


@pytest.mark.parametrize(
    ("latch", "speaks_from", "answered"),
    [("port", PRIVATE, False), ("host", PRIVATE, True), ("off", PUBLIC, False)],
)
def test_the_source_that_is_awaited_is_within_latch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    latch: str,
    speaks_from: str,
    answered: bool,
) -> None:
    monkeypatch.setattr(media_session, "AWAITED_FOR", 0.5)

    async def test() -> None:
        result, at_named, heard = await call_with_sdp(
            tmp_path, PUBLIC, LOOPBACK, speaks_from, latch=latch
        )
        expected = Outcome.ANSWERED if answered else Outcome.MEDIA_MISMATCH
        assert result.outcome is expected
        assert (at_named, heard) == (0, 10 if answered else 0)

    in_network(test)


@pytest.mark.parametrize(
    ("trunk", "named", "config"),
    [
        (PRIVATE, PRIVATE, {}),
        (PRIVATE, PUBLIC, {}),
        (PUBLIC, PRIVATE, {"follow_private": True}),
        (PUBLIC, LOOPBACK, {"follow_private": True}),
    ],
)
def test_what_may_be_named_is_followed_at_once(
    tmp_path: Path, trunk: str, named: str, config: dict[str, Any]
) -> None:
    async def test() -> None:
        result, at_named, _ = await call_with_sdp(tmp_path, trunk, named, **config)
        assert result.outcome is Outcome.ANSWERED
        assert result.irregularities == ()
        assert at_named == 10

    in_network(test)


@pytest.mark.parametrize("header", ["Contact", "Record-Route"])
@pytest.mark.parametrize("named", [PRIVATE, LOOPBACK, LINK_LOCAL])
@pytest.mark.parametrize("follow", [False, True])
def test_requests_go_to_the_source_where_a_private_address_is_named(
    tmp_path: Path, header: str, named: str, follow: bool
) -> None:
    async def test() -> None:
        async with carrier(PUBLIC) as far, carrier(named) as victim:
            uri = f"<sip:{victim.place};lr>"
            far.does["INVITE"] = lambda _: [Answer(200, [(header, uri)], sdp=True)]
            async with dialer(tmp_path, far.uri, bind=(US, 0), follow_private=follow) as calls:
                result = await calls.call()
            assert result.outcome is Outcome.ANSWERED
            there, elsewhere = (victim, far) if follow else (far, victim)
            assert [each.method for each in there.requests if each.method != "INVITE"] == [
                "ACK",
                "BYE",
            ]
            assert not elsewhere.of("BYE")
            expected = () if follow else (Irregularity.ADDRESS_NOT_FOLLOWED,)
            assert result.irregularities == expected

    in_network(test)
