"""`/api/v2/voice`: placing calls, their status, and canceling them."""

from __future__ import annotations

from json.encoder import encode_basestring
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.dependencies import DirectRoute, Owner, Token, services_of
from bitel.api.openapi import described, placing_calls
from bitel.api.placement import Placed, Render
from bitel.api.reading import idempotency_key, read
from bitel.api.responses import (
    BatchSuccess,
    CallAnswer,
    CallDetailsAnswer,
    Success,
    json_list_body,
    placed_answer,
    sent,
    success,
    success_body,
)
from bitel.api.schemas import (
    BatchBody,
    BatchTtsBody,
    OtpBody,
    PlacingBody,
    SingleBody,
    SingleTtsBody,
)
from bitel.domain.call_json import call_answer, call_details_answer
from bitel.domain.calls import Lane
from bitel.domain.ids import is_id
from bitel.errors import NotFoundError
from bitel.exact_json import dumps as as_json
from bitel.store import call_details, calls
from bitel.store.projects import Project

router = APIRouter(prefix="/api/v2/voice", route_class=DirectRoute)

CallId = Annotated[str, Path(description="The `id` of a call.")]
_ONE: Final = Success[CallAnswer]


class _Id(Convertor[str]):
    """An id in a path, so that `/voice/{call_id:id}` does not match `/voice/single`."""

    regex = "[0-9a-f]{32}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _Id())


@router.post("/single", **placing_calls("Play a recording to one number", _ONE, SingleBody))
async def single(request: Request, project: Owner) -> Response:
    """The call is queued, and durable, when this answers. It is dialled as soon as a channel is
    free; ask for its status to learn what became of it."""
    return await place(request, project, SingleBody, one_call)


@router.post("/batch", **placing_calls("Play a recording to many numbers", BatchSuccess, BatchBody))
async def batch(request: Request, project: Owner) -> Response:
    """All calls are queued, or none: one bad number refuses them all. They are answered in the
    order of the numbers, and `campaignId`, beside `result`, names them all together."""
    return await place(request, project, BatchBody, all_calls)


@router.post("/otp", **placing_calls("Read a code to one number", _ONE, OtpBody))
async def otp(request: Request, project: Owner) -> Response:
    """The recording, if one is named, is played first; then the digits are read one by one. Such
    calls go before all others, and at any time of the day."""
    return await place(request, project, OtpBody, one_call)


@router.post("/single/tts", **placing_calls("Speak a text to one number", _ONE, SingleTtsBody))
async def single_tts(request: Request, project: Owner) -> Response:
    """The text is spoken before this answers: the first time, that takes a moment."""
    return await place(request, project, SingleTtsBody, one_call)


@router.post(
    "/batch/tts", **placing_calls("Speak a text to many numbers", BatchSuccess, BatchTtsBody)
)
async def batch_tts(request: Request, project: Owner) -> Response:
    """As a batch, with a text in place of a recording; it is spoken once, before this answers."""
    return await place(request, project, BatchTtsBody, all_calls)


@router.get(
    "/status/{call_id}", **described("How a call stands", "calls", CallAnswer, [NotFoundError])
)
async def status(request: Request, token: Token, call_id: CallId) -> Response:
    """A call is `WAITING` until its last attempt is over, and final from then on."""
    call = await services_of(request).call_status.find(token, call_id)
    return success(call_answer(call, services_of(request).context.date))


@router.get(
    "/calls/{call_id}",
    **described("A call with its attempts", "calls", CallDetailsAnswer, [NotFoundError]),
)
async def details(request: Request, project: Owner, call_id: CallId) -> Response:
    """What happened to a call, attempt by attempt: when it rang and was answered, the codes of the
    carrier and the reason in words, the keys that were pressed, and the quality of the line."""
    context = services_of(request).context
    found = None
    if is_id(call_id):
        found = await context.database.read(
            lambda conn: call_details.find(conn, project.id, call_id)
        )
    if found is None:
        raise NotFoundError("this project has no call of that id")
    return success(call_details_answer(found, context.date))


@router.delete(
    "/{call_id:id}", **described("Call off a call", "calls", CallAnswer, [NotFoundError])
)
async def cancel(request: Request, project: Owner, call_id: CallId) -> Response:
    """A call that waits is `CANCELED` at once. One that is being dialled is hung up in a moment,
    unless somebody answers first; what is over stays as it is. Answers how the call stands."""
    context = services_of(request).context
    now = context.clock()
    call = await context.database.write(lambda conn: calls.cancel(conn, project.id, call_id, now))
    return success(call_answer(call, context.date))


async def place(
    request: Request, project: Project, shape: type[PlacingBody], render: Render
) -> Response:
    """Place the calls of a request whose body has that shape."""
    services = services_of(request)
    http = services.context.settings.http
    longest = http.max_batch_body if shape.lane is Lane.BATCH else http.max_body
    body = await read(request, shape, longest)
    return sent(
        await services.placement.place(project, body, idempotency_key(request, body), render)
    )


def one_call(placed: Placed) -> bytes:
    """Render the answer of a single call."""
    (call_id,), (number,) = placed.ids, placed.phone_numbers
    barred = bool(placed.barred)
    return success_body(placed_answer(call_id, number, placed.requested_at, barred=barred))


def all_calls(placed: Placed) -> bytes:
    """Render the answer of a batch: its calls and `campaignId`.

    Filled into two templates, for waiting and for barred calls: ten times as fast as the encoder.
    """
    waiting, barred_call = (
        as_json(placed_answer("", "", placed.requested_at, barred=barred)).split('""')
        for barred in (False, True)
    )
    calls = zip(placed.ids, placed.phone_numbers, strict=True)
    items = []
    for call_id, number in calls:
        start, middle, end = barred_call if call_id in placed.barred else waiting
        items.append(f'{start}"{call_id}"{middle}{encode_basestring(number)}{end}')
    beside: dict[str, Any] = {"campaignId": placed.campaign_id}
    if placed.skipped is not None:
        beside["skipped"] = [
            {"index": one.index, "phoneNumber": one.phone_number, "message": one.message}
            for one in placed.skipped
        ]
    return json_list_body(items, beside)
