"""Answering machines in a service: the phone plays a greeting and a beep, and records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bitel.client import CallDetails, Client
from bitel.demo.stage import Stage
from bitel.g711 import alaw_decode
from bitel.recordings import wav
from tests.e2e.test_menus import THANKS, seconds_of
from tests.e2e.test_menus import tone as upload_tone
from tests.support.greeting_audio import Payload, sentence, silence, tone
from tests.support.service_calls import token
from tests.support.waiting import wait_until

PROMPT = 440.0
MACHINE, HUMAN = "09120000001", "09120010001"


def greeting(path: Path, payloads: list[Payload]) -> None:
    codes = b"".join(each for each in payloads if each is not None)
    wav.write(path, alaw_decode(np.frombuffer(codes, np.uint8)), 8000)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    folder = tmp_path / "e2e"
    folder.mkdir()
    beep = tone(0.5, 1400.0, level=-14.0)
    greeting(folder / "machine.wav", silence(0.6) + sentence(12) + silence(0.4) + beep)
    greeting(folder / "human.wav", silence(0.5) + sentence(2) + silence(4.0))
    rules = [
        f"98912000*=answer:after=0.1:play={folder / 'machine.wav'}",
        f"98912001*=answer:after=0.1:play={folder / 'human.wav'}",
    ]
    with Stage(folder, rules=rules, dialer={"calls_per_second": 20}) as made:
        made.start_phone()
        made.start_service()
        yield made


def called(stage: Stage, numbers: list[str], **options: object) -> tuple[list[CallDetails], Client]:
    client = Client(token(stage), stage.url)
    prompt = upload_tone(client, stage.folder, PROMPT, 9.0)
    if "machine_voice_id" in options:
        options["machine_voice_id"] = upload_tone(client, stage.folder, THANKS, 2.0)
    placed = client.batch(numbers, prompt, retry_count=0, **options)  # type: ignore[arg-type]
    campaign = placed["campaignId"]
    wait_until(lambda: client.campaign(campaign)["state"] == "FINISHED", 60)
    found = client.campaign(campaign)
    assert found["machines"] == {"human": 1, "machine": 1}, (
        found,
        stage.service_log.read_text()[-5000:],
    )
    return [client.call_details(each["id"]) for each in placed["calls"]], client


def test_a_call_to_a_machine_is_ended(stage: Stage) -> None:
    (machine, human), client = called(stage, [MACHINE, HUMAN], machine_detection="hangup")
    client.close()
    assert (machine["machine"], human["machine"]) == ("machine", "human")
    assert machine["billSec"] <= 6
    assert human["billSec"] >= 9


def test_a_machine_gets_its_message_after_the_beep(stage: Stage) -> None:
    options = {"machine_detection": "message", "machine_voice_id": ""}
    (machine, human), client = called(stage, [MACHINE, HUMAN], **options)
    client.close()
    assert (machine["machine"], human["machine"]) == ("machine", "human")
    wait_until(lambda: len(list(stage.heard.glob("*.wav"))) == 2, 10)
    assert 1.8 <= seconds_of(stage, MACHINE, THANKS) <= 2.1, "whole, after the beep"
    assert seconds_of(stage, MACHINE, PROMPT) <= 6.0
    assert seconds_of(stage, HUMAN, PROMPT) >= 8.8
    assert seconds_of(stage, HUMAN, THANKS) == 0.0


def test_calls_are_flagged_and_play_on(stage: Stage) -> None:
    (machine, human), client = called(stage, [MACHINE, HUMAN], machine_detection="flag")
    client.close()
    assert (machine["machine"], human["machine"]) == ("machine", "human")
    assert min(machine["billSec"], human["billSec"]) >= 9
