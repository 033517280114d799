"""SIGHUP to a service at work: settings that can change, that can't, and that are wrong."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx

from bitel.demo.stage import Stage
from tests.support import phone_log
from tests.support.service_calls import started
from tests.support.waiting import wait_until

NUMBER = "09121234567"


def reload(stage: Stage, says: str) -> str:
    """Send SIGHUP; the lines that were logged then, once one of them has `says`."""
    assert stage.service is not None
    before = len(stage.service_log.read_text())
    stage.service.send_signal(signal.SIGHUP)

    def logged() -> str:
        return stage.service_log.read_text()[before:]

    wait_until(lambda: says in logged(), explain=logged)
    assert stage.service.poll() is None
    return logged()


def test_settings_are_read_again_while_calls_run(tmp_path: Path) -> None:
    rules = ["*=answer:after=0.1"]
    with Stage(tmp_path / "stage", rules, log_level="info", record=False) as stage:
        with started(stage, 3.0) as (_, client, voice):
            first = client.call(NUMBER, voice)["id"]
            wait_until(lambda: bool(phone_log.read(stage.phone_log)))
            good = stage.config.read_text()
            changed = (
                good.replace('caller_id = "02191000000"', 'caller_id = "02191000001"')
                .replace('log_level = "info"', 'log_level = "debug"')
                .replace(f"port = {stage.ports.http}", "port = 1")
            )
            assert changed.count("02191000001") == changed.count("port = 1\n") == 1
            stage.config.write_text(
                changed + 'max_channels = 7\n[[tariff]]\nprefix = "+98"\nper_minute = 60\n'
                '[metrics]\ntoken = "s3cret"\n'
            )
            logged = reload(stage, "restart_needed")
            for name in ("dialers.main.caller_id", "dialers.main.max_channels", "metrics.token"):
                assert name in logged
            assert "tariff" in logged
            assert logged.rstrip().endswith("changed=http.port")
            assert "s3cret" not in logged

            assert client.wait(first, 30)["status"] == "NORMAL", "it went on"
            assert client.status(first)["price"] < 0, "it ends under the new tariff"
            second = client.wait(client.call("09121234568", voice)["id"], 30)
            assert second["price"] < 0
            metrics = httpx.get(f"{stage.url}/metrics")
            assert metrics.status_code == 401
            token = {"Authorization": "Bearer s3cret"}
            page = httpx.get(f"{stage.url}/metrics", headers=token).text
            assert 'bitel_channels_max{dialer="main"} 7.0' in page

            stage.config.write_text("[[dialers]]\nid = 5\n")
            logged = reload(stage, "reload_failed")
            assert "the setting dialers, entry 1, id must be a text in quotation marks" in logged
            assert client.wait(client.call("09121234569", voice)["id"], 30)["status"] == "NORMAL"
        assert stage.stop_service() == 0
        stage.config.write_text(good)
        shown = [stage.command("trace", call_id, "--full") for call_id in (first, second["id"])]
    assert ["<sip:02191000000@" in each for each in shown] == [True, False]
    assert "<sip:02191000001@" in shown[1]
