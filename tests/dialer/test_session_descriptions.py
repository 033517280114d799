"""Session descriptions as carriers write them, and where RTP is sent then, over sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bitel.dialer import resolver as targets_module
from bitel.dialer.call_attempt import CallLeg
from bitel.dialer.resolver import Resolver
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.rtp.streamer import RemoteAddressError
from bitel.sip import MediaChanged
from bitel.sip.grammar import Address
from bitel.sip.sdp import Direction, NegotiatedMedia
from tests.support.carrier import HOST, sdp
from tests.support.dns_server import Zone, dns_server
from tests.support.media_carrier import MediaCarrier, media_carrier, payloads, sound
from tests.support.sip_dialer import running_call
from tests.support.waiting import until

ISUP = b"\x01\x11\n\x00c=IN IP4 192.0.2.1\nm=audio 9 RTP/AVP 8\r\nc=IN IP4 192.0.2.1\r\n\xff\xfe"


async def nothing_known(host: str, family: int) -> Sequence[str]:
    return []


@asynccontextmanager
async def called(
    folder: Path, far: MediaCarrier, played: bytes, zone: Zone | None = None, **config: Any
) -> AsyncIterator[asyncio.Task[AttemptResult]]:
    """A call that has begun, over a dialer that asks `zone` for host names."""
    targets = None
    if zone is not None:
        targets = Resolver(time.monotonic, resolver=zone.resolver(), system_lookup=nothing_known)
    async with running_call(folder, far.uri, sound=played, targets=targets, **config) as (_, call):
        yield call


@pytest.fixture
async def zone() -> AsyncIterator[Zone]:
    async with dns_server() as zone:
        zone.add("media.test", "A", HOST)
        yield zone


def named(port: int, host: str, version: int = 1, more: str = "") -> bytes:
    """A description with a host name in its c= line, and not in the session's."""
    return sdp(port, more=f"c=IN IP4 {host}\r\n{more}", version=version)


@pytest.mark.parametrize("code", [180, 183])
async def test_a_2xx_without_a_description_after_an_unreliable_one(
    tmp_path: Path, code: int
) -> None:
    played = sound(10)
    async with media_carrier() as far:
        far.codes = [100, code, 200]
        far.bodies[200] = b""
        async with called(tmp_path, far, played) as call:
            pass
        assert payloads(far.rtp) == played
        assert far.methods == ["INVITE", "ACK", "BYE"]
    assert call.result().outcome is Outcome.ANSWERED


async def test_a_description_beside_isup(tmp_path: Path) -> None:
    played = sound(10)
    async with media_carrier() as far:
        far.content_type = "multipart/mixed; boundary=unique-1"
        isup = b"--unique-1\r\nContent-Type: application/isup\r\n\r\n" + ISUP + b"\r\n"
        description = b"--unique-1\r\nContent-Type: application/sdp\r\n\r\n" + far.body + b"\r\n"
        far.body = isup + description + isup + b"--unique-1--\r\n"
        async with called(tmp_path, far, played) as call:
            pass
        assert payloads(far.rtp) == played
    assert call.result().outcome is Outcome.ANSWERED


async def test_audio_that_changes_to_another_line(tmp_path: Path) -> None:
    played = sound(40)
    async with media_carrier() as far, media_carrier() as other:
        async with called(tmp_path, far, played):
            await until(lambda: len(far.rtp.packets) >= 5)
            second = f"m=audio {other.rtp.port} RTP/AVP 8\r\n"
            answer = await far.ask("INVITE", sdp(0, more=second, version=2))
            assert answer.code == 200
            await until(lambda: other.rtp.packets)
        assert payloads(far.rtp, other.rtp) == played


@pytest.mark.parametrize("maxptime", [10, 30])
async def test_no_packet_is_longer_than_the_answer_allows(tmp_path: Path, maxptime: int) -> None:
    async with media_carrier() as far:
        far.body = sdp(far.rtp.port, more=f"a=ptime:40\r\na=maxptime:{maxptime}\r\n")
        async with called(tmp_path, far, sound(9)):
            pass
        assert {len(payload) for _, payload in far.rtp.packets} == {8 * maxptime}


