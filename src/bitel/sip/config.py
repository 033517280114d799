"""The configuration of a user agent, and what its messages say about it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bitel.sip.grammar import HostPort, Transport, host_in_uri
from bitel.sip.headers import MAX_SESSION_EXPIRES, MIN_SE


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`local` is the address in Via and Contact; `tls_port` its port over TLS (None: the next).

    Times are in seconds (RFC 3261 §17.1.1.1).

    The limits bound what a stranger can make the agent hold: server transactions and their bytes,
    of which a running call always may have some, incoming calls that wait for our answer (503
    beyond either), how long one of those may wait, datagrams that wait to be sent (dropped beyond,
    as if the network had lost them), and failed calls that are kept for a late answer.

    `session_expires` is how long a session is to last without being refreshed (RFC 4028), in
    seconds from 90 up; 0 asks for no session timer.

    With `tcp_fallback` a request of more than 1300 bytes to a UDP destination is sent by TCP, if
    the destination has TCP (RFC 3261 §18.1.1); without it, by UDP whatever its length. With
    `send_to_source` requests in a dialog are sent to the source of the peer's last message in the
    dialog, whatever its Contact and Record-Route say; Request-URI and Route still follow those.
    Without `follow_private` that is also done where they name an address nearer to us than the
    peer's: a private one of a peer on the public network, say.
    """

    local: HostPort
    user_agent: str = "bitel"
    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0
    max_server_transactions: int = 50_000
    max_server_bytes: int = 64 * 1024 * 1024
    max_early_calls: int = 5_000
    max_queued_datagrams: int = 100_000
    max_remembered: int = 10_000
    early_limit: float = 300.0
    session_expires: int = 1800
    tls_port: int | None = None
    tcp_fallback: bool = True
    send_to_source: bool = False
    follow_private: bool = False

    def __post_init__(self) -> None:
        if self.session_expires and not MIN_SE <= self.session_expires <= MAX_SESSION_EXPIRES:
            raise ValueError(
                f"session_expires {self.session_expires} is out of range: "
                f"use 0, or {MIN_SE} to {MAX_SESSION_EXPIRES}"
            )

    @property
    def sent_by(self) -> str:
        """Host and port in Via and Contact, by UDP and TCP."""
        return self.sent_by_for(Transport.UDP)

    def sent_by_for(self, transport: Transport) -> str:
        """Host and port in Via and Contact, by any transport."""
        host, port = self.local
        if transport is Transport.TLS:
            port = port + 1 if self.tls_port is None else self.tls_port
        return f"{host_in_uri(host)}:{port}"

    @property
    def long_wait(self) -> float:
        """64*T1: timers B, F, H, J, L and M."""
        return 64 * self.t1


class Identity:
    """Headers that identify the agent: User-Agent, and by transport Via (no branch) and Contact."""

    def __init__(self, config: AgentConfig) -> None:
        self.user_agent = ("User-Agent", config.user_agent)
        self.via: dict[Transport, str] = {}
        self.contact: dict[Transport, tuple[str, str]] = {}
        for transport in Transport:
            sent_by = config.sent_by_for(transport)
            # With TLS we may not listen, so that requests to us need this connection (RFC 5923).
            alias = ";alias" if transport is Transport.TLS else ""
            self.via[transport] = f"SIP/2.0/{transport} {sent_by};rport{alias};branch=z9hG4bK"
            named = "" if transport is Transport.UDP else f";transport={transport.lower()}"
            self.contact[transport] = ("Contact", f"<sip:{sent_by}{named}>")


class Tokens:
    """Random digits for tags, branches, Call-IDs and cnonces, which must not be guessed."""

    POOL = 4096
    """Bytes drawn at a time, since a system call costs more than all the rest of a token."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._at = 0
        self._digits = ""

    def take(self, digits: int) -> str:
        """So many random hexadecimal digits, of 4 bits each; at most 2 * `POOL`."""
        start, end = self._at, self._at + digits
        if end > len(self._digits):
            self._digits = self._rng.randbytes(self.POOL).hex()
            start, end = 0, digits
        self._at = end
        return self._digits[start:end]
