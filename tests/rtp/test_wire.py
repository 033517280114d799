from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.wire import (
    MAX_LINE,
    End,
    Lines,
    Load,
    Message,
    Open,
    OpenRtcp,
    Pause,
    Play,
    Ready,
    Redirect,
    Resume,
    Stop,
    WireError,
    decode,
    encode,
)

numbers = st.integers(0, 2**32 - 1)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Open, numbers),
    st.builds(OpenRtcp, numbers),
    st.builds(
        Play,
        *[numbers, numbers, st.text(), numbers, numbers, st.sampled_from(["alaw", "ulaw"])],
        st.lists(st.text()),
        *[numbers] * 4,
        st.booleans(),
        st.none() | numbers,
    ),
    st.builds(Pause, numbers),
    st.builds(Resume, numbers),
    st.builds(Redirect, numbers, st.text(), numbers),
    st.builds(Stop, numbers),
    st.builds(Ready),
    st.builds(
        End,
        *[numbers, numbers, st.booleans(), st.text(), numbers],
        *[st.none() | st.floats(0, 1e6), st.text()],
        *[st.none() | st.floats(0, 1)] * 2,
    ),
    st.builds(Load, *[numbers] * 4, *[st.floats(0, 1e6)] * 3),
)


@settings(deadline=None)
@given(st.lists(messages), st.integers(1, 50))
def test_messages_survive_any_cutting(sent: list[Message], size: int) -> None:
    data = b"".join(map(encode, sent))
    lines = Lines()
    received = []
    for i in range(0, len(data), size):
        received += lines.feed(data[i : i + size])
    assert received == sent


@pytest.mark.parametrize("line", [b"", b"[]", b'["Sing"]', b'["Stop"]', b"{", b"3", b"\xff"])
def test_a_line_that_is_no_message(line: bytes) -> None:
    with pytest.raises(WireError):
        decode(line)


def test_a_line_without_end_is_given_up() -> None:
    with pytest.raises(WireError):
        Lines().feed(b"x" * (MAX_LINE + 1))