async def test_two_calls_are_two_sessions(tmp_path: Path) -> None:
    origins = []
    for _ in range(2):
        async with media_carrier() as far:
            async with called(tmp_path, far, sound(2)):
                pass
            origins.append(far.invite.body.split(b"\r\n")[1].split()[1])
    assert origins[0] != origins[1]
    assert b"0" not in origins


# Host names (RFC 8866 §5.7)


async def test_a_host_name_is_looked_up_while_the_phone_rings(tmp_path: Path, zone: Zone) -> None:
    played = sound(10)
    async with media_carrier() as far:
        far.codes = [100, 183]
        far.body = named(far.rtp.port, "Media.Test")
        far.bodies[200] = b""
        async with called(tmp_path, far, played, zone) as call:
            await until(lambda: zone.asked["media.test", "A"])
            assert not far.rtp.packets
            far.answer(200)
        assert payloads(far.rtp) == played
    assert call.result().outcome is Outcome.ANSWERED
    assert zone.asked["media.test", "A"] == 1


async def test_a_host_name_in_the_2xx_alone(tmp_path: Path, zone: Zone) -> None:
    played = sound(10)
    async with media_carrier() as far:
        far.body = sdp(far.rtp.port, host="media.test")
        async with called(tmp_path, far, played, zone) as call:
            pass
        assert payloads(far.rtp) == played
    assert call.result().outcome is Outcome.ANSWERED


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("dumb", [True, False], ids=["no answer of DNS", "no such name"])
async def test_a_host_name_that_is_not_found(
    tmp_path: Path, zone: Zone, monkeypatch: pytest.MonkeyPatch, dumb: bool, early: bool
) -> None:
    monkeypatch.setattr(targets_module, "QUERY_TIMEOUT", 0.3)
    async with media_carrier() as far:
        far.codes = [100, 183, 200] if early else [100, 200]
        far.body = named(far.rtp.port, "other.test")
        zone.dumb = dumb
        async with called(tmp_path, far, sound(10), zone) as call:
            pass
        assert not far.rtp.packets
        assert far.methods == ["INVITE", "ACK", "BYE"], "the callee is not left on an open line"
    result = call.result()
    assert result.outcome is Outcome.MEDIA_MISMATCH
    assert "other.test" in result.detail


async def test_a_host_name_with_an_address_that_nothing_is_played_to(
    tmp_path: Path, zone: Zone
) -> None:
    zone.add("all.test", "A", "255.255.255.255")
    async with media_carrier() as far:
        far.body = named(far.rtp.port, "all.test")
        async with called(tmp_path, far, sound(10), zone) as call:
            pass
    result = call.result()
    assert result.outcome is Outcome.MEDIA_MISMATCH
    assert result.detail.startswith("255.255.255.255 is not an address")


async def test_a_later_host_name_is_followed_and_one_that_is_not_found_holds_the_call(
    tmp_path: Path, zone: Zone
) -> None:
    played = sound(60)
    async with media_carrier() as far, media_carrier() as other:
        async with called(tmp_path, far, played, zone) as call:
            await until(lambda: len(far.rtp.packets) >= 3)
            await far.ask("INVITE", named(other.rtp.port, "media.test", 2))
            await until(lambda: len(other.rtp.packets) >= 3)
            await far.ask("INVITE", named(far.rtp.port, "unknown.test", 3))
            await until(lambda: zone.asked["unknown.test", "A"])
            await other.rtp.quiet(0.2)
            assert len(payloads(far.rtp, other.rtp)) < len(played), "held before its end"
            await far.ask("UPDATE", sdp(far.rtp.port, version=4))
        assert payloads(far.rtp)[: 3 * 160] == played[: 3 * 160]
        assert len(payloads(far.rtp, other.rtp)) == len(played), "nothing is lost or said twice"
    assert call.result().outcome is Outcome.ANSWERED


