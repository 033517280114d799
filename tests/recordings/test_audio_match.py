"""Two recordings laid over one another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.g711 import Pcm, alaw_decode, alaw_encode, ulaw_decode, ulaw_encode
from bitel.recordings.audio_match import match
from bitel.recordings.sample import synthesise

SENT: Pcm = np.ascontiguousarray(synthesise(4.0)[::2])


def silence(samples: int) -> Pcm:
    return np.zeros(samples, dtype=np.int16)


@settings(max_examples=30, deadline=None)
@given(before=st.integers(0, 30_000), after=st.integers(0, 30_000))
def test_found_wherever_it_is(before: int, after: int) -> None:
    heard = np.concatenate([silence(before), SENT, silence(after)])
    found = match(SENT, heard)
    assert found.offset_samples == before
    assert found.correlation == pytest.approx(1.0)
    assert (found.longest_gap_ms, found.covered) == (0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 24_000))
def test_a_beginning_that_was_cut_off(cut: int) -> None:
    found = match(SENT, SENT[cut:])
    assert found.offset_samples == -cut
    assert found.correlation == pytest.approx(1.0)
    assert found.longest_gap_ms == pytest.approx(cut / 8, abs=20)
    assert found.covered == pytest.approx(1 - cut / len(SENT), abs=0.02)


def test_both_laws_one_after_the_other() -> None:
    heard = ulaw_decode(ulaw_encode(alaw_decode(alaw_encode(SENT))))
    found = match(SENT, heard)
    assert found.correlation > 0.999
    assert found.covered == 1.0


def test_a_quieter_line() -> None:
    assert match(SENT, SENT // 10).correlation > 0.99


@pytest.mark.parametrize("packets", [1, 2, 10])
@pytest.mark.parametrize("filled_with_noise", [False, True])
def test_lost_packets_are_a_gap(packets: int, filled_with_noise: bool) -> None:
    heard = SENT.copy()
    lost = slice(8000, 8000 + packets * 160)
    noise = np.random.default_rng(5).integers(-4000, 4000, packets * 160)
    heard[lost] = noise if filled_with_noise else 0
    found = match(SENT, heard)
    assert found.longest_gap_ms == packets * 20
    assert found.covered == pytest.approx(1 - packets * 160 / len(SENT), abs=0.001)
    assert 0.9 < found.correlation < 1.0


def test_swapped_packets_are_a_gap() -> None:
    heard = SENT.copy()
    heard[8000:8160], heard[8160:8320] = SENT[8160:8320], SENT[8000:8160]
    assert match(SENT, heard).longest_gap_ms >= 20


def test_a_pause_in_the_recording_is_no_gap() -> None:
    sent = np.concatenate([SENT[:8000], silence(8000), SENT[8000:]])
    found = match(sent, sent)
    assert (found.longest_gap_ms, found.covered) == (0.0, 1.0)


def test_something_else_altogether() -> None:
    noise = np.random.default_rng(6).integers(-9000, 9000, 50_000).astype(np.int16)
    found = match(SENT, noise)
    assert abs(found.correlation) < 0.1
    assert found.covered < 0.05


@pytest.mark.parametrize("samples", [0, 1, 40_000])
def test_nothing_heard(samples: int) -> None:
    found = match(SENT, silence(samples))
    assert found.correlation == 0.0
    assert found.covered == 0.0
    assert found.longest_gap_ms == 4000.0


def test_nothing_sent() -> None:
    with pytest.raises(ValueError, match="silent"):
        match(silence(8000), SENT)
