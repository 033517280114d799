"""`/api/v2/files/list`: uploading, listing and deleting lists of recipients."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.dependencies import (
    USUAL_PAGE,
    Cursor,
    Limit,
    Owner,
    next_cursor,
    read_cursor,
    services_of,
)
from bitel.api.openapi import described, file_body
from bitel.api.responses import (
    ListAnswer,
    ListPage,
    ListUploadAnswer,
    invalid_rows,
    list_answer,
    success,
)
from bitel.domain.ids import is_id
from bitel.errors import (
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    UnsupportedMediaError,
)
from bitel.store import recipient_lists

router = APIRouter(prefix="/api/v2/files")

ListId = Annotated[str, Path(description="The `id` of a list.")]

FILE: Final = "CSV or XLSX, as a spreadsheet saves it."
COLUMN: Final[dict[str, Any]] = {
    "type": "string",
    "description": "The column of the phone numbers: its heading, its number from 1 on, or its "
    "letter. Left out: found by its heading or its cells.",
}


def _flag(description: str) -> dict[str, Any]:
    return {"type": "boolean", "default": False, "description": description}


_upload = described(
    "Upload a list of recipients",
    "lists",
    ListUploadAnswer,
    [InvalidRequestError, PayloadTooLargeError, UnsupportedMediaError],
)
_upload["openapi_extra"] = file_body(
    FILE,
    column=COLUMN,
    dryRun=_flag("Only check the file, and store nothing."),
    skipInvalid=_flag("Leave rows that can't be called out of the list."),
    skipDuplicates=_flag("Leave rows out whose number stands in a row before."),
)


@router.post("/list", **_upload)
async def upload(request: Request, project: Owner) -> Response:
    """The part named `file` holds the list: a CSV file (with commas, semicolons or tabs, in UTF-8,
    UTF-16, or Windows-1252 or 1256) or the first sheet of an XLSX workbook. Columns named
    `reference` and `timeZone` are those fields of a recipient; every other column with a heading
    becomes a variable of that name, and a second one of the same name `name 2`. A number may lack
    its leading zero. Rows that can't be called are kept in the list unless `skipInvalid` is true;
    a batch with the list refuses them, or skips them if it says so. A list is deleted after 30
    days."""
    stored = await services_of(request).list_uploads.receive(project, request)
    found = stored.summary
    return success(
        {
            "id": stored.id,
            "rows": found.rows,
            "valid": found.valid,
            "invalid": invalid_rows(found),
            "columns": found.columns,
            "duplicates": found.duplicates,
            "invalidCount": found.invalid_count,
            "numberColumn": found.number_column,
            "recipients": found.recipients,
        }
    )


@router.get("/list", **described("The project's lists", "lists", ListPage, [InvalidRequestError]))
async def listing(
    request: Request, project: Owner, cursor: Cursor = None, limit: Limit = USUAL_PAGE
) -> Response:
    """A page of lists, the oldest first."""
    context = services_of(request).context
    after = read_cursor(cursor)
    found = await context.database.read(
        lambda conn: recipient_lists.pages(conn, project.id, after, limit)
    )
    last = found[-1].id if found else ""
    return success(
        {
            "lists": [list_answer(each, context.date) for each in found],
            "nextCursor": next_cursor(last, len(found), limit),
        }
    )


@router.get("/list/{list_id}", **described("A list", "lists", ListAnswer, [NotFoundError]))
async def show(request: Request, project: Owner, list_id: ListId) -> Response:
    """What the list holds, without its recipients."""
    context = services_of(request).context
    found = None
    if is_id(list_id):
        found = await context.database.read(
            lambda conn: recipient_lists.find(conn, project.id, list_id)
        )
    if found is None:
        raise NotFoundError("this project has no list of that id")
    return success(list_answer(found, context.date))


@router.delete(
    "/list/{list_id}", **described("Remove a list", "lists", ListAnswer, [NotFoundError])
)
async def remove(request: Request, project: Owner, list_id: ListId) -> Response:
    """Calls that were placed with the list stay. Answers the list that is gone."""
    context = services_of(request).context
    if not is_id(list_id):
        raise NotFoundError("this project has no list of that id")
    gone = await context.database.write(
        lambda conn: recipient_lists.remove(conn, project.id, list_id)
    )
    return success(list_answer(gone, context.date))
