"""SIGTERM: what runs may finish, what waits stays, and a restart goes on from there."""

from __future__ import annotations

import signal
from pathlib import Path

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.support import phone_log
from tests.support.service_calls import started
from tests.support.waiting import wait_until


def test_sigterm_finishes_what_runs_and_keeps_what_waits(tmp_path: Path) -> None:
    dialer = {"max_channels": 1, "calls_per_second": 50}
    with Stage(tmp_path, rules=["*=answer:after=0.1"], record=False, dialer=dialer) as stage:
        with started(stage, 2.0) as (token, client, voice):
            placed = [client.call(f"0912000000{n}", voice) for n in range(3)]
            wait_until(lambda: '"audio"' in stage.phone_log.read_text())
            assert stage.service is not None
            stage.service.send_signal(signal.SIGTERM)
            # HTTP is answered while the call that runs comes to its end.
            assert client.status(placed[0]["id"])["status"] == "WAITING"
        assert stage.service.wait(30) == 0
        seen = phone_log.read(stage.phone_log)
        assert len(seen) == 1
        [[first]] = seen.values()
        assert first.audio_at is not None
        assert first.ended_at is not None
        assert first.ended_at - first.audio_at > 1.9
        stage.start_service()
        with Client(token, stage.url) as client:
            ended = [client.wait(call["id"], timeout=30.0) for call in placed]
        assert [call["status"] for call in ended] == ["NORMAL"] * 3
        assert stage.stop_service() == 0
    seen = phone_log.read(stage.phone_log)
    assert {number: len(calls) for number, calls in seen.items()} == dict.fromkeys(seen, 1)
    assert len(seen) == 3
