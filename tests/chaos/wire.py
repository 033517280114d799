"""A capture of the SIP datagrams on the router's ports: what workers sent, and what reached them.

The router's tap lies before the rules that drop what a worker sends, and behind those that drop
what is sent to it. So a datagram is seen that was sent and lost on its way to the carrier, and one
is not that never reached the worker. While a worker's link is down as a whole, nothing is seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import selectors
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.chaos.callee import SO_TIMESTAMPNS, TIMESPEC, Message
from tests.chaos.evidence import Invitation, digits_of

_ALL_PROTOCOLS: Final = 0x0003
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_HEADERS: Final = 14 + 20 + 8
"""Bytes of the Ethernet, IPv4 and UDP headers; no IPv4 options are sent here."""
SAME: Final = 0.2
"""Seconds within which a copy that was sent and one that arrived are the same."""


class Datagram(NamedTuple):
    """A SIP message on a worker's link."""

    at: float
    worker: str
    was_sent: bool
    """By the worker; else it reached the worker."""
    start: str
    """The method of a request, the code of a response."""
    method: str
    call: str
    branch: str
    number: str
    """The last ten digits of the user in the request's URI; empty in a response."""


class Capture:
    """Captures in a thread until `close`. `ports` gives the router's interface to each worker."""

    def __init__(self, ports: Mapping[str, str], carrier_port: int) -> None:
        """Raises OSError where packet sockets are not allowed."""
        self.datagrams: list[Datagram] = []
        self._selector = selectors.DefaultSelector()
        self._closed = threading.Event()
        for worker, port in ports.items():
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
            _attach(tap, carrier_port)
            tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
            tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            tap.bind((port, _ALL_PROTOCOLS))
            tap.setblocking(False)
            self._selector.register(tap, selectors.EVENT_READ, worker)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; RuntimeError if the kernel had no room for a datagram, so that some are missing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        missing = 0
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            counts = key.fileobj.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            missing += struct.unpack("II", counts)[1]
            key.fileobj.close()
        self._selector.close()
        if missing:
            raise RuntimeError(f"the capture misses {missing} datagrams")

    def write(self, path: Path) -> None:
        """Write what was captured, a JSON object a line."""
        with path.open("w") as file:
            file.writelines(json.dumps(each._asdict()) + "\n" for each in self.datagrams)

    def _run(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select(0.5):
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._read(key.fileobj, key.data)

    def _read(self, tap: socket.socket, worker: str) -> None:
        try:
            data, ancillary, _, address = tap.recvmsg(65535, 64)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            return  # ENETDOWN, once, when the link is taken down
        at = time.monotonic()
        for _, kind, value in ancillary:
            if kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = TIMESPEC.unpack(value)
                at += seconds + nanoseconds * 1e-9 - time.time()
        with contextlib.suppress(ValueError, IndexError):
            message = Message.parse(data[_HEADERS:])
            is_response = message.start.startswith("SIP/2.0")
            words = message.start.split()
            self.datagrams.append(
                Datagram(
                    at,
                    worker,
                    address[2] != socket.PACKET_OUTGOING,
                    words[1] if is_response else words[0],
                    message.method,
                    message.get("call-id"),
                    message.branch,
                    "" if is_response else digits_of(message.called),
                )
            )


def _attach(tap: socket.socket, port: int) -> None:
    """Take UDP from or to a port only, so that audio is dropped in the kernel."""
    instructions = (
        (0x30, 0, 0, 14 + 9),  # the IPv4 protocol
        (0x15, 0, 5, socket.IPPROTO_UDP),
        (0x28, 0, 0, 14 + 20),  # the source port
        (0x15, 2, 0, port),
        (0x28, 0, 0, 14 + 22),  # the destination port
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    )
    program = b"".join(struct.pack("HBBI", *each) for each in instructions)
    buffer = ctypes.create_string_buffer(program)
    head = struct.pack("HL", len(instructions), ctypes.addressof(buffer))
    tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)


def add_wire(invitations: Sequence[Invitation], datagrams: Sequence[Datagram]) -> list[float]:
    """Add to the callee's evidence what it can't know.

    That is when the service sent each INVITE, CANCEL, ACK and BYE, also where that was lost, and
    which responses reached the service.

    Returns when each INVITE left of which no copy arrived.
    """
    by_branch = {(each.call, each.branch): each for each in invitations}
    by_call = {each.call: each for each in sorted(invitations, key=lambda each: each.first)}
    reached: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    lost: dict[tuple[str, str], float] = {}
    copies: dict[tuple[str, str], list[float]] = defaultdict(list)
    for datagram in sorted(datagrams, key=lambda each: each.at):
        key = datagram.call, datagram.branch
        invitation = by_branch.get(key)
        if invitation is None and datagram.method == "INVITE" and datagram.start == "INVITE":
            if datagram.was_sent and datagram.call not in by_call:
                lost.setdefault(key, datagram.at)
            continue
        invitation = invitation or by_call.get(datagram.call)
        if invitation is None:
            continue
        invitation.worker = datagram.worker
        if datagram.was_sent and datagram.start == "INVITE":
            copies[key].append(datagram.at)
        elif datagram.was_sent:
            _add_sent(invitation, datagram)
        elif datagram.method == "INVITE" and datagram.start.isdigit():
            reached[datagram.call, invitation.branch].append((datagram.at, int(datagram.start)))
    for each in invitations:
        each.reached = reached[each.call, each.branch]
    for key, times in copies.items():
        invitation = by_branch[key]
        invitation.dropped += [
            at for at in times if all(abs(at - each) > SAME for each in invitation.sent)
        ]
    return sorted(lost.values())


def _add_sent(invitation: Invitation, datagram: Datagram) -> None:
    if datagram.start == "CANCEL":
        invitation.canceled_at = min(invitation.canceled_at or datagram.at, datagram.at)
    elif datagram.start in ("ACK", "BYE") or (datagram.start, datagram.method) == ("200", "BYE"):
        invitation.known.append(datagram.at)
        if datagram.start == "BYE":
            invitation.hung_up_at = min(invitation.hung_up_at or datagram.at, datagram.at)
