"""Decides by the timing of the first words after the answer whether a human or a machine speaks.

A human says a few words and waits. A machine speaks on, or ends with a record tone. The rules are
those that are usual for this: initial silence, length of the greeting, number of words, silence
after the greeting, total time. Unlike fixed levels, the threshold between silence and speech lies
between the noise and the speech of this call. Tones count neither as words nor as silence.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from enum import StrEnum

from bitel.answering_machine.beep import BeepDetector, BeepSettings, Tone, ToneEnd
from bitel.answering_machine.measures import FRAME_SECONDS, FrameMeasures


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """Rules of the detector. Times are in seconds. Unless a source is named, the values were tuned
    on the training voices of `bench.answering_machines`.
    """

    initial_silence: float = 4.5
    """Silence after the answer without any word, after which no decision is possible."""
    greeting: float = 3.0
    """Length of a greeting, short pauses included, from which on it is a machine's."""
    speech: float = 2.6
    """The same, of its words alone."""
    after_greeting: float = 0.76
    """Silence after the words which says that a human waits for an answer."""
    long_greeting: float = 1.8
    """Length of a greeting after which its end is less certain: a machine's sentences have it."""
    after_long_greeting: float = 1.0
    """Silence after such a greeting instead of `after_greeting`."""
    most_words: int = 14
    """Number of words from which on the greeting is a machine's."""
    shortest_word: float = 0.1
    """Sound that is shorter is a click."""
    between_words: float = 0.06
    """Silence that separates words."""
    total: float = 7.0
    """Time from the answer after which the verdict remains open."""
    lowest_threshold: float = -50.0
    """dBov below which all is silence: 3 dB below the softest speech in use (ITU-T P.56, G.168)."""
    highest_floor: float = -34.0
    """dBov that noise has at most until speech was heard: before, speech may be all there is."""
    above_noise: float = 6.0
    """dB from the noise to the threshold at least."""
    share: float = 0.45
    """Place of the threshold between noise (0) and the loudest speech (1), both in dB."""
    longest_loss: float = 0.2
    """Lost audio up to this length counts as what was before it; the rest only as time."""
    beep: BeepSettings = field(default_factory=BeepSettings)


class Verdict(StrEnum):
    """Who has answered."""

    HUMAN = "human"
    MACHINE = "machine"


