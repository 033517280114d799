"""Codes and texts: what is spoken, once, and what is refused before it is."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest

from bitel.api.speech import MOST_LISTED, SpeechService
from bitel.domain.calls import Lane
from bitel.domain.recipients import Recipient
from bitel.errors import InvalidRequestError

if TYPE_CHECKING:
    from tests.api.stage import Stage

OTP = "/api/v2/voice/otp"
TTS = "/api/v2/files/tts"
NUMBER = "0912 123 4567"
PRICED = [{"prefix": "+98", "per_minute": "60", "increment": 1}]


def rendered(stage: Stage) -> int:
    return stage.parts.speech.rendered


@pytest.mark.parametrize(
    ("text", "digits"), [("4071", "4071"), ("0", "0"), ("۱۲۳۴۵", "12345"), ("٠٩", "09")]
)
async def test_a_code_goes_first_with_its_digits(stage: Stage, text: str, digits: str) -> None:
    async with stage.client() as client:
        answer = await client.post(OTP, json={"phoneNumber": NUMBER, "text": text})
    assert answer.status_code == 200
    assert answer.json()["result"]["phoneNumber"] == NUMBER
    (row,) = stage.rows()
    assert (row.digits, row.repeat_count, row.language) == (digits, 2, "fa")
    assert (row.recording_id, row.lane) == (None, Lane.OTP)
    # Nothing has to be spoken before somebody answers.
    assert rendered(stage) == 0


async def test_a_code_may_follow_a_recording(stage: Stage) -> None:
    body = {"phoneNumber": NUMBER, "text": "4071", "voiceId": stage.recording_id,
            "repeatCount": 10, "language": "EN", "retryCount": 0}  # fmt: skip
    async with stage.client() as client:
        assert (await client.post(OTP, json=body)).status_code == 200
    (row,) = stage.rows()
    assert (row.recording_id, row.repeat_count) == (stage.recording_id, 10)
    assert (row.language, row.retry_count) == ("en", 0)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"text": ""}, "text"),
        ({"text": "1" * 11}, "text"),
        ({"text": "12a"}, "text"),
        ({"text": "1 2"}, "text"),
        ({"text": "½"}, "text"),
        ({"text": 4071}, "text"),
        ({"text": None}, "text"),
        ({"repeatCount": 0}, "repeatCount"),
        ({"repeatCount": 11}, "repeatCount"),
        ({"repeatCount": "2"}, "repeatCount"),
        ({"repeatCount": True}, "repeatCount"),
        ({"voiceId": "0" * 32}, "voiceId"),
        ({"voiceId": 1}, "voiceId"),
        ({"language": "tlh"}, "language"),
        ({"language": ["fa"]}, "language"),
    ],
)
async def test_a_code_that_can_not_be_read_is_refused(
    sqlite_stage: Stage, changes: dict[str, Any], names: str
) -> None:
    body = {"phoneNumber": NUMBER, "text": "4071", **changes}
    async with sqlite_stage.client() as client:
        answer = await client.post(OTP, json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
    assert names in answer.json()["message"]
    assert sqlite_stage.queued() == 0


async def test_a_code_keeps_back_what_its_reading_may_cost(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(tariff=PRICED)
    stage.set_balance("1000")
    async with stage.client() as client:
        await client.post(OTP, json={"phoneNumber": NUMBER, "text": "4071", "repeatCount": 1})
        once = stage.project().reserved
        other = "09121234568"  # a newer one for the same number gives back what the older one kept
        await client.post(OTP, json={"phoneNumber": other, "text": "4071", "repeatCount": 3})
        thrice = stage.project().reserved - once
    # Four digits take about four seconds; 65 more are for a hold and for hanging up.
    assert 68 <= once <= 75
    assert 2 * (once - 65) <= thrice - 65 <= 3 * (once - 65)


async def test_a_text_becomes_a_recording_once(stage: Stage) -> None:
    async with stage.client() as client:
        first = (await client.post(TTS, json={"text": "Good  morning."})).json()["result"]
        assert list(first) == ["id", "name", "duration", "size"]
        assert first["name"] == "Good morning."
        assert 0.3 < first["duration"] < 5
        heard = await client.get(f"/api/v2/files/voice/{first['id']}")
        with wave.open(BytesIO(heard.content)) as file:
            seconds = file.getnframes() / file.getframerate()
        assert seconds == pytest.approx(first["duration"], abs=0.001)
        again = (await client.post(TTS, json={"text": "Good morning."})).json()["result"]
        assert again["id"] == first["id"]
        other = (await client.post(TTS, json={"text": "Good morning.", "language": "en"})).json()
        assert other["result"]["id"] != first["id"]
        assert rendered(stage) == 2
        listed = (await client.get("/api/v2/files/voice")).json()["result"]["recordings"]
        assert {first["id"], other["result"]["id"]} < {each["id"] for each in listed}


async def test_equal_texts_at_once_are_one_recording(stage: Stage) -> None:
    _, token = stage.new_token(stage.new_project("other"))
    async with stage.client() as client, stage.client(token) as stranger:
        answers = await asyncio.gather(
            *(client.post(TTS, json={"text": "hello"}) for _ in range(10)),
            *(stranger.post(TTS, json={"text": "hello"}) for _ in range(10)),
        )
    ids = [answer.json()["result"]["id"] for answer in answers]
    # One rendering for all, a recording of its own for each project.
    assert rendered(stage) == 1
    assert len(set(ids[:10])) == len(set(ids[10:])) == 1
    assert ids[0] != ids[10]
    assert len(list((stage.parts.settings.data_dir / "voices").iterdir())) == 4


async def test_texts_are_spoken_to_numbers(stage: Stage) -> None:
    async with stage.client() as client:
        single = await client.post(
            "/api/v2/voice/single/tts", json={"phoneNumber": NUMBER, "text": "hello"}
        )
        batch = await client.post(
            "/api/v2/voice/batch/tts",
            json={"phoneNumbers": [NUMBER, "09350000001"], "text": "hello"},
            headers={"Idempotency-Key": "k"},
        )
        again = await client.post(
            "/api/v2/voice/batch/tts",
            json={"phoneNumbers": [NUMBER, "09350000001"], "text": "hello"},
            headers={"Idempotency-Key": "k"},
        )
        recording = (await client.post(TTS, json={"text": "hello"})).json()["result"]["id"]
    assert list(single.json()) == ["result", "error"]
    assert single.json()["result"]["status"] == "WAITING"
    assert list(batch.json()) == ["result", "error", "campaignId"]
    assert [call["phoneNumber"] for call in batch.json()["result"]] == [NUMBER, "09350000001"]
    assert again.content == batch.content
    rows = stage.rows()
    assert {row.recording_id for row in rows} == {recording}
    assert sorted(row.lane for row in rows) == [Lane.SINGLE, Lane.BATCH, Lane.BATCH]
    assert rendered(stage) == 1


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"text": ""}, "text"),
        ({"text": "  ,  "}, "text"),
        ({"text": "x" * 1001}, "text"),
        ({"text": "a\x07b"}, "text"),
        ({"text": 5}, "text"),
        ({"language": "tlh"}, "language"),
        ({"language": ""}, "language"),
    ],
)
@pytest.mark.parametrize(
    "path", [TTS, "/api/v2/voice/single/tts", "/api/v2/voice/batch/tts", "/api/v1/voice/tts"]
)
async def test_a_text_that_can_not_be_spoken_is_refused(
    sqlite_stage: Stage, path: str, changes: dict[str, Any], names: str
) -> None:
    stage = sqlite_stage
    body = {"phoneNumber": NUMBER, "phoneNumbers": [NUMBER], "text": "hello", **changes}
    async with stage.client() as client:
        answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
    assert names in answer.json()["message"]
    assert stage.queued() == rendered(stage) == 0


async def test_a_bad_number_is_heard_of_before_anything_is_spoken(sqlite_stage: Stage) -> None:
    body = {"phoneNumber": "letters", "text": "hello", "serverId": "nowhere"}
    async with sqlite_stage.client() as client:
        answer = await client.post("/api/v2/voice/single/tts", json=body)
    assert answer.json()["error"] == "InvalidPhoneNumber"
    assert rendered(sqlite_stage) == 0


async def test_a_text_is_spoken_anew_once_its_recording_is_removed(stage: Stage) -> None:
    async with stage.client() as client:
        first = (await client.post(TTS, json={"text": "hello"})).json()["result"]
        assert (await client.delete(f"/api/v2/files/voice/{first['id']}")).status_code == 200
        again = (await client.post(TTS, json={"text": "hello"})).json()["result"]
        assert again["id"] != first["id"]
        assert (await client.get(f"/api/v2/files/voice/{again['id']}")).status_code == 200


async def test_a_database_that_fails_leaves_no_audio_behind(
    sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bitel.store.recordings.add", broken)
    async with stage.client() as client:
        answer = await client.post(TTS, json={"text": "hello"})
    assert (answer.status_code, answer.json()["error"]) == (500, "InternalError")
    assert stage.leftovers() == []


async def test_personal_texts_are_checked_and_bounded_and_not_rendered(stage: Stage) -> None:
    service = SpeechService(stage.parts)
    people = [Recipient(NUMBER, variables={"name": name}) for name in ("علی", "سارا", "علی")]
    texts = await service.template("سلام {name} عزیز", None, people)
    assert (texts.template, texts.language) == ("سلام {name} عزیز", "fa")
    assert texts.seconds[0] == texts.seconds[2] < texts.seconds[1]
    for person, bound in zip(people, texts.seconds, strict=True):
        whole = await stage.parts.speech.render(f"سلام {person.variables['name']} عزیز", "fa")
        assert whole.duration < bound
    assert rendered(stage) == 2, "by this test"


@pytest.mark.parametrize(
    ("text", "language", "variables", "message"),
    [
        ("a {name", None, {}, "text has a { at character 3"),
        ("a {name}", None, {}, "recipients[1] has no variable 'name', which the text needs"),
        ("a {name}", "xx", {"name": "b"}, "language 'xx' is not spoken here"),
        ("a {name}", None, {"name": "b\x07"}, "the text of recipients[1] is refused: text holds"),
        ("{name}", None, {"name": "…"}, "the text of recipients[1] holds nothing"),
        ("x" * 900 + " {name}", None, {"name": "b" * 199}, "the text of recipients[1] has 1100"),
        ("x" * 1001 + " {name}", None, {"name": "b"}, "text has 1002 characters; at most 1000"),
    ],
)
async def test_a_personal_text_that_cant_be_spoken_is_refused_with_its_row(
    stage: Stage, text: str, language: str | None, variables: dict[str, str], message: str
) -> None:
    people = [Recipient(NUMBER, variables=each) for each in ({"name": "ok"}, variables)]
    with pytest.raises(InvalidRequestError) as refused:
        await SpeechService(stage.parts).template(text, language, people)
    assert str(refused.value).startswith(message)


async def test_a_missing_variable_lists_those_that_there_are(sqlite_stage: Stage) -> None:
    person = Recipient(NUMBER, variables={f"c{n}": "" for n in range(MOST_LISTED + 2)}, line=7)
    with pytest.raises(InvalidRequestError) as refused:
        await SpeechService(sqlite_stage.parts).template("{name}", None, [person])
    found = str(refused.value)
    assert found.startswith("line 7 of listId has no variable 'name', which the text needs; it has")
    assert found.endswith("'c8', 'c9' and 2 more")
