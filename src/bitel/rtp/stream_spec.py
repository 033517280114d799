"""What a stream is to send, and the report of how it ended."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Literal, NamedTuple

Law = Literal["alaw", "ulaw"]

Latch = Literal["off", "port", "host"]
"""Which source of RTP a stream follows (symmetric RTP, RFC 4961).

`off`: none; only the address in SDP counts. `port`: the first port of the host in SDP. `host`: the
first source of any host, and from then on whatever address its SSRC comes from.
"""

UNHEARD = "no RTP came from the far end, which names an address that must not be sent to"
"""The error of a stream that was stopped while it waited for the first packet of its remote."""

UNSPECIFIED_HOSTS = ("0.0.0.0", "::")
"""Of IPv4 and of IPv6: an SDP that names it holds the call."""

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


class RemoteAddressError(ValueError):
    """An address, taken from a remote SDP, that RTP can't or must not be sent to."""


class StreamSpec(NamedTuple):
    """What a stream sends, from where, and to where.

    `Streamer.play` starts a stream with it. `Streamer.change` takes a new one, of which `port`,
    `law`, `latch` and `silence_timeout` must be as before.
    """

    port: int
    """Local port, from `Streamer.open_port`."""
    remote: tuple[str, int]
    """IP address and port to send to. While `held` it may be unspecified (0.0.0.0 or ::)."""
    payload_type: int
    """0 to 127."""
    law: Law
    """The encoding of the clips."""
    ptime: int = 20
    """Milliseconds of audio in a packet, one of `packet.PTIMES`. The last packet of each clip is
    padded with silence."""
    event_types: tuple[int, ...] = ()
    """Payload types that the remote may use for telephone events (RFC 4733)."""
    latch: Latch = "port"
    held: bool = False
    """Send nothing until a change without it; the recording waits."""
    awaited: bool = False
    """Send nothing before a packet of the remote was accepted, by `latch` or from `remote`. For a
    `remote` that only says where it may send from; requires a streamer that receives."""
    silence_timeout: float = 0.0
    """Seconds without RTP or RTCP, after some has come, until `on_silence` is called; 0: never."""


class StreamReport(NamedTuple):
    """How a stream ended. What follows `error` is known if the streamer receives."""

    stream: int
    packets: int | None
    """Packets that the kernel took; None if the sender process, which counts them, died."""
    finished: bool
    """The playlist was sent to its end, and its last packet has been played out."""
    error: str = ""
    """A sentence; also set if single packets of a finished stream were refused."""
    received: int = 0
    """Estimated RTP packets from the remote. Audio is counted by a sample of sequence numbers."""
    silent_for: float | None = None
    """Seconds from the last packet that was read, or a later change, to the end; None: no packet
    came."""
    digits: str = ""
    """Telephone events, of 0-9*#ABCD."""
    far_loss: float | None = None
    """Part of the packets, 0 to 1, that the remote missed, by its last RTCP report."""
    far_jitter_ms: float | None = None
    """From the same report."""
    digits_at: float | None = None
    """When the first digit came, by CLOCK_MONOTONIC."""
    unexpected: int = 0
    """RTP packets from addresses that were not accepted; where streams share the port, only those
    that are known to be meant for this one."""
    stopped: bool = False
    """Packets had come, and then none for so long, 6 s or more, that neither loss nor sampling
    explains it."""

    @classmethod
    def failed(cls, stream: int, error: str, packets: int | None = 0) -> StreamReport:
        """Of a stream that could not be sent to its end."""
        return cls(stream, packets, finished=False, error=error)


@lru_cache(maxsize=1024)
def normalized(host: str) -> str:
    """An IP address in the form that the system writes it; ValueError for anything else."""
    return str(ipaddress.ip_address(host))


@lru_cache(maxsize=1024)
def host_problem(host: str, version: int) -> str:
    """Why RTP can't be sent to the host from IPv4 or IPv6, as a sentence; empty if it can."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{host!r} is not an IP address to send RTP to"
    # The address comes from a stranger's SDP. 0.0.0.0 would reach this machine itself.
    many = address.is_multicast or address == _BROADCAST
    if address.is_unspecified or many or "%" in host:
        return f"{host} is not an address of one callee to send RTP to"
    if address.version != version:
        return f"RTP to {host} needs IPv{address.version}, and is sent from IPv{version}"
    return ""
