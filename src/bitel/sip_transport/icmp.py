"""What the network reports of datagrams that could not be delivered (Linux, `ip(7)` IP_RECVERR).

An unconnected UDP socket hears of ICMP errors only if it asks to. It then finds each on the
socket's error queue, with the address that the datagram was for and what the error quotes of it.
Anyone can forge such an error, so that it proves nothing by itself.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from typing import NamedTuple

from bitel.sip.grammar import Address

_IP_RECVERR = 11
_IPV6_RECVERR = 25
_EXTENDED_ERROR = struct.Struct("=IBBBB")  # errno, origin, type, code, padding
_SPACE = 512
_QUOTED = 1024
"""Bytes of the quoted datagram that are read: an error holds 576 by RFC 1812 §4.3.2.3, or 1280."""
# A datagram that was too long says nothing about whether its destination is there.
_HARMLESS = {errno.EMSGSIZE}


class DeliveryError(NamedTuple):
    """An ICMP error about a datagram of ours: the beginning of that, and where it went."""

    quoted: bytes
    destination: Address


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


def read_errors(sock: socket.socket, limit: int = 64) -> list[DeliveryError]:
    """Take up to `limit` errors off the queue, and clear the pending error of the socket."""
    if not sys.platform.startswith("linux"):
        return []
    found: list[DeliveryError] = []
    for _ in range(limit):
        try:
            quoted, ancillary, _, address = sock.recvmsg(_QUOTED, _SPACE, socket.MSG_ERRQUEUE)
        except OSError:
            break  # nothing left
        for _level, _type, data in ancillary:
            if len(data) < _EXTENDED_ERROR.size:
                continue
            if _EXTENDED_ERROR.unpack_from(data)[0] not in _HARMLESS and address:
                found.append(DeliveryError(quoted, Address(address[0], address[1])))
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return found
