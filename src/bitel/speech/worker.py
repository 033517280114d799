"""The worker process that speaks texts: `python -m bitel.speech.worker`.

The engines are GPL and written in C, so they are kept out of the service's process because of the
licence and of crashes. espeak-ng is loaded from the wheel `espeakng-loader`; for Piper this process
confines itself and then executes the `piper` command.

stdin has one UTF-8 text per line. The n-th is written as WAV to the n-th of the descriptors given;
Piper, with one line only, writes a file. The text is untrusted, so both run in a sandbox. The exit
status is a `Verdict` or Piper's.
"""

from __future__ import annotations

import ctypes
import os
import sys
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bitel.recordings import sandbox
from bitel.recordings.limits import Verdict, confine, rewind

MAX_RATE: Final = 48000
"""Highest sampling rate of an engine, in Hz."""
HEADER_BYTES: Final = 4096

# Of espeak-ng's speak_lib.h.
_SYNCHRONOUS: Final = 2
_DONT_EXIT: Final = 0x8000
_UTF8: Final = 1  # without espeakSSML and espeakPHONEMES: plain text
_POSITION_CHARACTER: Final = 1
_RATE: Final = 1
_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def main(arguments: list[str]) -> int:
    """Speak stdin with `engine` into `into`, and return a `Verdict`.

    `engine`, `voice` and `pace` are those of `engines.Engine`. `into` are the descriptors to write
    to, separated by commas, or for Piper the folder of `0.wav`. The limits follow as numbers.
    """
    engine, voice, pace, into, max_seconds, *limits = arguments
    confine(*limits, file_bytes=HEADER_BYTES + int(float(max_seconds) * MAX_RATE) * 2)
    if engine != "espeak-ng":
        return _become_piper(engine, voice, pace, Path(into))
    try:
        descriptors = [int(each) for each in into.split(",")]
        return _speak_lines(voice, int(pace), descriptors, float(max_seconds))
    except MemoryError:
        return Verdict.OUT_OF_MEMORY


def _become_piper(program: str, model: str, length_scale: str, into: Path) -> int:
    """Replace this process by the `piper` command, with the same stdin and limits.

    It can read files as this user, write into the folder only, and access no socket and no other
    process.
    """
    sandbox.enter([Path("/")], [into, Path("/dev"), Path("/tmp")])  # noqa: S108
    sandbox.refuse_never_needed()
    command = [program, "--model", model, "--length_scale", length_scale]
    try:
        os.execve(  # noqa: S606  (an operator's program, without a shell)
            program,
            [*command, "--output_file", str(into / "0.wav")],
            {**os.environ, "PYTHONUTF8": "1"},
        )
    except OSError as error:
        print(error, file=sys.stderr)
        return Verdict.NO_ENGINE


def _speak_lines(voice: str, words_per_minute: int, into: Sequence[int], max_seconds: float) -> int:
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = espeakng_loader.get_data_path()
    except (ImportError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return Verdict.NO_ENGINE
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data_path), _DONT_EXIT)
    if not 0 < rate <= MAX_RATE:
        return Verdict.NO_ENGINE
    if library.espeak_SetVoiceByName(voice.encode()):
        return Verdict.NO_VOICE
    if library.espeak_SetParameter(_RATE, words_per_minute, 0):
        return Verdict.ENGINE_FAILED
    speaker = _Speaker(library, int(max_seconds * rate))
    rewind(into)
    # For words of another language it reads that language's files.
    sandbox.enter([Path(data_path)])
    sandbox.allow_computing_only(opening=sandbox.landlock_version() > 0)
    for descriptor, line in zip(into, sys.stdin.buffer, strict=True):
        verdict = speaker.speak(line.rstrip(b"\n"))
        if verdict != Verdict.DONE:
            return verdict
        with os.fdopen(descriptor, "wb") as raw, wave.open(raw, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(speaker.samples)
    return Verdict.DONE


class _Speaker:
    """espeak-ng with a voice, and the `samples` of the last text: 16-bit, native byte order."""

    def __init__(self, library: Any, max_samples: int) -> None:
        self.samples = bytearray()
        self._max_bytes = max_samples * 2
        self._library = library
        # The library keeps only the address, so this object must keep the callback alive.
        self._callback: Callable[..., int] = _CALLBACK(self._take)
        library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: bytes) -> Verdict:
        self.samples.clear()
        failed = self._library.espeak_Synth(
            ctypes.c_char_p(text),
            ctypes.c_size_t(len(text) + 1),
            ctypes.c_uint(0),
            _POSITION_CHARACTER,
            ctypes.c_uint(0),
            ctypes.c_uint(_UTF8),
            None,
            None,
        )
        if len(self.samples) > self._max_bytes:
            return Verdict.TOO_LONG
        return Verdict.ENGINE_FAILED if failed else Verdict.DONE

    def _take(self, samples: Any, count: int, _events: int | None) -> int:
        """Receive samples; returns 1 to stop the engine."""
        if samples and count:
            self.samples += ctypes.string_at(samples, count * 2)
        return int(len(self.samples) > self._max_bytes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
