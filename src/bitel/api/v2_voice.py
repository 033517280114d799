"""`/api/v2/voice`: placing calls, and how they stand."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitel.api import reading
from bitel.api.answers import CallAnswer, call_answer, waiting
from bitel.api.auth import Owner
from bitel.api.bodies import SingleBody
from bitel.api.describing import described
from bitel.api.envelope import success
from bitel.api.parts import parts_of
from bitel.api.placing import new_calls, placing_of
from bitel.calls.call import Lane
from bitel.calls.ids import is_id
from bitel.errors import (
    InsufficientBalanceError,
    InvalidPhoneNumberError,
    InvalidServerError,
    NotFoundError,
)
from bitel.store import calls as call_rows

router = APIRouter(prefix="/api/v2/voice")


@router.post(
    "/single",
    **described(
        "Play a recording to one number",
        "calls",
        CallAnswer,
        [InvalidPhoneNumberError, InvalidServerError, InsufficientBalanceError],
        SingleBody,
    ),
)
async def single(request: Request, project: Owner) -> Response:
    """The call is queued, and durable, when this answers. It is dialled as soon as a channel is
    free; ask for its status to learn what became of it."""
    parts = parts_of(request)
    body = await reading.read(request, SingleBody, parts.settings.http.max_body)
    calls = new_calls(parts, project, [body.phone_number], body.voice_id, body, Lane.SINGLE)
    await placing_of(request).place(calls)
    return success(call_answer(waiting(calls[0])))


@router.get(
    "/status/{call_id}",
    **described("How a call stands", "calls", CallAnswer, [NotFoundError]),
)
async def status(request: Request, project: Owner, call_id: str) -> Response:
    """A call is `WAITING` until its last attempt is over, and final from then on."""
    call = None
    if is_id(call_id):
        call = await parts_of(request).database.read(
            lambda conn: call_rows.find(conn, project.id, call_id)
        )
    if call is None:
        raise NotFoundError("this project has no call of that id")
    return success(call_answer(call))
