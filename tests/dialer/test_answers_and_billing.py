"""What counts as an answer, who ended it, and what is billed: by real SIP and RTP."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.pricing import NOTHING, Rate, Tariff
from bitel.sip.message import Request
from bitel.sip_transport.udp import MAX_BATCH
from tests.support.carrier import Answer, Carrier, answering, carrier, sdp, silent
from tests.support.media_carrier import MediaCarrier, media_carrier
from tests.support.sip_dialer import dialer
from tests.support.waiting import until

ORDER = DialRequest("attempt", f"{1:032x}", "+989121234567", "recording")
TARIFF = Tariff((Rate("+", Decimal(60), increment=1),))
Run = Callable[[Coroutine[Any, Any, None]], None]
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class Write:
    """The answer while it is being made durable: `begun`, and over once `end` was called."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._result: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def heard(self, at: float) -> bool:
        self.begun.set()
        return await self._result

    def end(self, durable: bool) -> None:
        self._result.set_result(durable)


@asynccontextmanager
async def being_written(
    folder: Path, far: MediaCarrier, **config: Any
) -> AsyncIterator[tuple[SipTrunkDialer, Write, asyncio.Task[AttemptResult]]]:
    """A call that was answered, of which the write has begun."""
    async with dialer(folder, far.uri, sound=b"\xd5" * 1600, **config) as calls:
        write = Write()
        call = asyncio.create_task(calls.dialer.dial(ORDER, write.heard))
        async with asyncio.timeout(10):
            await write.begun.wait()
        yield calls.dialer, write, call
        async with asyncio.timeout(20):
            await call


async def test_neither_ack_nor_audio_leaves_before_the_answer_is_durable(tmp_path: Path) -> None:
    async with media_carrier() as far:
        async with being_written(tmp_path, far) as (_, write, call):
            # Whatever left before this answer would have come before it.
            assert (await far.ask("OPTIONS")).code == 200
            assert far.methods == ["INVITE"]
            assert not far.rtp.datagrams
            write.end(True)
        assert far.methods == ["INVITE", "ACK", "BYE"]
        assert len(far.rtp.packets) == 10
    assert call.result().outcome is Outcome.ANSWERED


async def test_an_answer_that_is_not_ours_is_acknowledged_and_hung_up_on(tmp_path: Path) -> None:
    async with media_carrier() as far:
        async with being_written(tmp_path, far) as (_, write, call):
            write.end(False)
        assert far.methods == ["INVITE", "ACK", "BYE"]
        assert not far.rtp.datagrams
    result = call.result()
    assert result.outcome is Outcome.RANG_THEN_FAILED
    assert result.detail == "the answer could not be recorded"
    assert TARIFF.bill(ORDER.e164, result) == NOTHING


async def test_who_hangs_up_while_the_answer_is_written_has_answered(tmp_path: Path) -> None:
    async with media_carrier() as far:
        async with being_written(tmp_path, far) as (_, write, call):
            assert (await far.ask("BYE")).code == 200
            write.end(True)
        assert not far.rtp.datagrams
        assert "BYE" not in far.methods
    result = call.result()
    assert (result.outcome, result.ended_by) == (Outcome.ANSWERED, "far")
    assert result.answered_at is not None
    assert TARIFF.bill(ORDER.e164, result).price > 0


async def test_who_hangs_up_first_has_answered_though_we_have_given_up_too(tmp_path: Path) -> None:
    async with media_carrier() as far, being_written(tmp_path, far) as (made, write, call):
        assert (await far.ask("BYE")).code == 200
        made.cancel(ORDER.attempt_id)
        write.end(True)
    result = call.result()
    assert (result.outcome, result.ended_by) == (Outcome.ANSWERED, "far")


@pytest.mark.parametrize("way", ["cancel", "abandon"])
async def test_a_call_that_we_end_while_the_answer_is_written_is_not_billed(
    tmp_path: Path, way: str
) -> None:
    async with media_carrier() as far:
        async with being_written(tmp_path, far) as (made, write, call):
            getattr(made, way)(ORDER.attempt_id)
            await until(lambda: "BYE" in far.methods)
            write.end(True)
        assert not far.rtp.datagrams
    result = call.result()
    assert (result.outcome, result.ended_by) == (Outcome.CANCELED, "us")
    assert TARIFF.bill(ORDER.e164, result) == NOTHING


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
async def test_a_wall_clock_that_is_set_during_a_call_does_not_change_its_bill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    true, off = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: true() + off)
    begun = time.monotonic()
    async with media_carrier() as far:
        async with being_written(tmp_path, far) as (_, write, call):
            off = step
            write.end(True)
        took = time.monotonic() - begun
    result = call.result()
    assert result.answered_at is not None
    assert 0.2 < result.ended_at - result.answered_at < took
    assert TARIFF.bill(ORDER.e164, result).seconds <= took + 1


