"""Long lists, a page at a time: the cursor says after which entry the next page begins."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

from fastapi import Query

from bitel.domain.ids import is_id
from bitel.errors import InvalidRequestError

LARGEST_PAGE: Final = 1000
USUAL_PAGE: Final = 100

Cursor = Annotated[
    str | None, Query(description="`nextCursor` of the page before; left out for the first page.")
]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="Entries on the page.")]


def read_cursor(cursor: str | None) -> str | None:
    """The id after which the page begins. Raises InvalidRequestError for what no page gave out."""
    if cursor is None:
        return None
    try:
        after = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).hex()
    except (binascii.Error, ValueError):
        after = ""
    if not is_id(after):
        raise InvalidRequestError("cursor must be the nextCursor of the page before, unchanged")
    return after


def next_cursor(last_id: str, entries: int, limit: int) -> str | None:
    """The cursor of the page after one of `entries` that ends with `last_id`; None at the end."""
    if entries < limit:
        return None
    return base64.urlsafe_b64encode(bytes.fromhex(last_id)).decode()
