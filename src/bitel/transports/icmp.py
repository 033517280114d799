"""What the network says about datagrams that could not be delivered (Linux, `ip(7)` IP_RECVERR).

An unconnected UDP socket hears of ICMP errors only if it asks to. It then finds each on the
socket's error queue, together with the address that the lost datagram was for.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys

from bitel.sip.grammar import Address

_IP_RECVERR = 11
_IPV6_RECVERR = 25
_EXTENDED_ERROR = struct.Struct("=IBBBB")  # errno, origin, type, code, padding
_SPACE = 512
# A datagram that was too long says nothing about whether its destination is there.
_HARMLESS = {errno.EMSGSIZE}


def ask_for_errors(sock: socket.socket) -> None:
    """Have ICMP errors queued on `sock`. Where that is not Linux, there are none to be had."""
    if not sys.platform.startswith("linux"):
        return
    # A kernel without the option leaves unreachable destinations to their time-outs.
    with contextlib.suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def unreachable(sock: socket.socket, limit: int = 64) -> list[Address]:
    """Take up to `limit` errors off the queue: the destinations that can't be reached."""
    if not sys.platform.startswith("linux"):
        return []
    found: list[Address] = []
    for _ in range(limit):
        try:
            _, ancillary, _, address = sock.recvmsg(0, _SPACE, socket.MSG_ERRQUEUE)
        except OSError:
            break  # nothing left
        for _level, _type, data in ancillary:
            if len(data) < _EXTENDED_ERROR.size:
                continue
            if _EXTENDED_ERROR.unpack_from(data)[0] not in _HARMLESS and address:
                found.append(Address(address[0], address[1]))
    return found
