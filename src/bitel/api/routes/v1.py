"""`/api/v1/voice`: the older API, with the same services; answers ids where v2 answers calls."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.dependencies import Owner, services_of
from bitel.api.openapi import described, placing_calls
from bitel.api.placement import Placed
from bitel.api.responses import (
    CdrAnswer,
    Success,
    cdr_answer,
    json_response,
    list_body,
    success,
    success_body,
)
from bitel.api.routes.calls import place
from bitel.api.schemas import BatchBody, OtpBody, SingleBody, SingleTtsBody
from bitel.domain.ids import is_id
from bitel.errors import NotFoundError
from bitel.store import calls, campaigns

router = APIRouter(prefix="/api/v1/voice")

_ID = Success[str]


@router.post("/single", **placing_calls("Play a recording (v1)", _ID, SingleBody, tag="v1"))
async def single(request: Request, project: Owner) -> Response:
    """As in v2; answers the call's id."""
    return await place(request, project, SingleBody, render_call_id)


@router.post("/otp", **placing_calls("Read a code (v1)", _ID, OtpBody, tag="v1"))
async def otp(request: Request, project: Owner) -> Response:
    """As in v2; answers the call's id."""
    return await place(request, project, OtpBody, render_call_id)


@router.post("/tts", **placing_calls("Speak a text (v1)", _ID, SingleTtsBody, tag="v1"))
async def tts(request: Request, project: Owner) -> Response:
    """As `single/tts` in v2; answers the call's id."""
    return await place(request, project, SingleTtsBody, render_call_id)


@router.post("/campaign", **placing_calls("Play to many numbers (v1)", _ID, BatchBody, tag="v1"))
async def campaign(request: Request, project: Owner) -> Response:
    """As `batch` in v2; answers the campaign's id."""
    return await place(request, project, BatchBody, render_campaign_id)


@router.get(
    "/cdr/{call_id}", **described("What became of a call (v1)", "v1", CdrAnswer, [NotFoundError])
)
async def cdr(
    request: Request,
    project: Owner,
    call_id: Annotated[str, Path(description="The id that placing the call answered.")],
) -> Response:
    """The call's detail record; `status` is `WAITING` until the call is over."""
    found = None
    if is_id(call_id):
        found = await services_of(request).context.database.read(
            lambda conn: calls.find_cdr(conn, project.id, call_id)
        )
    if found is None:
        raise NotFoundError("this project has no call of that id")
    return success(cdr_answer(found, services_of(request).context.date))


@router.get(
    "/campaign/cdr/{campaign_id}",
    **described("What became of a campaign (v1)", "v1", list[CdrAnswer], [NotFoundError]),
)
async def campaign_cdr(
    request: Request,
    project: Owner,
    campaign_id: Annotated[str, Path(description="The id that placing the campaign answered.")],
) -> Response:
    """The detail records of its calls, in the order in which they were asked for."""
    found = None
    if is_id(campaign_id):
        found = await services_of(request).context.database.read(
            lambda conn: campaigns.cdrs(conn, project.id, campaign_id)
        )
    if found is None:
        raise NotFoundError("this project has no campaign of that id")
    date = services_of(request).context.date
    records_shown = (cdr_answer(each, date) for each in found)
    return json_response(await asyncio.to_thread(list_body, records_shown))


def render_call_id(placed: Placed) -> bytes:
    """Render the id of a single call."""
    return success_body(placed.ids[0])


def render_campaign_id(placed: Placed) -> bytes:
    """Render the id of a campaign."""
    return success_body(placed.campaign_id)
