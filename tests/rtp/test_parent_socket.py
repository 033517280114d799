"""What the sender takes from its parent's socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bitel.rtp.ipc import Open, Stop, encode
from bitel.rtp.sender.__main__ import ParentGoneError, ParentSocket


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, ParentSocket]]:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, ours:
        yield theirs, ParentSocket(ours)


def test_all_that_came_is_taken_at_once_whatever_sockets_came_with_it(
    pair: tuple[socket.socket, ParentSocket],
) -> None:
    theirs, parent = pair
    with ExitStack() as stack:
        ports = []
        for number in range(20):
            bound = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            bound.bind(("127.0.0.1", 0))
            ports.append(bound.getsockname()[1])
            socket.send_fds(theirs, [encode(Open(ports[-1], has_rtcp=False))], [bound.fileno()])
            theirs.send(encode(Stop(number)))
        said = parent.receive()
        assert [each for each in said if isinstance(each, Open)] == [
            Open(port, False) for port in ports
        ]
        assert [each for each in said if isinstance(each, Stop)] == [Stop(n) for n in range(20)]
        for port in ports:
            assert stack.enter_context(parent.take_socket(port)).getsockname()[1] == port
    assert parent.receive() == []


def test_what_came_before_the_end_is_taken_first(pair: tuple[socket.socket, ParentSocket]) -> None:
    theirs, parent = pair
    theirs.send(encode(Stop(1)))
    theirs.close()
    assert parent.receive() == [Stop(1)]
    with pytest.raises(ParentGoneError):
        parent.receive()
