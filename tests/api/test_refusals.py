"""What a client may get wrong: each answered in the envelope with its code, and nothing queued."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from bitel.api import middleware
from bitel.store import tokens

if TYPE_CHECKING:
    from tests.api.stage import Stage

SINGLE = "/api/v2/voice/single"


def check(answer: Any, status: int, code: str, names: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    envelope = answer.json()
    assert list(envelope) == ["result", "error", "message"]
    assert envelope["result"] is None
    assert envelope["error"] == code
    assert names in envelope["message"]


BAD_FIELDS = [
    ("retryCount", -1),
    ("retryCount", 11),
    ("retryCount", "3"),
    ("retryCount", True),
    ("retryCount", 1.5),
    ("retryCount", 1.0),
    ("retryCount", []),
    ("retryCount", 10**30),
    ("retryInterval", 4),
    ("retryInterval", 86_401),
    ("retryInterval", "60"),
    ("timeToLive", 0),
    ("timeToLive", 604_801),
    ("timeToLive", False),
    ("serverId", 1),
    ("phoneNumber", 9121234567),
    ("phoneNumber", None),
    ("phoneNumber", ["09121234567"]),
    ("voiceId", 5),
    ("voiceId", None),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
async def test_a_bad_field_is_named(sqlite_stage: Stage, field: str, value: Any) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        answer = await client.post(SINGLE, json=stage.body(**{field: value}))
    check(answer, 400, "InvalidRequest", field)
    assert stage.queued() == 0
    assert stage.rung == []


@pytest.mark.parametrize("voice_id", ["no such recording", "0" * 32, "\x00", ""])
async def test_an_unknown_recording_is_named(stage: Stage, voice_id: str) -> None:
    async with stage.client() as client:
        answer = await client.post(SINGLE, json=stage.body(voiceId=voice_id))
    check(answer, 400, "InvalidRequest", "voiceId")
    assert stage.queued() == 0


@pytest.mark.parametrize("field", ["phoneNumber", "voiceId"])
async def test_a_missing_field_is_named(sqlite_stage: Stage, field: str) -> None:
    stage = sqlite_stage
    body = stage.body()
    del body[field]
    async with stage.client() as client:
        answer = await client.post(SINGLE, json=body)
    check(answer, 400, "InvalidRequest", f"{field} is missing")
    assert stage.queued() == 0


BAD_BODIES = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a string": b'"x"',
    "a number": b"1",
    "cut short": b'{"phoneNumber": "0912',
    "not UTF-8": b'{"phoneNumber": "\xff\xfe", "voiceId": "x"}',
    "UTF-16": '{"phoneNumber": "1"}'.encode("utf-16"),
    "a lone surrogate": b'{"phoneNumber": "\\ud800", "voiceId": "x"}',
    "deep": b"[" * 100_000,
    "a deep object": b'{"a":' * 100_000,
    "a long number": b'{"retryCount": ' + b"9" * 10_000 + b"}",
    "NaN": b'{"retryCount": NaN}',
    "a form": b"phoneNumber=09121234567&voiceId=x",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_body_that_is_no_object_is_refused(sqlite_stage: Stage, body: bytes) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        answer = await client.post(SINGLE, content=body)
    check(answer, 400, "InvalidRequest")
    assert stage.queued() == 0


BAD_NUMBERS = ["letters", "", "1", "+", "+98912123456789", "0912123456a", "9" * 5000,
               "\x00", "+98\U0001f600", "٠" * 12]  # fmt: skip


@pytest.mark.parametrize("number", BAD_NUMBERS)
async def test_a_number_that_is_not_possible_is_refused(sqlite_stage: Stage, number: str) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        answer = await client.post(SINGLE, json=stage.body(phoneNumber=number))
    check(answer, 400, "InvalidPhoneNumber", "phoneNumber")
    assert stage.queued() == 0


@pytest.mark.parametrize("server", ["", "nowhere", "MAIN", "\x00", "x" * 10_000])
async def test_an_unknown_server_is_refused(sqlite_stage: Stage, server: str) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        answer = await client.post(SINGLE, json=stage.body(serverId=server))
    check(answer, 400, "InvalidServer", "serverId")
    assert stage.queued() == 0


async def test_another_projects_recording_is_refused(stage: Stage) -> None:
    theirs = stage.new_recording(stage.new_project("other"))
    async with stage.client() as client:
        answer = await client.post(SINGLE, json=stage.body(voiceId=theirs))
    check(answer, 400, "InvalidRequest", "voiceId")
    assert stage.queued() == 0


async def test_the_number_is_looked_at_before_the_server_and_the_recording(
    sqlite_stage: Stage,
) -> None:
    stage = sqlite_stage
    body = stage.body(phoneNumber="x", serverId="x", voiceId="x")
    codes = []
    async with stage.client() as client:
        for mended in ({}, {"phoneNumber": "09121234567"}, {"serverId": "main"}):
            body |= mended
            codes.append((await client.post(SINGLE, json=body)).json()["error"])
    assert codes == ["InvalidPhoneNumber", "InvalidServer", "InvalidRequest"]


async def test_a_body_over_the_limit_is_too_large(sqlite_stage: Stage, served: Any) -> None:
    stage = sqlite_stage
    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post(SINGLE, content=b"x" * 10_000_000)
        check(answer, 413, "PayloadTooLarge", "2097152")
        assert answer.headers["connection"] == "close"
        assert (await client.get("/api/v2/servers")).status_code == 200
    assert stage.queued() == 0


async def test_no_more_of_a_body_is_read_than_the_limit(make_stage: Any) -> None:
    stage = make_stage(http={"max_body": 100_000})
    read = 0
    sent: list[tuple[int, Any]] = []

    async def receive() -> Any:
        nonlocal read
        read += 60_000
        return {"type": "http.request", "body": b" " * 60_000, "more_body": True}

    async def send(message: Any) -> None:
        sent.append((read, message))

    headers = [
        (b"authorization", f"Bearer {stage.token}".encode()),
        (b"transfer-encoding", b"chunked"),
    ]
    scope = {"type": "http", "method": "POST", "path": SINGLE, "headers": headers}
    await stage.app({**scope, "query_string": b"", "root_path": ""}, receive, send)
    (kept, start), (_, body), (linger, end) = sent
    assert (start["status"], kept) == (413, 120_000)
    assert json.loads(body["body"])["error"] == "PayloadTooLarge"
    # The rest is thrown away for a while, so that no reset overtakes the answer.
    assert end["body"] == b""
    assert kept < linger <= middleware.LINGER_BYTES + 200_000


def forged(
    stage: Stage,
    secret: bytes | None = None,
    alg: str = "HS256",
    kid: Any = None,
    **claims: Any,
) -> str:
    good = {"sub": stage.project_id, "iss": "Bitel", "aud": "Bitel", "jti": stage.token_id}
    payload = {name: value for name, value in {**good, **claims}.items() if value is not None}
    key = stage.parts.tokens.keys[0].secret if secret is None else secret
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(payload, key if alg != "none" else "", algorithm=alg, headers=headers)


BAD_TOKENS: dict[str, Any] = {
    "no JWT": lambda stage: "abc",
    "three dots": lambda stage: "...",
    "cut short": lambda stage: stage.token[:-1],
    "another secret": lambda stage: forged(stage, b"x" * 48),
    "an unknown key": lambda stage: forged(stage, kid="0" * 32),
    "another secret for a known key": lambda stage: forged(
        stage, b"x" * 48, kid=stage.parts.tokens.keys[0].id
    ),
    "no algorithm": lambda stage: forged(stage, alg="none"),
    "HS384": lambda stage: forged(stage, alg="HS384"),
    "HS512": lambda stage: forged(stage, alg="HS512"),
    "another issuer": lambda stage: forged(stage, iss="Mallory"),
    "another audience": lambda stage: forged(stage, aud="Mallory"),
    "other audiences": lambda stage: forged(stage, aud=["Mallory", "Other"]),
    "an audience in other letters": lambda stage: forged(stage, aud="bitel"),
    "an audience that contains ours": lambda stage: forged(stage, aud="Bitel2"),
    "no issuer": lambda stage: forged(stage, iss=None),
    "no audience": lambda stage: forged(stage, aud=None),
    "no subject": lambda stage: forged(stage, sub=None),
    "no jti": lambda stage: forged(stage, jti=None),
    "another project": lambda stage: forged(stage, sub=stage.new_project("other")),
    "a project that is none": lambda stage: forged(stage, sub="\x00"),
    "a jti never issued": lambda stage: forged(stage, jti="0" * 32),
    "a jti that is none": lambda stage: forged(stage, jti="\x00"),
    "expired": lambda stage: forged(stage, exp=1),
    "not yet": lambda stage: forged(stage, nbf=4_000_000_000),
    "too long": lambda stage: "x" * 10_000,
}


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
@pytest.mark.parametrize("make", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_a_bad_token_is_unauthorized(stage: Stage, make: Any) -> None:
    async with stage.client(make(stage)) as client:
        answer = await client.post(SINGLE, json=stage.body())
    check(answer, 401, "Unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert stage.queued() == 0


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "{token}", "Bearer  ", "Bearer ü"]
)
async def test_a_header_without_a_token_is_unauthorized(
    sqlite_stage: Stage, header: str | None
) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        del client.headers["Authorization"]
        headers: dict[bytes, bytes] = {}
        if header is not None:
            headers[b"Authorization"] = header.replace("{token}", stage.token).encode("latin-1")
        # Even where the body is bad too: whoever has no token learns nothing else.
        answer = await client.post(SINGLE, content=b"[]", headers=headers)
    check(answer, 401, "Unauthorized")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
async def test_the_scheme_may_be_written_in_any_case(sqlite_stage: Stage, scheme: str) -> None:
    async with sqlite_stage.client() as client:
        client.headers["Authorization"] = f"{scheme}  {sqlite_stage.token}"
        assert (await client.get("/api/v2/servers")).status_code == 200


async def test_a_revoked_token_is_refused_at_once(stage: Stage) -> None:
    async with stage.client() as client:
        assert (await client.get("/api/v2/servers")).status_code == 200
        stage.do(lambda conn: tokens.revoke(conn, stage.token_id, stage.clock()))
        check(await client.get("/api/v2/servers"), 401, "Unauthorized")
        check(await client.post(SINGLE, json=stage.body()), 401, "Unauthorized")
    assert stage.queued() == 0


async def test_a_token_ends_with_its_time(stage: Stage) -> None:
    # Far in the future, where only the store's clock decides.
    _, token = stage.new_token(stage.project_id, expires_at=4_000_000_000.0)
    async with stage.client(token) as client:
        assert (await client.get("/api/v2/servers")).status_code == 200
        stage.clock.now = 4_000_000_000.0
        check(await client.get("/api/v2/servers"), 401, "Unauthorized")


async def test_a_disabled_project_is_refused(stage: Stage) -> None:
    from sqlalchemy import update

    from bitel.store.schema import project

    stage.do(lambda conn: conn.execute(update(project).values(disabled=True)))
    async with stage.client() as client:
        check(await client.get("/api/v2/servers"), 401, "Unauthorized")


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/v2/voice/single/", "/api/v9/x", "/api/v2/voice", "/api/v2//servers"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_path_is_not_found(sqlite_stage: Stage, path: str, method: str) -> None:
    async with sqlite_stage.client() as client:
        del client.headers["Authorization"]
        check(await client.request(method, path), 404, "NotFound")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", SINGLE, "POST"),
        ("PUT", SINGLE, "POST"),
        ("OPTIONS", SINGLE, "POST"),
        ("BREW", SINGLE, "POST"),
        ("POST", "/api/v2/servers", "GET"),
        ("DELETE", SINGLE, "POST"),
        ("POST", f"/api/v2/voice/{'0' * 32}", "DELETE"),
        ("PATCH", f"/api/v2/files/voice/{'0' * 32}", "DELETE, GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_says_which_are_right(
    sqlite_stage: Stage, method: str, path: str, allowed: str
) -> None:
    async with sqlite_stage.client() as client:
        del client.headers["Authorization"]
        answer = await client.request(method, path)
    check(answer, 405, "MethodNotAllowed", allowed)
    assert answer.headers["allow"] == allowed


async def test_what_is_not_expected_is_logged_and_not_told(
    sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    stage = sqlite_stage

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("the secret inside")

    monkeypatch.setattr("bitel.store.leases.dialer_states", broken)
    async with stage.client() as client:
        answer = await client.get("/api/v2/servers")
    check(answer, 500, "InternalError")
    assert "secret" not in answer.text
    (logged,) = (line for line in logs if line["log_level"] == "error")
    assert logged["exc_info"]
    assert logged["path"] == "/api/v2/servers"


async def test_a_database_that_is_gone_is_unavailable(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    stage.parts.database.close()
    async with stage.client() as client:
        check(await client.post(SINGLE, json=stage.body()), 503, "Unavailable")
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_answers_carry_security_headers(sqlite_stage: Stage) -> None:
    async with sqlite_stage.client() as client:
        for path in ("/api/v2/servers", "/nowhere", "/healthz", "/docs"):
            headers = (await client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers


async def test_logs_hold_neither_tokens_nor_numbers(sqlite_stage: Stage, logs: list[Any]) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        await client.post(SINGLE, json=stage.body(phoneNumber="09121234567"))
        await client.get("/api/v2/servers?token=09121234567")
    assert [line["status"] for line in logs] == [200, 200]
    assert stage.token not in str(logs)
    assert "1234567" not in str(logs)


def test_a_lone_surrogate_in_an_answer_is_escaped() -> None:
    from bitel.api.responses import success

    assert json.loads(bytes(success("\ud800").body))["result"] == "\ud800"
