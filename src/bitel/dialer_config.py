"""From a dialer's settings to what the dialer needs to know."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

from bitel.dialer.config import SipTrunkConfig
from bitel.dialer.number_format import NumberRule
from bitel.dialer.trunk import Trunk
from bitel.rtp.streamer import senders_for
from bitel.settings import DialerSettings, split_address, split_public_address
from bitel.sip import Credentials
from bitel.sip_transport.tls import TlsFiles


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