class Reason(StrEnum):
    """Rule that led to a decision."""

    GREETING_ENDED = "greeting ended"
    LONG_GREETING = "long greeting"
    MANY_WORDS = "many words"
    BEEP = "beep"
    NETWORK_TONES = "network tones"
    INITIAL_SILENCE = "initial silence"
    TIME_OVER = "time over"
    WORKER_LOST = "worker lost"
    OVERLOAD = "overload"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, None if it remains undecided; `at`: seconds of audio since the answer."""

    verdict: Verdict | None
    reason: Reason
    at: float


class Detector:
    """The state of one call. `decision` is set once and stays; tones are followed further."""

    def __init__(self, settings: DetectorSettings | None = None) -> None:
        self._settings = settings or DetectorSettings()
        self._beep = BeepDetector(self._settings.beep)
        self.decision: Decision | None = None
        self.beep: ToneEnd | None = None
        """The latest record tone."""
        self._frames = 0
        self._levels: list[float] = []  # sorted
        self._floor_before = -100.0  # the noise until the first word
        self._loudest = -100.0
        self._lost = 0
        self._was_speech = False
        self._word = 0  # frames of the present sound
        self._silence = 0  # frames of silence since the last word
        self._speech = 0  # frames of all words
        self._span = 0  # frames from the first word to the end of the last
        self._first_word = -1
        self._words = 0
        self._tone_frames = 0

    @property
    def at(self) -> float:
        """Seconds of audio so far, lost packets included."""
        return self._frames * FRAME_SECONDS

    @property
    def words(self) -> int:
        """Number of words so far."""
        return self._words

    def push(self, frame: FrameMeasures | None) -> Decision | None:
        """Take the next 20 ms, None if they were lost; the decision, once there is one."""
        self._frames += 1
        speech = self._speech * FRAME_SECONDS
        ended = self._beep.push(frame, speech)
        if ended is not None and ended.tone is Tone.BEEP:
            self.beep = ended
        if self.decision is not None:
            if frame is not None and not self._beep.in_tone and frame.level > -45.0:
                self._speech += 1
            return self.decision
        if ended is not None and ended.tone is not Tone.PROGRESS:
            is_beep = ended.tone is Tone.BEEP
            reason = Reason.BEEP if is_beep else Reason.NETWORK_TONES
            return self._decide(Verdict.MACHINE, reason)
        if frame is None:
            self._lost += 1
            if self._lost * FRAME_SECONDS <= self._settings.longest_loss:
                self._count(self._was_speech)
            return self._judge()
        self._lost = 0
        if self._beep.in_tone:
            # Speech or a tone: it is known when it has lasted long enough, or ended before.
            self._tone_frames += 1
            if self._beep.is_tone:
                self._tone_frames = 0
                self._word = 0
                self._was_speech = False
            return self._judge()
        for _ in range(self._tone_frames):
            self._count(True)
        self._tone_frames = 0
        self._was_speech = self._is_speech(frame)
        self._count(self._was_speech)
        return self._judge()

    def _is_speech(self, frame: FrameMeasures) -> bool:
        settings = self._settings
        insort(self._levels, frame.level)
        floor = self._levels[len(self._levels) // 10]
        if not self._words:
            self._floor_before = floor
        # Otherwise the floor would rise to the level of a long sound, which then counted as noise.
        floor = min(floor, max(settings.highest_floor, self._floor_before + settings.above_noise))
        if not self._words:
            floor = min(floor, settings.highest_floor)
        self._loudest = max(self._loudest, frame.level)
        span = self._loudest - floor
        above = max(settings.above_noise, settings.share * span)
        return frame.level > max(settings.lowest_threshold, floor + above)

    def _count(self, is_speech: bool) -> None:
        settings = self._settings
        if is_speech:
            self._word += 1
            length = self._word * FRAME_SECONDS
            if length >= settings.shortest_word - 1e-9:
                if (self._word - 1) * FRAME_SECONDS < settings.shortest_word - 1e-9:
                    self._words += 1
                    if self._first_word < 0:
                        self._first_word = self._frames - self._word
                    self._speech += self._word - 1
                self._speech += 1
                self._silence = 0
                self._span = self._frames - self._first_word
            return
        self._silence += 1
        if self._silence * FRAME_SECONDS >= settings.between_words:
            self._word = 0

    def _judge(self) -> Decision | None:
        settings = self._settings
        if self._words:
            if self._span * FRAME_SECONDS >= settings.greeting:
                return self._decide(Verdict.MACHINE, Reason.LONG_GREETING)
            if self._speech * FRAME_SECONDS >= settings.speech:
                return self._decide(Verdict.MACHINE, Reason.LONG_GREETING)
            if self._words >= settings.most_words:
                return self._decide(Verdict.MACHINE, Reason.MANY_WORDS)
            is_long = self._span * FRAME_SECONDS >= settings.long_greeting
            wait = settings.after_long_greeting if is_long else settings.after_greeting
            if self._silence * FRAME_SECONDS >= wait:
                return self._decide(Verdict.HUMAN, Reason.GREETING_ENDED)
        elif self._silence * FRAME_SECONDS >= settings.initial_silence:
            return self._decide(None, Reason.INITIAL_SILENCE)
        if self.at >= settings.total:
            return self._decide(None, Reason.TIME_OVER)
        return None

    def _decide(self, verdict: Verdict | None, reason: Reason) -> Decision:
        self.decision = Decision(verdict, reason, round(self.at, 3))
        return self.decision
