"""A UDP relay on loopback that loses, doubles and reorders datagrams, the same way for one seed.

It rewrites nothing. A caller sends to `Relay.address`; the relay sends that on to the callee from
another port, and what the callee sends to that port goes back to the latest caller. Requests within
a dialog follow the callee's Contact, so the callee must name `Relay.address` there (the phone's
`public_address`). What the callee itself begins (its BYE) goes to the caller's Contact, past the
relay, unless the caller names `Relay.back_address` there.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

Address = tuple[str, int]

HOST = "127.0.0.1"

_Receive = Callable[[bytes, Address], None]


@dataclass(slots=True)
class Loss:
    """What happens to a datagram: each share is a probability from 0 to 1, each on its own.

    A reordered datagram is held back for up to `hold` seconds, so that later ones overtake it.
    """

    lost: float = 0.1
    doubled: float = 0.1
    reordered: float = 0.1
    hold: float = 0.05
    seed: int = 0
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def delays(self) -> Iterator[float]:
        """After how many seconds each copy of the next datagram goes on; none where it is lost."""
        draw = self._random.random
        if draw() < self.lost:
            return
        copies = 2 if draw() < self.doubled else 1
        for _ in range(copies):
            yield draw() * self.hold if draw() < self.reordered else 0.0


@dataclass(slots=True)
class Passed:
    """How many datagrams came to the relay, and how many it sent on."""

    came: int = 0
    went: int = 0


class Relay:
    """Both faces of the relay. Before `callee` is set, what comes is lost."""

    def __init__(self, loss: Loss) -> None:
        self.callee: Address | None = None
        self.passed = Passed()
        self._loss = loss
        self._caller: Address | None = None
        self._front: asyncio.DatagramTransport
        self._back: asyncio.DatagramTransport

    @property
    def address(self) -> Address:
        """Where callers send to."""
        return _name(self._front)

    @property
    def back_address(self) -> Address:
        """Where the callee's datagrams come in."""
        return _name(self._back)

    async def open(self) -> None:
        """Bind both faces."""
        self._front = await _bind(_Face(self._from_caller))
        self._back = await _bind(_Face(self._from_callee))

    def close(self) -> None:
        """Release both ports; what is still held back is lost."""
        self._front.close()
        self._back.close()

    def _from_caller(self, data: bytes, source: Address) -> None:
        self._caller = source
        self._pass_on(self._back, data, self.callee)

    def _from_callee(self, data: bytes, source: Address) -> None:
        self._pass_on(self._front, data, self._caller)

    def _pass_on(self, face: asyncio.DatagramTransport, data: bytes, to: Address | None) -> None:
        self.passed.came += 1
        if to is None:
            return
        for delay in self._loss.delays():
            self.passed.went += 1
            if delay:
                asyncio.get_running_loop().call_later(delay, _send, face, data, to)
            else:
                _send(face, data, to)


@asynccontextmanager
async def lossy_relay(loss: Loss | None = None) -> AsyncIterator[Relay]:
    """A relay on two free ports of 127.0.0.1. Set its `callee` once that listens."""
    relay = Relay(loss or Loss())
    await relay.open()
    try:
        yield relay
    finally:
        relay.close()


class _Face(asyncio.DatagramProtocol):
    def __init__(self, receive: _Receive) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._receive(data, addr)


async def _bind(face: _Face) -> asyncio.DatagramTransport:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: face, local_addr=(HOST, 0))
    # What is lost is for `Loss` to say, not for a buffer that is full.
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    return transport


def _send(face: asyncio.DatagramTransport, data: bytes, to: Address) -> None:
    if not face.is_closing():
        face.sendto(data, to)


def _name(transport: asyncio.DatagramTransport) -> Address:
    return cast(Address, transport.get_extra_info("sockname"))
