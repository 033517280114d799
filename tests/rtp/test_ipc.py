from __future__ import annotations

import marshal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.ipc import (
    MAX_FRAME,
    Change,
    Frames,
    Message,
    Open,
    Play,
    Stop,
    StreamerStats,
    WireError,
    decode,
    encode,
)
from bitel.rtp.stream_spec import StreamReport, StreamSpec
from tests.rtp.streams import change_command

numbers = st.integers(0, 2**32 - 1)
specs = st.builds(
    StreamSpec,
    numbers,
    st.tuples(st.text(), numbers),
    numbers,
    st.sampled_from(["alaw", "ulaw"]),
    numbers,
    st.lists(st.integers(0, 127)).map(tuple),
    st.sampled_from(["off", "port", "host"]),
    st.booleans(),
    st.booleans(),
    st.floats(0, 1e6),
)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Open, numbers, st.booleans()),
    st.builds(Play, numbers, specs, st.lists(numbers), *[numbers] * 3, st.booleans()),
    st.builds(Change, numbers, specs, st.booleans()),
    st.builds(Stop, numbers),
    st.builds(
        StreamReport,
        *[numbers, numbers, st.booleans(), st.text(), numbers],
        *[st.none() | st.floats(0, 1e6), st.text()],
        *[st.none() | st.floats(0, 1)] * 2,
        st.none() | st.floats(0, 1e9),
        numbers,
        st.booleans(),
    ),
    st.builds(StreamerStats, *[numbers] * 7, *[st.floats(0, 1e6)] * 4),
)


@settings(deadline=None)
@given(st.lists(messages), st.integers(1, 50))
def test_messages_survive_any_cutting(sent: list[Message], size: int) -> None:
    data = b"".join(map(encode, sent))
    frames = Frames()
    received = []
    for i in range(0, len(data), size):
        received += frames.feed(data[i : i + size])
    assert received == sent
    assert list(map(type, received)) == list(map(type, sent))


NO_MESSAGE: list[Any] = [
    3,
    None,
    [],
    ["Sing"],
    ["Stop"],
    ["Play", 1],
    ["Change", 1, 2, 3],
    [[]],
    [3],
]


@pytest.mark.parametrize("content", NO_MESSAGE)
def test_a_frame_without_a_message(content: Any) -> None:
    with pytest.raises(WireError):
        decode(marshal.dumps(content))


def test_a_frame_that_is_cut_off() -> None:
    frame = encode(change_command(2, ("192.0.2.1", 4000), event_types=(101,)))[4:]
    for kept in range(len(frame)):
        with pytest.raises(WireError):
            decode(frame[:kept])


def test_a_frame_that_is_too_long_is_given_up() -> None:
    with pytest.raises(WireError):
        Frames().feed((MAX_FRAME + 1).to_bytes(4))
