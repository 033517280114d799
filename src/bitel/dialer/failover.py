"""Trunk failover: the order of the routes of an attempt, and redirections.

Another address is tried only while no phone can have rung: after an immediate 503, a transport
error, or a timeout without any response (RFC 3263 §4.3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from sipmessage import URI

from bitel.dialer.trunk import Trunk
from bitel.dialer.trunk_health import AddressHealth
from bitel.domain.attempts import Outcome
from bitel.domain.phone_numbers import to_e164
from bitel.errors import InvalidPhoneNumberError
from bitel.ip_addresses import leads_nearer
from bitel.sip import Failed
from bitel.sip.grammar import (
    DEFAULT_PORTS,
    Address,
    GrammarError,
    Transport,
    ip_literal,
    parameter,
    parse_uri,
    scheme_of,
    transport_of,
)


class Dialled(NamedTuple):
    """The dialled number, in the forms that a redirection may use."""

    e164: str
    user: str
    """The user part of our Request-URI."""
    region: str = ""
    """ISO 3166 country of national numbers; "": only `user` may be national."""

    def is_same(self, user: str) -> bool:
        """Whether the escaped user part of a SIP URI is this number.

        It may have visual separators and parameters (RFC 4694), and be in international form, with
        `+`, `00` or neither, or in national form.
        """
        number, _, parameters = user.partition(";")
        written = unquote(number)
        plain = written.translate(_SEPARATORS)
        digits = self.e164.removeprefix("+")
        context = unquote(parameter(f";{parameters}", "phone-context") or "")
        # A local number may name its country or area in phone-context (RFC 3966 §5.1.5).
        area = context.translate(_SEPARATORS) if context.startswith("+") else ""
        if not plain.startswith("+") and not self.e164.startswith(area):
            return False
        if written == self.user or plain in {self.user, self.e164, f"00{digits}", digits}:
            return True
        try:
            # The dialled number counts as valid, whatever the known numbering plans say.
            known = to_e164(plain, self.region, (self.e164,)) if self.region else ""
            return known == self.e164
        except InvalidPhoneNumberError:
            return False


_SEPARATORS = dict.fromkeys(map(ord, "-.()"))
"""Visual separators of a telephone number (RFC 3966 §3)."""


class Route(NamedTuple):
    """A destination of requests for a trunk, and their Request-URI."""

    trunk: Trunk
    address: Address
    request_uri: str
    redirected: bool = False


class Proxy(NamedTuple):
    """An outbound proxy and its known addresses."""

    name: Trunk
    addresses: Sequence[Address]


def in_order(
    routes: Iterable[Route], health: AddressHealth, rests: Callable[[Address], bool]
) -> list[Route]:
    """The routes without those at rest; those that are down come last."""
    awake = [route for route in routes if not rests(route.address)]
    if len(awake) < 2:
        return awake
    return sorted(awake, key=lambda route: health.is_down(route.address))


def after(route: Route, failed: Failed, outcome: Outcome, left: Sequence[Route]) -> list[Route]:
    """The routes of `left` to try after the failure of `route`."""
    if failed.rang or outcome is not Outcome.TRUNK_TROUBLE:
        return []  # a phone may have rung, or the attempt is decided
    if failed.why in {"timeout", "transport"} or failed.code == 503:
        return list(left)
    # The carrier refused this call; only another carrier may accept it.
    return [other for other in left if other.trunk != route.trunk]


TO_ANOTHER_NUMBER = "it leads to another number, and only the number dialled is called"
TO_ANOTHER_HOST = "it leads away from the trunk"
TO_NO_URI = "it names no URI to follow it to"
TO_PRIVATE_ADDRESS = "it leads into a private network or to this machine"
AGAIN = "it comes from where another redirection has led"


def redirected(
    route: Route,
    failed: Failed,
    dialled: Dialled,
    addresses: Sequence[Address],
    proxy: Proxy | None = None,
    *,
    follow_private: bool = False,
) -> Route | str:
    """The target of a 3xx (RFC 3261 §8.1.3.4), or why it is not followed; "" for other failures.

    It is followed once, and only to the number `dialled` at `addresses` of the trunk or its
    outbound `proxy`: any other call would be neither priced nor permitted. With a proxy the new
    request is sent by the proxy too. Without `follow_private` it is not followed to an address
    nearer to us than that of `route`.
    """
    if failed.rang or not 300 <= failed.code <= 399:
        return ""
    if route.redirected:
        return AGAIN
    why = TO_ANOTHER_HOST if failed.contacts else TO_NO_URI
    for contact in failed.contacts:
        try:
            request_uri = _as_request_uri(contact)
            address = _within(parse_uri(request_uri), route, addresses, proxy)
        except GrammarError:
            continue
        if address is None:
            continue
        if not follow_private and leads_nearer(route.address.host, address.host):
            why = TO_PRIVATE_ADDRESS
            continue
        if dialled.is_same(_user_in(request_uri)):
            return route._replace(address=address, request_uri=request_uri, redirected=True)
        why = TO_ANOTHER_NUMBER
    return why


def _user_in(uri: str) -> str:
    """The escaped user part of a SIP URI with its parameters; "" without one."""
    userinfo, at, _ = uri.partition(":")[2].rpartition("@")
    return userinfo.partition(":")[0] if at else ""


def _as_request_uri(contact: str) -> str:
    """The URI of a Contact without headers, as a Request-URI (RFC 3261 §19.1.1)."""
    userinfo, at, place = contact.partition(":")[2].rpartition("@")
    return f"{scheme_of(contact)}:{userinfo}{at}{place.partition('?')[0]}"


def _within(
    uri: URI, route: Route, addresses: Sequence[Address], proxy: Proxy | None
) -> Address | None:
    """The destination of a request for the URI; None if it is not of the trunk or its proxy."""
    transport = _transport_of(uri, route.address.transport)
    if transport is None or not uri.user:
        return None
    host = uri.host.removeprefix("[").removesuffix("]").lower()
    with contextlib.suppress(ValueError):
        host = ip_literal(host)
    named = (host, uri.port or DEFAULT_PORTS[transport], transport)
    own = next((each for each in addresses if each[:3] == named), None)
    if proxy is not None:
        # Requests to the trunk are sent by the proxy too, whatever transport the URI names.
        to_proxy = next((each for each in proxy.addresses if each[:3] == named), None)
        is_known = own or any(
            (host, uri.port) == (each.host.lower(), each.port) for each in (route.trunk, proxy.name)
        )
        return to_proxy or (route.address if is_known else None)
    same = transport is route.address.transport
    if same and host == route.trunk.host.lower() and uri.port == route.trunk.port:
        return route.address
    return own


def _transport_of(uri: URI, usual: Transport) -> Transport | None:
    """The transport of the URI, by default `usual`; None if unsupported."""
    try:
        return transport_of(uri, usual) if uri.scheme in {"sip", "sips"} else None
    except ValueError:
        return None
