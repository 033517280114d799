"""`bitel batch`, `campaign`, `cancel` and `voice`: clients of the HTTP API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.shell import Service, Shell

CAMPAIGN_ID = "d" * 32
VOICE_ID = "a" * 32
CALL: dict[str, Any] = {"id": "c" * 32, "phoneNumber": "0912", "status": "CANCELED",
        "statusCode": 4, "billSec": 0, "requestDate": 1, "executionDate": 0,
        "price": 0.0}  # fmt: skip


def campaign(finished: int = 0, price: float = 0.0, **by_status: int) -> dict[str, Any]:
    return {"id": CAMPAIGN_ID, "total": sum(by_status.values()), "byStatus": by_status,
            "requestDate": 1, "finishedDate": finished, "price": price}  # fmt: skip


@pytest.fixture
def batches(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr("bitel.client.POLL_INTERVAL", 0.001)
    placed = {"result": [CALL], "error": None, "campaignId": CAMPAIGN_ID}
    service.answers["POST /api/v2/voice/batch"] = [(200, placed)]
    service.on(f"GET /api/v2/voice/campaign/{CAMPAIGN_ID}", campaign(WAITING=3))
    return service


def sent(service: Service) -> Any:
    return json.loads(next(body for method, _, _, body in service.asked if method == "POST"))


def test_one_number_a_line(shell: Shell, batches: Service, tmp_path: Path) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("\n09121234567\n  0935 123 4567 \r\n\n۰۹۱۲۱۲۳۴۵۶۷", encoding="utf-8-sig")
    options = ("--voice", VOICE_ID, "--retries", "2", "--server", "main")
    status, out, err = shell.run("batch", str(file), *options)
    assert (status, out) == (0, f"{CAMPAIGN_ID}  3 calls  WAITING 3\n"), err
    assert err == "bitel: 1 number is called once only: line 5 repeats line 2\n"
    assert sent(batches) == {
        "phoneNumbers": ["09121234567", "0935 123 4567"],
        "voiceId": VOICE_ID,
        "retryCount": 2,
        "serverId": "main",
    }


def test_a_column_of_a_csv(shell: Shell, batches: Service, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text('name,phone\n"Sara, B.",0912\nAli,\nNima,"0935"\n', encoding="utf-8-sig")
    status, out, err = shell.run(
        "batch", str(file), "--column", "phone", "--voice", VOICE_ID, "--json"
    )
    assert (status, json.loads(out)) == (0, campaign(WAITING=3)), err
    assert sent(batches)["phoneNumbers"] == ["0912", "0935"]
    status, _, err = shell.run("batch", str(file), "--column", "tel", "--voice", VOICE_ID)
    assert (status, "name, phone" in err) == (1, True)


def test_a_bad_number_is_named_by_its_line(shell: Shell, batches: Service, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text('name;phone\n"two\nlines";09121234567\nAli;\nNima;0912\n')
    refused = {"result": None, "error": "InvalidPhoneNumber",
               "message": "phoneNumbers[1] '0912' is not the number of a subscriber"}  # fmt: skip
    batches.answers["POST /api/v2/voice/batch"] = [(400, refused)]
    status, out, err = shell.run("batch", str(file), "--voice", VOICE_ID)
    assert (status, out) == (1, "")
    expected = f"{file} line 5, column 'phone': '0912' is not the number of a subscriber"
    hint = "--dry-run shows all such lines, and --skip-invalid leaves them out"
    assert err == f"bitel: {expected}; {hint}\n"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe", b"phone\n", b"0912\n\xff\xff\xff"])
def test_a_file_without_numbers_is_refused(
    shell: Shell, service: Service, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "numbers.txt"
    file.write_bytes(content)
    status, out, err = shell.run("batch", str(file), "--voice", VOICE_ID)
    assert (status, out) == (1, "")
    assert str(file) in err
    assert service.asked == []


@pytest.mark.parametrize(
    ("end", "expected"),
    [(campaign(9, -12.5, NORMAL=3), 0), (campaign(9, -8.0, NORMAL=2, USER_BUSY=1), 1)],
)
def test_waiting_succeeds_only_if_all_answered(
    shell: Shell, batches: Service, tmp_path: Path, end: dict[str, Any], expected: int
) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("0912\n0913\n0914\n")
    looks = [campaign(WAITING=3), campaign(WAITING=1, NORMAL=2), end]
    batches.on(f"GET /api/v2/voice/campaign/{CAMPAIGN_ID}", *looks)
    status, out, _ = shell.run("batch", str(file), "--voice", VOICE_ID, "--wait", "--json")
    assert (status, json.loads(out)) == (expected, end)


def test_a_campaign_is_shown_with_its_calls(shell: Shell, batches: Service) -> None:
    path = f"GET /api/v2/voice/campaign/{CAMPAIGN_ID}"
    batches.on(path, campaign(9, -12.5, NORMAL=1, CANCELED=1))
    first, second = ({"calls": [CALL], "nextCursor": cursor} for cursor in ("x=", None))
    batches.on(f"{path}/calls?limit=1000", first)
    batches.on(f"{path}/calls?cursor=x%3D&limit=1000", second)
    status, out, err = shell.run("campaign", CAMPAIGN_ID)
    assert (status, out) == (0, f"{CAMPAIGN_ID}  2 calls  NORMAL 1  CANCELED 1  -12.5\n"), err
    shown = json.loads(shell.run("campaign", CAMPAIGN_ID, "--calls", "--json")[1])
    assert shown == {**campaign(9, -12.5, NORMAL=1, CANCELED=1), "calls": [CALL, CALL]}
    assert shell.run("campaign", CAMPAIGN_ID, "--calls")[1].count("CANCELED ") == 3


def test_a_call_or_a_campaign_is_called_off(shell: Shell, service: Service) -> None:
    service.on(f"DELETE /api/v2/voice/{CALL['id']}", CALL)
    status, out, err = shell.run("cancel", CALL["id"])
    assert (status, out.split()) == (0, [CALL["id"], "CANCELED", "0912"]), err
    missing = (404, {"result": None, "error": "NotFound", "message": "none of that id"})
    service.answers[f"DELETE /api/v2/voice/{CAMPAIGN_ID}"] = [missing]
    service.on(f"DELETE /api/v2/voice/campaign/{CAMPAIGN_ID}", campaign(9, CANCELED=3))
    assert "CANCELED 3" in shell.run("cancel", CAMPAIGN_ID)[1]
    service.answers[f"DELETE /api/v2/voice/campaign/{CAMPAIGN_ID}"] = [missing]
    status, out, err = shell.run("cancel", CAMPAIGN_ID)
    assert (status, out) == (1, "")
    assert err == f"bitel: this project has no call and no campaign of the id {CAMPAIGN_ID!r}\n"


def test_recordings_are_listed_removed_and_spoken(shell: Shell, service: Service) -> None:
    recording = {"id": VOICE_ID, "name": "hello.mp3", "duration": 1.25, "size": 9}
    page = {"recordings": [recording, recording], "nextCursor": None}
    service.on("GET /api/v2/files/voice", page)
    service.on(f"DELETE /api/v2/files/voice/{VOICE_ID}", recording)
    service.on("POST /api/v2/files/tts", recording)
    assert shell.run("voice", "list")[1] == f"{VOICE_ID}  1.2 s  hello.mp3\n" * 2
    assert json.loads(shell.run("voice", "list", "--json")[1]) == [recording, recording]
    assert shell.run("voice", "remove", VOICE_ID)[1].split()[0] == VOICE_ID
    spoken = shell.run("voice", "speak", "سلام", "--language", "fa", "--json")[1]
    assert json.loads(spoken) == recording
    assert sent(service) == {"text": "سلام", "language": "fa"}
