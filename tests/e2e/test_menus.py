"""Menus in a service: the phone presses keys, hears what follows, and is called no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.recordings import wav
from tests.support import phone_log
from tests.support.service_calls import token
from tests.support.waiting import wait_until

PROMPT, THANKS, AGAIN = 440.0, 1000.0, 1500.0
"""Hertz of the recordings."""
RULES = [
    "98912000*=answer:after=0.1:keys=1@1",
    "98912001*=answer:after=0.1:keys=1@1:by=info",
    "98912002*=answer:after=0.1:keys=9@1",
    "98912003*=answer:after=0.1:keys=32@1",
    "98912004*=answer:after=0.1:keys=407#@0.5",
    "98912005*=answer:after=0.1",
    "98912006*=answer:after=0.1:keys=1@1:by=tone",
]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path / "e2e", rules=RULES, dialer={"calls_per_second": 20}) as made:
        made.start_phone()
        made.start_service()
        yield made


def tone(client: Client, folder: Path, hertz: float, seconds: float) -> str:
    """Uploads a recording of a tone; its id."""
    times = np.arange(round(seconds * 8000)) / 8000
    path = folder / f"{hertz:g}.wav"
    wav.write(path, (np.sin(2 * np.pi * hertz * times) * 12_000).astype(np.int16), 8000)
    return client.upload(path)["id"]


def seconds_of(stage: Stage, number: str, hertz: float) -> float:
    """For how long the phone heard a tone."""
    (path,) = stage.heard.glob(f"*{number.removeprefix('0')}*.wav")
    pcm, _ = wav.read(path)
    frames = pcm[: len(pcm) // 400 * 400].reshape(-1, 400).astype(float)
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(400)))
    loudest = spectrum.argmax(axis=1) * 20.0
    return float((np.abs(loudest - hertz) <= 20).sum() * 0.05)


def placed(client: Client, stage: Stage, numbers: list[str], **more: Any) -> tuple[str, list[str]]:
    prompt = tone(client, stage.folder, PROMPT, 6.0)
    thanks = tone(client, stage.folder, THANKS, 1.0)
    again = tone(client, stage.folder, AGAIN, 1.0)
    menu = {
        "wait": 2,
        "attempts": 1,
        "keys": {
            "1": {"play": thanks, "report": "yes"},
            "2": {"report": "no"},
            "3": {"play": again, "menu": {"keys": {"2": {"play": thanks, "report": "deep"}}}},
            "9": {"optOut": True, "play": thanks},
        },
    }
    answer = client.batch(numbers, prompt, retry_count=0, menu=more.get("menu", menu))
    campaign = answer["campaignId"]
    wait_until(lambda: client.campaign(campaign)["state"] == "FINISHED", 60)
    return campaign, [each["id"] for each in answer["calls"]]


def test_keys_change_what_is_played_and_are_counted(stage: Stage) -> None:
    with Client(token(stage), stage.url) as client:
        numbers = ["09120000001", "09120010001", "09120060001", "09120030001", "09120050001"]
        campaign, ids = placed(client, stage, numbers)
        by_event, by_info, by_tone, deep, none = (client.call_details(each) for each in ids)
        assert client.campaign(campaign)["keys"] == {"yes": 3, "deep": 1}
        assert (by_event["keys"], by_event["reports"]) == ("1", ["yes"])
        assert (by_info["keys"], by_info["reports"]) == ("1", ["yes"])
        assert (by_tone["keys"], by_tone["reports"]) == ("1", ["yes"])
        assert (deep["keys"], deep["reports"]) == ("32", ["deep"])
        assert (none["keys"], none["reports"]) == ("", [])
        lengths = [each["billSec"] for each in (by_event, by_info, by_tone, none)]
        assert lengths[0] <= 4
        assert lengths[1] <= 4
        assert lengths[2] <= 4
        assert lengths[3] >= 8, "6 s of audio and 2 s in which a key is waited for"
    wait_until(lambda: len(list(stage.heard.glob("*.wav"))) == 5, 10)
    for number in numbers[:3]:
        assert 0.5 <= seconds_of(stage, number, PROMPT) <= 1.8
        assert 0.8 <= seconds_of(stage, number, THANKS) <= 1.1
    # The second key came while the menu below was asking.
    assert seconds_of(stage, numbers[3], AGAIN) <= 0.9
    assert 0.8 <= seconds_of(stage, numbers[3], THANKS) <= 1.1
    assert 5.8 <= seconds_of(stage, numbers[4], PROMPT) <= 6.1


def test_digits_are_collected_up_to_the_end_key(stage: Stage) -> None:
    menu = {"collect": {"digits": 6, "end": "#"}, "wait": 2, "attempts": 1}
    with Client(token(stage), stage.url) as client:
        campaign, ids = placed(client, stage, ["09120040001"], menu=menu)
        details = client.call_details(ids[0])
        assert details["keys"] == "407#"
        assert details["billSec"] <= 4
        assert client.campaign(campaign)["byStatus"]["NORMAL"] == 1


def test_a_keyed_opt_out_is_kept_by_a_crash_and_confirmed_after_it_is_stored(
    stage: Stage,
) -> None:
    number = "09120020001"
    with Client(token(stage), stage.url) as client:
        prompt = tone(client, stage.folder, PROMPT, 8.0)
        goodbye = tone(client, stage.folder, AGAIN, 6.0)
        menu = {"keys": {"9": {"optOut": True, "play": goodbye}}}
        call = client.call(number, prompt, retry_count=0, menu=menu)["id"]
        # The key is written while the call goes on.
        wait_until(lambda: list(client.do_not_call()) == ["+989120020001"], 20)
        assert client.status(call)["status"] == "WAITING"
        stage.kill_service()
        stage.start_service()
        assert list(client.do_not_call()) == ["+989120020001"]
        again = client.call(number, prompt)["id"]
        assert client.call_details(again)["reason"] == "on the do-not-call list"
        wait_until(lambda: client.status(call)["status"] == "UNKNOWN", 30)
    assert len(phone_log.read(stage.phone_log)["+989120020001"]) == 1
