"""The ways that one attempt may take: which addresses are tried, in what order, and when it stops.

An attempt is one call to one person. It tries another address only while no phone can have rung:
after an immediate 503, after an error in sending, and where no response came at all (RFC 3263
§4.3). Each address gets an INVITE of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sipmessage import URI

from bitel.calls.outcome import Outcome
from bitel.dialers.health import Health
from bitel.dialers.trunk import Trunk, usual_port
from bitel.sip import Failed
from bitel.sip.grammar import Address, Transport


class Hop(NamedTuple):
    """An address of a trunk, and what is asked for there."""

    trunk: Trunk
    address: Address
    request_uri: str
    redirected: bool = False


def in_order(hops: Iterable[Hop], health: Health) -> list[Hop]:
    """Those to be expected to work first, those that are down last, those at rest not at all."""
    awake = [hop for hop in hops if not health.rests(hop.address)]
    if len(awake) < 2:
        return awake
    return sorted(awake, key=lambda hop: not health.usable(hop.address))


def after(hop: Hop, failed: Failed, outcome: Outcome, left: Sequence[Hop]) -> list[Hop]:
    """The hops of `left` that are still worth trying, now that `hop` has failed."""
    if failed.rang or outcome is not Outcome.TRUNK_TROUBLE:
        return []  # a phone has rung, or may have, or the call is over
    if failed.why in {"timeout", "transport"} or failed.code == 503:
        return list(left)
    # The carrier has judged this call; only another carrier may judge otherwise.
    return [other for other in left if other.trunk != hop.trunk]


def redirected(hop: Hop, failed: Failed, addresses: Sequence[Address]) -> Hop | None:
    """Where a 3xx sends us, if that is within `addresses`, the trunk's own, and the first time.

    Anywhere else might be anybody, at our cost.
    """
    if hop.redirected or failed.rang or not 300 <= failed.code <= 399:
        return None
    for contact in failed.contacts:
        try:
            uri = URI.parse(contact)
        except ValueError:
            continue
        address = _within(uri, hop, addresses)
        if address is not None:
            return hop._replace(address=address, request_uri=contact, redirected=True)
    return None


def _within(uri: URI, hop: Hop, addresses: Sequence[Address]) -> Address | None:
    """Which of `addresses` the URI points at; None for none of them."""
    transport = _transport_of(uri, hop.address.transport)
    if transport is None or not uri.user:
        return None
    host = uri.host.removeprefix("[").removesuffix("]")
    same = transport is hop.address.transport
    if same and host.lower() == hop.trunk.host.lower() and uri.port == hop.trunk.port:
        return hop.address
    named = hop.trunk.at(host, uri.port or usual_port(transport), transport)
    return named if named in addresses else None


def _transport_of(uri: URI, usual: Transport) -> Transport | None:
    """How the URI wants to be reached, `usual` where it says nothing; None: not by us."""
    if uri.scheme == "sips":
        return Transport.TLS
    if uri.scheme != "sip":
        return None
    named = {name.lower(): value for name, value in uri.parameters.items()}.get("transport")
    try:
        return Transport(named.upper()) if named else usual
    except ValueError:
        return None
