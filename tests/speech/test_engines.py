"""Texts to WAVs by real engines in their own process, and every way in which that can fail."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import time
import wave
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitel.errors import InvalidRequestError, SettingsError, UnavailableError
from bitel.recordings.limits import SpeechLimits
from bitel.speech import engines
from bitel.speech.engines import SpeechOptions, engine_for, render, speak
from bitel.speech.spoken_text import plain
from tests.support.waiting import until

OPTIONS = SpeechOptions()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "spoken"
    folder.mkdir()
    return folder


def sound(path: Path) -> tuple[NDArray[np.float64], int]:
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return samples / 32768, file.getframerate()


def seconds(path: Path) -> float:
    samples, rate = sound(path)
    return len(samples) / rate


async def spoken(into: Path, *texts: str, language: str = "en") -> list[Path]:
    words = [plain(text, 1000) for text in texts]
    return await render(words, engine_for(language, OPTIONS), into, OPTIONS)


async def test_a_sentence(into: Path) -> None:
    for language, text in (
        ("fa", "سلام، کد ورود شما ۴۰۷۱ است."),
        ("en", "Hello, your code is 4071."),
        (None, "سلام hello ۱۲٫۵"),
        ("FA", "سلام"),
        ("en", "یک متن فارسی"),
        ("fa", "12345678901234567890 ۱۲۳۴۵۶۷"),
    ):
        samples, rate = sound(await speak(text, language, into, OPTIONS))
        assert 0.3 < len(samples) / rate < 15
        assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.3


async def test_longer_texts_take_longer_and_other_words_sound_otherwise(into: Path) -> None:
    short, long, other = await spoken(into, "one", "one, two, three and four", "six")
    assert seconds(long) > 2 * seconds(short)
    assert short.read_bytes() != other.read_bytes()


async def test_the_pace(into: Path, tmp_path: Path) -> None:
    text = "one two three four five six seven eight nine ten"
    slow = seconds(await speak(text, "en", into, SpeechOptions(words_per_minute=100)))
    fast = seconds(await speak(text, "en", into, SpeechOptions(words_per_minute=250)))
    assert 1.6 < slow / fast < 3.5


async def test_persian_digits_are_heard_by_an_english_voice(into: Path) -> None:
    ours, theirs, bare = await spoken(into, "code ۴۰۷۱", "code 4071", "code")
    assert seconds(ours) == pytest.approx(seconds(theirs), abs=0.05)
    assert seconds(ours) > 2 * seconds(bare)


async def test_markup_is_read_out_and_not_obeyed(into: Path) -> None:
    bold, bare, pause, phonemes = await spoken(
        into, "<b>hello</b>", "hello", "hello <break time='9s'/> world", "[[h@l'oU]]"
    )
    assert seconds(bold) > 2 * seconds(bare)
    # The phonemes would say hello; the letters take far longer.
    assert seconds(phonemes) > 2 * seconds(bare)
    samples, rate = sound(pause)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    assert np.diff(loud).max() / rate < 1.0


async def test_no_file_that_a_text_names_is_played(into: Path, tmp_path: Path) -> None:
    chime = tmp_path / "chime.wav"
    with wave.open(str(chime), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes(bytes(22050 * 2 * 30))
    [path] = await spoken(into, f"<speak><audio src='{chime}'>x</audio></speak>")
    assert seconds(path) < 25


async def test_an_unknown_language(into: Path) -> None:
    for language in ("de", "", "../../etc/passwd", "en\x00", "x" * 10_000):
        with pytest.raises(
            InvalidRequestError, match=r"^language .* known are en, fa\.$"
        ) as refused:
            await speak("hello", language, into, OPTIONS)
        assert len(str(refused.value)) < 200


async def test_a_language_by_configuration(into: Path) -> None:
    options = SpeechOptions("de", {"de": "de", "en-us": "en-us"})
    german = await speak("Guten Tag, vier null sieben eins", "de", into, options)
    assert seconds(german) > 1
    with pytest.raises(InvalidRequestError, match=r"known are de, en-us\.$"):
        await speak("سلام", "fa", into, options)
    nowhere = SpeechOptions("en", {"en": "klingonese"})
    with pytest.raises(UnavailableError, match=r"no voice 'klingonese'; set another in speech"):
        await speak("hello", "en", into, nowhere)


async def test_silence_of_the_engine_is_a_fault_of_the_text(into: Path) -> None:
    # A symbol that the voice has no name for.
    with pytest.raises(InvalidRequestError, match=r"^text holds nothing that this language's"):
        await speak("\u02dc", "en", into, OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"default_language": "de"}, r"default language 'de' has no voice; there are en, fa\."),
        ({"languages": {"fa": "fa", "EN": "en"}}, "'EN' is not a language"),
        ({"languages": {"fa": "../fa"}}, "'../fa' for fa is not a voice"),
        ({"words_per_minute": 79}, "words_per_minute must be 80 to 450, not 79"),
        ({"max_chars": 0}, "max_chars must be at least 1, not 0"),
    ],
)
def test_options_that_contradict_themselves(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"^speech: .*{sentence}"):
        SpeechOptions(**arguments)  # type: ignore[arg-type]


async def test_the_longest_text(into: Path) -> None:
    path = await speak("۹۹۹," * 250, "fa", into, OPTIONS)
    assert 60 < seconds(path) < 600


async def test_speech_longer_than_allowed(into: Path) -> None:
    options = SpeechOptions(limits=SpeechLimits(max_seconds=2.0))
    with pytest.raises(InvalidRequestError, match=r"^text takes longer than 2 s to speak"):
        await speak("a sentence that goes on and on and on without an end", "en", into, options)
    assert list(into.iterdir()) == []


async def test_too_much_time(into: Path) -> None:
    options = SpeechOptions(limits=SpeechLimits(wall_seconds=0.01))
    with pytest.raises(UnavailableError, match=r"longer than 0\.01 s now"):
        await speak("hello", "en", into, options)


async def test_more_memory_than_granted(into: Path) -> None:
    options = SpeechOptions(limits=SpeechLimits(memory_bytes=16 * 1024 * 1024))
    with pytest.raises(UnavailableError):
        await speak("hello", "en", into, options)


async def test_no_engine_is_installed(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"pip install 'bitel\[speech\]'"):
        await speak("hello", "en", into, OPTIONS)


async def replaced_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, into: Path, body: str
) -> str:
    """Speak with a worker that does something else, and return what the client is told."""
    (tmp_path / "replaced_worker.py").write_text(f"import os, signal, sys, time\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(engines, "WORKER", "replaced_worker")
    with pytest.raises(UnavailableError) as failed:
        await speak("hello", "en", into, OPTIONS)
    return str(failed.value)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "engine failed"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed by signal 15"),
        ("sys.stdin.close(); raise RuntimeError('secret')", "engine failed"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "more than 30 s of processor time"),
        ("sys.exit(30)", "can't be loaded; install it"),
        ("sys.exit(34)", "more memory than is granted"),
        ("sys.exit(0)", "gave no audio"),
        ("os.write(int(sys.argv[4]), b'RIFF')", "gave no audio"),
    ],
)
async def test_a_worker_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, into: Path, body: str, sentence: str
) -> None:
    said = await replaced_worker(monkeypatch, tmp_path, into, body)
    assert sentence in said
    assert "secret" not in said


@pytest.mark.parametrize(("text", "language"), [("hello", "fa"), ("سلام", "en")])
async def test_words_of_another_language_are_heard(into: Path, text: str, language: str) -> None:
    """For which the engine reads other files, after it has entered the sandbox."""
    samples, _ = sound(await speak(text, language, into, OPTIONS))
    assert len(samples) > 2000


async def test_called_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, into: Path) -> None:
    body = "os.write(int(sys.argv[4]), str(os.getpid()).encode()); time.sleep(60)"
    speaking = asyncio.create_task(replaced_worker(monkeypatch, tmp_path, into, body))
    written = into / "0.wav"
    await until(lambda: written.exists() and written.read_text(), 20)
    process = int(written.read_text())
    speaking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await speaking
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


async def test_neither_secrets_nor_the_text_show_in_the_list_of_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, into: Path
) -> None:
    monkeypatch.setenv("BITEL_DATABASE_URL", "postgresql://opensesame")
    body = (
        "seen = open('/proc/self/cmdline').read() + open('/proc/self/environ').read()\n"
        "sys.exit(30 if 'hello' in seen or 'sesame' in seen else 34)"
    )
    assert "memory" in await replaced_worker(monkeypatch, tmp_path, into, body)


def test_the_service_never_loads_an_engine() -> None:
    script = (
        "import asyncio, sys, tempfile; from pathlib import Path\n"
        "from bitel.speech.library import SpeechLibrary\n"
        "from bitel.speech.engines import SpeechOptions\n"
        "library = SpeechLibrary(Path(tempfile.mkdtemp(dir=sys.argv[1])), SpeechOptions())\n"
        "asyncio.run(library.render('hello', 'en'))\n"
        "assert 'espeakng_loader' not in sys.modules\n"
        "assert 'espeak' not in open('/proc/self/maps').read()\n"
    )
    folder = os.environ.get("TMPDIR", "/tmp")
    subprocess.run([sys.executable, "-c", script, folder], check=True, timeout=60)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(min_size=1, max_size=120), min_size=20, max_size=40),
    language=st.sampled_from(["fa", "en"]),
)
def test_any_text_is_spoken_or_refused_in_a_sentence(
    tmp_path: Path, texts: list[str], language: str
) -> None:
    asyncio.run(_speak_or_refuse(tmp_path, texts, language))


async def _speak_or_refuse(folder: Path, texts: list[str], language: str) -> None:
    words: list[str] = []
    for text in texts:
        try:
            words.append(plain(text, OPTIONS.max_chars))
        except InvalidRequestError:
            continue
    into = folder / str(time.monotonic_ns())
    into.mkdir()
    # All of them in one process: what one text does to the engine, the next would show.
    with suppress(InvalidRequestError):
        await render([*words, "the end"], engine_for(language, OPTIONS), into, OPTIONS)
    assert len(list(into.glob("*.wav"))) == len(words) + 1


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1000,
        "😀" * 1000,
        "9" * 1000,
        "۹" * 1000,
        "\u0651a" * 500,
        "ﷺ" * 200,
        "ا" + "\u064e" * 999,
        "%s%n" * 250,
        "(" * 999 + "a",
        "'\"`$;|&" * 100 + "a",
        "<" * 999 + "a",
        "-a" * 500,
        "1e" * 500,
        "1," * 500,
        "A.B." * 250,
        "\U0010ffff" * 999 + "a",
    ],
)
async def test_hostile_texts(into: Path, text: str) -> None:
    for language in ("fa", "en"):
        with suppress(InvalidRequestError):
            assert seconds(await speak(text, language, into, OPTIONS)) > 0


FAKE_PIPER = """#!{python}
import math, struct, sys, wave
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
text = sys.stdin.read()
if "fail" in text:
    sys.exit("no such voice")
