"""Configuration of a user agent, and the headers that identify it."""

from __future__ import annotations

from dataclasses import dataclass

from bitel.sip.grammar import HostPort, Transport, host_in_uri, transport_parameter
from bitel.sip.headers import MAX_SESSION_EXPIRES, MIN_SE


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Settings of a `UserAgent`; times are in seconds."""

    local: HostPort
    """The address in Via and Contact."""
    user_agent: str = "bitel"
    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0
    """RFC 3261 §17.1.1.1."""
    max_server_transactions: int = 50_000
    max_server_bytes: int = 64 * 1024 * 1024
    """Beyond either, 503 is sent; requests of running calls are still accepted, 16 for each."""
    max_early_calls: int = 5_000
    """Unanswered incoming calls; beyond, 503 is sent."""
    max_queued_datagrams: int = 100_000
    """Unsent datagrams; beyond, further ones are dropped."""
    max_remembered: int = 10_000
    """Failed calls that are kept for a late response."""
    early_limit: float = 300.0
    """How long an incoming call may stay unanswered."""
    session_expires: int = 1800
    """Session interval (RFC 4028), 90 or more; 0: no session timer."""
    tls_port: int | None = None
    """The port in Via and Contact over TLS; None: that of `local` plus 1."""
    tcp_fallback: bool = True
    """Whether a request of more than 1300 bytes to a UDP destination is sent by TCP, if the
    destination accepts TCP (RFC 3261 §18.1.1)."""
    send_to_source: bool = False
    """Whether requests in a dialog are sent to the source of the peer's last message, whatever
    Contact and Record-Route say. Request-URI and Route still follow those."""
    follow_private: bool = False
    """False: `send_to_source` also applies where Contact or Record-Route names an address nearer to
    us than the peer's, such as a private address of a peer on the public network."""

    def __post_init__(self) -> None:
        if self.session_expires and not MIN_SE <= self.session_expires <= MAX_SESSION_EXPIRES:
            raise ValueError(
                f"session_expires {self.session_expires} is out of range: "
                f"use 0, or {MIN_SE} to {MAX_SESSION_EXPIRES}"
            )

    @property
    def sent_by(self) -> str:
        """Host and port in Via and Contact, over UDP and TCP."""
        return self.sent_by_for(Transport.UDP)

    def sent_by_for(self, transport: Transport) -> str:
        """Host and port in Via and Contact, over `transport`."""
        host, port = self.local
        if transport is Transport.TLS:
            port = port + 1 if self.tls_port is None else self.tls_port
        return f"{host_in_uri(host)}:{port}"

    @property
    def long_wait(self) -> float:
        """64*T1: timers B, F, H, J, L and M."""
        return 64 * self.t1


class Identity:
    """Headers of the agent: User-Agent, and by transport Via (without branch) and Contact."""

    def __init__(self, config: AgentConfig) -> None:
        self.user_agent = ("User-Agent", config.user_agent)
        self.via: dict[Transport, str] = {}
        self.contact: dict[Transport, tuple[str, str]] = {}
        for transport in Transport:
            sent_by = config.sent_by_for(transport)
            # We may not listen on TLS: requests to us must reuse this connection (RFC 5923).
            alias = ";alias" if transport is Transport.TLS else ""
            self.via[transport] = f"SIP/2.0/{transport} {sent_by};rport{alias};branch=z9hG4bK"
            uri = f"sip:{sent_by}{transport_parameter(transport)}"
            self.contact[transport] = ("Contact", f"<{uri}>")
