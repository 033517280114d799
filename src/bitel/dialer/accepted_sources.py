"""Where a dialer accepts SIP from: its trunks, and the networks that the operator names."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

AcceptFrom = Literal["trunks", "any"] | tuple[IPv4Network | IPv6Network, ...]
"""`trunks`: nowhere else. `any`: messages of calls from anywhere, and requests outside of calls get
one answer. Or the networks from which everything is accepted, as from the trunks."""


class AcceptedSources:
    """The `SourcePolicy` of a dialer; `is_of_trunk` tells the trunks' addresses."""

    def __init__(self, accept_from: AcceptFrom, is_of_trunk: Callable[[str], bool]) -> None:
        self._is_of_trunk = is_of_trunk
        self.accept_from(accept_from)

    def accept_from(self, accept_from: AcceptFrom) -> None:
        """Accept from there from now on."""
        self.is_open = accept_from == "any"
        self._networks = () if isinstance(accept_from, str) else accept_from
        self._is_within = lru_cache(maxsize=4096)(self._look_up)

    def accepts(self, host: str) -> bool:
        """Whether everything that comes from `host`, an IP address, is accepted."""
        return self._is_of_trunk(host) or (bool(self._networks) and self._is_within(host))

    def _look_up(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return any(
            address in network for network in self._networks if network.version == address.version
        )
