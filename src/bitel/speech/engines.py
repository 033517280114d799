"""Speech engines: selects engine and voice for a language, and renders texts to WAV.

Piper is used for languages with a voice model in the options, espeak-ng for the others. Both run in
the worker process (`speech/worker.py`) only. Piper is called by its documented command line, which
was tested with a fake program only.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import sys
import wave
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bitel.errors import InvalidRequestError, SettingsError, UnavailableError
from bitel.recordings import wav, worker_process
from bitel.recordings.files import new_file, removed_on_failure
from bitel.recordings.limits import SpeechLimits, Verdict
from bitel.recordings.worker_process import SERVICE
from bitel.speech.spoken_text import plain

WORKER: Final = "bitel.speech.worker"
ESPEAK: Final = "espeak-ng"
ESPEAK_PACKAGE: Final = "espeakng-loader"
NATURAL_PACE: Final = 150
"""Words per minute at which a Piper voice has its natural speed."""
AUDIBLE_PEAK: Final = 328
"""Highest sample below which a rendering is silent: 1 % of full scale."""

DEFAULT_LANGUAGES: Final[Mapping[str, str]] = MappingProxyType({"fa": "fa", "en": "en"})


class TextFailedError(UnavailableError):
    """The engine failed on these texts; it may succeed with fewer or with others."""


_LANGUAGE: Final = re.compile(r"[a-z0-9]{2,8}(-[a-z0-9]{1,8}){0,3}")
_VOICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+\-]{0,63}")


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """How texts are spoken. Raises SettingsError for invalid options.

    `languages`: espeak-ng's voice for each language that clients may use, in lower case (`fa`,
    `en-us`). `piper`: path of a Piper voice model (`.onnx`, with its `.onnx.json`) by language,
    preferred to espeak-ng. `max_chars`: length of the longest text. `words_per_minute`: 80 to 450.
    """

    default_language: str = "fa"
    languages: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_LANGUAGES))
    piper: Mapping[str, Path] = field(default_factory=dict)
    max_chars: int = 1000
    words_per_minute: int = NATURAL_PACE
    limits: SpeechLimits = field(default_factory=SpeechLimits)

    def __post_init__(self) -> None:
        for language in self.known:
            if not _LANGUAGE.fullmatch(language):
                raise SettingsError(
                    f"speech: {language!r} is not a language in lower case, as in fa or en-us."
                )
        for language, voice in self.languages.items():
            if not _VOICE.fullmatch(voice):
                raise SettingsError(
                    f"speech: {voice!r} for {language} is not a voice of espeak-ng, as in fa."
                )
        if self.default_language not in self.known:
            raise SettingsError(
                f"speech: the default language {self.default_language!r} has no voice; "
                f"there are {', '.join(self.known)}."
            )
        if not 80 <= self.words_per_minute <= 450:
            raise SettingsError(
                f"speech: words_per_minute must be 80 to 450, not {self.words_per_minute}."
            )
        if self.max_chars < 1:
            raise SettingsError(f"speech: max_chars must be at least 1, not {self.max_chars}.")

    @property
    def known(self) -> list[str]:
        """The languages that clients may use, sorted."""
        return sorted({*self.languages, *self.piper})


@dataclass(frozen=True, slots=True)
class Engine:
    """All parameters of speech except the text.

    `program`: `espeak-ng` or the path of the `piper` command. `voice`: espeak-ng's voice or the
    path of Piper's model. `pace`: words per minute or Piper's length scale. `version` changes with
    the engine and the voice.
    """

    program: str
    voice: str
    pace: str
    version: str

    @property
    def is_piper(self) -> bool:
        """Whether the engine is Piper."""
        return self.program != ESPEAK


def engine_for(language: str | None, options: SpeechOptions) -> Engine:
    """Return the engine for `language`, or for the default language. It reads the file system.

    Raises InvalidRequestError if no voice speaks that language, UnavailableError if the engine is
    not installed.
    """
    language = options.default_language if language is None else language.lower()
    if language in options.piper:
        return _piper(language, options)
    if language not in options.languages:
        raise InvalidRequestError(
            f"language {language[:32]!r} is not spoken here; known are {', '.join(options.known)}."
        )
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UnavailableError(
            "No speech engine is installed; install one with pip install 'bitel[speech]'."
        )
    version = importlib.metadata.version(ESPEAK_PACKAGE)
    return Engine(ESPEAK, options.languages[language], str(options.words_per_minute), version)


def _piper(language: str, options: SpeechOptions) -> Engine:
    model = options.piper[language].absolute()
    # pip installs it beside the interpreter, which may not be on PATH.
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("piper", path=folders)
    if program is None:
        raise UnavailableError(
            f"Piper is to speak {language!r} but is not installed; "
            "install it with pip install piper-tts."
        )
    try:
        status = model.stat()
    except OSError as error:
        raise UnavailableError(
            f"Piper's voice model for {language!r} can't be read; set another in speech.piper."
        ) from error
    version = f"{status.st_size} {status.st_mtime_ns}"
    length_scale = f"{NATURAL_PACE / options.words_per_minute:.3f}"
    return Engine(os.path.abspath(program), str(model), length_scale, version)


async def speak(text: str, language: str | None, into: Path, options: SpeechOptions) -> Path:
    """Render `text` to a WAV in the folder `into`, which must exist, and return its path.

    Markup is spoken, not interpreted. A worker process runs under `options.limits`. Raises
    InvalidRequestError for a text or a language that can't be spoken, UnavailableError if the
    engine is missing, fails or takes too long.
    """
    words = plain(text, options.max_chars)
    engine = await asyncio.to_thread(engine_for, language, options)
    [path] = await render([words], engine, into, options)
    return path


async def render(
    texts: Sequence[str], engine: Engine, into: Path, options: SpeechOptions, owner: str = SERVICE
) -> list[Path]:
    """Render each of `texts`, which `plain` returned, to a WAV in the folder `into`.

    The workers use turns of the project `owner`. Raises as `speak`.
    """
    if engine.is_piper:
        paths = []
        for number, text in enumerate(texts):
            folder = into / f"{number}.piper"
            await asyncio.to_thread(folder.mkdir, exist_ok=True)
            paths += await _run_worker([text], engine, folder, options, owner)
    else:
        paths = await _run_worker(texts, engine, into, options, owner)
    for path in paths:
        await asyncio.to_thread(_require_sound, path)
    return paths


async def _run_worker(
    texts: Sequence[str], engine: Engine, into: Path, options: SpeechOptions, owner: str
) -> list[Path]:
    limits = options.limits
    paths = [into / f"{number}.wav" for number in range(len(texts))]
    with removed_on_failure(*paths), ExitStack() as opened:
        descriptors: list[int] = []
        if not engine.is_piper:
            try:
                descriptors = await asyncio.to_thread(
                    lambda: [new_file(opened, path) for path in paths]
                )
            except OSError as error:
                raise UnavailableError(
                    "The spoken text can't be stored now; try again later."
                ) from error
        output = ",".join(map(str, descriptors)) or str(into)
        try:
            ended = await worker_process.run(
                WORKER,
                [engine.program, engine.voice, engine.pace, output, *map(str, limits)],
                limits.wall_seconds,
                "".join(f"{text}\n" for text in texts).encode(),
                descriptors,
                owner,
            )
        except TimeoutError:
            raise TextFailedError(
                f"Speaking the text takes longer than {limits.wall_seconds:g} s now."
            ) from None
        _raise_failure(ended, engine, limits)
    return paths


def _raise_failure(ended: worker_process.Ended, engine: Engine, limits: SpeechLimits) -> None:
    """Raise the error of an exit status, unless it means success."""
    error: type[UnavailableError] = UnavailableError
    match ended.status:
        case Verdict.DONE:
            return
        case Verdict.TOO_LONG:
            raise InvalidRequestError(
                f"text takes longer than {limits.max_seconds:g} s to speak; write a shorter one."
            )
        case Verdict.NO_ENGINE if engine.is_piper:
            sentence = "The piper command can't be run; install it with pip install piper-tts."
        case Verdict.NO_ENGINE:
            sentence = "espeak-ng can't be loaded; install it with pip install 'bitel[speech]'."
        case Verdict.NO_VOICE:
            sentence = f"espeak-ng has no voice {engine.voice!r}; set another in speech.languages."
        case Verdict.OUT_OF_MEMORY:
            error = TextFailedError
            sentence = "Speaking the text takes more memory than is granted."
        case status if status == -signal.SIGXCPU:
            error = TextFailedError
            sentence = (
                f"Speaking the text takes more than {limits.cpu_seconds} s of processor time."
            )
        case _:
            error = TextFailedError
            sentence = "The speech engine failed on the text; write it differently or try again."
    raise error(sentence) from worker_process.WorkerError(ended)


def _require_sound(path: Path) -> None:
    """Raise UnavailableError if there is no valid WAV, InvalidRequestError if it is silent."""
    try:
        samples, _ = wav.read(path)
    except (OSError, EOFError, wave.Error) as error:
        raise UnavailableError("The speech engine gave no audio for the text.") from error
    except ValueError as error:
        raise UnavailableError(
            "The speech engine gave audio of another width than 16 bits."
        ) from error
    if max(int(samples.max(initial=0)), -int(samples.min(initial=0))) < AUDIBLE_PEAK:
        raise InvalidRequestError("text holds nothing that this language's voice can speak.")
