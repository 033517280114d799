"""Request bodies: how they are read, what they may hold, and the sentence when they may not."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from starlette.requests import Request

from bitel.errors import InvalidRequestError, PayloadTooLargeError

BODY_SECONDS: Final = 30.0
"""How long a JSON body may take to arrive."""

DEFAULT_RETRY_COUNT: Final = 1
DEFAULT_RETRY_INTERVAL: Final = 60
DEFAULT_TIME_TO_LIVE: Final = 14_400
LONGEST_TIME_TO_LIVE: Final = 7 * 86_400

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """A JSON body: no type is bent into another, unknown fields are passed over.

    A field that may be left out may also be `null`, which means the same.
    """

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, alias_generator=to_camel, validate_by_alias=True
    )


class CallTerms(Body):
    """What every request that places calls may say about them."""

    retry_count: Annotated[
        Annotated[int, Field(ge=0, le=10)] | None,
        Field(
            description="How often to call again after busy or no answer; "
            f"{DEFAULT_RETRY_COUNT} if left out."
        ),
    ] = None
    retry_interval: Annotated[
        Annotated[int, Field(ge=5, le=86_400)] | None,
        Field(description=f"Seconds between attempts; {DEFAULT_RETRY_INTERVAL} if left out."),
    ] = None
    time_to_live: Annotated[
        Annotated[int, Field(ge=1, le=LONGEST_TIME_TO_LIVE)] | None,
        Field(
            description="Seconds after which no attempt starts any more; "
            f"{DEFAULT_TIME_TO_LIVE} if left out."
        ),
    ] = None
    server_id: Annotated[
        str | None,
        Field(description="One of GET /api/v2/servers; the project's default dialer if left out."),
    ] = None

    @property
    def retries(self) -> int:
        """`retryCount`, or its default."""
        return DEFAULT_RETRY_COUNT if self.retry_count is None else self.retry_count

    @property
    def seconds_between(self) -> int:
        """`retryInterval`, or its default."""
        return DEFAULT_RETRY_INTERVAL if self.retry_interval is None else self.retry_interval

    @property
    def seconds_to_live(self) -> int:
        """`timeToLive`, or its default."""
        return DEFAULT_TIME_TO_LIVE if self.time_to_live is None else self.time_to_live


class SingleBody(CallTerms):
    """A recording, to one number."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "phoneNumber": "09121234567",
                    "voiceId": "0197b2a4c1d07e63a5f81c0d9be24f17",
                    "retryCount": 2,
                }
            ]
        }
    )

    phone_number: Annotated[
        str,
        Field(
            description="As written in the service's region (09121234567), or international "
            "(+98…, 0098…); spaces, dashes, Persian and Arabic digits are understood."
        ),
    ]
    voice_id: Annotated[
        str, Field(description="The id of a recording that POST /api/v2/files/voice answered.")
    ]


async def read(request: Request, shape: type[B], longest: int) -> B:
    """The body of `request` as `shape`.

    Raises PayloadTooLargeError as soon as it is known to pass `longest` bytes, and
    InvalidRequestError, naming the field at fault, where it is no JSON of that shape.
    """
    raw = await _read_bytes(request, longest)
    try:
        return shape.model_validate_json(raw)
    except ValidationError as fault:
        raise InvalidRequestError(sentence(fault)) from None


def declared_length(request: Request) -> int | None:
    """The body's length as `Content-Length` has it; None where the header is missing."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


async def _read_bytes(request: Request, longest: int) -> bytes:
    if (declared_length(request) or 0) > longest:
        raise _too_large(longest)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size > longest:
                    raise _too_large(longest)
                pieces.append(piece)
    except TimeoutError:
        raise InvalidRequestError(
            f"the body did not arrive within {BODY_SECONDS:g} seconds"
        ) from None
    return b"".join(pieces)


def _too_large(longest: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the body is larger than the {longest} bytes that are taken")


_SENTENCES: Final = {
    "missing": "{field} is missing",
    "string_type": "{field} must be a string",
    "int_type": "{field} must be a whole number",
    "int_from_float": "{field} must be a whole number",
    "int_parsing_size": "{field} is out of range",
    "greater_than_equal": "{field} must be at least {ge}",
    "less_than_equal": "{field} must be at most {le}",
    "list_type": "{field} must be a list",
    "model_type": "the body must be a JSON object",
    "model_attributes_type": "the body must be a JSON object",
    "json_invalid": "the body is not JSON: {error}",
}


def sentence(fault: ValidationError) -> str:
    """The first thing that is wrong, in one sentence that names its field."""
    first: Any = fault.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the body"
    text = _SENTENCES.get(first["type"])
    if text is None:
        return f"{field}: {first['msg']}"
    return text.format(field=field, **first.get("ctx", {}))
