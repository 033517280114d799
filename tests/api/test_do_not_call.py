"""The do-not-call list of a project, by its own API."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from bitel.store import do_not_call

if TYPE_CHECKING:
    from tests.api.stage import Stage

PATH = "/api/v2/account/do-not-call"
A, B, C = "+989121234567", "+989351234567", "+982112345678"


def listed(stage: Stage, project_id: str | None = None) -> list[str]:
    owner = project_id or stage.project_id
    return stage.do(lambda conn: do_not_call.listing(conn, owner))


async def test_numbers_are_added_listed_and_removed(stage: Stage) -> None:
    async with stage.client() as client:
        for body, added, known in [
            ({"phoneNumber": "0912 123 4567"}, 1, 0),
            ({"phoneNumber": "۰۹۱۲۱۲۳۴۵۶۷"}, 0, 1),
            ({"phoneNumbers": ["09351234567", "+98 912 123 4567", "00989351234567"]}, 1, 1),
            ({"phoneNumbers": "02112345678، 09121234567"}, 1, 1),
        ]:
            answer = await client.post(PATH, json=body)
            assert answer.json() == {
                "result": {"added": added, "alreadyListed": known},
                "error": None,
            }
        first = (await client.get(PATH, params={"limit": 2})).json()["result"]
        assert first["phoneNumbers"] == sorted([A, B, C])[:2]
        rest = {"limit": 2, "cursor": first["nextCursor"]}
        assert (await client.get(PATH, params=rest)).json()["result"] == {
            "phoneNumbers": sorted([A, B, C])[2:],
            "nextCursor": None,
        }
        for written in (A, "0935-123-4567"):
            gone = await client.delete(f"{PATH}/{written}")
            assert gone.json()["result"] == {"phoneNumber": A if written == A else B}
            again = await client.delete(f"{PATH}/{written}")
            assert (again.status_code, again.json()["error"]) == (404, "NotFound")
    assert listed(stage) == [C]


async def test_the_list_is_a_projects_own(stage: Stage) -> None:
    other = stage.new_project("other")
    _, token = stage.new_token(other)
    async with stage.client() as client, stage.client(token) as stranger:
        await client.post(PATH, json={"phoneNumber": A})
        assert (await stranger.get(PATH)).json()["result"]["phoneNumbers"] == []
        assert (await stranger.delete(f"{PATH}/{A}")).status_code == 404
        await stranger.post(PATH, json={"phoneNumber": B})
    assert (listed(stage), listed(stage, other)) == ([A], [B])


async def test_calls_to_a_listed_number_end_as_error(stage: Stage) -> None:
    async with stage.client() as client:
        waiting = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
        await client.post(PATH, json={"phoneNumber": A})
        fresh = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
        assert (waiting["status"], fresh["status"]) == ("WAITING", "ERROR")
        _, taken = stage.take()
        assert taken == []
        status = (await client.get(f"/api/v2/voice/status/{waiting['id']}")).json()["result"]
        assert status["status"] == "ERROR"
        await client.delete(f"{PATH}/{A}")
        allowed = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
    assert allowed["status"] == "WAITING"
    assert {row.reason for row in stage.rows()} == {do_not_call.REASON, ""}


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({}, "InvalidRequest", "send either phoneNumber or phoneNumbers"),
        ({"phoneNumber": A, "phoneNumbers": [B]}, "InvalidRequest", "send either"),
        ({"phoneNumber": "110"}, "InvalidPhoneNumber", "phoneNumber '110' is not"),
        ({"phoneNumbers": [A, "x"]}, "InvalidPhoneNumber", "phoneNumbers[1] 'x' is not"),
        ({"phoneNumbers": []}, "InvalidRequest", "phoneNumbers must hold 1 to 3 numbers"),
        ({"phoneNumbers": [A] * 4}, "InvalidRequest", "phoneNumbers must hold 1 to 3 numbers"),
        ({"phoneNumbers": 4}, "InvalidRequest", "phoneNumbers"),
    ],
)
async def test_a_wrong_body_changes_nothing(
    make_stage: Callable[..., Stage], body: dict[str, Any], code: str, message: str
) -> None:
    stage = make_stage(batch_limit=3)
    async with stage.client() as client:
        answer = await client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, code)
    assert message in answer.json()["message"]
    assert listed(stage) == []


async def test_wrong_cursors_and_numbers_are_refused(sqlite_stage: Stage) -> None:
    async with sqlite_stage.client() as client:
        for cursor in ("x", "AAAA", "QUFB"):
            answer = await client.get(PATH, params={"cursor": cursor})
            assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
        answer = await client.delete(f"{PATH}/110")
        assert (answer.status_code, answer.json()["error"]) == (400, "InvalidPhoneNumber")


async def test_a_file_is_imported(stage: Stage) -> None:
    """Also numbers that the project may not call, and however long the other cells are."""
    stage.do(lambda conn: do_not_call.add(conn, stage.project_id, A))
    text = (
        f"Name;Mobile;Note\nSara;0912 123 4567;{'x' * 5000}\nAli;9351234567;\nAli;09351234567;\n"
        "Max;+4930123456;\nX;0912;\n"
    )
    async with stage.client() as client:
        files = {"file": ("leavers.csv", text.encode("utf-16"))}
        answer = await client.post(f"{PATH}/import", files=files)
        result = answer.json()["result"]
        (invalid,) = result.pop("invalid")
        assert result == {"added": 2, "alreadyListed": 1, "invalidCount": 1}
        assert (invalid["line"], invalid["value"]) == (6, "0912")
        assert listed(stage) == sorted([A, B, "+4930123456"])
        again = await client.post(f"{PATH}/import", files=files, data={"column": "B"})
        assert again.json()["result"]["alreadyListed"] == 3
        refused = await client.post(f"{PATH}/import", files={"file": ("x", b"\x89PNG\r\n\x00")})
        assert (refused.status_code, refused.json()["error"]) == (415, "UnsupportedMedia")
    assert stage.leftovers() == []
