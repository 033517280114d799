"""`/api/v2/account/do-not-call`: numbers that the project never calls."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.dependencies import USUAL_PAGE, Cursor, Limit, Owner, services_of
from bitel.api.openapi import described, file_body
from bitel.api.reading import read
from bitel.api.recipients import listed_numbers
from bitel.api.responses import (
    DoNotCallAnswer,
    DoNotCallImportAnswer,
    DoNotCallNumber,
    DoNotCallPage,
    invalid_rows,
    success,
)
from bitel.api.routes.lists import COLUMN, FILE
from bitel.api.schemas import DoNotCallBody
from bitel.domain.phone_numbers import to_e164
from bitel.errors import (
    InvalidPhoneNumberError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    UnsupportedMediaError,
)
from bitel.settings import Settings
from bitel.store import do_not_call

router = APIRouter(prefix="/api/v2/account/do-not-call")

_STORED: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)

ListedNumber = Annotated[str, Path(description="A number, as `phoneNumber` elsewhere.")]

_import = described(
    "Import numbers that are not to be called",
    "do-not-call",
    DoNotCallImportAnswer,
    [InvalidRequestError, PayloadTooLargeError, UnsupportedMediaError],
)
_import["openapi_extra"] = file_body(FILE, column=COLUMN)


@router.get(
    "",
    **described(
        "The numbers that are not called", "do-not-call", DoNotCallPage, [InvalidRequestError]
    ),
)
async def listing(
    request: Request, project: Owner, cursor: Cursor = None, limit: Limit = USUAL_PAGE
) -> Response:
    """A page of numbers in E.164, in the order of their characters."""
    after = _read_cursor(cursor)
    found = await services_of(request).context.database.read(
        lambda conn: do_not_call.listing(conn, project.id, after, limit)
    )
    following = _cursor(found[-1]) if len(found) == limit else None
    return success({"phoneNumbers": found, "nextCursor": following})


@router.post(
    "",
    **described(
        "Have numbers not called",
        "do-not-call",
        DoNotCallAnswer,
        [InvalidPhoneNumberError],
        DoNotCallBody,
    ),
)
async def add(request: Request, project: Owner) -> Response:
    """`phoneNumber`, or up to `batch_limit` `phoneNumbers`; one invalid number refuses all. Calls
    that wait end as ERROR when they are due, and later ones at once."""
    context = services_of(request).context
    settings = context.settings
    body = await read(request, DoNotCallBody, settings.http.max_batch_body)
    numbers = await asyncio.to_thread(_numbers, body, settings)
    added = await context.database.write(
        partial(do_not_call.add_many, project_id=project.id, numbers=numbers)
    )
    return success({"added": added, "alreadyListed": len(set(numbers)) - added})


@router.post("/import", **_import)
async def import_(request: Request, project: Owner) -> Response:
    """The part named `file` is read like a list of recipients. Rows without a valid number are
    left out and listed; a number that stands there twice counts once."""
    done = await services_of(request).list_uploads.import_numbers(project, request)
    return success(
        {
            "added": done.added,
            "alreadyListed": done.already_listed,
            "invalid": invalid_rows(done.summary),
            "invalidCount": done.summary.invalid_count,
        }
    )


@router.delete(
    "/{phone_number}",
    **described(
        "Let a number be called again",
        "do-not-call",
        DoNotCallNumber,
        [InvalidPhoneNumberError, NotFoundError],
    ),
)
async def remove(request: Request, project: Owner, phone_number: ListedNumber) -> Response:
    """Answers the number that is not on the list any more."""
    context = services_of(request).context
    settings = context.settings
    # An entry can be removed even if it is not a valid number any more.
    e164 = phone_number
    if not _STORED.fullmatch(phone_number):
        e164 = to_e164(phone_number, settings.region, settings.extra_prefixes)
    if not await context.database.write(lambda conn: do_not_call.remove(conn, project.id, e164)):
        raise NotFoundError("the number is not on the project's do-not-call list")
    return success({"phoneNumber": e164})


def _numbers(body: DoNotCallBody, settings: Settings) -> Sequence[str]:
    """The numbers of a body in E.164. Raises InvalidRequestError, InvalidPhoneNumberError."""
    region, extra = settings.region, settings.extra_prefixes
    if (body.phone_number is None) == (body.phone_numbers is None):
        raise InvalidRequestError("send either phoneNumber or phoneNumbers")
    if body.phone_number is not None:
        return [to_e164(body.phone_number, region, extra)]
    assert body.phone_numbers is not None
    found = []
    for place, number in enumerate(listed_numbers(body.phone_numbers, settings.batch_limit)):
        try:
            found.append(to_e164(number, region, extra))
        except InvalidPhoneNumberError as fault:
            named = str(fault).replace("phoneNumber", f"phoneNumbers[{place}]", 1)
            raise InvalidPhoneNumberError(named) from None
    return found


def _cursor(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode()


def _read_cursor(cursor: str | None) -> str:
    """The number after which the page begins. Raises InvalidRequestError for a malformed one."""
    if cursor is None:
        return ""
    try:
        after = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        after = ""
    if not _STORED.fullmatch(after):
        raise InvalidRequestError("cursor must be the nextCursor of the page before, unchanged")
    return after
