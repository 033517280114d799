"""The log of a service: JSON throughout, with a line for each attempt and refused request."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample
from tests.support.prerequisites import need

NUMBER, BUSY = "09121234567", "09121234599"


def lines(stage: Stage) -> list[dict[str, Any]]:
    """Every line of the service's log, each of which must be a JSON object."""
    return [json.loads(line) for line in stage.service_log.read_text().splitlines()]


def test_a_service_at_work(tmp_path: Path) -> None:
    sample = tmp_path / "sample.wav"
    write_sample(sample, 0.3)
    out = tmp_path / "notification.json"
    extra = f"""log_json = true
        [notifications]
        command = "tee {out}"
        disk_megabytes = 100000000
        """
    rules = ["*99=busy", "*=answer:after=0.1"]
    with Stage(tmp_path / "stage", rules, extra=extra, log_level="info", record=False) as stage:
        stage.start_phone()
        stage.start_service()
        token = stage.token()
        with Client(token, stage.url) as client:
            project = client.account()["id"]
            voice = client.upload(sample)["id"]
            ids = [client.call(number, voice, retry_count=0)["id"] for number in (NUMBER, BUSY)]
            for call_id in ids:
                client.wait(call_id, 30)
            # What uvicorn logs itself, by way of the standard library.
            host, port = stage.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=10) as broken:
                broken.sendall(b"this is no HTTP\r\n\r\n")
                while broken.recv(4096):
                    pass
            headers = {"Authorization": f"bearer {token}"}
            body = {"phoneNumber": "+44 20 7946 0958", "voiceId": voice}
            with httpx.Client(base_url=stage.url, headers=headers) as http:
                refused = http.post("/api/v2/voice/single", json=body)
                assert refused.json()["error"] == "Forbidden"
                page = http.get("/metrics").text
        assert stage.stop_service() == 0
        written = lines(stage)
        text = stage.service_log.read_text()

    by_call = {line["call"]: line for line in written if line["event"] == "attempt_ended"}
    assert set(by_call) == set(ids)
    answered, busy = by_call[ids[0]], by_call[ids[1]]
    assert answered["project"] == busy["project"] == project
    assert answered["dialer"] == "main"
    assert (answered["outcome"], answered["sip_code"]) == ("answered", 200)
    assert 0.2 < answered["seconds"] < 5
    assert (busy["outcome"], busy["sip_code"], busy["seconds"]) == ("busy", 486, 0.0)
    assert answered["number"] == "+989*******67"
    [refusal] = [line for line in written if line.get("code") == "Forbidden"]
    assert refusal["event"] == "request_refused"
    assert (refusal["status"], refusal["project"]) == (403, project)
    assert any(line.get("logger") == "uvicorn.error" for line in written)
    for number in (NUMBER[1:], BUSY[1:], "7946"):
        assert number not in text
    event = json.loads(out.read_text())
    assert event["type"] == "disk.low"
    assert re.search(r"has \d+ MiB left", event["data"]["message"])

    promtool = shutil.which("promtool")
    need(promtool is not None, "promtool is not installed: apt-get install prometheus")
    assert promtool is not None
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_a_start_that_fails_is_json_too(tmp_path: Path) -> None:
    with (
        Stage(tmp_path, extra="log_json = true", record=False) as stage,
        socket.create_server(("127.0.0.1", stage.ports.http)),
    ):
        failed = subprocess.run(
            [sys.executable, "-m", "bitel.cli", "serve", f"--config={stage.config}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert failed.returncode == 1
    [line] = [json.loads(line) for line in failed.stderr.splitlines()][-1:]
    assert line["level"] == "error"
    assert "choose another http.port" in line["fault"]
