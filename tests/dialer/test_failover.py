"""One attempt, several addresses: when the next is tried, and when nobody is rung twice."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from bitel.dialer.failover import AGAIN, TO_ANOTHER_HOST, TO_ANOTHER_NUMBER
from bitel.dialer.resolver import Resolver
from bitel.domain.attempts import Outcome
from bitel.sip import Credentials
from tests.support.carrier import Answer, Behaviour, answering, carrier, silent
from tests.support.clocks import FakeClock
from tests.support.dns_server import dns_server
from tests.support.sip_dialer import dialer
from tests.support.waiting import until


@pytest.mark.parametrize("trouble", [answering(503), answering(100, 503), silent])
async def test_the_next_trunk_gets_an_invite_of_its_own(tmp_path: Path, trouble: Behaviour) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = trouble
        async with dialer(tmp_path, first.uri, second.uri) as calls:
            result = await calls.call()
    assert result.outcome is Outcome.ANSWERED
    (one,), (other,) = first.of("INVITE"), second.of("INVITE")
    assert one.call_id != other.call_id
    assert one.branch != other.branch
    assert one.from_tag != other.from_tag
    assert len(second.of("BYE")) == 1


async def test_a_port_where_nobody_listens_costs_one_unanswered_ping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"sip:127.0.0.1:{probe.getsockname()[1]}"
    async with carrier() as second, dialer(tmp_path, nobody, second.uri, t1=0.5) as calls:
        async with asyncio.timeout(4):
            assert (await calls.call()).outcome is Outcome.ANSWERED
        # From then on it is known to be down.
        async with asyncio.timeout(1):
            assert (await calls.call()).outcome is Outcome.ANSWERED


async def test_a_silent_trunk_is_left_sooner_if_there_is_another(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = silent
        async with dialer(
            tmp_path, first.uri, second.uri, t1=0.5, trunk_timeout=0.1, ring_timeout=20
        ) as calls:
            async with asyncio.timeout(5):
                assert (await calls.call()).outcome is Outcome.ANSWERED
            second.does["INVITE"] = silent
            late = asyncio.create_task(calls.call())
            await until(lambda: len(first.of("INVITE")) == 2)
            ended, _ = await asyncio.wait({late}, timeout=0.3)
            assert not ended, "the last one has all the time that SIP gives it"
            first.say(first.of("INVITE")[-1], Answer(486))
            assert (await late).outcome is Outcome.BUSY


async def test_a_trunk_that_was_merely_slow_rings_nobody_for_long(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = silent
        async with dialer(
            tmp_path, first.uri, second.uri, t1=0.5, trunk_timeout=0.1, ring_timeout=20
        ) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            first.say(first.of("INVITE")[0], Answer(180))
            await until(lambda: len(first.of("CANCEL")) == 1)
            first.say(first.of("INVITE")[0], Answer(200, sdp=True))
            await until(lambda: len(first.of("BYE")) == 1)
    assert len(first.of("ACK")) == 1
    assert len(second.of("INVITE")) == 1


async def test_a_trunk_that_said_anything_is_not_left(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = answering(100)
        async with dialer(
            tmp_path, first.uri, second.uri, trunk_timeout=0.05, ring_timeout=0.3
        ) as calls:
            assert (await calls.call()).outcome is Outcome.NO_ANSWER
    assert not second.requests


@pytest.mark.parametrize("codes", [(180, 503), (183, 500), (180, 408), (486,), (404,), (403,)])
async def test_no_other_trunk_after_ringing_or_a_verdict(
    tmp_path: Path, codes: tuple[int, ...]
) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = answering(*codes)
        async with dialer(tmp_path, first.uri, second.uri) as calls:
            result = await calls.call()
    assert result.sip_code == codes[-1]
    assert not second.requests


async def test_a_500_is_for_another_trunk_but_not_for_another_address(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second, carrier() as third, dns_server() as zone:
        zone.add(
            "_sip._udp.c.test",
            "SRV",
            f"1 1 {first.port} localhost.c.test.",
            f"2 1 {second.port} localhost.c.test.",
        )
        zone.add("localhost.c.test", "A", "127.0.0.1")
        first.does["INVITE"] = answering(500)
        targets = Resolver(FakeClock(), resolver=zone.resolver())
        async with dialer(tmp_path, "sip:c.test", third.uri, targets=targets) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            assert (len(second.requests), len(third.of("INVITE"))) == (0, 1)
            first.does["INVITE"] = answering(503)
            assert (await calls.call()).outcome is Outcome.ANSWERED
            assert (len(second.of("INVITE")), len(third.of("INVITE"))) == (1, 1)


async def test_who_asks_for_rest_gets_it(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = lambda _: [Answer(503, [("Retry-After", "60 (busy)")])]
        async with dialer(tmp_path, first.uri, second.uri) as calls:
            for _ in range(3):
                assert (await calls.call()).outcome is Outcome.ANSWERED
            assert len(first.of("INVITE")) == 1
            states = calls.dialer.trunks()
            assert [(state.usable, state.rests) for state in states] == [
                (False, True),
                (True, False),
            ]


async def test_the_last_address_that_takes_calls_never_rests(tmp_path: Path) -> None:
    """A 503 with Retry-After may be about one callee, and would stop all other calls."""
    full = Answer(503, [("Retry-After", "3600")])
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = second.does["INVITE"] = lambda _: [full]
        async with dialer(tmp_path, first.uri, second.uri) as calls:
            for _ in range(2):
                assert (await calls.call()).outcome is Outcome.TRUNK_TROUBLE
                assert calls.dialer.up
                assert not calls.dialer.probing
                states = calls.dialer.trunks()
                assert [(state.usable, state.rests) for state in states] == [(True, False)] * 2
            second.does["INVITE"] = answering(100, 200)
            assert (await calls.call()).outcome is Outcome.ANSWERED


async def test_an_address_rests_no_more_where_the_others_are_down(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second:
        answers = [[Answer(503, [("Retry-After", "60")])]]
        first.does["INVITE"] = lambda _: answers.pop() if answers else [Answer(200, sdp=True)]
        async with dialer(tmp_path, first.uri, second.uri, ring_timeout=20) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            assert calls.dialer.trunks()[0].rests
            second.does["INVITE"] = silent
            assert (await calls.call()).outcome is Outcome.TRUNK_TROUBLE
            assert calls.dialer.up
            assert (await calls.call()).outcome is Outcome.ANSWERED
    assert len(first.of("INVITE")) == 2


async def test_an_answered_ping_ends_a_rest(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second:
        answers = [[Answer(503, [("Retry-After", "60")])]]
        first.does["INVITE"] = lambda _: answers.pop() if answers else [Answer(200, sdp=True)]
        first.does["OPTIONS"] = answering(503)
        async with dialer(tmp_path, first.uri, second.uri, ping_interval=0.05) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            before = len(first.of("OPTIONS"))
            await until(lambda: len(first.of("OPTIONS")) > before + 1)
            assert calls.dialer.trunks()[0].rests, "it says that it is still unavailable"
            first.does["OPTIONS"] = answering(200)
            await until(lambda: not calls.dialer.trunks()[0].rests)
            assert (await calls.call()).outcome is Outcome.ANSWERED
    assert len(first.of("INVITE")) == 2


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_clock_that_is_set_changes_no_rest(tmp_path: Path, step: float) -> None:
    set_by = 0.0
    async with carrier() as far, carrier() as other:
        far.does["INVITE"] = lambda _: [Answer(503, [("Retry-After", "1")])]
        async with dialer(
            tmp_path, far.uri, other.uri, clock=lambda: time.time() + set_by
        ) as calls:
            await calls.call()
            set_by = step
            trunk, _ = calls.dialer.trunks()
            assert trunk.rests
            assert trunk.answered_at == pytest.approx(time.time() + step, abs=1.0)
            await until(lambda: not calls.dialer.trunks()[0].rests, 5.0)


async def test_what_is_called_asks_for_no_rest_of_the_trunk(tmp_path: Path) -> None:
    """A telephone system behind the carrier that sends 503 while it rings."""
    async with carrier() as far:
        full = Answer(503, [("Retry-After", "3600")])
        far.does["INVITE"] = lambda _: [Answer(180), full]
        async with dialer(tmp_path, far.uri) as calls:
            assert (await calls.call()).outcome is Outcome.RANG_THEN_FAILED
            assert calls.dialer.up
            far.does["INVITE"] = answering(100, 200)
            assert (await calls.call()).outcome is Outcome.ANSWERED


async def test_who_does_not_answer_is_tried_last_from_then_on(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = silent
        async with dialer(tmp_path, first.uri, second.uri) as calls:
            for _ in range(3):
                assert (await calls.call()).outcome is Outcome.ANSWERED
            assert len(first.of("INVITE")) == 1
            second.does["INVITE"] = answering(503)
            first.does["INVITE"] = answering(200)
            assert (await calls.call()).outcome is Outcome.ANSWERED
            assert len(first.of("INVITE")) == 2, "better than not at all"


async def test_a_redirection_within_the_trunk_is_followed_once(tmp_path: Path) -> None:
    async with carrier() as only, carrier() as stranger:
        contact = f"<SIP:+989121234567;rn=+98777@127.0.0.1:{only.port};self=1>"
        only.does["INVITE"] = lambda request: (
            [Answer(302, [("Contact", contact)])]
            if "777" not in request.uri
            else [Answer(200, sdp=True)]
        )
        async with dialer(tmp_path, only.uri) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            assert only.of("INVITE")[-1].uri == contact[1:-1].replace("SIP:", "sip:")
            only.does["INVITE"] = lambda _: [Answer(302, [("Contact", contact)])]
            before = len(only.of("INVITE"))
            result = await calls.call()
            assert (result.outcome, result.detail.partition(": ")[2]) == (
                Outcome.REFUSED,
                AGAIN,
            )
            assert len(only.of("INVITE")) == before + 2
            elsewhere = f"<sip:+989121234567@127.0.0.1:{stranger.port}>"
            only.does["INVITE"] = lambda _: [Answer(302, [("Contact", elsewhere)])]
            result = await calls.call()
            assert (result.outcome, result.detail.partition(": ")[2]) == (
                Outcome.REFUSED,
                TO_ANOTHER_HOST,
            )
            assert not stranger.requests


@pytest.mark.parametrize("user", ["+982112345678", "+12025550123", "operator", "00989121234568"])
async def test_a_redirection_to_another_number_is_not_followed(tmp_path: Path, user: str) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri, region="IR") as calls:
        contact = f"<sip:{user}@{only.place}>"
        only.does["INVITE"] = lambda _: [Answer(302, [("Contact", contact)])]
        result = await calls.call("+989121234567")
    assert result.outcome is Outcome.REFUSED
    assert result.detail.endswith(f": {TO_ANOTHER_NUMBER}")
    assert len(only.of("INVITE")) == 1


@pytest.mark.parametrize("user", ["09121234567", "0098912-123-4567", "989121234567;npdi"])
async def test_a_redirection_may_write_the_number_in_another_way(tmp_path: Path, user: str) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri, region="IR") as calls:
        contact = f"<sip:{user}@{only.place};self>"
        answers = [[Answer(302, [("Contact", contact)])], [Answer(200, sdp=True)]]
        only.does["INVITE"] = lambda _: answers.pop(0)
        assert (await calls.call("+989121234567")).outcome is Outcome.ANSWERED
    assert only.of("INVITE")[-1].uri == contact[1:-1]


async def test_the_credentials_given_to_one_trunk_are_not_shown_to_the_next(
    tmp_path: Path,
) -> None:
    async with carrier() as first, carrier() as second, carrier() as stranger:
        challenge = Answer(407, [("Proxy-Authenticate", 'Digest realm="first", nonce="n"')])
        elsewhere = f"<sip:+989121234567@127.0.0.1:{stranger.port}>"
        last = [Answer(503)]
        first.does["INVITE"] = lambda request: (
            last if request.header("proxy-authorization") else [challenge]
        )
        credentials = Credentials("acme", "s3cret")
        async with dialer(tmp_path, first.uri, second.uri, credentials=credentials) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            for target in (elsewhere, f"<sip:+989121234567@127.0.0.1:{second.port}>"):
                last[:] = [Answer(302, [("Contact", target)])]
                assert (await calls.call()).outcome is Outcome.REFUSED
    assert first.of("INVITE")[-1].header("proxy-authorization")
    assert len(second.of("INVITE")) == 1, "nobody sends us on to another trunk"
    assert not any("authorization" in name for one in second.requests for name in one.headers)
    assert not stranger.requests


async def test_in_a_call_credentials_go_to_the_trunks_other_hosts_and_to_no_others(
    tmp_path: Path,
) -> None:
    challenge = Answer(407, [("Proxy-Authenticate", 'Digest realm="c", nonce="n"')])
    async with (
        carrier("127.0.0.1") as first,
        carrier("127.0.0.2") as sibling,
        carrier("127.0.0.3") as other_trunk,
        carrier("127.0.0.4") as stranger,
        dns_server() as zone,
    ):
        zone.add(
            "_sip._udp.c.test",
            "SRV",
            f"1 1 {first.port} first.c.test.",
            f"2 1 {sibling.port} sibling.c.test.",
        )
        zone.add("first.c.test", "A", "127.0.0.1")
        zone.add("sibling.c.test", "A", "127.0.0.2")
        targets = Resolver(FakeClock(), resolver=zone.resolver())
        credentials = Credentials("acme", "s3cret")
        async with dialer(
            tmp_path, "sip:c.test", other_trunk.uri, targets=targets, credentials=credentials
        ) as calls:
            answers = [challenge]
            first.does["INVITE"] = lambda request: (
                answers if request.header("proxy-authorization") else [challenge]
            )
            for far in (sibling, other_trunk, stranger):
                answers[:] = [Answer(200, [("Contact", f"<{far.uri}>")], sdp=True)]
                # The call is over once its BYE is answered.
                assert (await calls.call()).outcome is Outcome.ANSWERED
    shown = {
        far.place: {"proxy-authorization" in request.headers for request in far.requests}
        for far in (sibling, other_trunk, stranger)
    }
    assert shown == {sibling.place: {True}, other_trunk.place: {False}, stranger.place: {False}}
    for far in (sibling, other_trunk, stranger):
        assert [request.method for request in far.requests] == ["ACK", "BYE"]


async def test_an_answered_ping_brings_a_trunk_back(tmp_path: Path) -> None:
    async with carrier() as only:
        only.does["INVITE"] = silent
        only.does["OPTIONS"] = silent
        async with dialer(tmp_path, only.uri, ping_interval=0.05) as calls:
            assert calls.dialer.up
            assert (await calls.call()).outcome is Outcome.TRUNK_TROUBLE
            assert not calls.dialer.up
            only.does["OPTIONS"] = answering(405)
            await until(lambda: calls.dialer.up)


async def test_unanswered_pings_take_a_trunk_out(tmp_path: Path) -> None:
    async with carrier() as only:
        only.does["OPTIONS"] = silent
        async with dialer(tmp_path, only.uri, ping_interval=0.05) as calls:
            await until(lambda: not calls.dialer.up)
            assert len(only.of("OPTIONS")) >= 2


async def test_no_name_no_call(tmp_path: Path) -> None:
    async with dns_server() as zone:
        zone.broken = True

        async def nothing(host: str, family: int) -> list[str]:
            return []

        targets = Resolver(FakeClock(), resolver=zone.resolver(), system_lookup=nothing)
        async with dialer(tmp_path, "sip:c.test", targets=targets) as calls:
            result = await calls.call()
            assert result.outcome is Outcome.TRUNK_TROUBLE
            assert result.detail == "DNS does not say what c.test is (NoNameservers)"
            assert not calls.dialer.up
