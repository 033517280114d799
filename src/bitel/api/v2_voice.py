"""`/api/v2/voice`: placing calls."""

from __future__ import annotations

from json.encoder import encode_basestring

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bitel.api import ordering
from bitel.api.auth import Owner
from bitel.api.direct import DirectRoute
from bitel.api.envelope import success_body, written, written_list
from bitel.api.openapi import placing_calls
from bitel.api.placement import Placed
from bitel.api.responses import BatchSuccess, CallAnswer, Success, placed_answer
from bitel.api.schemas import BatchBody, BatchTtsBody, OtpBody, SingleBody, SingleTtsBody

router = APIRouter(prefix="/api/v2/voice", route_class=DirectRoute)

_ONE = Success[CallAnswer]


@router.post("/single", **placing_calls("Play a recording to one number", _ONE, SingleBody))
async def single(request: Request, project: Owner) -> Response:
    """The call is queued, and durable, when this answers. It is dialled as soon as a channel is
    free; ask for its status to learn what became of it."""
    return await ordering.single(request, project, one_call)


@router.post("/batch", **placing_calls("Play a recording to many numbers", BatchSuccess, BatchBody))
async def batch(request: Request, project: Owner) -> Response:
    """All calls are queued, or none: one bad number refuses them all. They are answered in the
    order of the numbers, and `campaignId`, beside `result`, names them all together."""
    return await ordering.batch(request, project, all_calls)


@router.post("/otp", **placing_calls("Read a code to one number", _ONE, OtpBody))
async def otp(request: Request, project: Owner) -> Response:
    """The recording, if one is named, is played first; then the digits are read one by one. Such
    calls go before all others, and at any time of the day."""
    return await ordering.otp(request, project, one_call)


@router.post("/single/tts", **placing_calls("Speak a text to one number", _ONE, SingleTtsBody))
async def single_tts(request: Request, project: Owner) -> Response:
    """The text is spoken before this answers: the first time, that takes a moment."""
    return await ordering.single_tts(request, project, one_call)


@router.post(
    "/batch/tts", **placing_calls("Speak a text to many numbers", BatchSuccess, BatchTtsBody)
)
async def batch_tts(request: Request, project: Owner) -> Response:
    """As a batch, with a text in place of a recording; it is spoken once, before this answers."""
    return await ordering.batch_tts(request, project, all_calls)


def one_call(placed: Placed) -> bytes:
    """The answer that holds the one call."""
    (call_id,), (number,) = placed.ids, placed.phone_numbers
    barred = bool(placed.barred)
    return success_body(placed_answer(call_id, number, placed.requested_at, barred=barred))


def all_calls(placed: Placed) -> bytes:
    """The answer that holds every call, and the campaign that they are.

    Written from two patterns, one for calls that wait and one for those that are over already:
    ten thousand go out in the time that the encoder takes for one thousand.
    """
    waiting, over = (
        written(placed_answer("", "", placed.requested_at, barred=barred)).split('""')
        for barred in (False, True)
    )
    calls = zip(placed.ids, placed.phone_numbers, strict=True)
    items = []
    for call_id, number in calls:
        start, middle, end = over if call_id in placed.barred else waiting
        items.append(f'{start}"{call_id}"{middle}{encode_basestring(number)}{end}')
    return written_list(items, {"campaignId": placed.campaign_id})
