"""200,000 damaged datagrams against an agent with live calls: none raises, none leaves a trace.

What fails is told with its seed and bytes; a seed that once found something stays in `SEEDS`.
"""

from __future__ import annotations

import gc
import random
import tracemalloc

import pytest

from bitel.sip import grammar, message, sdp
from bitel.sip.grammar import Address
from tests.fuzz.mutation import mutated
from tests.fuzz.sip_scene import SPLICES, Scene, finish
from tests.support.sip_bench import FAR

SEEDS = (1, 2, 3, 4)
SCENES = 200
INPUTS = 250
SOURCES = (FAR, FAR, Address("198.51.100.1", 1), Address("2001:db8::1", 65535))


def flood(rng: random.Random, inputs: int) -> None:
    """One scene: what comes, with pauses between, after which everything ends by its timers."""
    scene = Scene()
    agent = scene.agent
    for _ in range(inputs):
        data = mutated(rng, scene.messages, SPLICES)
        try:
            agent.receive_datagram(data, rng.choice(SOURCES), scene.now)
        except Exception as error:
            raise AssertionError(f"raised by {data!r}") from error
        if rng.random() < 0.05:
            scene.now += rng.uniform(0, 2)
            agent.handle_timer(scene.now)
        scene.take_all()
    counts = agent.counts()
    assert counts.server_transactions <= 50
    assert counts.dialogs <= 25
    assert counts.client_transactions <= 100
    finish(scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_fifty_thousand_damaged_datagrams(seed: int) -> None:
    for number in range(SCENES):
        try:
            flood(random.Random(seed * 100_000 + number), INPUTS)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, scene {number}: {error}") from error


def test_memory_is_flat() -> None:
    def held() -> int:
        for cached in (
            grammar._read_ip_address,
            grammar.ip_literal,
            sdp._usual_sections,
            sdp._rendered,
            message._layout,
            message._status_of,
            message._cseq,
            message._length,
            message._is_plain,
            message._sent_by,
        ):
            cached.cache_clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        flood(random.Random(1), INPUTS)
        before = held()
        for number in range(10):
            flood(random.Random(number), INPUTS)
        grown = held() - before
    finally:
        tracemalloc.stop()
    assert grown < 50_000


def test_one_agent_that_is_flooded_for_long_keeps_nothing() -> None:
    """The same agent throughout, its calls long gone: what strangers send must not pile up."""
    rng, scene = random.Random(5), Scene()
    agent = scene.agent
    finish(scene)
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(6):
            for _ in range(1000):
                data = mutated(rng, scene.messages, SPLICES)
                agent.receive_datagram(data, FAR, scene.now)
                scene.now += 0.1
                agent.handle_timer(scene.now)
                scene.take_all()
            scene.now += 400
            agent.handle_timer(scene.now)
            scene.take_all()
            finish(scene)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # The caches of what was read fill up in the first rounds; they are bounded.
    assert sizes[-1] - sizes[2] < 200_000, sizes
