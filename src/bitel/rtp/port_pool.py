"""The local RTP ports: one for each call while there are free ones, shared ones after that."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from bitel.errors import UnavailableError
from bitel.rtp.bpf import DENSEST, DROP_ALL, attach, keep_one_in

REST = 5.0  # seconds a released port waits, so that late packets of the old call find nobody
RETRY_TAKEN = 60.0  # seconds until a port that another program held is tried again
RECEIVE_BUFFER = 32 << 10  # bytes, where callees are listened to: about 2 s of all that is kept
SEND_BUFFER = 4 << 20  # bytes; the kernel caps it at net.core.wmem_max
IP_MTU_DISCOVER = 10  # linux/in.h; Python's socket module does not name it
IP_PMTUDISC_DO = 2


class NoPortError(UnavailableError):
    """Not one local RTP port of the range can be bound."""


class PortPool:
    """Binds even ports of a range on demand, at most `max_sockets`, and lends them out.

    With `listen` they can be read, and each has the odd port above it bound beside it, for RTCP,
    where the range has one. `share` (i, n): only the part of the range that is the i-th of n pools'
    (`share_of`). New ports are taken in ascending order from the `first`-th on, and then from the
    lowest.
    """

    def __init__(
        self,
        host: str,
        ports: range,
        *,
        max_sockets: int = 1 << 15,
        listen: bool = False,
        share: tuple[int, int] = (0, 1),
        first: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        self._host = host
        self._range = ports
        self._max_sockets = max_sockets
        self._listen = listen
        self._clock = clock
        mine, pools = share
        self._unbound = deque(
            port for port in ports if port % 2 == 0 and share_of(port, pools) == mine
        )
        self._unbound.rotate(-first)
        self._taken: deque[tuple[float, int]] = deque()  # held by others: (when seen, port)
        self._resting: deque[tuple[float, int]] = deque()  # (when released, port)
        self._sockets: dict[int, socket.socket] = {}
        self._companions: dict[int, socket.socket] = {}  # for RTCP, by the RTP port
        self._users: dict[int, int] = {}
        self.calls = 0  # that have a port
        # The lent ports by how many calls use them; each set is used in its order.
        self._by_users: list[OrderedDict[int, None]] = [OrderedDict()]
        self._fewest = 1  # no port that is lent has fewer users

    def open(self) -> int:
        """Lends a bound port: rested, else new, else still resting, else the least shared one."""
        now = self._clock()
        if self._resting and self._resting[0][0] + REST <= now:
            return self._lend(self._resting.popleft()[1])
        port = self._bind_next(now)
        if port is not None:
            return self._lend(port)
        if self._resting:
            return self._lend(self._resting.popleft()[1])
        if self._users:
            return self._lend(self._least_shared())
        raise NoPortError(
            f"no even RTP port of {self._range.start}-{self._range.stop - 1} can be bound on "
            f"{self._host}; name a range that is free in rtp_ports"
        )

    def release(self, port: int) -> None:
        """Gives one call's use of a port back; `ValueError` where it is not lent."""
        users = self._users.get(port, 0)
        if users == 0:
            raise ValueError(f"RTP port {port} is not open")
        self.calls -= 1
        del self._by_users[users][port]
        if users == 1:
            del self._users[port]
            self._resting.append((self._clock(), port))
        else:
            self._users[port] = users - 1
            self._by_users[users - 1][port] = None
            self._fewest = min(self._fewest, users - 1)

    def companion(self, port: int) -> socket.socket | None:
        """The socket for the RTCP of a bound port, where the pool listens."""
        return self._companions.get(port)

    def socket(self, port: int) -> socket.socket:
        """The socket of a lent port; `ValueError` where it is not lent."""
        if port not in self._users:
            raise ValueError(f"RTP port {port} is not open")
        return self._sockets[port]

    def close(self) -> None:
        """Closes every socket; the pool is empty after it."""
        for bound in (*self._sockets.values(), *self._companions.values()):
            bound.close()
        self._companions.clear()
        for container in (self._sockets, self._users, self._resting, self._taken, self._unbound):
            container.clear()
        self._by_users = [OrderedDict()]
        self._fewest = 1
        self.calls = 0

    def _lend(self, port: int) -> int:
        users = self._users.get(port, 0)
        if users:
            del self._by_users[users][port]
        if users + 1 == len(self._by_users):
            self._by_users.append(OrderedDict())
        self._users[port] = users + 1
        self.calls += 1
        self._by_users[users + 1][port] = None
        self._fewest = min(self._fewest, users + 1)
        return port

    def _least_shared(self) -> int:
        # Counted on from where it was: with a thousand calls a port, a look from 1 takes long.
        while self._fewest < len(self._by_users) and not self._by_users[self._fewest]:
            self._fewest += 1
        return next(iter(self._by_users[self._fewest]))

    def _bind_next(self, now: float) -> int | None:
        while self._taken and self._taken[0][0] + RETRY_TAKEN <= now:
            self._unbound.append(self._taken.popleft()[1])
        while self._unbound and len(self._sockets) < self._max_sockets:
            port = self._unbound[0]
            try:
                self._bind(port)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    return None  # out of descriptors: sharing goes on, and the port stays free
                self._unbound.popleft()
                self._taken.append((now, port))
            else:
                return self._unbound.popleft()
        return None

    def _bind(self, port: int) -> None:
        if not self._listen:
            self._sockets[port] = bind_rtp(self.family, self._host, port)
            return
        bound = bind_rtp(self.family, self._host, port, keep_one_in(DENSEST))
        try:
            if port + 1 in self._range:
                self._companions[port] = bind_rtp(self.family, self._host, port + 1, None)
        except OSError:
            bound.close()
            raise
        self._sockets[port] = bound


def share_of(port: int, pools: int) -> int:
    """Which of so many pools that share a range has this port: 0, 1..."""
    return port // 2 % pools


def bind_rtp(
    family: socket.AddressFamily, host: str, port: int, keep: bytes | None = DROP_ALL
) -> socket.socket:
    """A non-blocking UDP socket; what arrives is dropped by the kernel as the filter `keep` says.

    What callees say is not listened to; without the filter each of thousands of sockets would fill
    its receive buffer with it. None keeps everything. Raises `OSError` where the port can't be
    bound.
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
        elif sys.platform == "linux":
            # What may never be fragmented needs no number of its own (RFC 6864 section 4.1), which
            # saves the kernel a hash: 5 % of what a packet costs. No link is too narrow for these.
            bound.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        if keep is not None:
            attach(bound, keep)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
