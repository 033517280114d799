"""Greetings of humans and answering machines, spoken by espeak-ng and flite.

The voices are split: parameters are tuned on the training voices, and no voice of the test set is
among them. Everything follows from the seed.
"""

from __future__ import annotations

import random
import subprocess
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitel.g711 import SAMPLE_RATE

Audio = NDArray[np.float64]
Part = Literal["train", "test"]

SHORT = 0.7
"""Share of human greetings of up to three words, as of people at their own numbers."""

HUMAN: dict[str, Sequence[str]] = {
    "en": (
        "hello?",
        "yes?",
        "hi",
        "hello, hello?",
        "hello, this is Sara",
        "Anna speaking",
        "yes, who is this?",
        "good morning, Miller and sons, how can I help you?",
        "thank you for calling Green Taxi, this is Tom",
        "city clinic, good afternoon",
    ),
    "fa": ("الو؟", "بله؟", "بفرمایید", "سلام، بفرمایید", "الو، سلام، شما؟", "شرکت سپهر، بفرمایید"),
    "de": ("Hallo?", "Ja bitte?", "Schneider", "Guten Tag, Autohaus Weber, Klein am Apparat"),
    "fr": ("allô?", "oui?", "oui allô, bonjour", "cabinet Martin, bonjour, je vous écoute"),
    "es": ("¿diga?", "¿sí?", "hola, ¿quién es?", "talleres Romero, buenos días, dígame"),
    "ar": ("ألو؟", "نعم؟", "ألو، السلام عليكم", "شركة النور، صباح الخير"),
    "tr": ("alo?", "efendim?", "alo, buyurun", "Yıldız Emlak, iyi günler, buyurun"),
    "it": ("pronto?", "sì?", "pronto, chi parla?", "farmacia Rossi, buongiorno"),
    "ru": ("алло?", "да?", "да, слушаю вас", "компания Север, добрый день"),
    "hi": ("हैलो?", "हाँ जी?", "नमस्ते, कौन बोल रहा है?"),
}
"""By language."""

MACHINE: dict[str, Sequence[Sequence[str]]] = {
    "en": (
        ("Hi, you have reached the voice mail of John Baker.", "Please leave a message."),
        (
            "Hello, I can't take your call right now, but if you leave your name and number,"
            " I will call you back as soon as I can.",
        ),
        (
            "You have reached Miller and sons. Our office is closed at the moment.",
            "Our hours are nine to five, Monday to Friday.",
            "Please leave a message after the tone.",
        ),
        (
            "The person you are calling is not available. Please record your message after the"
            " tone. When you have finished, you may hang up.",
        ),
        ("Your call has been forwarded to an automatic voice message system.",),
    ),
    "fa": (
        ("سلام، شما با منزل احمدی تماس گرفته‌اید. لطفا پس از شنیدن صدای بوق پیام خود را بگذارید.",),
        ("مشترک مورد نظر در دسترس نمی‌باشد.", "لطفا بعدا تماس بگیرید."),
        ("در حال حاضر قادر به پاسخگویی نیستم.", "لطفا پیغام بگذارید، با شما تماس می‌گیرم."),
    ),
    "de": (
        (
            "Guten Tag, Sie sind verbunden mit dem Anschluss von Familie Schneider.",
            "Wir sind zur Zeit nicht zu Hause. Bitte hinterlassen Sie eine Nachricht.",
        ),
        (
            "Der gewünschte Gesprächspartner ist zur Zeit nicht erreichbar. Bitte sprechen Sie nach"
            " dem Signalton.",
        ),
    ),
    "fr": (
        (
            "Bonjour, vous êtes bien sur la messagerie de Paul Martin.",
            "Laissez un message après le bip sonore, je vous rappellerai dès que possible.",
        ),
        ("Le numéro que vous avez composé n'est pas attribué. Veuillez consulter l'annuaire.",),
    ),
    "es": (
        (
            "Hola, este es el contestador de la familia Romero. Ahora no podemos atenderle.",
            "Deje su mensaje después de la señal.",
        ),
        ("El teléfono al que llama está apagado o fuera de cobertura en este momento.",),
    ),
    "ar": (
        ("مرحبا، لا أستطيع الرد على مكالمتك الآن، من فضلك اترك رسالة بعد الصافرة.",),
        ("الرقم المطلوب غير متاح حاليا، يرجى المحاولة في وقت لاحق.",),
    ),
    "tr": (
        (
            "Merhaba, şu anda telefonunuza cevap veremiyorum.",
            "Lütfen sinyal sesinden sonra mesajınızı bırakın.",
        ),
        ("Aradığınız kişiye şu anda ulaşılamıyor, lütfen daha sonra tekrar deneyiniz.",),
    ),
    "it": (
        (
            "Risponde la segreteria telefonica di casa Rossi. Lasciate un messaggio dopo il"
            " segnale acustico.",
        ),
    ),
    "ru": (
        (
            "Здравствуйте, вы позвонили в компанию Север. Сейчас мы не можем ответить.",
            "Пожалуйста, оставьте сообщение после сигнала.",
        ),
    ),
    "hi": (("आप जिस व्यक्ति से संपर्क करना चाहते हैं वह अभी उपलब्ध नहीं है। कृपया बाद में प्रयास करें।",),),
}
"""The sentences of each, between which there is a pause."""

