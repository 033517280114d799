"""500 calls over a link that loses, doubles and reorders 10 % of the SIP datagrams."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from bitel.demo.stage import Stage
from tests.e2e import phone_log
from tests.e2e.playing import call_all, numbers
from tests.peers.lossy import Loss, lossy_relay

CALLS = 500
RULES = (
    "*[0-4]=answer:after=0.5",
    "*[5-6]=answer:after=0.5:hangup=0.5",
    "*7=busy",
    "*8=reject:404",
    "*9=ring",
)
EXPECTED = {"NORMAL": 350, "USER_BUSY": 50, "ERROR": 50, "NO_ANSWER": 50}


async def test_five_hundred_of_five_hundred(tmp_path: Path) -> None:
    async with lossy_relay(Loss(0.1, 0.1, 0.1, seed=5)) as relay:
        host, port = relay.address
        stage = Stage(
            tmp_path,
            rules=RULES,
            record=False,
            dialer={
                "ring_timeout": 20,
                "calls_per_second": 50,
                "max_channels": 500,
                # What the phone sends of its own accord goes through the link too.
                "public_address": "{}:{}".format(*relay.back_address),
            },
            trunk=f"sip:{host}:{port}",
            phone_options=[f"--public-address={host}:{port}"],
        )
        with stage:
            await asyncio.to_thread(stage.start_phone)
            relay.callee = ("127.0.0.1", stage.ports.phone)
            calls = await asyncio.to_thread(call_all, stage, numbers(CALLS), 1.0, 120.0)
        assert Counter(call["status"] for call in calls) == EXPECTED
        lost = 1 - relay.passed.went / relay.passed.came
        assert relay.passed.came > 6 * CALLS, relay.passed
        assert -0.05 < lost < 0.05  # what is lost and what is doubled are about as many
    seen = phone_log.read(stage.phone_log)
    assert len(seen) == CALLS
    assert phone_log.called_again_after_audio(seen) == []
    assert phone_log.in_two_calls_at_once(seen) == []
