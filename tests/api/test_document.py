"""The OpenAPI document and the page that shows it."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any, get_args

import openapi_spec_validator
import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from bitel.api import app as application
from bitel.api import responses, webhook_document
from bitel.api import schemas as bodies
from bitel.api.operation_ids import OPERATION_IDS
from bitel.api.responses import placed_answer, recording_answer
from bitel.store import recordings
from bitel.store.recordings import Recording
from bitel.webhooks.signing import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER

if TYPE_CHECKING:
    from tests.api.stage import Stage


@pytest.fixture
async def document(sqlite_stage: Stage) -> Any:
    async with sqlite_stage.client() as client:
        del client.headers["Authorization"]
        answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


async def test_every_route_is_described(document: Any) -> None:
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    served = {
        f"{method} {route.path_format}"
        for router in application._ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods or ()
    }
    assert set(operations) == served
    assert len(served) > 20
    for name, operation in operations.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        assert "422" not in operation["responses"], name
        if name != "GET /healthz":
            assert operation["security"] == [{"token": []}], name
            assert {"200", "401", "500", "503"} <= set(operation["responses"]), name
    assert "HTTPValidationError" not in document["components"]["schemas"]
    scheme = document["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)


async def test_bodies_are_described_with_their_limits(document: Any) -> None:
    single = document["paths"]["/api/v2/voice/single"]["post"]
    content = single["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/SingleBody"}
    schema = document["components"]["schemas"]["SingleBody"]
    assert set(schema["required"]) == {"phoneNumber", "voiceId"}
    number = schema["properties"]["retryCount"]["anyOf"][0]
    assert number == {"type": "integer", "minimum": 0, "maximum": 10}
    assert schema["examples"]
    for status, code in {
        "400": "InvalidServer",
        "402": "InsufficientBalance",
        "413": "Payload",
    }.items():
        assert code in single["responses"][status]["description"]
    upload = document["paths"]["/api/v2/files/voice"]["post"]
    assert "multipart/form-data" in upload["requestBody"]["content"]


async def test_the_described_keys_are_the_answered_ones(document: Any) -> None:
    schemas = document["components"]["schemas"]
    assert list(schemas["CallAnswer"]["properties"]) == list(placed_answer("i", "n", 1.0))
    made = Recording("i", "p", "n", 1.23456, 1, 1.0)
    assert list(schemas["RecordingAnswer"]["properties"]) == list(recording_answer(made))
    assert recording_answer(made)["duration"] == 1.235


async def test_everything_comes_with_an_example(document: Any) -> None:
    def exemplified(schema: Any) -> bool:
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        if "examples" in schema:
            return len(schema["examples"]) > 0
        if schema.get("title", "").startswith("Success"):
            return exemplified(schema["properties"]["result"])
        return exemplified(schema["items"]) if "items" in schema else schema["type"] == "string"

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            assert body is None or exemplified(body["schema"]), name
            for status, answer in operation["responses"].items():
                if status == "204":
                    assert "content" not in answer, name
                    continue
                content = answer["content"].get("application/json", {"example": "audio"})
                assert "example" in content or exemplified(content["schema"]), (name, status)
            for parameter in operation.get("parameters", []):
                assert parameter["description"], (name, parameter["name"])


async def test_calls_may_be_placed_once_with_a_key(document: Any) -> None:
    with_key = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for parameter in operation.get("parameters", [])
        if (parameter["name"], parameter["in"]) == ("Idempotency-Key", "header")
    }
    placing = {
        path
        for path, methods in document["paths"].items()
        if "/voice/" in path and "{" not in path and "post" in methods
    }
    assert with_key == placing


async def test_each_example_of_a_body_is_taken_as_it_is(sqlite_stage: Stage, document: Any) -> None:
    stage = sqlite_stage
    made = Recording(bodies._VOICE_ID, stage.project_id, "hello", 1.0, 9, 1.0)
    stage.do(lambda conn: recordings.add(conn, made))
    sent = set()
    schemas = document["components"]["schemas"]
    async with stage.client() as client:
        batch = {"phoneNumbers": ["09120000001"], "voiceId": stage.recording_id}
        campaign_id = (await client.post("/api/v2/voice/batch", json=batch)).json()["campaignId"]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                body = operation.get("requestBody", {}).get("content", {}).get("application/json")
                if body is None:
                    continue
                schema = schemas[body["schema"]["$ref"].rpartition("/")[2]]
                for example in schema["examples"]:
                    path = path.replace("{campaign_id}", campaign_id)
                    answer = await client.request(method, path, json=example)
                    assert answer.status_code == 200, (path, answer.text)
                    sent.add(schema["title"])
    shapes = {name for name, each in vars(bodies).items() if _is_a_body(each)}
    parts = {"RetryBody", "WebhookBody", "RecipientBody"}
    parts |= {"_Keys", "CollectBody", "KeyBody", "LastKeyBody", "SubmenuBody", "MenuBody"}
    assert sent == shapes - parts - {"Body", "CallTerms", "RequestTerms", "BatchTerms"}


def _is_a_body(each: Any) -> bool:
    return isinstance(each, type) and issubclass(each, bodies.Body)


async def test_each_example_of_an_answer_fits_its_description(document: Any) -> None:
    described = set()
    for name, schema in document["components"]["schemas"].items():
        if hasattr(bodies, name):
            continue  # sent by the test above
        for example in schema.get("examples", ()):
            shape = getattr(responses, name, None) or getattr(webhook_document, name)
            whole = _with_nulls(shape, example)
            assert shape.model_validate(whole, strict=True).model_dump() == whole
            described.add(name)
    assert described >= {"CallAnswer", "CampaignAnswer", "CdrAnswer", "Failure", "RecordingPage"}
    assert described >= {"CallEndEvent", "CallEvent", "CampaignEvent", "CallDetailsAnswer"}


def _with_nulls(shape: Any, example: Any) -> Any:
    """The example with the keys that are null, which FastAPI leaves out."""
    if isinstance(example, list):
        return [_with_nulls(get_args(shape)[0], each) for each in example]
    if not (isinstance(shape, type) and issubclass(shape, BaseModel)):
        return example
    return {
        name: _with_nulls(field.annotation, example.get(name))
        for name, field in shape.model_fields.items()
    }


async def test_every_operation_has_a_name_of_its_own(document: Any) -> None:
    named = {
        f"{method.upper()} {path}": operation["operationId"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert named == dict(OPERATION_IDS)
    for name in named.values():
        assert re.fullmatch(r"[a-z]+([A-Z][a-z]+|V1)+", name), name
    webhooks = {name: each["post"]["operationId"] for name, each in document["webhooks"].items()}
    assert webhooks == {
        "call.ended": "onCallEnded",
        "call.initiated": "onCallInitiated",
        "call.ringing": "onCallRinging",
        "call.answered": "onCallAnswered",
        "call.completed": "onCallCompleted",
        "campaign.finished": "onCampaignFinished",
    }
    assert len({*named.values(), *webhooks.values()}) == len(named) + len(webhooks)


async def test_webhooks_are_described_with_their_headers_and_bodies(document: Any) -> None:
    schemas = document["components"]["schemas"]
    types = set()
    for name, methods in document["webhooks"].items():
        operation = methods["post"]
        assert operation["description"], name
        headers = {each["name"]: each for each in operation["parameters"]}
        assert set(headers) == {ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER}
        assert all(each["in"] == "header" and each["required"] for each in headers.values())
        content = operation["requestBody"]["content"]["application/json"]
        schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
        assert schema["examples"], name
        kind = schema["properties"].get("type", {})
        types.update(kind.get("enum", [kind["const"]] if "const" in kind else []))
        assert {"2XX", "410", "default"} <= set(operation["responses"])
    assert types == set(document["webhooks"]) - {"call.ended"}


async def test_files_are_described_as_binary(document: Any) -> None:
    binary = {"type": "string", "format": "binary"}
    for path in ("files/voice", "files/list", "account/do-not-call/import"):
        body = document["paths"][f"/api/v2/{path}"]["post"]["requestBody"]["content"]
        (schema,) = (each["schema"] for each in body.values())
        assert list(body) == ["multipart/form-data"]
        assert schema["required"] == ["file"]
        assert binary.items() <= schema["properties"]["file"].items()
    wav = document["paths"]["/api/v2/files/voice/{voice_id}"]["get"]["responses"]["200"]
    assert wav["content"] == {"audio/wav": {"schema": binary}}


async def test_the_document_is_valid(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    openapi_spec_validator.validate(document)


async def test_the_page_needs_nothing_from_elsewhere(sqlite_stage: Stage) -> None:
    async with sqlite_stage.client() as client:
        answer = await client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    # A policy forbids attributes such as style= and onclick= too; so there are none.
    assert not re.search(r"<[^>]+\s(style|on\w+)=", answer.text.split("<script>")[0])
