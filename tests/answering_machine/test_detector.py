"""The rules by which a human and a machine are told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.answering_machine import (
    Decision,
    Detector,
    DetectorSettings,
    FrameMeasures,
    FrameWindow,
    Reason,
    Verdict,
    measure,
)
from tests.support.greeting_audio import (
    Payload,
    detector_after,
    lost,
    noise,
    silence,
    tone,
    word,
)

HELLO = silence(0.5) + word(0.4)
SETTINGS = DetectorSettings()


def sentence(words: int, seed: int = 1) -> list[Payload]:
    """Words of 300 ms with pauses of 120 ms."""
    made: list[Payload] = []
    for number in range(words):
        made += word(0.3, seed=seed + number) + silence(0.12)
    return made


def decision_on(payloads: list[Payload]) -> Decision:
    decision = detector_after(payloads).decision
    assert decision is not None
    return decision


def test_a_short_greeting_and_silence_is_a_human() -> None:
    decision = decision_on(HELLO + silence(2))

    assert (decision.verdict, decision.reason) == (Verdict.HUMAN, Reason.GREETING_ENDED)
    assert decision.at == pytest.approx(0.9 + SETTINGS.after_greeting, abs=0.08)


def test_the_verdict_is_open_until_the_silence_is_long_enough() -> None:
    assert detector_after(HELLO + silence(SETTINGS.after_greeting - 0.1)).decision is None


def test_a_long_greeting_is_a_machine() -> None:
    decision = decision_on(silence(0.3) + sentence(16))

    assert (decision.verdict, decision.reason) == (Verdict.MACHINE, Reason.LONG_GREETING)
    assert decision.at < 0.3 + SETTINGS.greeting + 0.3


def test_speech_without_a_pause_is_a_machine() -> None:
    assert decision_on(silence(0.3) + word(4.0)).verdict is Verdict.MACHINE


def test_many_words_are_a_machine() -> None:
    settings = DetectorSettings(most_words=4)
    decision = detector_after(sentence(6), settings).decision

    assert decision is not None
    assert (decision.verdict, decision.reason) == (Verdict.MACHINE, Reason.MANY_WORDS)


def test_silence_alone_leaves_the_verdict_open() -> None:
    decision = decision_on(silence(8))

    assert (decision.verdict, decision.reason) == (None, Reason.INITIAL_SILENCE)
    assert decision.at == pytest.approx(SETTINGS.initial_silence)


def test_the_total_time_ends_the_analysis() -> None:
    settings = DetectorSettings(total=1.0)
    decision = detector_after(HELLO + word(2.0), settings).decision

    assert decision == Decision(None, Reason.TIME_OVER, 1.0)


@pytest.mark.parametrize("level", [-60.0, -45.0, -36.0])
def test_noise_is_silence(level: float) -> None:
    assert decision_on(noise(6, level)).reason is Reason.INITIAL_SILENCE


@pytest.mark.parametrize("level", [-60.0, -45.0, -38.0])
def test_a_human_is_found_over_noise(level: float) -> None:
    background = noise(4, level)
    heard = background[:30] + word(0.5) + background[30:]

    assert decision_on(heard).verdict is Verdict.HUMAN


def test_a_click_is_not_a_word() -> None:
    assert decision_on(silence(1) + word(0.06) + silence(6)).reason is Reason.INITIAL_SILENCE


@pytest.mark.parametrize("hertz", [(425.0,), (440.0, 480.0), (400.0, 450.0)])
def test_ring_back_does_not_count(hertz: tuple[float, ...]) -> None:
    detector = detector_after(tone(1.0, *hertz) + silence(0.3))
    assert (detector.words, detector.decision) == (0, None)

    assert decision_on(tone(1.0, *hertz) + HELLO + silence(2)).verdict is Verdict.HUMAN


def test_special_information_tones_are_a_machine() -> None:
    tones = tone(0.33, 950.0) + tone(0.33, 1400.0) + tone(0.33, 1800.0)
    decision = decision_on(silence(0.3) + tones + silence(0.5))

    assert (decision.verdict, decision.reason) == (Verdict.MACHINE, Reason.NETWORK_TONES)


def test_a_beep_after_a_short_greeting_is_a_machine() -> None:
    detector = detector_after(HELLO + silence(0.2) + tone(0.3, 1000.0) + silence(0.3))

    assert detector.decision is not None
    assert (detector.decision.verdict, detector.decision.reason) == (Verdict.MACHINE, Reason.BEEP)
    assert detector.beep is not None


def test_lost_packets_within_a_word_do_not_end_it() -> None:
    whole = silence(0.3) + word(1.0)
    whole[25:30] = lost(0.1)

    assert detector_after(whole).words == 1


def test_a_long_loss_is_not_the_silence_after_a_greeting() -> None:
    assert detector_after(HELLO + lost(1.5)).decision is None


def test_lost_packets_take_time() -> None:
    assert detector_after(lost(2.0)).at == pytest.approx(2.0)


def test_all_lost_ends_with_the_total_time() -> None:
    decision = decision_on(lost(SETTINGS.total + 1))
    assert decision == Decision(None, Reason.TIME_OVER, SETTINGS.total)


def test_clipped_speech_is_speech() -> None:
    assert decision_on(silence(0.3) + word(0.5, level=-3.0) + silence(1.5)).verdict is Verdict.HUMAN


any_frame = st.none() | st.builds(
    FrameMeasures,
    st.floats(-75, 0),
    st.floats(156, 3800),
    st.floats(0, 90),
    st.floats(0, 1),
)


@given(st.lists(any_frame, max_size=600))
def test_a_decision_stays(frames: list[FrameMeasures | None]) -> None:
    detector = Detector()
    first = None
    for frame in frames:
        decision = detector.push(frame)
        first = first or decision
        assert decision == first == detector.decision
    assert detector.at == pytest.approx(len(frames) * 0.02)
    if len(frames) * 0.02 >= SETTINGS.total:
        assert first is not None


@given(st.lists(st.none() | st.binary(max_size=700), max_size=40), st.sampled_from("AU"))
def test_any_payloads_are_taken(payloads: list[bytes | None], law: str) -> None:
    window, detector = FrameWindow(law), Detector()
    for payload in payloads:
        if payload is None:
            window.lose()
            detector.push(None)
        else:
            for frame in measure(window.push(payload)):
                assert -75.0 <= frame.level <= 0.0
                assert 0.0 <= frame.purity <= 1.001
                detector.push(frame)


@given(st.lists(st.integers(0, 500), max_size=30))
def test_frames_do_not_depend_on_how_audio_is_cut(sizes: list[int]) -> None:
    audio = b"".join(payload or b"" for payload in HELLO + silence(1))
    cut, at = [], 0
    for size in sizes:
        cut.append(audio[at : at + size])
        at += size
    cut.append(audio[at:])
    pieces, whole = FrameWindow(), FrameWindow()

    frames = [frame.tobytes() for payload in cut for frame in pieces.push(payload)]

    assert frames == [frame.tobytes() for frame in whole.push(audio)]


def test_calls_are_measured_in_one_step_as_one_by_one() -> None:
    window = FrameWindow()
    frames = [frame for payload in HELLO if payload for frame in window.push(payload)]

    together = measure(frames)

    for one, frame in zip(together, frames, strict=True):
        assert measure([frame])[0] == pytest.approx(one, rel=1e-3, abs=1e-3)


def test_no_frames_have_no_measures() -> None:
    assert measure([]) == []
