"""Decodes an uploaded file of any format to G.711, in a sandboxed worker process."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitel.errors import PayloadTooLargeError, UnavailableError, UnsupportedMediaError
from bitel.g711 import SAMPLE_RATE
from bitel.recordings import worker_process
from bitel.recordings.files import new_file, removed_on_failure
from bitel.recordings.limits import MEBIBYTE, DecodeLimits, Verdict
from bitel.recordings.worker_process import SERVICE

NO_ROOM: Final = "The service has no room for the recording now."
NOT_NOW: Final = "The recording can't be decoded now; try again later."

_UNSUPPORTED: Final[dict[int, str]] = {
    Verdict.NOT_MEDIA: "The file is in no audio format that can be read.",
    Verdict.NO_AUDIO_STREAM: "The file holds no audio.",
    Verdict.NO_DECODER: "The file's audio is encrypted or in a codec that can't be decoded.",
    Verdict.DAMAGED: "The file's audio is encrypted or too damaged to be decoded.",
    Verdict.NO_SAMPLES: "The file's audio is empty.",
    Verdict.SILENT: "The recording is silent: its loudest 400 ms stay below -50 dB of full scale. "
    "Check the microphone, or send a louder file.",
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A recording in both laws: raw G.711 at 8000 Hz, one byte a sample.

    `duration` is in seconds; `samples` is the size of each file in bytes.
    """

    alaw: Path
    ulaw: Path
    duration: float
    samples: int
    warning: str = ""
    """A fault of the decoded file, in a sentence; empty if there is none."""


async def decode(source: Path, into: Path, limits: DecodeLimits, owner: str = SERVICE) -> Decoded:
    """Decode the file `source` into two files in the folder `into`, which must exist.

    A worker process runs under `limits`, in a turn of the project `owner`; waiting for the turn
    does not count against `wall_seconds`. Cancellation kills the process.

    A truncated file gives the audio up to its end. Raises UnsupportedMediaError if the file has no
    readable audio, PayloadTooLargeError if it exceeds the limits, and UnavailableError if the
    worker was killed twice, can't be started, or can't access its files. Then `into` is empty.
    """
    alaw, ulaw = into / "recording.alaw", into / "recording.ulaw"
    with removed_on_failure(alaw, ulaw):
        verdict = await _run_worker(source, alaw, ulaw, limits, owner)
        try:
            samples = os.stat(alaw).st_size
        except OSError as error:
            raise UnavailableError("The decoded recording is lost; try again later.") from error
    duration = samples / SAMPLE_RATE
    warning = ""
    if verdict == Verdict.CUT_SHORT:
        warning = (
            f"The file is cut short or damaged: {duration:.1f} s of audio could be read, which is "
            "less than it should hold."
        )
    return Decoded(alaw, ulaw, duration, samples, warning)


async def _run_worker(
    source: Path, alaw: Path, ulaw: Path, limits: DecodeLimits, owner: str
) -> int:
    with ExitStack() as opened:

        def open_files() -> list[int]:
            media = opened.enter_context(source.open("rb"))
            return [media.fileno(), new_file(opened, alaw), new_file(opened, ulaw)]

        try:
            descriptors = await asyncio.to_thread(open_files)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UnavailableError(NO_ROOM if is_full else NOT_NOW) from error
        max_samples = int(limits.max_seconds * SAMPLE_RATE)
        try:
            ended = await worker_process.run(
                "bitel.recordings.decode_worker",
                [str(each) for each in (*descriptors, max_samples, *limits[1:])],
                limits.wall_seconds,
                descriptors=descriptors,
                owner=owner,
            )
        except TimeoutError:
            raise PayloadTooLargeError(
                f"The recording takes longer than {limits.wall_seconds:g} s to decode."
            ) from None
    _raise_failure(ended, limits)
    return ended.status


def _raise_failure(ended: worker_process.Ended, limits: DecodeLimits) -> None:
    """Raise the error of an exit status, unless it means success."""
    status = ended.status
    if status in (Verdict.DONE, Verdict.CUT_SHORT):
        return
    if status in _UNSUPPORTED:
        raise UnsupportedMediaError(_UNSUPPORTED[status])
    if status == Verdict.TOO_LONG:
        raise PayloadTooLargeError(
            f"The recording is longer than {limits.max_seconds:g} s, the longest that is taken."
        )
    if status == Verdict.OUT_OF_MEMORY:
        raise PayloadTooLargeError(
            "The recording takes more memory to decode than the "
            f"{limits.memory_bytes // MEBIBYTE} MiB granted."
        )
    if status == -signal.SIGXCPU:
        raise PayloadTooLargeError(
            f"The recording takes more than {limits.cpu_seconds} s of processor time to decode."
        )
    if status in worker_process.CRASHES:
        raise UnsupportedMediaError(
            "The file is damaged in a way that stops the decoder; send it in another format."
        )
    if status == Verdict.NO_ROOM:
        raise UnavailableError(NO_ROOM)
    raise UnavailableError(NOT_NOW) from worker_process.WorkerError(ended)
