"""The configuration of a SIP trunk dialer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal

from bitel.dialer.caller_identity import Identification, NumberFormat, NumberRule
from bitel.dialer.playlist import Codec
from bitel.dialer.trunk import Trunk
from bitel.rtp.stream_spec import Latch
from bitel.rtp.streamer import senders_for
from bitel.settings import DialerSettings, split_address, split_public_address
from bitel.sip import Credentials
from bitel.sip_transport.tls import TlsFiles

AcceptFrom = Literal["trunks", "any"] | tuple[IPv4Network | IPv6Network, ...]
"""Sources from which SIP is accepted: `trunks` only; `any`, where requests outside of calls get one
stateless response; or the trunks and these networks."""


@dataclass(frozen=True, slots=True)
class SipTrunkConfig:
    """Settings of a `SipTrunkDialer`; times are in seconds."""

    trunks: tuple[Trunk, ...]
    bind: tuple[str, int]
    rtp_ports: range
    ring_timeout: float
    public_address: str = ""
    public_port: int | None = None
    caller_id: str | Sequence[str] = ""
    """One caller id, or a pool for all calls."""
    caller_ids: Mapping[str, str] = field(default_factory=dict)
    """Caller ids by prefix of the number called, before `caller_id`."""
    identity: Identification = "from"
    privacy: bool = False
    number_format: NumberFormat = "e164"
    number_rules: Sequence[NumberRule] = ()
    codecs: tuple[Codec, ...] = ("PCMA", "PCMU")
    credentials: Credentials | None = None
    register: bool = False
    ping_interval: float = 30.0
    """0: no pings."""
    trunk_timeout: float = 32.0
    """How long an address may send no response before the next is tried; at most 64 × `t1`."""
    t1: float = 0.5
    """T1 (RFC 3261 §17.1.1.1)."""
    tls: TlsFiles = field(default_factory=TlsFiles)
    media_timeout: float = 0.0
    """Silence of a callee after which the call is ended; 0: never."""
    receive: bool = True
    """Whether the RTP of callees is read."""
    latch: Latch = "port"
    """The RTP sources that are followed."""
    refusals_before_pause: int = 10
    """Consecutive refusals that pause a trunk that worked before; 0: never."""
    senders: int = 1
    """RTP sender processes; each uses one core at most."""
    outbound_proxy: Trunk | None = None
    """Where INVITEs and requests outside of calls are sent, with the trunk in the Request-URI."""
    from_domain: str = ""
    """Host of the caller's URI, in place of our IP address."""
    user_phone: bool = False
    """Whether `;user=phone` is added to the URIs of telephone numbers."""
    extra_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    send_to_source: bool = False
    accept_from: AcceptFrom = "trunks"
    follow_private: bool = False
    """As in `AgentConfig`, and also for media and redirections."""
    tcp_fallback: bool = True
    region: str = ""
    """ISO 3166 country of national numbers in redirections."""

    def next_hop(self, trunk: Trunk) -> Trunk:
        """The outbound proxy, or the trunk itself without one."""
        return self.outbound_proxy or trunk

    @property
    def route(self) -> tuple[tuple[str, str], ...]:
        """The Route header of requests outside of dialogs; none without an outbound proxy."""
        return (("Route", self.outbound_proxy.route),) if self.outbound_proxy else ()

    @property
    def caller_pool(self) -> Sequence[str]:
        """`caller_id` as a sequence."""
        return [self.caller_id] if isinstance(self.caller_id, str) else self.caller_id


def sip_trunk_config(dialer: DialerSettings, region: str = "") -> SipTrunkConfig:
    """The configuration for validated settings; `region` as in `SipTrunkConfig`."""
    public, public_port = "", None
    if dialer.public_address:
        public, public_port = split_public_address(dialer.public_address)
    password = dialer.password.get_secret_value()
    credentials = Credentials(dialer.username, password, dialer.realm)
    return SipTrunkConfig(
        trunks=tuple(Trunk.parse(trunk) for trunk in dialer.trunks),
        bind=split_address(dialer.bind),
        rtp_ports=dialer.rtp_range,
        ring_timeout=dialer.ring_timeout,
        public_address=public,
        public_port=public_port,
        caller_id=dialer.caller_id,
        caller_ids=dialer.caller_ids,
        identity=dialer.identity,
        privacy=dialer.privacy,
        number_format=dialer.number_format,
        number_rules=[NumberRule(**rule.model_dump()) for rule in dialer.number_rules],
        codecs=tuple(dialer.codecs),
        credentials=credentials if dialer.username else None,
        register=dialer.register_,
        tls=_tls_files(dialer),
        ping_interval=dialer.ping_interval,
        trunk_timeout=dialer.trunk_timeout,
        media_timeout=dialer.media_timeout,
        receive=dialer.receive,
        refusals_before_pause=dialer.refusals_before_pause,
        senders=senders_for(dialer.max_channels, os.cpu_count() or 1),
        outbound_proxy=Trunk.parse(dialer.outbound_proxy) if dialer.outbound_proxy else None,
        from_domain=dialer.from_domain,
        user_phone=dialer.user_phone,
        extra_headers=tuple(
            (name, value.get_secret_value()) for name, value in dialer.extra_headers.items()
        ),
        send_to_source=dialer.send_to_source,
        accept_from=(
            dialer.accept_from
            if isinstance(dialer.accept_from, str)
            else tuple(map(ip_network, dialer.accept_from))
        ),
        follow_private=dialer.follow_private,
        latch=dialer.latch,
        tcp_fallback=dialer.tcp_fallback,
        region=region,
    )


def _tls_files(dialer: DialerSettings) -> TlsFiles:
    ca, certificate, key = (
        Path(name) if name else None
        for name in (dialer.tls_ca, dialer.tls_certificate, dialer.tls_key)
    )
    return TlsFiles(ca, certificate, key)
