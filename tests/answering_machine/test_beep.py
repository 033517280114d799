"""The record tone at the end of a greeting, and what is none."""

from __future__ import annotations

import pytest

from bitel.answering_machine import Detector
from bitel.answering_machine.beep import ToneEnd
from tests.support.greeting_audio import Payload, detector_after, lost, noise, silence, tone, word

GREETING = silence(0.2) + word(1.5)
BEGIN = 1.9  # seconds of the greeting and the pause after it


def beep_in(after: list[Payload]) -> ToneEnd | None:
    return detector_after(GREETING + silence(0.2) + after).beep


@pytest.mark.parametrize("seconds", [0.16, 0.3, 0.8, 2.0])
@pytest.mark.parametrize("hertz", [400.0, 440.0, 850.0, 1000.0, 1400.0, 2000.0, 2400.0])
def test_a_steady_tone_is_a_beep(hertz: float, seconds: float) -> None:
    beep = beep_in(tone(seconds, hertz) + silence(0.3))

    assert beep is not None
    assert beep.frequency == pytest.approx(hertz, rel=0.01)
    assert beep.began == pytest.approx(BEGIN, abs=0.045)
    assert beep.ended == pytest.approx(BEGIN + seconds, abs=0.045)


def test_its_end_is_known_soon() -> None:
    assert beep_in(tone(0.5, 1000.0) + silence(0.06)) is None
    assert beep_in(tone(0.5, 1000.0) + silence(0.16)) is not None


@pytest.mark.parametrize("level", [-40.0, -12.0, -2.0])
def test_of_any_level(level: float) -> None:
    assert beep_in(tone(0.4, 1000.0, level=level) + silence(0.3)) is not None


def test_a_clipped_tone_is_a_beep() -> None:
    assert beep_in(tone(0.4, 1000.0, level=3.0) + silence(0.3)) is not None


def test_over_noise() -> None:
    loud = GREETING + noise(0.2, -35) + tone(0.4, 1000.0) + noise(0.5, -35)
    assert detector_after(loud).beep is not None


def test_with_lost_packets() -> None:
    beep = beep_in(tone(0.2, 1000.0) + lost(0.08) + tone(0.2, 1000.0) + silence(0.3))

    assert beep is not None
    assert beep.ended == pytest.approx(BEGIN + 0.48, abs=0.045)


@pytest.mark.parametrize(
    "hertz",
    [(697.0, 1209.0), (770.0, 1336.0), (852.0, 1477.0), (941.0, 1633.0), (480.0, 620.0)],
)
def test_two_tones_are_no_beep(hertz: tuple[float, float]) -> None:
    assert beep_in(tone(0.5, *hertz) + silence(0.3)) is None


def test_a_short_tone_is_no_beep() -> None:
    assert beep_in(tone(0.08, 1000.0) + silence(0.3)) is None


def test_a_tone_outside_the_range_is_no_beep() -> None:
    assert beep_in(tone(0.5, 300.0) + silence(0.3)) is None
    assert beep_in(tone(0.5, 2800.0) + silence(0.3)) is None


def test_speech_is_no_beep() -> None:
    assert beep_in(word(3.0) + silence(0.3)) is None


def test_ring_back_before_speech_is_no_beep() -> None:
    assert detector_after(tone(1.0, 425.0) + silence(0.5)).beep is None


def test_tones_in_succession_are_no_beep() -> None:
    tones = tone(0.33, 950.0) + tone(0.33, 1400.0) + tone(0.33, 1800.0)
    assert detector_after(silence(0.3) + tones + silence(0.5)).beep is None
    assert beep_in(tones + silence(0.5)) is None


def test_a_beep_is_found_after_the_decision() -> None:
    long = silence(0.2) + word(6.0) + silence(0.3)
    detector = detector_after(long)
    assert detector.decision is not None
    assert detector.beep is None

    detector = detector_after(long + tone(0.4, 440.0) + silence(0.3))

    assert detector.beep is not None


def test_a_new_detector_has_none() -> None:
    assert Detector().beep is None
