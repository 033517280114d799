"""Recordings in a real S3 server: a service that starts, calls, and says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitel.demo.stage import Stage, StageError
from tests.support.s3_server import BUCKET, KEY, SECRET, S3Server, s3_server
from tests.support.service_calls import started

NUMBER = "09121234567"


def storage(server: S3Server, secret: Path) -> str:
    return f"""storage_url = "s3://{BUCKET}/calls"
        [s3]
        endpoint = "{server.endpoint}"
        access_key_id = "{KEY}"
        secret_access_key_file = "{secret}"
        allow_http = true
        """


def test_a_recording_goes_to_the_bucket_and_to_the_phone(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    with (
        s3_server(tmp_path / "s3") as server,
        Stage(tmp_path / "stage", extra=storage(server, secret)) as stage,
    ):
        with started(stage, 0.5) as (_, client, voice):
            assert server.objects == [f"calls/{voice}.alaw", f"calls/{voice}.ulaw"]
            call = client.wait(client.call(NUMBER, voice)["id"], 30)
            assert call["status"] == "NORMAL"
        assert stage.stop_service() == 0
        assert list(stage.heard.glob("*.wav"))
        stage.start_service()
        assert stage.command("project", "delete", "demo", "--yes") == ""
        assert json.loads(stage.command("project", "list", "--json")) == []
        assert server.objects == [], "the recordings of a project that is deleted go with it"


def test_a_bucket_that_can_not_be_used_stops_the_start(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong")
    with (
        s3_server(tmp_path / "s3") as server,
        Stage(tmp_path / "stage", extra=storage(server, secret)) as stage,
    ):
        with pytest.raises(StageError):
            stage.start_service()
        assert stage.service is not None
        assert stage.service.wait(10) == 1
        last = stage.service_log.read_text().splitlines()[-1]
    assert last.startswith("bitel: The storage_url can't be used: the server refuses these")
    assert "ready" not in stage.service_log.read_text()