if "endless" in text:
    while True:
        pass
open({log!r}, "a").write(repr((arguments["--model"], arguments["--length_scale"], text)) + "\\n")
with wave.open(arguments["--output_file"], "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(16000)
    samples = range(1600 * len(text))
    file.writeframes(
        b"".join(struct.pack("<h", int(9000 * math.sin(n / 8))) for n in samples)
    )
"""


class Piper:
    """A command that takes what the `piper` command takes, and hums one note a text."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        self.model = folder / "voice.onnx"
        self.model.write_bytes(b"model")
        self.command = folder / "piper"
        self.command.write_text(FAKE_PIPER.format(python=sys.executable, log=str(self._log)))
        self.command.chmod(self.command.stat().st_mode | stat.S_IXUSR)
        self.options = SpeechOptions(
            piper={"en": self.model}, limits=SpeechLimits(cpu_seconds=1, wall_seconds=20)
        )

    def calls(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def piper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Piper:
    folder = tmp_path / "piper"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return Piper(folder)


async def test_piper_speaks_where_it_has_a_model(piper: Piper, into: Path) -> None:
    samples, rate = sound(await speak("hello\nسلام", "en", into, piper.options))
    assert rate == 16000
    assert len(samples) == 1600 * len("hello. سلام.\n")
    assert piper.calls() == [repr((str(piper.model), "1.000", "hello. سلام.\n"))]
    # The others stay with espeak-ng.
    assert sound(await speak("سلام", "fa", into, piper.options))[1] == 22050
    assert len(piper.calls()) == 1


async def test_piper_gets_each_text_for_itself(piper: Piper, into: Path) -> None:
    engine = engine_for("en", piper.options)
    paths = await render(["a", "bcd"], engine, into, piper.options)
    assert [len(sound(path)[0]) for path in paths] == [3200, 6400]


async def test_what_piper_fails_at(piper: Piper, into: Path) -> None:
    with pytest.raises(UnavailableError, match="engine failed on the text") as failed:
        await speak("fail", "en", into, piper.options)
    assert "no such voice" in str(failed.value.__cause__)
    with pytest.raises(UnavailableError, match="more than 1 s of processor time"):
        await speak("endless", "en", into, piper.options)
    piper.command.write_text("#!/nonexistent/python\n")
    with pytest.raises(UnavailableError, match="piper command can't be run"):
        await speak("hello", "en", into, piper.options)


async def test_piper_is_not_replaced_in_silence(
    piper: Piper, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piper.model.unlink()
    with pytest.raises(UnavailableError, match=r"voice model for 'en' can't be read"):
        await speak("hello", "en", into, piper.options)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(UnavailableError, match=r"Piper is to speak 'en' .* pip install piper-tts"):
        await speak("hello", "en", into, piper.options)
