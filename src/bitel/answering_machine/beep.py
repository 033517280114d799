"""Finds the record tone at the end of a machine's greeting, after which a message may begin.

A record tone is one steady frequency. A vowel changes its pitch and has harmonics as strong as a
tenth of the strongest; a DTMF digit is two lines of about the same strength (ITU-T Q.23); special
information tones are three tones in direct succession (ITU-T E.180), and come before an
announcement; dial, ring-back and busy tones lie between 350 and 640 Hz (ITU-T E.180 supplement 2)
and come before any speech or again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bitel.answering_machine.measures import FRAME_SECONDS, FrameMeasures


@dataclass(frozen=True, slots=True)
class BeepSettings:
    """What counts as a record tone. Without another source, tuned on the training voices of
    `bench.answering_machines`.
    """

    lowest: float = 350.0
    """Hz. Record tones of machines and voice mail are 400 to 2000 Hz; margins on both sides."""
    highest: float = 2500.0
    """Hz."""
    shortest: float = 0.14
    """Seconds that a tone lasts at least. Its first and last frame are partly something else."""
    longest: float = 4.0
    """Seconds; what is longer is a fax, a modem or a fault."""
    dominance: float = 12.0
    """dB of the tone above all other lines. DTMF's lines differ by at most 8 dB (Q.24)."""
    purity: float = 0.75
    """Share of the energy in the tone, which lets it be 5 dB above noise."""
    drift: float = 0.012
    """Largest change of frequency from the tone's mean, as a share of it. A sung note has 0.03."""
    range: float = 9.0
    """Largest change of level within the tone, in dB, without its first and last frames."""
    quiet: float = -50.0
    """dBov below which a tone is not audible enough to count."""
    holes: int = 2
    """Frames in succession that noise may spoil within a tone."""
    lost: int = 8
    """Frames in succession that may be lost within a tone."""
    shortest_speech: float = 0.4
    """Seconds of speech without which a tone is not a record tone: it ends no greeting."""
    gap: float = 0.1
    """Seconds without a tone after it, which say that it has ended and is not one of several."""
    progress_highest: float = 640.0
    """Hz up to which a tone counts only after `progress_speech` seconds of speech."""
    progress_speech: float = 1.0
    """Seconds."""
    progress_drift: float = 0.06
    """The drift of such tones: ring-back of 440 and 480 Hz is one line between the two here."""


class Tone(StrEnum):
    """What a steady tone was."""

    BEEP = "beep"
    """The record tone of a machine."""
    PROGRESS = "progress"
    """Ring-back or another tone that leaves open who answers, or one that is too long."""
    NETWORK = "network"
    """Tones in direct succession or before any speech: special information tones, a fax."""


@dataclass(frozen=True, slots=True)
class ToneEnd:
    """A steady tone that has ended."""

    tone: Tone
    began: float
    """Seconds since the answer."""
    ended: float
    """Seconds since the answer."""
    frequency: float
    """Its mean, in Hz."""


class BeepDetector:
    """Follows the tones of one call. `in_tone` is the number of frames of the present tone."""

    def __init__(self, settings: BeepSettings | None = None) -> None:
        self._settings = settings or BeepSettings()
        self._frames = 0
        self._in_a_row = 0  # tones that followed each other directly
        self._waiting: ToneEnd | None = None
        self._reset()

    def _reset(self) -> None:
        self.in_tone = 0
        self._holes = 0
        self._missing = 0
        self._mean = 0.0
        self._began = 0
        self._last = 0
        self._loudest = -100.0

    @property
    def is_tone(self) -> bool:
        """Whether the present frame continues a tone that has lasted the shortest time."""
        return self.in_tone * FRAME_SECONDS >= self._settings.shortest

    def push(self, frame: FrameMeasures | None, speech: float = 0.0) -> ToneEnd | None:
        """Take the next frame, None for a lost one; the tone that is now known to have ended.

        `speech`: seconds of speech before it.
        """
        self._frames += 1
        settings = self._settings
        if frame is None:
            is_pure = False
        else:
            is_pure = (
                settings.lowest <= frame.frequency <= settings.highest
                and frame.dominance >= settings.dominance
                and frame.purity >= settings.purity
                and frame.level >= settings.quiet
            )
        if self.in_tone and not (is_pure and frame and self._continues(frame, speech)):
            if frame is None:
                self._missing += 1
            else:
                self._holes += 1
            # Another tone ends this one at once.
            is_other = is_pure and frame and abs(frame.frequency / self._mean - 1) > 0.1
            is_short = self._holes <= settings.holes and self._missing <= settings.lost
            if is_short and not is_other:
                return self._known()
            self._end(speech)
        if is_pure and frame:
            if not self.in_tone:
                self._began = self._frames - 1
            self._holes = self._missing = 0
            self.in_tone += 1
            # The first frame is partly of what was before.
            weight = 1.0 if self.in_tone <= 2 else 1.0 / (self.in_tone - 1)
            self._mean += weight * (frame.frequency - self._mean)
            self._last = self._frames
            self._loudest = max(self._loudest, frame.level)
        return self._known()

    def _continues(self, frame: FrameMeasures, speech: float) -> bool:
        settings = self._settings
        drift = settings.drift
        if frame.frequency <= settings.progress_highest and speech < settings.progress_speech:
            drift = settings.progress_drift
        # Within two frames of the begin the mean is still uncertain.
        drift *= 3 if self.in_tone <= 2 else 1
        return (
            abs(frame.frequency - self._mean) <= drift * self._mean
            and self._loudest - frame.level <= settings.range
        )

    def _end(self, speech: float) -> None:
        settings = self._settings
        length = (self._last - self._began) * FRAME_SECONDS
        if length >= settings.shortest:
            if self._waiting is not None:
                self._in_a_row += 1
            is_progress = (
                self._mean <= settings.progress_highest and speech < settings.progress_speech
            ) or length > settings.longest
            if self._in_a_row or speech < settings.shortest_speech:
                tone = Tone.NETWORK
            else:
                tone = Tone.BEEP
            if is_progress:
                tone = Tone.PROGRESS
            self._waiting = ToneEnd(
                tone, self._began * FRAME_SECONDS, self._last * FRAME_SECONDS, self._mean
            )
        self._reset()

    def _known(self) -> ToneEnd | None:
        ended = self._waiting
        if ended is None or self.in_tone > 2:
            return None
        if self._frames * FRAME_SECONDS - ended.ended < self._settings.gap - 1e-9:
            return None
        self._waiting = None
        self._in_a_row = 0
        return ended
