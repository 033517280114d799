"""Trunks that refuse or lose every call: calls wait, and one at a time tries the trunk."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bitel.dialer.config import SipTrunkConfig
from bitel.dialer.failover import Route
from bitel.dialer.resolver import Resolver
from bitel.dialer.trunk import Trunk
from bitel.dialer.trunk_monitor import (
    REFUSALS_PROBED,
    UNCERTAIN_IN_A_ROW,
    UNCERTAIN_REST,
    Passed,
    TrunkMonitor,
)
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.sip.message import Request
from tests.support.carrier import Answer, Carrier, answering, carrier
from tests.support.clocks import FakeClock
from tests.support.dns_server import dns_server
from tests.support.sip_dialer import Dialled, dialer

TRUNK, OTHER = Trunk.parse("sip:192.0.2.1"), Trunk.parse("sip:192.0.2.2")


def hop(trunk: Trunk) -> Route:
    return Route(trunk, trunk.at(trunk.host), "sip:1@x")


class Watched:
    """Trunks, and calls that end as a test says."""

    def __init__(self, clock: FakeClock, *trunks: Trunk) -> None:
        self.clock = clock
        config = SipTrunkConfig(trunks, ("127.0.0.1", 0), range(2), 5.0, refusals_before_pause=3)
        self.carriers = TrunkMonitor(config, clock, monotonic=clock)

    def call(self, outcome: Outcome, code: int = 0, trunk: Trunk = TRUNK) -> Outcome | None:
        """How a call ends, had it ended as `outcome`; None where it must not be placed."""
        passed: Passed = {}
        begun_at = self.carriers.begin(hop(trunk), passed)
        if begun_at is None:
            return None
        over = AttemptResult(outcome, self.clock(), self.clock(), sip_code=code, detail=f"{code} x")
        outcome = self.carriers.record_outcome(hop(trunk), over, begun_at).outcome
        self.carriers.leave(passed)
        return outcome


@pytest.fixture
def watched(clock: FakeClock) -> Watched:
    return Watched(clock, TRUNK)


@pytest.mark.parametrize("code", [401, 402, 403, 407, 488])
def test_refusals_in_a_row_pause_a_trunk_that_worked(watched: Watched, code: int) -> None:
    refused = Outcome.MEDIA_MISMATCH if code == 488 else Outcome.REFUSED
    watched.call(Outcome.ANSWERED)
    assert [watched.call(refused, code) for _ in range(3)] == [
        refused,
        refused,
        Outcome.TRUNK_TROUBLE,
    ]
    assert not watched.carriers.up
    assert watched.call(refused, code) is None
    assert f"{code} x" in watched.carriers.paused_reason
    watched.clock.advance(REFUSALS_PROBED)
    assert watched.carriers.up
    assert watched.carriers.probing
    assert watched.call(refused, code) is Outcome.TRUNK_TROUBLE
    assert watched.call(refused, code) is None
    watched.clock.advance(REFUSALS_PROBED)
    assert watched.call(Outcome.BUSY, 486) is Outcome.BUSY
    assert watched.carriers.up
    assert not watched.carriers.probing
    assert watched.carriers.paused_reason == ""


def test_calls_under_way_when_it_pauses_wait_too(watched: Watched) -> None:
    watched.call(Outcome.ANSWERED)
    over = AttemptResult(Outcome.REFUSED, 0.0, 0.0, sip_code=403)
    begun = [watched.carriers.begin(hop(TRUNK), {}) for _ in range(10)]
    outcomes = [
        watched.carriers.record_outcome(hop(TRUNK), over, at or 0.0).outcome for at in begun
    ]
    assert outcomes == [Outcome.REFUSED] * 2 + [Outcome.TRUNK_TROUBLE] * 8


@pytest.mark.parametrize("in_between", [Outcome.ANSWERED, Outcome.BUSY, Outcome.BAD_NUMBER])
def test_only_refusals_in_a_row_count(watched: Watched, in_between: Outcome) -> None:
    for _ in range(10):
        assert watched.call(Outcome.REFUSED, 403) is Outcome.REFUSED
        assert watched.call(Outcome.REFUSED, 403) is Outcome.REFUSED
        watched.call(in_between)
    assert watched.carriers.up


def test_a_trunk_that_never_worked_is_not_paused(watched: Watched) -> None:
    assert [watched.call(Outcome.REFUSED, 403) for _ in range(20)] == [Outcome.REFUSED] * 20
    watched.carriers.assume_worked()
    assert watched.call(Outcome.REFUSED, 403) is Outcome.TRUNK_TROUBLE


def test_other_refusals_do_not_count(watched: Watched) -> None:
    watched.call(Outcome.ANSWERED)
    for code in (404, 410, 415, 606, 604):
        outcome = Outcome.BAD_NUMBER if code in {404, 410, 604} else Outcome.MEDIA_MISMATCH
        for _ in range(4):
            assert watched.call(outcome, code) is outcome
    assert watched.carriers.up


def test_uncertain_failures_in_a_row_rest_an_address(watched: Watched) -> None:
    assert {watched.call(Outcome.UNCERTAIN) for _ in range(UNCERTAIN_IN_A_ROW)} == {
        Outcome.UNCERTAIN
    }
    assert not watched.carriers.up
    watched.clock.advance(UNCERTAIN_REST)
    assert watched.carriers.probing
    assert watched.call(Outcome.UNCERTAIN) is Outcome.UNCERTAIN
    watched.clock.advance(UNCERTAIN_REST)
    assert not watched.carriers.up, "the second rest is longer"
    watched.clock.advance(UNCERTAIN_REST)
    assert watched.call(Outcome.RANG_THEN_FAILED) is Outcome.RANG_THEN_FAILED
    assert watched.carriers.up
    assert not watched.carriers.probing


def test_another_trunk_takes_the_calls_meanwhile(clock: FakeClock) -> None:
    watched = Watched(clock, TRUNK, OTHER)
    for _ in range(UNCERTAIN_IN_A_ROW):
        watched.call(Outcome.UNCERTAIN)
    assert watched.call(Outcome.ANSWERED) is None
    assert watched.carriers.up
    assert not watched.carriers.probing
    assert watched.call(Outcome.ANSWERED, trunk=OTHER) is Outcome.ANSWERED


async def outcomes(calls: Dialled, count: int) -> list[Outcome]:
    return [(await calls.call()).outcome for _ in range(count)]


@asynccontextmanager
async def trunk_that_worked(
    folder: Path, refusals_before_pause: int
) -> AsyncIterator[tuple[Carrier, Dialled, FakeClock]]:
    """A carrier that has answered a call, a dialer that calls it, and the clock of its pauses."""
    clock = FakeClock()
    async with (
        carrier() as far,
        dialer(folder, far.uri, refusals_before_pause=refusals_before_pause) as calls,
    ):
        calls.dialer._trunks._monotonic = clock
        assert await outcomes(calls, 1) == [Outcome.ANSWERED]
        yield far, calls, clock


async def test_a_carrier_that_refuses_from_one_moment_on(tmp_path: Path) -> None:
    async with trunk_that_worked(tmp_path, 3) as (far, calls, _):
        far.does["INVITE"] = answering(403)
        assert await outcomes(calls, 3) == [
            Outcome.REFUSED,
            Outcome.REFUSED,
            Outcome.TRUNK_TROUBLE,
        ]
        sent = len(far.of("INVITE"))
        assert await outcomes(calls, 5) == [Outcome.TRUNK_TROUBLE] * 5
        assert len(far.of("INVITE")) == sent, "no INVITE leaves while it is paused"
        assert not calls.dialer.up
        assert "403" in calls.dialer.paused_reason
        assert calls.dialer.has_worked


async def test_a_fault_while_a_probe_is_placed_does_not_keep_the_trunk_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trunk_that_worked(tmp_path, 1) as (far, calls, clock):
        far.does["INVITE"] = answering(403)
        await calls.call()
        clock.advance(REFUSALS_PROBED)
        _break_next_invite(calls, monkeypatch)
        assert (await calls.call()).outcome is Outcome.NOT_PLACED
        clock.advance(REFUSALS_PROBED)
        far.does["INVITE"] = answering(100, 200)
        assert (await calls.call()).outcome is Outcome.ANSWERED


@pytest.mark.parametrize("first", ["redirects", "is full"])
async def test_a_probe_goes_on_to_another_address_of_its_trunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    async with carrier() as near, carrier() as far, dns_server() as zone:
        zone.add(
            "_sip._udp.c.test",
            "SRV",
            f"1 1 {near.port} localhost.c.test.",
            f"2 1 {far.port} localhost.c.test.",
        )
        zone.add("localhost.c.test", "A", "127.0.0.1")
        targets = Resolver(FakeClock(), resolver=zone.resolver())
        contact = [("Contact", f"<sip:+989121234567@127.0.0.1:{far.port}>")]
        near.does["INVITE"] = (
            answering(503) if first == "is full" else lambda _: [Answer(302, contact)]
        )
        async with dialer(
            tmp_path, "sip:c.test", targets=targets, refusals_before_pause=1
        ) as calls:
            clock = FakeClock()
            monkeypatch.setattr(calls.dialer._trunks, "_monotonic", clock)
            assert await outcomes(calls, 1) == [Outcome.ANSWERED]
            far.does["INVITE"] = answering(403)
            assert await outcomes(calls, 1) == [Outcome.TRUNK_TROUBLE]
            assert not calls.dialer.up
            clock.advance(REFUSALS_PROBED)
            far.does["INVITE"] = answering(100, 200)
            assert await outcomes(calls, 1) == [Outcome.ANSWERED]
            assert calls.dialer.up
            assert not calls.dialer.probing
            assert len(near.of("INVITE")) == len(far.of("INVITE")) == 3


async def test_a_probe_that_nothing_answers_is_tried_again_after_the_wait(tmp_path: Path) -> None:
    async with trunk_that_worked(tmp_path, 1) as (far, calls, clock):
        far.does["INVITE"] = answering(403)
        await calls.call()
        clock.advance(REFUSALS_PROBED)
        far.does["INVITE"] = answering(503)
        assert await outcomes(calls, 1) == [Outcome.TRUNK_TROUBLE]
        assert not calls.dialer.up
        clock.advance(REFUSALS_PROBED)
        far.does["INVITE"] = answering(100, 200)
        assert await outcomes(calls, 1) == [Outcome.ANSWERED]


def _break_next_invite(calls: Dialled, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = calls.dialer._sip.agent
    invite: Callable[..., str] = agent.invite
    broken: list[bool] = []

    def once(*arguments: object) -> str:
        if not broken:
            broken.append(True)
            raise RuntimeError("as the test wants")
        return invite(*arguments)

    monkeypatch.setattr(type(agent), "invite", lambda _, *arguments: once(*arguments))


async def test_somebody_who_picks_up_is_not_called_again_because_the_trunk_is_paused(
    tmp_path: Path,
) -> None:
    async with trunk_that_worked(tmp_path, 2) as (far, calls, clock):
        far.does["INVITE"] = answering(180, Answer(200))  # an answer without SDP
        assert await outcomes(calls, 2) == [Outcome.MEDIA_MISMATCH] * 2
        assert await outcomes(calls, 1) == [Outcome.TRUNK_TROUBLE], "these answers pause it too"
        assert len(far.of("INVITE")) == 3
        clock.advance(REFUSALS_PROBED)
        assert await outcomes(calls, 1) == [Outcome.MEDIA_MISMATCH]


async def test_a_probe_follows_a_redirection(tmp_path: Path) -> None:
    async with trunk_that_worked(tmp_path, 2) as (far, calls, clock):
        there = ("Contact", f"<sip:+989121234567;there@{far.place}>")
        final = [Answer(200, sdp=True)]
        far.does["INVITE"] = lambda request: (
            final if "there" in request.uri else [Answer(302, [there])]
        )
        assert await outcomes(calls, 1) == [Outcome.ANSWERED]
        final[0] = Answer(403)
        assert await outcomes(calls, 3) == [
            Outcome.REFUSED,
            Outcome.TRUNK_TROUBLE,
            Outcome.TRUNK_TROUBLE,
        ]
        clock.advance(REFUSALS_PROBED)
        assert await outcomes(calls, 2) == [Outcome.TRUNK_TROUBLE] * 2
        final[0] = Answer(200, sdp=True)
        clock.advance(REFUSALS_PROBED)
        assert await outcomes(calls, 2) == [Outcome.ANSWERED] * 2


def test_a_probe_tries_all_addresses_of_the_trunk(watched: Watched) -> None:
    first, second = hop(TRUNK), hop(TRUNK)._replace(address=TRUNK.at("192.0.2.9"))
    watched.call(Outcome.ANSWERED)
    for _ in range(3):
        watched.call(Outcome.REFUSED, 403)
    for _ in range(2):
        watched.clock.advance(REFUSALS_PROBED)
        carriers, passed = watched.carriers, Passed()
        begun_at = carriers.begin(first, passed)
        assert begun_at is not None
        trouble = AttemptResult(Outcome.TRUNK_TROUBLE, 0.0, 0.0, sip_code=503)
        carriers.record_outcome(first, trouble, begun_at)
        watched.clock.advance(1)
        assert carriers.begin(first, {}) is None, "another call is no part of the probe"
        begun_at = carriers.begin(second, passed)
        assert begun_at is not None
        carriers.record_outcome(second, trouble, begun_at)
        carriers.leave(passed)
        assert not carriers.up, "a probe that showed nothing is repeated after the wait"
    watched.clock.advance(REFUSALS_PROBED)
    passed = Passed()
    assert carriers.begin(first, passed) is not None
    begun_at = carriers.begin(second, passed)
    assert begun_at is not None
    carriers.record_outcome(second, AttemptResult(Outcome.ANSWERED, 0.0, 0.0), begun_at)
    carriers.leave(passed)
    assert carriers.up
    assert carriers.paused_reason == ""


async def test_a_redirection_that_can_no_longer_be_followed_ends_no_call(tmp_path: Path) -> None:
    async with carrier() as far, dialer(tmp_path, far.uri, refusals_before_pause=1) as calls:
        await calls.call()
        there = ("Contact", f"<sip:+989121234567;there@{far.place}>")

        def invited(request: Request) -> list[Answer]:
            # Meanwhile other calls of this trunk are refused.
            refused = AttemptResult(Outcome.REFUSED, 0.0, 0.0, sip_code=403)
            carriers: TrunkMonitor = calls.dialer._trunks
            trunk = Trunk.parse(far.uri)
            carriers.record_outcome(hop(trunk), refused, time.monotonic())
            return [Answer(302, [there])]

        far.does["INVITE"] = invited
        assert await outcomes(calls, 1) == [Outcome.TRUNK_TROUBLE]
        assert len(far.of("INVITE")) == 2


def test_a_restart_ends_no_pause(clock: FakeClock) -> None:
    watched = Watched(clock, TRUNK, OTHER)
    watched.carriers.assume_paused("403 x")
    assert watched.carriers.paused_reason == "403 x"
    assert watched.carriers.probing
    assert watched.call(Outcome.REFUSED, 402) is Outcome.TRUNK_TROUBLE
    assert watched.call(Outcome.REFUSED, 402) is None
    assert watched.call(Outcome.REFUSED, 402, OTHER) is Outcome.TRUNK_TROUBLE
    assert "402 x" in watched.carriers.paused_reason
    clock.advance(REFUSALS_PROBED)
    assert watched.call(Outcome.ANSWERED) is Outcome.ANSWERED
    assert watched.carriers.paused_reason == ""
    assert not watched.carriers.probing


def test_a_restart_without_the_pause_in_the_settings(clock: FakeClock) -> None:
    config = SipTrunkConfig((TRUNK,), ("127.0.0.1", 0), range(2), 5.0, refusals_before_pause=0)
    carriers = TrunkMonitor(config, clock, monotonic=clock)
    carriers.assume_paused("403 x")
    assert carriers.up
    assert not carriers.probing
    assert carriers.paused_reason == ""