class Names:
    """Look-ups that end when the test says so."""

    def __init__(self) -> None:
        self.asked: dict[str, asyncio.Future[str]] = {}

    async def resolve(self, host: str) -> str:
        self.asked.setdefault(host, asyncio.get_running_loop().create_future())
        return await asyncio.shield(self.asked[host])


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def change(host: str, port: int, direction: Direction = "sendrecv") -> MediaChanged:
    return MediaChanged("call", NegotiatedMedia("PCMA", 8, (101,), (host, port), 20, direction))


@asynccontextmanager
async def followed() -> AsyncIterator[tuple[CallLeg, Names, list[NegotiatedMedia]]]:
    """An answered call, its look-ups, and what its media is to follow."""
    names, seen = Names(), list[NegotiatedMedia]()
    leg = CallLeg("call", Address("192.0.2.9", 5060), lambda: None, names.resolve)
    leg.follow_media(lambda changed: seen.append(changed.agreed))
    try:
        yield leg, names, seen
    finally:
        leg.close()


async def test_a_change_is_not_overtaken_by_the_look_up_of_an_earlier_one() -> None:
    async with followed() as (leg, names, seen):
        leg.receive(change("slow.test", 4000))
        await turns()
        for number in range(100):
            leg.receive(change(f"m{number}.test", 4000))
        leg.receive(change("second.test", 4002))
        await turns()
        assert list(names.asked) == ["slow.test"], "one look-up at a time"
        names.asked["slow.test"].set_result("192.0.2.1")
        await turns()
        assert list(names.asked) == ["slow.test", "second.test"]
        assert not seen
        names.asked["second.test"].set_result("192.0.2.2")
        await turns()
        assert [each.remote for each in seen] == [("192.0.2.2", 4002)]
        leg.receive(change("third.test", 4004))
        await turns()
        leg.receive(change("192.0.2.4", 4006))
        names.asked["third.test"].set_result("192.0.2.3")
        await turns()
        assert [each.remote for each in seen] == [("192.0.2.2", 4002), ("192.0.2.4", 4006)]


async def test_hold_does_not_wait_for_a_look_up() -> None:
    async with followed() as (leg, names, seen):
        leg.receive(change("held.test", 4000, "inactive"))
        assert [(each.direction, each.remote[0]) for each in seen] == [("inactive", "0.0.0.0")]
        await turns()
        names.asked["held.test"].set_result("192.0.2.1")
        await turns()
        assert seen[1:] == [change("192.0.2.1", 4000, "inactive").agreed]


async def test_a_change_before_the_audio_begins_is_followed_then() -> None:
    names, seen = Names(), list[NegotiatedMedia]()
    leg = CallLeg("call", Address("192.0.2.9", 5060), lambda: None, names.resolve)
    leg.receive(change("media.test", 4000))
    await turns()
    leg.follow_media(lambda changed: seen.append(changed.agreed))
    assert not seen
    names.asked["media.test"].set_result("192.0.2.1")
    await turns()
    assert [each.remote for each in seen] == [("192.0.2.1", 4000)]
    leg.close()


async def test_nothing_follows_once_the_call_is_over() -> None:
    async with followed() as (leg, names, seen):
        leg.receive(change("media.test", 4000))
        await turns()
        leg.close()
        names.asked["media.test"].set_result("192.0.2.1")
        await turns()
        assert not seen


async def test_the_sentence_about_a_host_that_is_not_found_names_it() -> None:
    async with followed() as (leg, names, _):
        task = asyncio.create_task(leg.resolved(change("media.test", 4000).agreed))
        await turns()
        names.asked["media.test"].set_exception(OSError("media.test has no A record in DNS"))
        with pytest.raises(
            RemoteAddressError, match=r"media host media\.test is not found: .*no A"
        ):
            await task
