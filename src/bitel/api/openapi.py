"""Builds the OpenAPI document, with the descriptions of routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import Response

from bitel.api import webhook_document
from bitel.api.operation_ids import OPERATION_IDS
from bitel.api.reading import IDEMPOTENCY_PARAMETER, REPLAYED_HEADER
from bitel.api.responses import REPLAYED, Failure, Success
from bitel.errors import (
    BitelError,
    ConflictError,
    ForbiddenError,
    InsufficientBalanceError,
    InvalidPhoneNumberError,
    InvalidRequestError,
    InvalidServerError,
    PayloadTooLargeError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedMediaError,
)

DESCRIPTION = """\
Upload a recording, have it played to phone numbers over your own SIP trunks, and know what became
of each call. Every answer is an envelope: `{"result": …, "error": null}`, or
`{"result": null, "error": "<Code>", "message": "<what is wrong, in a sentence>"}`.
"""

_EVERYWHERE: tuple[type[BitelError], ...] = (
    UnauthorizedError,
    TooManyRequestsError,
    UnavailableError,
    BitelError,
)
_WITH_BODY: tuple[type[BitelError], ...] = (
    InvalidRequestError,
    PayloadTooLargeError,
    UnsupportedMediaError,
)
_PLACING: tuple[type[BitelError], ...] = (
    InvalidPhoneNumberError,
    InvalidServerError,
    InsufficientBalanceError,
    ForbiddenError,
    ConflictError,
)


class Description(TypedDict, total=False):
    """Keyword arguments of a route decorator."""

    summary: str
    tags: list[str | Any]
    response_model: None
    response_class: type[Response]
    responses: dict[int | str, dict[str, Any]]
    openapi_extra: dict[str, Any] | None


def described(
    summary: str,
    tag: str,
    result: Any,
    errors: Iterable[type[BitelError]] = (),
    body: type[BaseModel] | None = None,
) -> Description:
    """Describes a route that answers `result` (a type) in the envelope, or one of `errors`.

    Errors of every route, and of every JSON `body`, are added.
    """
    return _described(summary, tag, Success[result], errors, body)


def placing_calls(
    summary: str, envelope: type[BaseModel], body: type[BaseModel], tag: str = "calls"
) -> Description:
    """Describes a route that takes `body`, places calls, and answers `envelope`."""
    description = _described(summary, tag, envelope, _PLACING, body)
    description["openapi_extra"] = {**json_body(body), "parameters": [IDEMPOTENCY_PARAMETER]}
    description["responses"][200]["headers"] = {REPLAYED: REPLAYED_HEADER}
    return description


def described_stream(
    summary: str,
    tag: str,
    media_type: str,
    example: str,
    errors: Iterable[type[BitelError]],
    parameters: Sequence[Mapping[str, Any]] = (),
) -> Description:
    """Describes a route that streams text of `media_type`, or answers one of `errors`.

    `parameters` are those that FastAPI does not know of.
    """
    content = {media_type: {"schema": {"type": "string"}, "example": example}}
    return Description(
        summary=summary,
        tags=[tag],
        response_model=None,
        response_class=Response,
        responses={
            200: {"content": content, "description": "Done."},
            **failures((*errors, *_EVERYWHERE)),
        },
        openapi_extra={"parameters": list(parameters)} if parameters else None,
    )


def _described(
    summary: str,
    tag: str,
    envelope: type[BaseModel],
    errors: Iterable[type[BitelError]],
    body: type[BaseModel] | None,
) -> Description:
    every = (*errors, *(_WITH_BODY if body else ()), *_EVERYWHERE)
    return Description(
        summary=summary,
        tags=[tag],
        response_model=None,
        responses={200: {"model": envelope, "description": "Done."}, **failures(every)},
        openapi_extra=json_body(body) if body else None,
    )


def failures(errors: Iterable[type[BitelError]]) -> dict[int | str, dict[str, Any]]:
    """The entries of `responses` for these errors, by status."""
    by_status: dict[int, list[type[BitelError]]] = {}
    for error in sorted(set(errors), key=lambda error: (error.http_status, error.code)):
        by_status.setdefault(error.http_status, []).append(error)
    return {
        status: {
            "model": Failure,
            "description": " ".join(f"`{e.code}`: {_first_line(e)}" for e in same_status),
            **_headers(same_status),
        }
        for status, same_status in by_status.items()
    }


_SCHEMA: Final = "#/components/schemas/{model}"


def json_body(shape: type[BaseModel]) -> dict[str, Any]:
    """The `requestBody` entry for a JSON body of that shape."""
    schema = shape.model_json_schema(by_alias=True, ref_template=_SCHEMA)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def file_body(what: str, **fields: dict[str, Any]) -> dict[str, Any]:
    """The `requestBody` entry for a multipart body with a file, a `what`, and these fields."""
    file = {"type": "string", "format": "binary", "description": what}
    schema = {"type": "object", "required": ["file"], "properties": {"file": file, **fields}}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`, without the 422 that FastAPI adds and no route answers."""
    content = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        webhooks=webhook_document.router.routes,
    )
    schemas = content.setdefault("components", {}).setdefault("schemas", {})
    for path, methods in content["paths"].items():
        for method, operation in methods.items():
            name = OPERATION_IDS.get(f"{method.upper()} {path}", operation["operationId"])
            operation["operationId"] = name
            operation["responses"].pop("422", None)
            bodies = operation.get("requestBody", {}).get("content", {})
            for body in bodies.values():
                schema = body["schema"]
                schemas |= schema.pop("$defs", {})
                # Under its own name, generators have one class for the bodies that are alike.
                if "title" in schema:
                    schemas[schema["title"]] = schema
                    body["schema"] = {"$ref": _SCHEMA.format(model=schema["title"])}
    for webhook in content["webhooks"].values():
        webhook["post"]["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return content


def _first_line(error: type[BitelError]) -> str:
    if error is BitelError:
        return "Something went wrong on our side."
    return (error.__doc__ or "").strip().splitlines()[0]


def _headers(errors: list[type[BitelError]]) -> dict[str, Any]:
    if TooManyRequestsError not in errors:
        return {}
    seconds = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
    return {"headers": {"Retry-After": seconds}}
