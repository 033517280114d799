"""Which port a connection leaves from."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Final

from bitel.sip.grammar import MAX_PORT, Address

_PORT_IS_TAKEN: Final = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}


async def connected_socket(destination: Address, host: str | None, port: int) -> socket.socket:
    """A TCP connection to `destination` that leaves from `host`, and from `port` if it can be had.

    None is any host, 0 any port. Raises OSError where there is no connection.
    """
    if 0 < port <= MAX_PORT:
        try:
            return await _connected(destination, host, port)
        except OSError as error:
            # Somebody listens there, or the last connection of this kind has just been closed.
            if error.errno not in _PORT_IS_TAKEN:
                raise
    return await _connected(destination, host, 0)


async def _connected(destination: Address, host: str | None, port: int) -> socket.socket:
    is_ipv6 = ":" in destination.host
    sock = socket.socket(
        socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )
    try:
        sock.setblocking(False)
        if port:
            # Connections to several destinations leave from one port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host is not None or port:
            sock.bind((host or ("::" if is_ipv6 else "0.0.0.0"), port))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (destination.host, destination.port))
    except BaseException:
        sock.close()
        raise
    return sock
