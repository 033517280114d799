"""kill -9 at random moments: nothing is lost, and nobody who heard us is called again."""

from __future__ import annotations

import random
import time
from pathlib import Path

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.support import phone_log
from tests.support.service_calls import started

CALLS = 100
KILLS = 20
RULES = (
    "*[0-4]=answer:after=0.5",
    "*[5-6]=answer:after=0.2:hangup=0.7",
    "*7=busy,answer:after=0.3",
    "*8=reject:404",
    "*9=busy",
)


def test_twenty_kills_while_a_hundred_calls_run(tmp_path: Path) -> None:
    chance = random.Random(20)
    stage = Stage(
        tmp_path,
        rules=RULES,
        record=False,
        dialer={"ring_timeout": 2, "calls_per_second": 6, "max_channels": 100},
    )
    with stage:
        with started(stage, 1.5) as (token, client, voice):
            placed = [
                client.call(f"09120000{n:03}", voice, retry_count=1, retry_interval=5)
                for n in range(CALLS)
            ]
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.0, 0.8))  # the crash comes when it comes
            stage.kill_service()
            stage.start_service()
        with Client(token, stage.url) as client:
            calls = [client.wait(call["id"], timeout=150.0) for call in placed]
        assert stage.stop_service() == 0
    seen = phone_log.read(stage.phone_log)
    assert phone_log.called_again_after_audio(seen) == []
    assert phone_log.in_two_calls_at_once(seen) == []
    for call in calls:
        number = "+98" + call["phoneNumber"].removeprefix("0")
        heard = any(each.audio_at for each in seen.get(number, ()))
        allowed = {
            "8": {"ERROR"},
            "9": {"USER_BUSY"},
        }.get(number[-1], {"NORMAL", "UNKNOWN"})
        assert call["status"] in allowed, call
        if call["status"] == "NORMAL":
            assert heard, call
        if call["status"] == "UNKNOWN":
            assert call["price"] == 0
