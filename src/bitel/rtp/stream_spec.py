"""The specification of a stream (`StreamSpec`) and the report of its end (`StreamReport`)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

Law = Literal["alaw", "ulaw"]

Latch = Literal["off", "port", "host"]
"""Which source of RTP a stream latches onto (symmetric RTP, RFC 4961).

`off`: none; only the address in SDP counts. `port`: any port of the host in SDP. `host`: any host;
after its first packet, every address that its SSRC comes from.
"""

OnKeys = Callable[[str, float], None]
"""Called with keys of 0-9*#ABCD, and when they were read, by CLOCK_MONOTONIC."""

OnAudio = Callable[[Sequence[bytes | None]], None]
"""Called with G.711 payloads of the remote, in their order; None for a packet that was lost."""

UNHEARD = "no RTP came from the far end, which names an address that must not be sent to"
"""The error of a stream that was stopped while it awaited the first packet of its remote."""

UNSPECIFIED_HOSTS = ("0.0.0.0", "::")
"""The unspecified addresses of IPv4 and IPv6; in SDP they put the call on hold (RFC 3264 8.4)."""

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


class RemoteAddressError(ValueError):
    """An address of a remote SDP that RTP can't or must not be sent to."""


class StreamSpec(NamedTuple):
    """What a stream sends, from where, and to where.

    `Streamer.play` takes one. `Streamer.change` takes a new one with the same `port`, `law`,
    `latch` and `silence_timeout`.
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
    """Pause the recording and send nothing, until a change without it."""
    awaited: bool = False
    """Send nothing before a packet of the remote was accepted, by `latch` or from `remote`, where
    `remote` must not be sent to. Requires a streamer that receives."""
    silence_timeout: float = 0.0
    """Seconds without RTP or RTCP, after a first packet, until `on_silence`; 0: never."""
    tones: bool = False
    """Keys are looked for in the audio, since the remote has agreed to no telephone events."""


class StreamReport(NamedTuple):
    """How a stream ended. The fields after `error` are set only if the streamer receives."""

    stream: int
    packets: int | None
    """Packets that the kernel accepted; None if the sender process died."""
    finished: bool
    """Whether the playlist was sent to its end, and one packet time has passed since."""
    error: str = ""
    """A sentence; also set if the kernel refused packets of a finished stream."""
    received: int = 0
    """RTP packets from the remote, estimated from a sample."""
    silent_for: float | None = None
    """Seconds from the last packet read, or a later change, to the end; None: no packet."""
    digits: str = ""
    """Telephone events received: 0-9*#ABCD."""
    far_loss: float | None = None
    """Cumulative loss at the remote, 0 to 1, by its last RTCP report; None: no report."""
    far_jitter_ms: float | None = None
    """Interarrival jitter at the remote, from the same report."""
    digits_at: float | None = None
    """Time of the first digit, by CLOCK_MONOTONIC."""
    unexpected: int = 0
    """RTP packets from addresses that were not accepted; on a shared port, only those with the
    stream's SSRC."""
    stopped: bool = False
    """Whether the remote stopped sending: no packet for 6 s or more, which neither loss nor
    sampling explains."""

    @classmethod
    def failed(cls, stream: int, error: str, packets: int | None = 0) -> StreamReport:
        """The report of a stream that could not be sent."""
        return cls(stream, packets, finished=False, error=error)


@lru_cache(maxsize=1024)
def normalized(host: str) -> str:
    """The canonical form of an IP address; ValueError for anything else."""
    return str(ipaddress.ip_address(host))


@lru_cache(maxsize=1024)
def host_problem(host: str, version: int) -> str:
    """Why RTP can't be sent to `host` by IPv4 or IPv6, as a sentence; empty if it can."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{host!r} is not an IP address to send RTP to"
    # The SDP is untrusted. 0.0.0.0 would reach this machine itself.
    many = address.is_multicast or address == _BROADCAST
    if address.is_unspecified or many or "%" in host:
        return f"{host} is not an address of one callee to send RTP to"
    if address.version != version:
        return f"RTP to {host} needs IPv{address.version}, and is sent from IPv{version}"
    return ""
