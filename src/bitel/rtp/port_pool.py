"""Pool of local RTP ports: one per call while there are free ones, then shared ones."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections import deque
from collections.abc import Callable

from bitel.errors import UnavailableError
from bitel.rtp.bpf import DENSEST, DROP_ALL, attach, keep_one_in

REST = 5.0  # seconds before a released port is reused, so that late packets reach no other call
RETRY_TAKEN = 60.0  # seconds until a port that another program used is tried again
RECEIVE_BUFFER = 32 << 10  # bytes, with `receive`: about 2 s of what the filter keeps
SEND_BUFFER = 4 << 20  # bytes; the kernel caps it at net.core.wmem_max
IP_MTU_DISCOVER = 10  # linux/in.h; Python's socket module does not name it
IP_PMTUDISC_DO = 2

PortSockets = tuple[socket.socket, socket.socket | None]
"""The sockets of a port: for RTP, and for RTCP if it is used."""


class NoPortError(UnavailableError):
    """No RTP port of the range can be bound."""


class PortPool:
    """Binds even ports of a range on demand, at most `max_sockets`, and lends them to calls.

    With `receive` the sockets can be read, and the odd port above each is bound too, for RTCP, if
    the range includes it. `share` (i, n): n pools divide the range, and this is number i
    (`share_of`). Ports are bound in ascending order, beginning with number `first` of the range.
    """

    def __init__(
        self,
        host: str,
        ports: range,
        *,
        max_sockets: int = 64,
        receive: bool = False,
        share: tuple[int, int] = (0, 1),
        first: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        self._host = host
        self._range = ports
        self._max_sockets = max_sockets
        self._receive = receive
        self._clock = clock
        index, pools = share
        self._unbound = deque(
            port for port in ports if port % 2 == 0 and share_of(port, pools) == index
        )
        self._unbound.rotate(-first)
        self._taken: deque[tuple[float, int]] = deque()  # by other programs: (time tried, port)
        self._resting: deque[tuple[float, int]] = deque()  # (time released, port)
        self._sockets: dict[int, PortSockets] = {}
        self._users: dict[int, int] = {}  # calls per lent port
        self.calls = 0  # calls that use a port of the pool

    def open(self) -> int:
        """Lends a port: rested, else new, else resting, else the least shared; or NoPortError."""
        now = self._clock()
        if self._resting and self._resting[0][0] + REST <= now:
            port = self._resting.popleft()[1]
        elif (new := self._bind_next(now)) is not None:
            port = new
        elif self._resting:
            port = self._resting.popleft()[1]
        elif self._users:
            port = min(self._users, key=self._users.__getitem__)
        else:
            raise NoPortError(
                f"no even RTP port of {self._range.start}-{self._range.stop - 1} can be bound on "
                f"{self._host}; name a range that is free in rtp_ports"
            )
        self._users[port] = self._users.get(port, 0) + 1
        self.calls += 1
        return port

    def release(self, port: int) -> None:
        """Ends one call's use of a port; ValueError if it is not lent."""
        self.sockets(port)
        self.calls -= 1
        self._users[port] -= 1
        if not self._users[port]:
            del self._users[port]
            self._resting.append((self._clock(), port))

    def sockets(self, port: int) -> PortSockets:
        """The sockets of a lent port; ValueError if it is not lent."""
        if port not in self._users:
            raise ValueError(f"RTP port {port} is not open")
        return self._sockets[port]

    def close(self) -> None:
        """Closes every socket and empties the pool."""
        for rtp, rtcp in self._sockets.values():
            rtp.close()
            if rtcp is not None:
                rtcp.close()
        for container in (self._sockets, self._users, self._resting, self._taken, self._unbound):
            container.clear()
        self.calls = 0

    def _bind_next(self, now: float) -> int | None:
        while self._taken and self._taken[0][0] + RETRY_TAKEN <= now:
            self._unbound.append(self._taken.popleft()[1])
        while self._unbound and len(self._sockets) < self._max_sockets:
            port = self._unbound[0]
            try:
                self._sockets[port] = self._bind(port)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    return None  # no descriptors left: ports are shared
                self._unbound.popleft()
                self._taken.append((now, port))
            else:
                return self._unbound.popleft()
        return None

    def _bind(self, port: int) -> PortSockets:
        if not self._receive:
            return bind_rtp(self.family, self._host, port), None
        rtp = bind_rtp(self.family, self._host, port, keep_one_in(DENSEST))
        if port + 1 not in self._range:
            return rtp, None
        try:
            return rtp, bind_rtp(self.family, self._host, port + 1, None)
        except OSError:
            rtp.close()
            raise


def share_of(port: int, pools: int) -> int:
    """The index of the pool that has this port, where `pools` pools divide a range."""
    return port // 2 % pools


def bind_rtp(
    family: socket.AddressFamily, host: str, port: int, keep: bytes | None = DROP_ALL
) -> socket.socket:
    """A non-blocking UDP socket with the BPF filter `keep`; None: no filter.

    Without a filter, each of thousands of sockets would fill its receive buffer with audio that is
    not read. Raises OSError if the port can't be bound.
    """
    bound = socket.socket(family, socket.SOCK_DGRAM)
    try:
        bound.setblocking(False)
        # 0 is the kernel's smallest.
        room = 0 if keep == DROP_ALL else RECEIVE_BUFFER
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            # With DF set the kernel computes no IP ID (RFC 6864 section 4.1), which saves 5 % of
            # the cost of a packet. These packets fit the MTU of every link.
            bound.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        if keep is not None:
            attach(bound, keep)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
