"""A thousand calls one after the other and a thousand at once, then none: nothing is left of them.

Ten thousand of the agent alone, which needs no network, are in `tests/sip/test_many_calls.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bitel.domain.attempts import Outcome
from bitel.sip import Transport, transaction
from bitel.sip.message import Request
from tests.dialer.calling import Dialled, dialer
from tests.dialer.carrier import Answer, carrier, until

ONE_AFTER_THE_OTHER = AT_ONCE = 1_000
PLAYED_TO = 10
"""Every such call that comes one after the other is answered; each lasts as long as its audio."""


def _by_number(request: Request) -> Sequence[Answer]:
    """Busy, unless the number ends in 0: then answered."""
    answered = request.uri.partition("@")[0].endswith("0")
    return [Answer(100), Answer(200, sdp=True)] if answered else [Answer(100), Answer(486)]


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Leaves all garbage that lies in cycles to be found by who looks for it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _assert_nothing_is_left(calls: Dialled) -> None:
    agent, streamer = calls.dialer._sip.agent, calls.dialer.streamer
    assert not calls.dialer._legs
    assert not calls.dialer._attempts
    assert not streamer._streams
    assert not any(pool._users for pool in streamer._pools)
    # Transactions stay for what may still be under way: 64·T1, which is 6.4 s here.
    await until(agent.idle, timeout=20)
    assert agent.next_timer() is None


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted by /proc")
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
async def test_nothing_is_left(
    tmp_path: Path, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "TIMER_D", 1.3)  # seconds, else 32
    async with carrier(transport=transport) as only:
        only.does["INVITE"] = _by_number
        before = _descriptors()
        # With a thousand at once on a busy machine, an answer may take its time.
        async with dialer(tmp_path, only.uri, t1=0.1, ring_timeout=20) as calls:
            await calls.call("+980")
            idle = _descriptors()
            outcomes: Counter[Outcome] = Counter()
            for number in range(ONE_AFTER_THE_OTHER):
                last = 0 if number % (ONE_AFTER_THE_OTHER // PLAYED_TO) == 0 else 1
                outcomes[(await calls.call(f"+98{last}")).outcome] += 1
            assert outcomes == {
                Outcome.ANSWERED: PLAYED_TO,
                Outcome.BUSY: ONE_AFTER_THE_OTHER - PLAYED_TO,
            }
            await _assert_nothing_is_left(calls)

            numbers = [f"+98{number % 2}" for number in range(AT_ONCE)]
            with _no_collector():
                at_once = await asyncio.gather(*map(calls.call, numbers))
                assert Counter(one.outcome for one in at_once) == {
                    Outcome.ANSWERED: AT_ONCE // 2,
                    Outcome.BUSY: AT_ONCE // 2,
                }
                await _assert_nothing_is_left(calls)
                del at_once
                found = gc.collect()
            assert found < AT_ONCE, f"{found} objects of {AT_ONCE} calls lay in cycles"
            # The ports that were bound stay bound for the calls to come, and no others.
            bound = sum(len(pool._sockets) for pool in calls.dialer.streamer._pools) * 2
            assert _descriptors() <= idle + bound
        await until(lambda: _descriptors() <= before + len(only.connections))
