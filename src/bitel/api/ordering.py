"""From a request to calls that are placed, step by step; v1 and v2 differ in the answer only.

The steps are always the same: read the body; answer a repeated request as before; check numbers
and dialer; find out what is played; place.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from bitel.api.context import parts_of
from bitel.api.envelope import sent
from bitel.api.idempotency import once_of
from bitel.api.placement import Answering, Playback, placing_of
from bitel.api.reading import read
from bitel.api.schemas import (
    BatchBody,
    BatchTtsBody,
    CallTerms,
    OtpBody,
    PhoneNumbers,
    SingleBody,
    SingleTtsBody,
)
from bitel.api.speaking import speaking_of
from bitel.domain.calls import Lane
from bitel.errors import InvalidRequestError
from bitel.store.projects import Project

_COMMA: Final = re.compile("[,،，]")
"""Commas of Latin, Arabic and full-width text."""


async def single(request: Request, project: Project, answering: Answering) -> Response:
    """Play a recording to one number."""
    body = await read(request, SingleBody, parts_of(request).settings.http.max_body)

    async def sound() -> Playback:
        return await placing_of(request).sound(project, body.voice_id)

    numbers = [body.phone_number]
    return await _place(request, project, body, numbers, Lane.SINGLE, sound, answering)


async def batch(request: Request, project: Project, answering: Answering) -> Response:
    """Play a recording to many numbers."""
    body = await read(request, BatchBody, parts_of(request).settings.http.max_batch_body)

    async def sound() -> Playback:
        return await placing_of(request).sound(project, body.voice_id)

    numbers = body.phone_numbers
    return await _place(request, project, body, numbers, Lane.BATCH, sound, answering)


async def otp(request: Request, project: Project, answering: Answering) -> Response:
    """Read a code to one number."""
    body = await read(request, OtpBody, parts_of(request).settings.http.max_body)

    async def sound() -> Playback:
        intro = None
        if body.voice_id is not None:
            intro = await placing_of(request).sound(project, body.voice_id)
        return await speaking_of(request).code(body.text, body.language, body.repeats, intro)

    numbers = [body.phone_number]
    return await _place(request, project, body, numbers, Lane.OTP, sound, answering)


async def single_tts(request: Request, project: Project, answering: Answering) -> Response:
    """Speak a text to one number."""
    body = await read(request, SingleTtsBody, parts_of(request).settings.http.max_body)

    async def sound() -> Playback:
        return await speaking_of(request).text(project.id, body.text, body.language)

    numbers = [body.phone_number]
    return await _place(request, project, body, numbers, Lane.SINGLE, sound, answering)


async def batch_tts(request: Request, project: Project, answering: Answering) -> Response:
    """Speak a text to many numbers."""
    body = await read(request, BatchTtsBody, parts_of(request).settings.http.max_batch_body)

    async def sound() -> Playback:
        return await speaking_of(request).text(project.id, body.text, body.language)

    numbers = body.phone_numbers
    return await _place(request, project, body, numbers, Lane.BATCH, sound, answering)


async def _place(
    request: Request,
    project: Project,
    terms: CallTerms,
    numbers: PhoneNumbers,
    lane: Lane,
    sound: Callable[[], Awaitable[Playback]],
    answering: Answering,
) -> Response:
    placing, once = placing_of(request), once_of(request, terms)
    again = await placing.answer_again(project, once)
    if again is not None:
        return sent(again, replayed=True)
    in_batch = lane is Lane.BATCH
    wanted = _many(numbers, parts_of(request).settings.batch_limit) if in_batch else numbers
    reach = await placing.reach(project, wanted, terms.server_id, in_batch=in_batch)
    played = await sound()
    stored = await placing.place(project, reach, played, terms, lane, answering, once)
    return sent(stored.body, replayed=stored.replayed)


def _many(written: PhoneNumbers, most: int) -> Sequence[str]:
    if isinstance(written, str):
        written = [number.strip() for number in _COMMA.split(written)] if written.strip() else []
    if not 1 <= len(written) <= most:
        raise InvalidRequestError(f"phoneNumbers must hold 1 to {most} numbers, not {len(written)}")
    return written
