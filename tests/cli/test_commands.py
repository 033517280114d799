"""The commands that work on the database, and those that ask the HTTP API."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from bitel.domain.ids import is_id, new_id
from bitel.store import campaigns, projects, tokens
from bitel.store.database import Database

if TYPE_CHECKING:
    from tests.cli.shell import Service, Shell


def test_a_project_and_a_token_print_themselves_and_nothing_else(shell: Shell) -> None:
    shutil.rmtree(shell.data_dir)  # as on a new machine, where the first command makes it
    project_id = shell.admin("project", "create", "shop")
    assert is_id(project_id)
    token = shell.admin("token", "create", "shop")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["iss"], claims["aud"]) == (project_id, "Bitel", "Bitel")
    assert "exp" not in claims
    assert jwt.get_unverified_header(token)["kid"] in shell.admin("key", "list")
    live = shell.look(
        lambda conn: tokens.find_project(conn, claims["jti"], project_id, time.time())
    )
    assert live
    assert shell.data_dir.stat().st_mode & 0o077 == 0


def test_a_new_project_has_limits_that_are_named_on_stderr(shell: Shell) -> None:
    config = ("--config", str(shell.config))
    status, out, err = shell.run("project", "create", "shop", *config)
    assert status == 0
    assert is_id(out.removesuffix("\n"))
    assert "3000 requests and 10000 calls a minute" in err
    made = shell.look(lambda conn: projects.by_id(conn, out.strip()))
    assert (made.requests_per_minute, made.calls_per_minute) == (3000, 10_000)
    _, out, err = shell.run("project", "create", "b", "--rate", "7", "--call-rate", "9", *config)
    assert "7 requests and 9 calls" in err
    _, out, err = shell.run(
        "project", "create", "c", "--rate", "settings", "--call-rate", "settings", *config
    )
    assert "unlimited requests and unlimited calls" in err
    made = shell.look(lambda conn: projects.by_id(conn, out.strip()))
    assert (made.requests_per_minute, made.calls_per_minute) == (None, None)
    for wrong in ("0", "x", "-1"):
        assert shell.run("project", "create", "d", "--rate", wrong, *config)[0] == 2
    assert shell.look(lambda conn: projects.find(conn, "d")) is None


@pytest.mark.parametrize("by", ["jti", "token"])
def test_a_token_can_be_revoked_by_its_id_or_itself(shell: Shell, by: str) -> None:
    project_id = shell.admin("project", "create", "shop")
    token = shell.admin("token", "create", project_id)
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    named = {"jti": jti, "token": token}[by]
    assert shell.admin("token", "revoke", named) == ""
    assert not shell.look(lambda conn: tokens.find_project(conn, jti, project_id, time.time()))
    status, out, err = shell.run("token", "revoke", named, "--config", str(shell.config))
    assert (status, out) == (1, "")
    assert jti in err


def test_a_token_may_expire(shell: Shell) -> None:
    project_id = shell.admin("project", "create", "shop")
    token = shell.admin("token", "create", "shop", "--expires", "2")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] == pytest.approx(time.time() + 2 * 86_400, abs=60)

    def live_at(now: float) -> Any:
        return shell.look(lambda conn: tokens.find_project(conn, claims["jti"], project_id, now))

    assert live_at(claims["exp"] - 1)
    assert not live_at(claims["exp"])


def test_a_balance_is_set_and_lifted(shell: Shell) -> None:
    project_id = shell.admin("project", "create", "shop")
    for given, meant in (("1500.5", 1500.5), ("0", 0.0), ("unlimited", None)):
        shell.admin("project", "set", "shop", "--balance", given)
        (listed,) = json.loads(shell.admin("project", "list", "--json"))
        assert (listed["id"], listed["name"], listed["balance"]) == (project_id, "shop", meant)
    assert shell.admin("project", "list").split() == [project_id, "unlimited", "shop"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("project", "set", "nobody", "--balance", "1"),
        ("token", "create", "nobody"),
        ("token", "revoke", "0" * 32),
        ("token", "revoke", "not.a.token"),
        ("project", "create", "shop"),
        ("project", "create", ""),
    ],
)
def test_a_failure_is_one_sentence_and_status_1(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.admin("project", "create", "shop")
    status, out, err = shell.run(*arguments, "--config", str(shell.config))
    assert (status, out) == (1, "")
    assert err.startswith("bitel: ")
    assert err.count("\n") == 1
    assert shell.look(lambda conn: len(projects.listing(conn))) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("project",),
        ("project", "create"),
        ("nonsense",),
        ("project", "set", "shop"),
        ("project", "set", "shop", "--balance", "much"),
        ("project", "set", "shop", "--balance", "NaN"),
        ("token", "create", "shop", "--expires", "0"),
        ("call", "0912"),
        ("voice", "upload", "/no/such/file"),
        ("serve", "--take-over", "--only", "api"),
    ],
)
def test_wrong_usage_is_status_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    status, _, _ = shell.run(*arguments)
    assert status == 2


def test_a_settings_file_that_is_wrong_is_named(shell: Shell) -> None:
    missing = shell.run("project", "create", "x", "--config", "/no/such/file")
    assert missing[0] == 1
    assert "/no/such/file" in missing[2]
    shell.config.write_text("colour = 3\n")
    status, _, err = shell.run("project", "create", "x", "--config", str(shell.config))
    assert status == 1
    assert "colour" in err


CALL: dict[str, Any] = {"id": "c" * 32, "phoneNumber": "0912", "status": "WAITING",
        "statusCode": 0, "billSec": 0,
        "requestDate": 1, "executionDate": 0, "price": 0.0}  # fmt: skip
OVER = {**CALL, "status": "NORMAL", "statusCode": 1, "billSec": 12, "price": -34.2}


def test_a_call_is_placed(shell: Shell, service: Service) -> None:
    service.on("POST /api/v2/voice/single", CALL)
    status, out, err = shell.run(
        "call", "0912", "--voice", "a" * 32, "--retries", "3", "--server", "main", "--json"
    )
    assert (status, json.loads(out)) == (0, CALL), err
    ((_, _, token, body),) = service.asked
    assert token == "Bearer T"
    assert json.loads(body) == {
        "phoneNumber": "0912",
        "voiceId": "a" * 32,
        "retryCount": 3,
        "serverId": "main",
    }


def test_a_file_is_uploaded_first(shell: Shell, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "hello.wav"
    file.write_bytes(b"RIFF and so on")
    recording = {"id": "b" * 32, "name": "hello.wav", "duration": 1.0, "size": 14}
    service.on("POST /api/v2/files/voice", recording)
    service.on("POST /api/v2/voice/single", CALL)
    status, out, err = shell.run("call", "0912", "--voice", str(file))
    assert (status, out.split()) == (0, [CALL["id"], "WAITING", "0912"]), err
    upload, call = (body for _, _, _, body in service.asked)
    assert b'name="file"; filename="hello.wav"' in upload
    assert b"RIFF and so on" in upload
    assert json.loads(call)["voiceId"] == "b" * 32

    status, out, _ = shell.run("voice", "upload", str(file))
    assert (status, out.split()[0]) == (0, "b" * 32)
    assert json.loads(shell.run("voice", "upload", str(file), "--json")[1]) == recording


@pytest.mark.parametrize(
    ("final", "expected"),
    [(OVER, 0), ({**OVER, "status": "USER_BUSY", "statusCode": 3}, 1)],
)
def test_waiting_succeeds_only_with_an_answered_call(
    shell: Shell,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    final: dict[str, Any],
    expected: int,
) -> None:
    monkeypatch.setattr("bitel.client.POLL_INTERVAL", 0.001)
    service.on("POST /api/v2/voice/single", CALL)
    service.on(f"GET /api/v2/voice/status/{CALL['id']}", CALL, CALL, final)
    status, out, _ = shell.run("call", "0912", "--voice", "a" * 32, "--wait", "--json")
    assert (status, json.loads(out)) == (expected, final)


def test_waiting_shows_why_a_call_failed(
    shell: Shell, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.client.POLL_INTERVAL", 0.001)
    final = {**OVER, "status": "ERROR", "statusCode": 11, "billSec": 0}
    details = {**final, "campaignId": None, "reference": None, "machine": None, "keys": "",
               "reason": "on the do-not-call list", "attempts": []}  # fmt: skip
    service.on("POST /api/v2/voice/single", final)
    service.on(f"GET /api/v2/voice/status/{CALL['id']}", final)
    service.on(f"GET /api/v2/voice/calls/{CALL['id']}", details)
    status, out, _ = shell.run("call", "0912", "--voice", "a" * 32, "--wait")
    assert (status, out) == (
        1,
        f"{CALL['id']}  ERROR  0912\n   reason: on the do-not-call list\n",
    )


def test_a_status_is_shown(shell: Shell, service: Service) -> None:
    service.on(f"GET /api/v2/voice/status/{CALL['id']}", OVER)
    status, out, _ = shell.run("status", CALL["id"])
    assert (status, out.split()) == (0, [CALL["id"], "NORMAL", "0912", "12", "s", "-34.2"])
    service.on("GET /api/v2/voice/status/..%2F%3Fx%20y", OVER)
    assert shell.run("status", "../?x y")[0] == 0


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((404, {"result": None, "error": "NotFound", "message": "no such call"}), "no such call"),
        ((429, {"result": None, "error": "TooManyRequests", "message": "slower"}), "slower"),
        ((400, {"result": None, "error": "Novelty"}), "Novelty"),
        ((502, b"<html>Bad gateway"), "502"),
        ((200, b"[]"), "200"),
    ],
)
def test_an_error_of_the_service_is_told(
    shell: Shell, service: Service, answer: tuple[int, Any], says: str
) -> None:
    service.answers["GET /api/v2/voice/status/x"] = [answer]
    status, out, err = shell.run("status", "x")
    assert (status, out) == (1, "")
    assert err.startswith("bitel: ")
    assert says in err


def test_a_service_that_is_not_there_is_told(
    shell: Shell, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITEL_URL", "http://127.0.0.1:1")
    status, _, err = shell.run("status", "x")
    assert status == 1
    assert "http://127.0.0.1:1" in err
    for wrong in ("localhost", "ftp://x"):
        monkeypatch.setenv("BITEL_URL", wrong)
        status, _, err = shell.run("status", "x")
        assert (status, err.startswith("bitel: BITEL_URL must be an address")) == (1, True), err
    monkeypatch.setenv("BITEL_URL", "http://")
    status, _, err = shell.run("status", "x")
    assert (status, err.count("\n")) == (1, 1), err


def test_an_address_with_the_path_of_the_api_is_refused(
    shell: Shell, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.on("GET /prefix/api/v2/voice/status/x", CALL)
    for path in ("/api/v2", "/api/v1/"):
        monkeypatch.setenv("BITEL_URL", service.url + path)
        status, _, err = shell.run("status", "x")
        assert (status, "without the path of the API" in err) == (1, True)
    monkeypatch.setenv("BITEL_URL", f"{service.url}/prefix")
    assert shell.run("status", "x")[0] == 0, "a proxy may have a prefix"


def test_the_address_comes_from_the_settings_without_a_url(
    shell: Shell, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BITEL_URL")
    service.on("GET /api/v2/voice/status/x", CALL)
    port = service.server.server_port
    shell.config.write_text(f'[http]\nhost = "0.0.0.0"\nport = {port}\n')
    assert shell.run("status", "x", "--config", str(shell.config))[0] == 0


def test_a_token_is_needed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("", "with\nnewline", "ü"):
        monkeypatch.setenv("BITEL_TOKEN", token)
        status, _, err = shell.run("status", "x")
        assert status == 1
        assert "BITEL_TOKEN" in err


def test_what_is_to_be_played_must_exist(shell: Shell, service: Service) -> None:
    status, _, err = shell.run("call", "0912", "--voice", "nothing.wav")
    assert status == 1
    assert "nothing.wav" in err
    assert service.asked == []


def test_help_starts_without_the_service(tmp_path: Path) -> None:
    script = (
        "import sys; from bitel.cli import main; "
        "assert not {'fastapi', 'sqlalchemy', 'numpy', 'av', 'httpx'} & set(sys.modules), "
        "sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_campaigns_are_listed_newest_first(shell: Shell) -> None:
    project = shell.admin("project", "create", "acme")
    other = shell.admin("project", "create", "beta")
    ids = []
    with Database.open(f"sqlite:///{shell.data_dir / 'bitel.db'}") as database:
        for at, project_id in ((1000.0, project), (2000.0, other), (3000.0, project)):
            new = campaigns.Campaign(new_id(at), project_id, "main", None, at, 0)
            ids.append(new.id)
            database.write_now(partial(campaigns.add, new=new))
    listed = json.loads(shell.admin("campaign", "list", "--json"))
    assert [each["id"] for each in listed] == ids[::-1]
    assert [each["project"] for each in listed] == ["acme", "beta", "acme"]
    assert listed[0] == {
        "id": ids[2],
        "project": "acme",
        "requestDate": 3000,
        "finishedDate": 0,
        "total": 0,
        "byStatus": {},
        "price": 0.0,
    }
    only = shell.admin("campaign", "list", "--project", "acme", "--limit", "1").splitlines()
    assert len(only) == 1
    assert only[0].startswith(f"{ids[2]}  1970-01-01 00:50 ")
    assert shell.admin("campaign", "list", "--project", other).splitlines()[0].startswith(ids[1])


def test_a_project_is_deleted_only_when_it_is_meant(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    project = shell.admin("project", "create", "acme")
    status, _, err = shell.run("project", "delete", "acme", "--config", str(shell.config))
    assert (status, "Aborted" in err) == (1, True), "nobody confirmed it"
    assert shell.admin("project", "list").startswith(project)
    shell.admin("project", "delete", "acme", "--yes")
    assert shell.admin("project", "list") == ""
    status, _, err = shell.run("project", "delete", "acme", "--yes", "--config", str(shell.config))
    assert (status, err) == (1, "bitel: no project is named 'acme', or has that id\n")
