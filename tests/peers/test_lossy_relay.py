from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from bitel.sip.events import Answered, Ended, Failed
from bitel.test_phone.phone import Phone, PhoneConfig
from bitel.test_phone.rules import parse_rules
from tests.support.lossy_relay import Loss, lossy_relay
from tests.support.sip_caller import caller

HOST = "127.0.0.1"


@given(st.integers(0, 2**32))
def test_the_same_seed_loses_the_same_datagrams(seed: int) -> None:
    first, second = Loss(seed=seed), Loss(seed=seed)
    assert [list(first.delays()) for _ in range(50)] == [list(second.delays()) for _ in range(50)]


def test_shares_are_as_asked_for() -> None:
    loss = Loss(lost=0.2, doubled=0.1, reordered=0.3, seed=1)
    fates = [list(loss.delays()) for _ in range(10_000)]
    kept = [fate for fate in fates if fate]
    assert 0.18 < 1 - len(kept) / len(fates) < 0.22
    assert 0.08 < sum(len(fate) == 2 for fate in kept) / len(kept) < 0.12
    copies = [delay for fate in kept for delay in fate]
    assert 0.28 < sum(delay > 0 for delay in copies) / len(copies) < 0.32
    assert max(copies) <= loss.hold


async def test_calls_through_a_lossy_relay_end_as_they_should() -> None:
    rules = parse_rules(["1*=answer:after=0.1", "2*=busy", "3*=ring", "4*=answer:after=0:hangup=1"])
    async with lossy_relay(Loss(seed=7)) as relay:
        phone = Phone(PhoneConfig((HOST, 0), rules, public_address=relay.address))
        await phone.start()
        relay.callee = phone.address
        async with caller(relay.address, t1=0.1) as one:
            calls = {one.call(f"{kind}{i}"): kind for i in range(15) for kind in (1, 2, 3, 4)}

            async def run(call: str, kind: int) -> tuple[str, int | str]:
                if kind == 3:
                    # Not at the 180: it may be lost, and is not repeated.
                    await asyncio.sleep(0.3)  # while it rings
                    one.cancel(call)
                result = await one.settled(call)
                if isinstance(result, Failed):
                    return result.why, result.code
                if kind == 1:
                    one.hang_up(call)
                return "ended", (await one.saw(call, Ended)).by

            ends = await asyncio.gather(*(run(call, kind) for call, kind in calls.items()))
            expected = {
                1: ("ended", "us"),
                2: ("response", 486),
                3: ("canceled", 487),
                4: ("ended", "far"),
            }
            assert ends == [expected[kind] for kind in calls.values()]
            # Answered twice would be worse than lost.
            answered = [e for seen in one.events.values() for e in seen if isinstance(e, Answered)]
            assert len(answered) == 30
        assert relay.passed.came > relay.passed.went * 0.8
        await phone.stop(grace=5)
        assert phone.calls == 0
