"""`/api/v2/files`: recordings, in and out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from bitel.api import intake
from bitel.api.answers import RecordingAnswer, recording_answer
from bitel.api.auth import Owner
from bitel.api.describing import described
from bitel.api.envelope import success
from bitel.api.parts import parts_of
from bitel.calls.ids import is_id
from bitel.errors import (
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    UnsupportedMediaError,
)
from bitel.store import recordings

router = APIRouter(prefix="/api/v2/files")

_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "Any audio that FFmpeg reads.",
                        }
                    },
                }
            }
        },
    }
}

_upload = described(
    "Upload a recording",
    "recordings",
    RecordingAnswer,
    [InvalidRequestError, PayloadTooLargeError, UnsupportedMediaError],
)
_upload["openapi_extra"] = _UPLOAD_BODY

_listen = described("Listen to a recording", "recordings", RecordingAnswer, [NotFoundError])
_listen["responses"][200] = {
    "description": "The recording as it will be heard: WAV, 8 kHz mono.",
    "content": {"audio/wav": {"schema": {"type": "string", "format": "binary"}}},
}


@router.post("/voice", **_upload)
async def upload(request: Request, project: Owner) -> Response:
    """The part named `file` holds the audio; its file name becomes the recording's name. The
    recording is decoded and durable when this answers."""
    recording = await intake.take_in(parts_of(request), project.id, request)
    return success(recording_answer(recording))


@router.get("/voice/{voice_id}", **_listen)
@router.head("/voice/{voice_id}", include_in_schema=False)
async def listen(request: Request, project: Owner, voice_id: str) -> Response:
    """Exactly what the person called will hear, after telephone coding."""
    parts = parts_of(request)
    recording = None
    if is_id(voice_id):
        recording = await parts.database.read(
            lambda conn: recordings.find(conn, project.id, voice_id)
        )
    if recording is None:
        raise NotFoundError("this project has no recording of that id")
    headers = {"Content-Length": str(await parts.voices.wav_size(voice_id))}
    if request.method == "HEAD":
        return Response(headers=headers, media_type="audio/wav")
    return StreamingResponse(parts.voices.wav(voice_id), headers=headers, media_type="audio/wav")
