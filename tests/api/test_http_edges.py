"""Requests at the edges of HTTP and JSON: encodings, hosts, byte order marks, ambiguous bodies."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from bitel import client_requests, errors
from bitel.errors import BY_CODE, BitelError, InternalError, SettingsError, TooManyRequestsError

if TYPE_CHECKING:
    from tests.api.stage import Stage

SINGLE = "/api/v2/voice/single"
JSON = {"content-type": "application/json"}


def check(answer: httpx.Response, status: int, code: str, *names: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    for name in names:
        assert name in answer.json()["message"]


@pytest.mark.parametrize("path", [SINGLE, "/api/v2/files/voice", "/api/v1/voice/otp", "/nowhere"])
@pytest.mark.parametrize("coding", ["gzip", "GZIP", "identity, br", "deflate"])
async def test_an_encoded_body_is_not_taken(sqlite_stage: Stage, path: str, coding: str) -> None:
    body = gzip.compress(json.dumps(sqlite_stage.body()).encode())
    async with sqlite_stage.client() as client:
        headers = {**JSON, "content-encoding": coding}
        answer = await client.post(path, content=body, headers=headers)
    check(answer, 415, "UnsupportedMedia", "Content-Encoding")
    assert answer.headers["accept-encoding"] == "identity"
    assert sqlite_stage.queued() == 0


async def test_an_identity_coding_is_none(sqlite_stage: Stage) -> None:
    async with sqlite_stage.client() as client:
        headers = {"content-encoding": "identity"}
        answer = await client.post(SINGLE, json=sqlite_stage.body(), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /healthz HTTP/1.1\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n", 200),
        ("GET /healthz HTTP/1.0\r\n", 200),
    ],
)
async def test_a_request_names_its_host_once(
    sqlite_stage: Stage, served: Callable[[Stage], Any], head: str, status: int
) -> None:
    async with served(sqlite_stage) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        answer = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
    line, _, rest = answer.partition("\r\n")
    assert line.split()[1] == str(status)
    if status == 400:
        envelope = json.loads(rest.partition("\r\n\r\n")[2])
        assert (envelope["result"], envelope["error"]) == (None, "InvalidRequest")
        assert "Host" in envelope["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /api/v2/servers HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n",
        b"GET /api/v2/ser\x01vers HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /api/v2/voice/single HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET /api/v2/servers HTTP/9.9\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_bytes_that_are_no_request_are_refused_in_the_envelope(
    sqlite_stage: Stage, served: Callable[[Stage], Any], sent: bytes
) -> None:
    async with served(sqlite_stage) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    envelope = json.loads(body)
    assert (envelope["result"], envelope["error"]) == (None, "InvalidRequest")


@pytest.mark.parametrize("path", ["/healthz", SINGLE, "/metrics", "/nowhere"])
@pytest.mark.parametrize("order", ["ours first", "ours last"])
async def test_a_request_has_one_authorization_header(
    sqlite_stage: Stage, path: str, order: str
) -> None:
    tokens = [f"Bearer {sqlite_stage.token}", "Bearer other"]
    if order == "ours last":
        tokens.reverse()
    async with sqlite_stage.client() as client:
        del client.headers["authorization"]
        headers = [("authorization", token) for token in tokens]
        answer = await client.post(path, json=sqlite_stage.body(), headers=headers)
    check(answer, 400, "InvalidRequest", "Authorization")
    assert sqlite_stage.queued() == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
async def test_a_byte_order_mark_is_named(sqlite_stage: Stage, encoding: str) -> None:
    text = json.dumps(sqlite_stage.body())
    marks = {"utf-16-le": codecs.BOM_UTF16_LE}
    body = marks.get(encoding, b"") + text.encode(encoding)
    async with sqlite_stage.client() as client:
        answer = await client.post(SINGLE, content=body, headers=JSON)
    check(answer, 400, "InvalidRequest", "byte order mark", "UTF-8")


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ('{"phoneNumber": "1", "voiceId": "x", "phoneNumber": "2"}', "'phoneNumber' twice"),
        ('{"retryCount": NaN}', "NaN"),
        ('{"a": {"b": [Infinity]}}', "Infinity"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"unknown": [{"k": 1, "k": 1}]}', "'k' twice"),
    ],
)
@pytest.mark.parametrize("path", [SINGLE, "/api/v2/voice/batch", "/api/v2/files/tts"])
async def test_a_body_that_readers_take_differently_is_refused(
    sqlite_stage: Stage, path: str, body: str, names: str
) -> None:
    async with sqlite_stage.client() as client:
        answer = await client.post(path, content=body.encode(), headers=JSON)
    check(answer, 400, "InvalidRequest", names)


async def test_a_replayed_answer_says_so(stage: Stage) -> None:
    body, key = stage.body(), {"Idempotency-Key": "k"}
    batch = {"phoneNumbers": ["09121234567"], "voiceId": stage.recording_id}
    async with stage.client() as client:
        for path, sent in ((SINGLE, body), ("/api/v2/voice/batch", batch)):
            headers = {"Idempotency-Key": f"k{path}"}
            first = await client.post(path, json=sent, headers=headers)
            again = await client.post(path, json=sent, headers=headers)
            assert "idempotent-replayed" not in first.headers
            assert again.headers["idempotent-replayed"] == "true"
            assert again.content == first.content
        together = await asyncio.gather(
            *(client.post(SINGLE, json=body, headers=key) for _ in range(5))
        )
        conflict = await client.post(SINGLE, json=stage.body(retryCount=4), headers=key)
    assert sum("idempotent-replayed" in answer.headers for answer in together) == 4
    check(conflict, 409, "Conflict")
    assert "idempotent-replayed" not in conflict.headers


CODES = {
    "InvalidRequest", "InvalidServer", "InvalidPhoneNumber", "Unauthorized", "InsufficientBalance",
    "Forbidden", "NotFound", "MethodNotAllowed", "Conflict", "PayloadTooLarge", "UnsupportedMedia",
    "TooManyRequests", "InternalError", "Unavailable",
}  # fmt: skip


def test_a_client_raises_the_error_of_each_code() -> None:
    assert set(BY_CODE) == CODES
    for code in CODES:
        answer = httpx.Response(
            400,
            json={"result": None, "error": code, "message": "why"},
            headers={"Retry-After": "7"},
            request=httpx.Request("GET", "http://bitel/"),
        )
        with pytest.raises(BitelError, match="why") as raised:
            client_requests.result_of(answer)
        assert type(raised.value) is getattr(errors, f"{code.removesuffix('Error')}Error")
        assert raised.value.code == code
        assert not isinstance(raised.value, SettingsError)
        if isinstance(raised.value, TooManyRequestsError):
            assert raised.value.retry_after == 7
    assert BY_CODE["InternalError"] is InternalError
