"""Menus over HTTP: checked in full, priced by their longest path, and stored with their calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, select

from bitel.domain.calls import CallStatus
from bitel.domain.menus import Collect, KeyAction, Menu, from_json
from bitel.store import claims, leases, recordings, retention
from bitel.store.schema import call, menu, menu_recording

if TYPE_CHECKING:
    from tests.api.stage import Stage

SINGLE, BATCH = "/api/v2/voice/single", "/api/v2/voice/batch"


def stored(stage: Stage) -> list[Menu]:
    bodies = stage.do(lambda conn: conn.execute(select(menu.c.body)).scalars().all())
    return [from_json(body) for body in bodies]


async def test_a_menu_is_stored_once_for_calls_that_share_it(stage: Stage) -> None:
    other = stage.new_recording(stage.project_id, 3.0)
    given = {
        "keys": {
            "1": {"play": other, "report": "yes"},
            "2": {"play": other, "menu": {"keys": {"*": {"repeat": True}}, "wait": 9}},
            "9": {"optOut": True},
            "0": {"hangup": True},
        },
        "attempts": 3,
    }
    batch = {"phoneNumbers": ["09121234568", "09121234569"], "voiceId": stage.recording_id}
    async with stage.client() as client:
        for path, body in ((SINGLE, stage.body(menu=given)), (BATCH, {**batch, "menu": given})):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
    (found,) = stored(stage)
    assert found == Menu(
        {
            "1": KeyAction(other, "yes"),
            "2": KeyAction(other, menu=Menu({"*": KeyAction(then="repeat")}, wait=9)),
            "9": KeyAction(opt_out=True),
            "0": KeyAction(),
        },
        attempts=3,
    )
    assert len({row.menu_id for row in stage.rows()}) == 1
    lease = stage.do(lambda conn: leases.take(conn, leases.Slot("main"), "w", stage.clock()))
    claimed = stage.do(lambda conn: claims.claim(conn, lease, 9, stage.clock()))
    assert [each.menu for each in claimed] == [found] * 3


async def test_a_call_whose_menu_is_missing_is_not_dialled(stage: Stage) -> None:
    """Without it the callee could not opt out."""
    async with stage.client() as client:
        body = stage.body(menu={"keys": {"9": {"optOut": True}}})
        assert (await client.post(SINGLE, json=body)).status_code == 200
    stage.do(lambda conn: conn.execute(delete(menu)))
    lease = stage.do(lambda conn: leases.take(conn, leases.Slot("main"), "w", stage.clock()))
    assert stage.do(lambda conn: claims.claim(conn, lease, 9, stage.clock())) == []
    (row,) = stage.rows()
    assert row.status == CallStatus.ERROR


async def test_digits_to_collect(stage: Stage) -> None:
    given = {"collect": {"digits": 4, "end": "#"}, "wait": 7}
    async with stage.client() as client:
        assert (await client.post(SINGLE, json=stage.body(menu=given))).status_code == 200
    assert stored(stage) == [Menu(collect=Collect(4, "#"), wait=7)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "menu must have either keys or collect"),
        ({"keys": {}}, "menu must have either keys or collect"),
        ({"keys": {"1": {}}, "collect": {"digits": 3}}, "either keys or collect"),
        ({"keys": {"x": {}}}, "menu.keys.x"),
        ({"keys": {"12": {}}}, "menu.keys.12"),
        ({"keys": {"1": {"play": "a" * 32}}}, "menu.keys.1.play: voiceId names no recording"),
        ({"keys": {"1": {"play": "a", "say": "b"}}}, "play or say, not both"),
        ({"keys": {"1": {"repeat": True, "hangup": True}}}, "one of repeat, hangup and menu"),
        ({"keys": {"1": {"report": "two words"}}}, "menu.keys.1.report"),
        ({"keys": {"1": {"report": "a,b"}}}, "menu.keys.1.report"),
        ({"keys": {"1": {"transfer": "09121234567"}}}, "transfer in menu is not possible"),
        ({"keys": {"1": {"menu": {"keys": {"2": {"menu": {"keys": {"3": {}}}}}}}}}, "menu"),
        ({"keys": {"1": {"menu": {}}}}, "either keys or collect"),
        ({"collect": {"digits": 21}}, "menu.collect.digits must be at most 20"),
        ({"collect": {"digits": 0}}, "menu.collect.digits must be at least 1"),
        ({"collect": {"digits": 3, "end": "5"}}, "menu.collect.end"),
        ({"keys": {"1": {}}, "wait": 0}, "menu.wait must be at least 1"),
        ({"keys": {"1": {}}, "attempts": 6}, "menu.attempts must be at most 5"),
        ([], "menu must be a JSON object"),
    ],
)
async def test_a_menu_that_cannot_work_is_refused(
    sqlite_stage: Stage, given: Any, said: str
) -> None:
    async with sqlite_stage.client() as client:
        refused = await client.post(SINGLE, json=sqlite_stage.body(menu=given))
    assert (refused.status_code, refused.json()["error"]) == (400, "InvalidRequest")
    assert said in refused.json()["message"], refused.json()["message"]
    assert sqlite_stage.rows() == []


async def test_the_reserve_is_the_longest_path(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    stage.set_balance("1000000")
    long = stage.new_recording(stage.project_id, 30.0)
    seconds: list[int] = []
    async with stage.client() as client:
        for given in (
            None,
            {"keys": {"1": {}}, "wait": 10, "attempts": 2},
            {"keys": {"1": {"play": long}}, "wait": 10, "attempts": 2},
            {"keys": {"1": {"play": long}, "2": {"repeat": True}}, "wait": 10, "attempts": 2},
        ):
            body = stage.body() if given is None else stage.body(menu=given)
            assert (await client.post(SINGLE, json=body)).status_code == 200
            seconds.append(max(row.longest_seconds for row in stage.rows()))
    one = seconds[0]
    # The recording of the stage lasts a second.
    assert seconds[1:] == [one - 1 + 22, one - 1 + 52, one - 1 + 74]


async def test_a_text_with_personal_variables_may_have_a_menu(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    body = {
        "recipients": [{"phoneNumber": "09121234567", "variables": {"name": "Sara"}}],
        "text": "Dear {name}.",
        "language": "en",
        "menu": {"keys": {"1": {"report": "yes"}}, "wait": 20},
    }
    async with stage.client() as client:
        answer = await client.post(f"{BATCH}/tts", json=body)
    assert answer.status_code == 200, answer.text
    (row,) = stage.rows()
    assert row.menu_id is not None
    assert row.longest_seconds >= 40


async def test_a_recording_that_a_menu_of_waiting_calls_may_play_is_kept(stage: Stage) -> None:
    other = stage.new_recording(stage.project_id, 3.0)
    async with stage.client() as client:
        body = stage.body(menu={"keys": {"1": {"play": other}}})
        placed = (await client.post(SINGLE, json=body)).json()["result"]
        refused = await client.delete(f"/api/v2/files/voice/{other}")
        assert (refused.status_code, refused.json()["error"]) == (409, "Conflict")
        later = stage.clock() + 400 * 86_400
        assert other not in [
            id_ for _, id_ in stage.do(lambda conn: retention.unused_recordings(conn, later, ""))[1]
        ]
        await client.delete(f"/api/v2/voice/{placed['id']}")
        assert other in [
            id_ for _, id_ in stage.do(lambda conn: retention.unused_recordings(conn, later, ""))[1]
        ]
        assert (await client.delete(f"/api/v2/files/voice/{other}")).status_code == 200
        # A menu with a deleted recording is refused.
        gone = await client.post(SINGLE, json=body)
    assert gone.json()["error"] == "InvalidRequest"


async def test_a_menu_goes_with_the_last_of_its_calls(stage: Stage) -> None:
    async with stage.client() as client:
        body = stage.body(menu={"keys": {"1": {"play": stage.recording_id}}})
        placed = (await client.post(SINGLE, json=body)).json()["result"]
        await client.delete(f"/api/v2/voice/{placed['id']}")
    stage.clock.advance(86_400)
    stage.do(lambda conn: retention.delete_calls(conn, stage.clock(), ""))
    for table in (call, menu, menu_recording):
        assert stage.do(lambda conn: conn.execute(select(table)).all()) == []  # noqa: B023


async def test_a_recording_deleted_while_a_batch_is_placed_is_noticed(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    other = stage.new_recording(stage.project_id, 3.0)
    body = stage.body(menu={"keys": {"1": {"play": other}}})
    async with stage.client() as client:
        assert (await client.post(SINGLE, json=body)).status_code == 200
        for row in stage.rows():
            await client.delete(f"/api/v2/voice/{row.id}")
        stage.do(lambda conn: recordings.remove(conn, stage.project_id, other, stage.clock()))
        # Its duration is known from before.
        refused = await client.post(SINGLE, json=body)
    assert refused.json()["error"] == "InvalidRequest"
    assert len(stage.rows()) == 1


async def test_what_is_done_about_machines_is_stored(stage: Stage) -> None:
    stage.set_balance("1000000")
    other = stage.new_recording(stage.project_id, 20.0)
    seconds: list[int] = []
    async with stage.client() as client:
        for given in (
            {"machineDetection": "off"},
            {"machineDetection": "flag"},
            {"machineDetection": "message", "machineVoiceId": other},
        ):
            answer = await client.post(SINGLE, json=stage.body(**given))
            assert answer.status_code == 200, answer.text
            seconds.append(max(row.longest_seconds for row in stage.rows()))
        refused = await client.delete(f"/api/v2/files/voice/{other}")
        assert refused.json()["error"] == "Conflict"
        for given, said in (
            ({"machineDetection": "maybe"}, "machineDetection"),
            ({"machineVoiceId": other}, "machineVoiceId needs machineDetection"),
            ({"machineDetection": "hangup", "machineVoiceId": other}, "machineVoiceId needs"),
            ({"machineDetection": "message", "machineVoiceId": "a" * 32}, "machineVoiceId names"),
        ):
            wrong = await client.post(SINGLE, json=stage.body(**given))
            assert (wrong.status_code, wrong.json()["error"]) == (400, "InvalidRequest")
            assert said in wrong.json()["message"]
    modes = {row.machine_detection for row in stage.rows()}
    assert modes == {None, "flag", "message"}
    # The recording of the stage lasts a second.
    assert seconds == [seconds[0], seconds[0], seconds[0] - 1 + 58]