NETWORK = "The number you have dialled has not been recognised. Please check and try again."
"""An announcement of the network, after special information tones."""

_ESPEAK = {"en": ("en-us", "en-gb")}
_VARIANTS: dict[Part, Sequence[str]] = {
    "train": ("m1", "m3", "m5", "m7", "f1", "f3", "f5"),
    "test": ("m2", "m4", "m6", "m8", "f2", "f4"),
}
_FLITE: dict[Part, Sequence[str]] = {"train": ("kal16", "rms"), "test": ("awb", "slt")}


@dataclass(frozen=True, slots=True)
class Spoken:
    """A text and the voice that speaks it. `speed` and `pitch` are 1.0 as the engine is made."""

    engine: Literal["espeak-ng", "flite"]
    voice: str
    text: str
    speed: float
    pitch: float

    def command(self, out: Path) -> list[str]:
        """Writes `out`, a WAV file."""
        if self.engine == "flite":
            voice = ["flite", "-voice", self.voice]
            stretch = ["--setf", f"duration_stretch={1 / self.speed:.2f}"]
            return [*voice, *stretch, "-t", self.text, "-o", str(out)]
        speed, pitch = str(round(165 * self.speed)), str(round(50 * self.pitch))
        return ["espeak-ng", "-v", self.voice, "-s", speed, "-p", pitch, "-w", str(out), self.text]


@dataclass(frozen=True, slots=True)
class Greeting:
    """What is said after an answer: sentences with pauses between them."""

    part: Part
    is_machine: bool
    sentences: Sequence[Spoken]
    is_network: bool = False


def greetings(part: Part, count: int, seed: int) -> list[Greeting]:
    """`count` greetings by the voices of this part, two of five of them of machines."""
    chance = random.Random(f"{seed} {part}")
    return [_greeting(part, n % 5 in (1, 3), chance) for n in range(count)]


def _greeting(part: Part, is_machine: bool, chance: random.Random) -> Greeting:
    # One in three by flite, which speaks English only.
    is_flite = chance.random() < 1 / 3
    language = "en" if is_flite else chance.choice(list(HUMAN))
    is_network = is_machine and language == "en" and chance.random() < 0.12
    texts: Sequence[str]
    if is_network:
        texts = (NETWORK,)
    elif is_machine:
        texts = chance.choice(MACHINE[language])
    else:
        is_short = chance.random() < SHORT
        texts = (
            chance.choice(
                [each for each in HUMAN[language] if (len(each.split()) <= 3) == is_short]
                or HUMAN[language]
            ),
        )
    # People answer faster than announcements are read out.
    speed = chance.uniform(0.85, 1.15) if is_machine else chance.uniform(1.0, 1.3)
    pitch = chance.uniform(0.6, 1.4)
    if is_flite:
        voice = chance.choice(_FLITE[part])
        spoken = tuple(Spoken("flite", voice, text, speed, 1.0) for text in texts)
    else:
        voice = f"{chance.choice(_ESPEAK.get(language, (language,)))}"
        voice += f"+{chance.choice(_VARIANTS[part])}"
        spoken = tuple(Spoken("espeak-ng", voice, text, speed, pitch) for text in texts)
    return Greeting(part, is_machine, spoken, is_network)


def render(spoken: Sequence[Spoken], folder: Path) -> dict[Spoken, Audio]:
    """Speak all of them: samples from -1 to 1 at 8 kHz, without silence at both ends."""
    wanted = list(dict.fromkeys(spoken))
    with ThreadPoolExecutor(8) as pool:
        return dict(
            zip(
                wanted,
                pool.map(lambda n: _render(wanted[n], folder / f"{n}.wav"), range(len(wanted))),
                strict=True,
            )
        )


def _render(spoken: Spoken, out: Path) -> Audio:
    subprocess.run(
        spoken.command(out),
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with wave.open(str(out)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    out.unlink()
    audio = resample(samples, rate)
    loud = np.flatnonzero(np.abs(audio) > 0.01)
    return audio[loud[0] : loud[-1] + 1]


def resample(samples: Audio, rate: int) -> Audio:
    """From `rate` to 8 kHz, by dropping the spectrum above 3.6 kHz."""
    length = round(len(samples) * SAMPLE_RATE / rate)
    spectrum = np.fft.rfft(samples)[: length // 2 + 1]
    hertz = np.arange(len(spectrum)) * rate / len(samples)
    spectrum[(hertz > 3600) | (hertz < 150)] = 0
    made: Audio = np.fft.irfft(spectrum, length) * (length / len(samples))
    return made