async def test_a_call_that_nothing_could_be_sent_to_is_not_billed(tmp_path: Path) -> None:
    async with media_carrier() as far:
        # Nothing leaves the loopback interface: the kernel refuses every packet.
        far.body = sdp(far.rtp.port, host="192.0.2.1")
        async with being_written(tmp_path, far) as (_, write, call):
            write.end(True)
        assert far.methods == ["INVITE", "ACK", "BYE"]
    result = call.result()
    assert result.media is not None
    assert result.media.sent == 0
    assert (result.outcome, result.ended_by) == (Outcome.INTERRUPTED, "us")
    assert result.detail
    assert TARIFF.bill(ORDER.e164, result) == NOTHING


async def test_a_call_that_is_held_until_its_longest_duration_is_billed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.dialer.sip_dialer._longest", lambda *_: 1)
    async with media_carrier() as far:
        far.body = sdp(far.rtp.port, more="a=inactive\r\n")
        async with being_written(tmp_path, far) as (_, write, call):
            write.end(True)
    result = call.result()
    assert result.media is not None
    assert result.media.sent == 0
    assert (result.outcome, result.ended_by) == (Outcome.ANSWERED, "us")
    assert result.detail.startswith("the call had lasted 1 s")
    assert TARIFF.bill(ORDER.e164, result).seconds == 1


@pytest.mark.parametrize("by", ["far", "us"])
async def test_a_held_call_that_was_played_nothing_is_billed_by_who_ended_it(
    tmp_path: Path, by: str
) -> None:
    async with media_carrier() as far:
        far.body = sdp(far.rtp.port, more="a=inactive\r\n")
        async with being_written(tmp_path, far) as (made, write, call):
            write.end(True)
            await until(lambda: "ACK" in far.methods)
            if by == "far":
                assert (await far.ask("BYE")).code == 200
            else:
                made.cancel(ORDER.attempt_id)
    result = call.result()
    assert result.media is not None
    assert (result.media.sent, result.ended_by) == (0, by)
    expected = Outcome.ANSWERED if by == "far" else Outcome.CANCELED
    assert result.outcome is expected
    assert (TARIFF.bill(ORDER.e164, result) == NOTHING) is (by == "us")


# The answer wins


