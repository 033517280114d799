"""What a SIP trunk dialer needs to know."""

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
    """Times are in seconds.

    `caller_id` may be a pool, whose members take turns; `caller_ids` goes before it, by prefix of
    the number called. `ping_interval` 0 sends no pings. `trunk_timeout` is how long an address that
    answers nothing is waited for where there is another, never longer than 64 × `t1`. `t1` is
    SIP's T1 (RFC 3261 §17.1.1.1).
    `latch`: which source of RTP is followed (`streamer.Latch`). `receive`: whether callees' RTP is
    read; a call whose callee sends nothing for `media_timeout` seconds is ended, 0: never.
    `refusals_before_pause` refusals in a row pause a trunk that worked before; 0 never.
    `senders` processes send the RTP; each fills one core at most.

    All requests outside of calls and all INVITEs go to `outbound_proxy`, where there is one, with
    the trunk in the Request-URI. `from_domain` is the host of the caller's URI, in place of our IP
    address. `user_phone` adds `;user=phone` to the URIs of telephone numbers. `extra_headers` are
    added to every INVITE. `send_to_source`, `follow_private` and `tcp_fallback` are those of
    `AgentConfig`; `follow_private` also goes for media and redirections. SIP is accepted from the
    trunks and, if `accept_from` is no word, from its networks too (`accepted_sources`).
    `region` (ISO 3166) is the country whose national numbers a redirection may be written in.
    """

    trunks: tuple[Trunk, ...]
    bind: tuple[str, int]
    rtp_ports: range
    ring_timeout: float
    public_address: str = ""
    public_port: int | None = None
    caller_id: str | Sequence[str] = ""
    caller_ids: Mapping[str, str] = field(default_factory=dict)
    identity: Identification = "from"
    privacy: bool = False
    number_format: NumberFormat = "e164"
    number_rules: Sequence[NumberRule] = ()
    codecs: tuple[Codec, ...] = ("PCMA", "PCMU")
    credentials: Credentials | None = None
    register: bool = False
    ping_interval: float = 30.0
    trunk_timeout: float = 32.0
    t1: float = 0.5
    tls: TlsFiles = field(default_factory=TlsFiles)
    media_timeout: float = 0.0
    receive: bool = True
    latch: Latch = "port"
    refusals_before_pause: int = 10
    senders: int = 1
    outbound_proxy: Trunk | None = None
    from_domain: str = ""
    user_phone: bool = False
    extra_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    send_to_source: bool = False
    accept_from: AcceptFrom = "trunks"
    follow_private: bool = False
    tcp_fallback: bool = True
    region: str = ""

    def next_hop(self, trunk: Trunk) -> Trunk:
        """Where requests for `trunk` are sent: to the outbound proxy, or to the trunk itself."""
        return self.outbound_proxy or trunk

    @property
    def route(self) -> tuple[tuple[str, str], ...]:
        """The Route header of requests outside of dialogs; none without an outbound proxy."""
        return (("Route", self.outbound_proxy.route),) if self.outbound_proxy else ()

    @property
    def caller_pool(self) -> Sequence[str]:
        """The caller ids that take turns."""
        return [self.caller_id] if isinstance(self.caller_id, str) else self.caller_id


def sip_trunk_config(dialer: DialerSettings, region: str = "") -> SipTrunkConfig:
    """The configuration that these settings, which are checked, ask for.

    `region` is the country whose national numbers are understood (ISO 3166).
    """
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
