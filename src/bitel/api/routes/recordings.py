"""`/api/v2/files`: uploading, speaking, listing, downloading and deleting recordings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from bitel.api.context import ApiContext
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
from bitel.api.reading import read
from bitel.api.responses import (
    RecordingAnswer,
    RecordingPage,
    UploadAnswer,
    recording_answer,
    success,
)
from bitel.api.schemas import SpeechBody
from bitel.domain.ids import is_id
from bitel.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedMediaError,
)
from bitel.store import recordings
from bitel.store.recordings import Recording

router = APIRouter(prefix="/api/v2/files")

VoiceId = Annotated[str, Path(description="The `id` of a recording.")]

_upload = described(
    "Upload a recording",
    "recordings",
    UploadAnswer,
    [InvalidRequestError, PayloadTooLargeError, UnsupportedMediaError],
)
_upload["openapi_extra"] = file_body("Any audio that FFmpeg reads.")

_listen = described("Listen to a recording", "recordings", RecordingAnswer, [NotFoundError])
# Without it FastAPI would add JSON to the document.
_listen["response_class"] = Response
_listen["responses"][200] = {
    "description": "The recording as it will be heard: WAV, 8 kHz mono.",
    "content": {"audio/wav": {"schema": {"type": "string", "format": "binary"}}},
}


@router.post("/voice", **_upload)
async def upload(request: Request, project: Owner) -> Response:
    """The part named `file` holds the audio; its file name becomes the recording's name. The
    recording is decoded and durable when this answers."""
    recording, warning = await services_of(request).uploads.receive(project.id, request)
    answer = recording_answer(recording)
    return success({**answer, "warning": warning} if warning else answer)


@router.post(
    "/tts",
    **described(
        "Have a text spoken",
        "recordings",
        RecordingAnswer,
        [InvalidRequestError, PayloadTooLargeError],
        SpeechBody,
    ),
)
async def speak(request: Request, project: Owner) -> Response:
    """The recording that the text becomes, as if it had been uploaded. The same text is spoken
    once: asked for again, it is the same recording."""
    services = services_of(request)
    body = await read(request, SpeechBody, services.context.settings.http.max_body)
    recording = await services.speech.recording(project.id, body.text, body.language)
    return success(recording_answer(recording))


@router.get(
    "/voice",
    **described("The project's recordings", "recordings", RecordingPage, [InvalidRequestError]),
)
async def listing(
    request: Request, project: Owner, cursor: Cursor = None, limit: Limit = USUAL_PAGE
) -> Response:
    """A page of recordings, uploaded and spoken ones, the oldest first."""
    after = read_cursor(cursor)
    found = await services_of(request).context.database.read(
        lambda conn: recordings.page(conn, project.id, after, limit)
    )
    last = found[-1].id if found else ""
    return success(
        {
            "recordings": [recording_answer(each) for each in found],
            "nextCursor": next_cursor(last, len(found), limit),
        }
    )


@router.delete(
    "/voice/{voice_id}",
    **described(
        "Remove a recording", "recordings", RecordingAnswer, [NotFoundError, ConflictError]
    ),
)
async def remove(request: Request, project: Owner, voice_id: VoiceId) -> Response:
    """Refused while calls that are not over need it. Answers the recording that is gone."""
    context = services_of(request).context
    if not is_id(voice_id):
        raise _no_recording()
    now = context.clock()

    def work(conn: Connection) -> Recording:
        found = recordings.find(conn, project.id, voice_id)
        recordings.remove(conn, project.id, voice_id, now)
        assert found is not None, "remove raises for a recording that is none"
        return found

    gone = await context.database.write(work)
    # If this fails, the audio only wastes space; the sweep of the retention deletes it.
    await context.voices.delete(voice_id)
    return success(recording_answer(gone))


@router.get("/voice/{voice_id}", **_listen)
@router.head("/voice/{voice_id}", include_in_schema=False)
async def listen(request: Request, project: Owner, voice_id: VoiceId) -> Response:
    """Exactly what the person called will hear, after telephone coding."""
    context = services_of(request).context
    await _require(context, project.id, voice_id)
    pieces = context.voices.wav(voice_id)
    try:
        headers = {"Content-Length": str(await context.voices.wav_size(voice_id))}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="audio/wav")
        # Read before the response starts, so that a failure can still be answered.
        first = await anext(pieces)
    except NotFoundError as fault:
        # Deleted meanwhile, or lost.
        await _require(context, project.id, voice_id)
        raise UnavailableError("the storage has lost the audio of this recording") from fault
    return StreamingResponse(_chained(first, pieces), headers=headers, media_type="audio/wav")


async def _require(context: ApiContext, project_id: str, voice_id: str) -> None:
    """Raise NotFoundError if the project has no such recording."""
    if not is_id(voice_id):
        raise _no_recording()
    found = await context.database.read(lambda conn: recordings.find(conn, project_id, voice_id))
    if found is None:
        raise _no_recording()


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _no_recording() -> NotFoundError:
    return NotFoundError("this project has no recording of that id")