def _crowd(made: SipTrunkDialer) -> None:
    """Put more into the dialer's socket than it reads in one go."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(3 * MAX_BATCH):
            sock.sendto(b"\r\n\r\n", made._sip.local)


def _sleep_past(deadline: float) -> None:
    """Keep the event loop from doing anything until then."""
    while time.time() < deadline:
        time.sleep(0.01)


@LOOPS
@pytest.mark.parametrize("code", [200, 486])
def test_what_was_answered_before_the_ring_timer_is_seen_wins(
    run: Run, code: int, tmp_path: Path
) -> None:
    async def main() -> None:
        async with carrier() as only, dialer(tmp_path, only.uri, ring_timeout=0.5) as calls:
            only.does["INVITE"] = answering(100, 180)
            began = time.time()
            call = asyncio.create_task(calls.call())
            await until(lambda: len(only.of("INVITE")) == 1)
            _crowd(calls.dialer)
            only.say(only.of("INVITE")[0], Answer(code, sdp=True))
            _sleep_past(began + 1.0)
            result = await call
        if code == 200:
            assert result.outcome is Outcome.ANSWERED
            assert result.media is not None
            assert result.media.sent == 2
        else:
            assert result.outcome is Outcome.BUSY
        assert not only.of("CANCEL")

    run(main())


@LOOPS
def test_a_silent_trunk_that_has_answered_by_now_is_not_left(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            carrier() as first,
            carrier() as second,
            dialer(
                tmp_path, first.uri, second.uri, t1=0.5, trunk_timeout=0.3, ring_timeout=20.0
            ) as calls,
        ):
            first.does["INVITE"] = silent
            began = time.time()
            call = asyncio.create_task(calls.call())
            await until(lambda: len(first.of("INVITE")) == 1)
            _crowd(calls.dialer)
            first.say(first.of("INVITE")[0], Answer(200, sdp=True))
            _sleep_past(began + 0.8)
            assert (await call).outcome is Outcome.ANSWERED
        assert not second.requests

    run(main())


# The ring time-out


def _times_of(only: Carrier, method: str) -> list[float]:
    times: list[float] = []
    does = only.does.get(method, answering(200))

    def noted(request: Any) -> Any:
        times.append(time.time())
        return does(request)

    only.does[method] = noted
    return times


async def _rung_out(
    folder: Path, far: Carrier, *trunks: Carrier, ring_timeout: float
) -> tuple[AttemptResult, float]:
    """A call that rings at `far` until it ends; its result, and seconds until the CANCEL."""
    far.does["INVITE"] = answering(100, 180)
    canceled = _times_of(far, "CANCEL")
    uris = [trunk.uri for trunk in trunks]
    async with dialer(folder, *uris, ring_timeout=ring_timeout) as calls:
        began = time.time()
        call = asyncio.create_task(calls.call())
        await until(lambda: canceled, 5)
        far.say(far.of("INVITE")[0], Answer(487))
        return await call, canceled[0] - began


async def test_ringing_ends_at_the_ring_time_out(tmp_path: Path) -> None:
    async with carrier() as only:
        result, took = await _rung_out(tmp_path, only, only, ring_timeout=1.0)
    assert result.outcome is Outcome.NO_ANSWER
    assert 1.0 - 0.001 <= took < 5.0


async def test_two_trunks_share_one_ring_time_out(tmp_path: Path) -> None:
    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = silent  # for 64 × T1, which is 1.3 s
        result, took = await _rung_out(tmp_path, second, first, second, ring_timeout=2.5)
    assert result.outcome is Outcome.NO_ANSWER
    assert 2.5 - 0.001 <= took < 2.5 + 1.2, "not a time-out of its own"


@pytest.mark.parametrize(("ring_timeout", "expires"), [(45.0, "50"), (0.5, "6"), (44.2, "50")])
async def test_an_invite_says_when_it_expires(
    tmp_path: Path, ring_timeout: float, expires: str
) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri, ring_timeout=ring_timeout) as calls:
        assert (await calls.call()).outcome is Outcome.ANSWERED
    assert only.of("INVITE")[0].header("expires") == expires
    assert all(not request.header("expires") for request in only.requests[1:])


# An attempt that is another worker's


async def test_an_abandoned_invite_is_not_repeated(tmp_path: Path) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri, t1=0.05) as calls:
        only.does["INVITE"] = silent
        repeats = _times_of(only, "INVITE")
        call = asyncio.create_task(calls.call())
        await until(lambda: bool(repeats))
        calls.dialer.abandon("attempt1")
        sent = len(repeats)
        result = await call  # by timer B
        assert result.outcome is Outcome.CANCELED
        assert len(repeats) == sent


async def test_a_response_that_has_arrived_counts_before_an_attempt_is_abandoned(
    tmp_path: Path,
) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri) as calls:
        only.does["INVITE"] = answering(180)
        call = asyncio.create_task(calls.call())
        await until(lambda: bool(only.of("INVITE")))
        # As after a pause of the process: it lies there, and was not read.
        only.say(only.of("INVITE")[0], Answer(486))
        calls.dialer.abandon("attempt1")
        assert (await call).outcome is Outcome.BUSY


async def test_an_attempt_that_has_rung_out_is_not_abandoned_as_if_it_had_not(
    tmp_path: Path,
) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri, ring_timeout=0.4) as calls:
        only.does["INVITE"] = answering(180)
        call = asyncio.create_task(calls.call())
        await until(lambda: bool(only.of("INVITE")))
        time.sleep(0.6)  # the process is paused
        calls.dialer.abandon("attempt1")
        await until(lambda: bool(only.of("CANCEL")))
        only.say(only.of("INVITE")[0], Answer(487))
        assert (await call).outcome is Outcome.NO_ANSWER


async def test_and_is_canceled_once_it_rings(tmp_path: Path) -> None:
    async with carrier() as only, dialer(tmp_path, only.uri, t1=0.5) as calls:
        only.does["INVITE"] = silent
        call = asyncio.create_task(calls.call())
        await until(lambda: bool(only.of("INVITE")))
        calls.dialer.abandon("attempt1")
        only.say(only.of("INVITE")[0], Answer(180))
        await until(lambda: bool(only.of("CANCEL")))
        only.say(only.of("INVITE")[0], Answer(487))
        assert (await call).outcome is Outcome.CANCELED
    calls.dialer.abandon("attempt1")
    calls.dialer.abandon("unknown")


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_clock_that_is_set_during_a_call_changes_nothing_of_its_bill(
    tmp_path: Path, step: float
) -> None:
    set_by = 0.0

    def hangs_up(request: Request) -> list[Answer]:
        nonlocal set_by
        set_by = step
        return [Answer(200)]

    async with carrier() as far:
        far.does["BYE"] = hangs_up
        far.does["ACK"] = lambda request: hangs_up(request)[:0]
        async with dialer(tmp_path, far.uri, clock=lambda: time.time() + set_by) as calls:
            begun_at = time.time()
            result = await calls.call()
    assert result.outcome is Outcome.ANSWERED
    assert result.answered_at is not None
    assert 0 < result.ended_at - result.answered_at < 2
    assert 0 <= result.answered_at - result.started_at < 2
    assert begun_at <= result.ended_at - step <= time.time(), "the retry counts from this"


async def test_a_clock_that_is_set_while_it_rings_rings_nobody_longer(tmp_path: Path) -> None:
    set_by = 0.0

    def in_trouble(request: Request) -> list[Answer]:
        nonlocal set_by
        set_by = -3600.0
        return [Answer(503)]

    async with carrier() as first, carrier() as second:
        first.does["INVITE"] = in_trouble
        second.does["INVITE"] = lambda request: [Answer(180)]
        second.does["CANCEL"] = lambda request: [Answer(200)]
        async with (
            dialer(
                tmp_path,
                first.uri,
                second.uri,
                ring_timeout=0.5,
                clock=lambda: time.time() + set_by,
            ) as calls,
            asyncio.timeout(10),
        ):
            assert (await calls.call()).outcome is Outcome.NO_ANSWER
