"""Uploading lists of recipients: what is answered, stored and refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openpyxl
import pytest

from bitel.domain.recipients import Recipient
from bitel.errors import NotFoundError
from bitel.store import recipient_lists
from bitel.store.schema import recipient_list, recipient_list_piece

if TYPE_CHECKING:
    import httpx

    from tests.api.stage import Stage

LISTS = "/api/v2/files/list"
A, B = "09121234567", "09351234567"
FILES = Path(__file__).parents[1] / "recipient_lists" / "files"


async def upload(
    client: httpx.AsyncClient, content: bytes | str, name: str = "people.csv", **fields: str
) -> httpx.Response:
    data = content.encode() if isinstance(content, str) else content
    return await client.post(LISTS, files={"file": (name, data)}, data=fields)


async def uploaded(
    client: httpx.AsyncClient, content: bytes | str, name: str = "people.csv", **fields: str
) -> dict[str, Any]:
    answer = await upload(client, content, name, **fields)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["result"]
    return result


def stored(stage: Stage, list_id: str) -> list[Recipient]:
    return stage.do(
        lambda conn: [
            each
            for piece in recipient_lists.recipients(conn, stage.project_id, list_id)
            for each in piece
        ]
    )


def tables(stage: Stage) -> tuple[int, int]:
    """How many lists and pieces there are, whole or not."""
    return stage.do(
        lambda conn: (
            len(conn.execute(recipient_list.select()).all()),
            len(conn.execute(recipient_list_piece.select()).all()),
        )
    )


async def test_a_list_is_stored_and_found(stage: Stage) -> None:
    text = f"name,phone,reference,Time Zone\nSara,{A},r1,Asia/Tehran\n\nAli,{B},,\nX,0912,,\n"
    async with stage.client() as client:
        result = await uploaded(client, text)
        assert list(result) == [
            *("id", "rows", "valid", "invalid", "columns", "duplicates"),
            *("invalidCount", "numberColumn", "recipients"),
        ]
        (invalid,) = result.pop("invalid")
        list_id = result.pop("id")
        assert result == {
            "rows": 3,
            "valid": 2,
            "columns": ["name"],
            "duplicates": 0,
            "invalidCount": 1,
            "numberColumn": "phone",
            "recipients": 3,
        }
        assert list(invalid) == ["line", "value", "message"]
        assert (invalid["line"], invalid["value"]) == (5, "0912")
        assert "phoneNumber '0912' is not the number of a subscriber" in invalid["message"]
        assert stored(stage, list_id) == [
            Recipient(A, "r1", {"name": "Sara"}, "Asia/Tehran", 2),
            Recipient(B, None, {"name": "Ali"}, None, 4),
            Recipient("0912", None, {"name": "X"}, None, 5),
        ]
        listed = (await client.get(LISTS)).json()["result"]
        shown = (await client.get(f"{LISTS}/{list_id}")).json()["result"]
        assert listed == {"lists": [shown], "nextCursor": None}
        assert shown == {
            "id": list_id,
            "name": "people.csv",
            "createdDate": int(stage.clock()),
            "recipients": 3,
            "columns": ["name"],
        }
        gone = await client.delete(f"{LISTS}/{list_id}")
        assert gone.json() == {"result": shown, "error": None}
        for method in ("GET", "DELETE"):
            answer = await client.request(method, f"{LISTS}/{list_id}")
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")
    assert tables(stage) == (0, 0)
    assert stage.leftovers() == []


async def test_a_dry_run_stores_nothing(stage: Stage) -> None:
    text = f"phone\n{A}\n{A}\nx\n"
    async with stage.client() as client:
        result = await uploaded(client, text, dryRun="true")
        assert result["id"] is None
        assert (result["rows"], result["valid"], result["duplicates"]) == (3, 2, 1)
        assert [each["line"] for each in result["invalid"]] == [4]
        assert (await client.get(LISTS)).json()["result"]["lists"] == []
        # With the same file, storing answers the same.
        again = await uploaded(client, text, dryRun="false")
        assert {**again, "id": None} == result
    assert tables(stage) == (1, 1)
    assert stage.leftovers() == []


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({}, [A, "0912", A]),
        ({"skipInvalid": "true"}, [A, A]),
        ({"skipDuplicates": "true"}, [A, "0912"]),
        ({"skipInvalid": "1", "skipDuplicates": "TRUE"}, [A]),
    ],
)
async def test_invalid_and_repeated_rows_are_left_out_on_request(
    sqlite_stage: Stage, fields: dict[str, str], numbers: list[str]
) -> None:
    text = f"phone\n{A}\n0912\n{A}\n"
    async with sqlite_stage.client() as client:
        result = await uploaded(client, text, **fields)
    assert (result["rows"], result["valid"], result["duplicates"]) == (3, 2, 1)
    assert result["invalidCount"] == len(result["invalid"]) == 1
    assert result["recipients"] == len(numbers)
    assert [each.phone_number for each in stored(sqlite_stage, result["id"])] == numbers


async def test_numbers_are_checked_as_batches_check_them(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(tariff=[{"prefix": "+98912", "per_minute": 1}])
    stage.change(forbidden_prefixes=("+9821",))
    numbers = [A, B, "02112345678", "+4930123456", "110"]
    async with stage.client() as client:
        found = await uploaded(client, "\n".join(["phone", *numbers]), dryRun="true")
        for row in found["invalid"]:
            body = {"phoneNumbers": [row["value"]], "voiceId": stage.recording_id}
            refused = (await client.post("/api/v2/voice/batch", json=body)).json()
            assert refused["message"] == row["message"].replace("phoneNumber", "phoneNumbers[0]", 1)
    assert [each["value"] for each in found["invalid"]] == numbers[1:]


async def test_the_column_may_be_named(sqlite_stage: Stage) -> None:
    text = f"home,mobile\n02112345678,{A}\n"
    async with sqlite_stage.client() as client:
        for column, number in (
            *((None, A), ("home", "02112345678"), ("HOME", "02112345678")),
            *(("1", "02112345678"), ("B", A), ("2", A)),
        ):
            fields = {} if column is None else {"column": column}
            result = await uploaded(client, text, **fields)
            (recipient,) = stored(sqlite_stage, result["id"])
            assert recipient.phone_number == number, column
            other = "mobile" if number != A else "home"
            assert result["columns"] == [other]
            assert list(recipient.variables) == [other]
        refused = await upload(client, text, column="work")
    assert (refused.status_code, refused.json()["error"]) == (400, "InvalidRequest")
    assert "people.csv has no column 'work'; its columns are: home, mobile" in refused.text


async def test_lists_come_in_pages_and_belong_to_one_project(stage: Stage) -> None:
    _, other_token = stage.new_token(stage.new_project("other"))
    async with stage.client() as client, stage.client(other_token) as other:
        ids = []
        for _ in range(3):
            stage.clock.advance(1)
            ids.append((await uploaded(client, A))["id"])
        first = (await client.get(LISTS, params={"limit": 2})).json()["result"]
        rest = (await client.get(LISTS, params={"cursor": first["nextCursor"]})).json()["result"]
        assert [each["id"] for each in first["lists"] + rest["lists"]] == ids
        assert rest["nextCursor"] is None
        assert (await other.get(LISTS)).json()["result"]["lists"] == []
        for method in ("GET", "DELETE"):
            answer = await other.request(method, f"{LISTS}/{ids[0]}")
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")
        for unknown in ("0" * 32, "x", "%00"):
            assert (await client.get(f"{LISTS}/{unknown}")).status_code == 404
    project_id = "0" * 32
    with pytest.raises(NotFoundError):
        stage.do(lambda conn: list(recipient_lists.recipients(conn, project_id, ids[0])))
    assert len(stored(stage, ids[0])) == 1


def workbook(rows: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


PNG = bytes.fromhex("89504E470D0A1A0A0000000D49484452")


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "people.csv is empty"),
        (b"\n\n", 400, "people.csv is empty"),
        (b"phone\n", 400, "has no row below its headings"),
        (b"name,age\nSara,31\n", 400, "no column of people.csv holds phone numbers"),
        (b'phone\n"0912', 400, "people.csv line 2 is no CSV"),
        (PNG, 415, "neither CSV nor XLSX"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", 415, "neither CSV nor XLSX"),
        (b"%PDF-1.7", 415, "neither CSV nor XLSX"),
        (b"<html><table>", 415, "neither CSV nor XLSX"),
        (b"\0\0\0\x20ftypmp42", 415, "neither CSV nor XLSX"),
        (b"PK\x03\x04 and no more", 415, "cut short or damaged"),
        (FILES / "libreoffice.xls", 415, "an old Office version"),
        (FILES / "libreoffice.ods", 415, "neither CSV nor XLSX"),
        (FILES / "encrypted.xlsx", 415, "the workbook is encrypted"),
    ],
)  # fmt: skip
async def test_other_files_are_refused(
    sqlite_stage: Stage, content: bytes | Path, status: int, message: str
) -> None:
    data = content if isinstance(content, bytes) else content.read_bytes()
    async with sqlite_stage.client() as client:
        answer = await upload(client, data)
    code = {400: "InvalidRequest", 415: "UnsupportedMedia"}[status]
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert message in answer.json()["message"]
    assert tables(sqlite_stage) == (0, 0)
    assert sqlite_stage.leftovers() == []


async def test_a_list_of_nothing_but_invalid_rows_is_not_stored_without_them(
    sqlite_stage: Stage,
) -> None:
    async with sqlite_stage.client() as client:
        answer = await upload(client, "phone\n0912\n", skipInvalid="true")
        assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
        assert "has no row that can be called" in answer.json()["message"]
        kept = await uploaded(client, "phone\n0912\n")
    assert kept["recipients"] == 1


async def test_limits_of_rows_and_bytes(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(list_limit=3, voices={"max_upload": 2000})
    async with stage.client() as client:
        assert (await uploaded(client, f"phone\n{A}\n{A}\n{A}\n"))["rows"] == 3
        many = await upload(client, f"{A}\n{A}\n{A}\n{A}\n")
        large = await upload(client, f"{A}," + "x" * 3000)
        field = await upload(client, A, dryRun="yes")
    for answer in (many, large):
        assert (answer.status_code, answer.json()["error"]) == (413, "PayloadTooLarge")
    assert "people.csv has more than 3 rows; upload it in parts" in many.text
    assert (field.status_code, field.json()["message"]) == (400, "dryRun must be true or false")


async def test_a_project_keeps_a_limited_number_of_lists(
    sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipient_lists, "MOST_LISTS", 1)
    async with sqlite_stage.client() as client:
        await uploaded(client, A)
        refused = await upload(client, A)
        assert (await uploaded(client, A, dryRun="true"))["rows"] == 1
    assert (refused.status_code, refused.json()["error"]) == (413, "PayloadTooLarge")
    monkeypatch.setattr(recipient_lists, "MOST_LISTS", 9)
    monkeypatch.setattr(recipient_lists, "MOST_RECIPIENTS", 2)
    async with sqlite_stage.client() as client:
        assert (await upload(client, f"{A}\n{B}")).status_code == 413
        assert (await upload(client, A)).status_code == 200


async def test_a_list_that_could_not_be_stored_whole_leaves_nothing(
    sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NotFoundError("no piece today")

    monkeypatch.setattr(recipient_lists, "finish", fail)
    async with sqlite_stage.client() as client:
        assert (await upload(client, A)).status_code == 404
    assert tables(sqlite_stage) == (0, 0)


async def test_a_workbook_is_a_list_too(stage: Stage) -> None:
    rows: list[list[Any]] = [["name", "phone"], ["Sara", 9121234567], [], ["Ali", B], ["Reza", 912]]
    async with stage.client() as client:
        result = await uploaded(client, workbook(rows), "people.xlsx")
    assert [(each["line"], each["value"]) for each in result["invalid"]] == [(5, "912")]
    assert stored(stage, result["id"])[:2] == [
        Recipient(A, None, {"name": "Sara"}, None, 2),
        Recipient(B, None, {"name": "Ali"}, None, 4),
    ]
