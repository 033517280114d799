"""A recording of any kind to G.711, in a process that can be trusted with it."""

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
from bitel.recordings.limits import MEBIBYTE, DecodeLimits
from bitel.recordings.new_files import new_file, removed_on_failure
from bitel.recordings.turns import SERVICE
from bitel.recordings.verdict import ALAW_NAME, ULAW_NAME, Verdict

NO_ROOM: Final = "The service has no room for the recording now."
NOT_NOW: Final = "The recording can't be decoded now; try again later."


@dataclass(frozen=True, slots=True)
class Decoded:
    """A recording as the two laws carry it: raw G.711 at 8000 Hz, one byte a sample.

    `duration` is in seconds; `samples` is the length of either file in bytes.
    """

    alaw: Path
    ulaw: Path
    duration: float
    samples: int
    warning: str = ""
    """What is wrong with the file that was decoded, in a sentence; empty where nothing is."""


async def decode(source: Path, into: Path, limits: DecodeLimits, owner: str = SERVICE) -> Decoded:
    """Decode the file `source` into two files in the folder `into`, which must exist.

    The work is done by a process of its own, under `limits`, in a turn of `owner`, the project that
    it is for (`worker.run`); waiting for one does not count against `wall_seconds`. Cancelling this
    kills it.

    A file cut short gives the audio up to the cut. Raises UnsupportedMediaError where the file
    is no audio that can be read, and PayloadTooLargeError where it is longer than
    `max_seconds` or costs more than the limits grant, and UnavailableError where the worker is
    killed twice, can't be started, or can't read or write its files; then nothing is left in
    `into`.
    """
    alaw, ulaw = into / ALAW_NAME, into / ULAW_NAME
    with removed_on_failure(alaw, ulaw):
        verdict = await _run_worker(source, into, limits, owner)
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


async def _run_worker(source: Path, into: Path, limits: DecodeLimits, owner: str) -> int:
    with ExitStack() as opened:
        try:
            descriptors = await asyncio.to_thread(_open, opened, source, into)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UnavailableError(NO_ROOM) from error
            raise UnavailableError(NOT_NOW) from error
        ended = await _decode_opened(descriptors, limits, owner)
    _judge(ended, limits)
    return ended.status


def _open(opened: ExitStack, source: Path, into: Path) -> tuple[int, int, int]:
    """Descriptors of the file and of the two that are written."""
    media = opened.enter_context(source.open("rb"))
    alaw, ulaw = (new_file(opened, into / name) for name in (ALAW_NAME, ULAW_NAME))
    return media.fileno(), alaw, ulaw


async def _decode_opened(
    descriptors: tuple[int, int, int], limits: DecodeLimits, owner: str
) -> worker_process.Ended:
    try:
        return await worker_process.run(
            "bitel.recordings.decode_worker",
            _arguments(descriptors, limits),
            limits.wall_seconds,
            descriptors=descriptors,
            owner=owner,
        )
    except TimeoutError:
        raise PayloadTooLargeError(
            f"The recording takes longer than {limits.wall_seconds:g} s to decode."
        ) from None


def _arguments(descriptors: tuple[int, int, int], limits: DecodeLimits) -> list[str]:
    return [
        *map(str, descriptors),
        str(int(limits.max_seconds * SAMPLE_RATE)),
        str(limits.cpu_seconds),
        str(limits.memory_bytes),
        str(limits.wall_seconds),
    ]


def _judge(ended: worker_process.Ended, limits: DecodeLimits) -> None:
    """Say in words what an exit status means; nothing where the recording was decoded."""
    status = ended.status
    if status in (Verdict.DECODED, Verdict.CUT_SHORT):
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


_UNSUPPORTED: Final[dict[int, str]] = {
    Verdict.NOT_MEDIA: "The file is in no audio format that can be read.",
    Verdict.NO_AUDIO_STREAM: "The file holds no audio.",
    Verdict.NO_DECODER: "The file's audio is encrypted or in a codec that can't be decoded.",
    Verdict.DAMAGED: "The file's audio is encrypted or too damaged to be decoded.",
    Verdict.NO_SAMPLES: "The file's audio is empty.",
    Verdict.SILENT: "The recording is silent: its loudest 400 ms stay below -50 dB of full scale. "
    "Check the microphone, or send a louder file.",
}
