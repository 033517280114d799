"""Text to speech: which engine and voice speak a language, and the rendering of a text to WAV.

Two engines can be there: Piper, for a language that the options name a voice model of, and
espeak-ng for the others. Both run in the worker process `speech_worker` only. Piper is driven by
its documented command line; the tests put a stand-in in its place, so no real voice model of it
has been heard here yet.
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

import numpy as np

from bitel.errors import InvalidRequestError, SettingsError, UnavailableError
from bitel.recordings import worker_process
from bitel.recordings.limits import SpeechLimits
from bitel.recordings.new_files import new_file, removed_on_failure
from bitel.recordings.turns import SERVICE
from bitel.recordings.verdict import SpeechVerdict
from bitel.speech.spoken_text import plain

WORKER: Final = "bitel.speech.worker"
ESPEAK: Final = "espeak-ng"
ESPEAK_PACKAGE: Final = "espeakng-loader"
NATURAL_PACE: Final = 150
"""Words a minute; at this setting a Piper voice speaks as fast as it was trained to."""
AUDIBLE_PEAK: Final = 328
"""Highest sample under which a rendering counts as silent: 1 % of full scale."""

DEFAULT_LANGUAGES: Final[Mapping[str, str]] = MappingProxyType({"fa": "fa", "en": "en"})
_LANGUAGE: Final = re.compile(r"[a-z0-9]{2,8}(-[a-z0-9]{1,8}){0,3}")
_VOICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+\-]{0,63}")


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """How texts are spoken. Raises SettingsError where the options contradict themselves.

    `languages` gives espeak-ng's name of a voice for each language a client may name, in lower
    case (`fa`, `en-us`); `piper` the path of a Piper voice model (`.onnx`, its `.onnx.json`
    beside it), which goes before espeak-ng. `max_chars` is the longest text taken, in
    characters. `words_per_minute` is 80 to 450.
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
        """The languages that a client may name, sorted."""
        return sorted({*self.languages, *self.piper})


@dataclass(frozen=True, slots=True)
class Engine:
    """Who speaks: all that, with the text, decides how it sounds.

    `program` is `espeak-ng` or the path of the `piper` command, `voice` espeak-ng's voice or
    the path of Piper's model, and `version` changes whenever either does.
    """

    program: str
    voice: str
    pace: str
    version: str

    @property
    def is_piper(self) -> bool:
        return self.program != ESPEAK


def engine_for(language: str | None, options: SpeechOptions) -> Engine:
    """Return the engine for `language`, by default the default one. It looks at files.

    Raises InvalidRequestError where no voice speaks that language, and UnavailableError where
    the engine it needs is not installed.
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
    # Beside our own interpreter is where pip puts it, also where PATH does not lead.
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

    Markup in the text is read out, not obeyed. The work is done by a process of its own, under
    `options.limits`. Raises InvalidRequestError for a text or a language that can't be spoken,
    and UnavailableError where no engine is there, or it fails or takes too long.
    """
    words = plain(text, options.max_chars)
    engine = await asyncio.to_thread(engine_for, language, options)
    [path] = await render([words], engine, into, options)
    return path


async def render(
    texts: Sequence[str],
    engine: Engine,
    into: Path,
    options: SpeechOptions,
    owner: str = SERVICE,
) -> list[Path]:
    """Render each of `texts`, as `plain` gives them, to a WAV in the folder `into`; as `speak`.

    The worker takes a turn of `owner`, the project that it is for.
    """
    if not engine.is_piper:
        await _run(texts, engine, into, options, owner)
        paths = [into / f"{number}.wav" for number in range(len(texts))]
    else:
        paths = []
        for number, text in enumerate(texts):
            folder = into / f"{number}.piper"
            await asyncio.to_thread(folder.mkdir, exist_ok=True)
            await _run([text], engine, folder, options, owner)
            paths.append(folder / "0.wav")
    for path in paths:
        await asyncio.to_thread(_require_sound, path)
    return paths


async def _run(
    texts: Sequence[str], engine: Engine, into: Path, options: SpeechOptions, owner: str
) -> None:
    limits = options.limits
    given = "".join(f"{text}\n" for text in texts).encode()
    paths = [into / f"{number}.wav" for number in range(len(texts))]
    with removed_on_failure(*paths), ExitStack() as opened:
        descriptors: list[int] = []
        if not engine.is_piper:
            descriptors = await asyncio.to_thread(_open, opened, paths)
        place = _place(into, descriptors)
        try:
            ended = await worker_process.run(
                WORKER,
                _arguments(engine, place, limits),
                limits.wall_seconds,
                given,
                descriptors,
                owner,
            )
        except TimeoutError:
            raise UnavailableError(
                f"Speaking the text takes longer than {limits.wall_seconds:g} s now."
            ) from None
        _judge(ended, engine, limits)


def _place(into: Path, descriptors: Sequence[int]) -> str:
    """Where the worker writes to, as its argument says it."""
    return ",".join(map(str, descriptors)) or str(into.absolute())


def _open(opened: ExitStack, paths: Sequence[Path]) -> list[int]:
    """Descriptors of the files that are written. Raises UnavailableError."""
    try:
        return [new_file(opened, path) for path in paths]
    except OSError as error:
        raise UnavailableError("The spoken text can't be stored now; try again later.") from error


def _arguments(engine: Engine, place: str, limits: SpeechLimits) -> list[str]:
    return [
        engine.program,
        engine.voice,
        engine.pace,
        place,
        str(limits.max_seconds),
        str(limits.cpu_seconds),
        str(limits.memory_bytes),
        str(limits.wall_seconds),
    ]


def _judge(ended: worker_process.Ended, engine: Engine, limits: SpeechLimits) -> None:
    """Say in words what an exit status means; nothing where the text was spoken."""
    if ended.status == SpeechVerdict.SPOKEN:
        return
    if ended.status == SpeechVerdict.TOO_LONG:
        raise InvalidRequestError(
            f"text takes longer than {limits.max_seconds:g} s to speak; write a shorter one."
        )
    if ended.status == SpeechVerdict.NO_ENGINE and engine.is_piper:
        sentence = "The piper command can't be run; install it with pip install piper-tts."
    elif ended.status == SpeechVerdict.NO_ENGINE:
        sentence = "espeak-ng can't be loaded; install it with pip install 'bitel[speech]'."
    elif ended.status == SpeechVerdict.NO_VOICE:
        sentence = f"espeak-ng has no voice {engine.voice!r}; set another in speech.languages."
    elif ended.status == SpeechVerdict.OUT_OF_MEMORY:
        sentence = "Speaking the text takes more memory than is granted."
    elif ended.status == -signal.SIGXCPU:
        sentence = f"Speaking the text takes more than {limits.cpu_seconds} s of processor time."
    else:
        sentence = "The speech engine failed on the text; write it differently or try again."
    raise UnavailableError(sentence) from worker_process.WorkerError(ended)


def _require_sound(path: Path) -> None:
    """Raises UnavailableError where there is no WAV, InvalidRequestError where it is silent."""
    try:
        with wave.open(str(path), "rb") as file:
            usable = file.getsampwidth() == 2
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    except (OSError, EOFError, wave.Error) as error:
        raise UnavailableError("The speech engine gave no audio for the text.") from error
    if not usable:
        raise UnavailableError("The speech engine gave audio of another width than 16 bits.")
    if max(int(samples.max(initial=0)), -int(samples.min(initial=0))) < AUDIBLE_PEAK:
        raise InvalidRequestError("text holds nothing that this language's voice can speak.")
