"""Types of settings with their validation: addresses, trunks, headers, prefixes and others."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable, Collection
from functools import partial
from typing import Annotated, Final
from urllib.parse import urlsplit

import phonenumbers
from pydantic import AfterValidator, SecretStr

SHORTEST_KEY_SECRET: Final = 16
"""Characters of the secret that encrypts signing keys."""


def split_address(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` (IPv6 hosts in brackets). Raises ValueError in one sentence."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not of the form HOST:PORT, as in 0.0.0.0:5070")
    return host, int(port)


def _metrics_token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if text and not text.strip():
        raise ValueError("a token of white space can't be sent; leave it empty or name one")
    if any(ord(c) < 32 or ord(c) == 127 for c in text.strip()):
        raise ValueError("a token with a control character can't be sent in a header")
    return token


def _key_secret(secret: SecretStr) -> SecretStr:
    if 0 < len(secret.get_secret_value()) < SHORTEST_KEY_SECRET:
        raise ValueError(
            f"it has fewer than {SHORTEST_KEY_SECRET} characters; use what `openssl rand -hex 32` "
            "prints"
        )
    return secret


def _check_command(text: str) -> None:
    try:
        words = shlex.split(text)
    except ValueError:
        raise ValueError("a quotation mark is not closed") from None
    if text and not words:
        raise ValueError("it names no program; leave it empty or name one")


def _check_port_range(text: str) -> None:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if not match or not 1024 <= int(match[1]) < int(match[2]) <= 65535:
        raise ValueError(f"{text!r} is not a range of ports within 1024-65535, as in 10000-19999")


def _check_region(text: str) -> None:
    if text not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"{text!r} is not an ISO 3166 country code, as in IR")


def _check_host_uri(text: str, what: str = "trunk", flags: Collection[str] = ()) -> None:
    """Check a SIP URI of a host; `flags` are allowed parameters besides `transport`.

    Parameters without effect are errors, so that misspelt ones are noticed.
    """
    if "@" in text:
        # Not quoted in the error: it may contain a password.
        raise ValueError(f"a {what} is a host, without a user or password before it")
    if "?" in text:
        raise ValueError(f"{text!r} can't be a {what}: headers after ? would have no effect")
    place, *parameters = text.split(";")
    trunk_host(text, what)
    transport = None
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        name, value = name.lower(), value.lower()
        if name == "transport":
            if transport is not None:
                raise ValueError(f"{text!r} can't be a {what}: it names transport twice")
            if value not in {"udp", "tcp", "tls"}:
                raise ValueError(f"{text!r} can't be a {what}: use transport=udp, tcp or tls")
            transport = value
        elif name not in flags:
            raise ValueError(
                f"{text!r} can't be a {what}: its parameter {name!r} would have no effect; "
                "remove it, only transport is used"
            )
    if place.lower().startswith("sips:") and transport == "udp":
        raise ValueError(f"{text!r} can't be a {what}: sips: is never spoken over UDP")


def trunk_host(text: str, what: str = "trunk") -> str:
    """Return the host of a trunk's URI, without brackets. Raises ValueError."""
    scheme, _, rest = text.partition(":")
    match = re.fullmatch(
        r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-]+)(?::([0-9]{1,5}))?", rest.partition(";")[0]
    )
    usable = match is not None and 0 < int(match[2] or 5060) < 65536
    if match is None or not usable or scheme.lower() not in {"sip", "sips"}:
        raise ValueError(f"{text!r} is not a {what}'s address, as in sip:203.0.113.10:5060")
    host = match[1].strip("[]")
    if match[1].startswith("[") and not is_ip(host, 6):
        raise ValueError(f"{text!r} is not a {what}'s address: {host!r} is no IPv6 address")
    return host


def _domain(text: str) -> str:
    """Check a host of a SIP URI: a domain name or an IP address, without a port."""
    host = text.removeprefix("[").removesuffix("]")
    label = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
    is_name = len(text) <= 253 and re.fullmatch(rf"{label}(?:\.{label})*", text) is not None
    # A name whose last label is numeric would be parsed as an IPv4 address.
    is_name = is_name and not text.rpartition(".")[2].isdigit()
    if text and not is_name and not is_ip(text, 4) and not is_ip(host, 6):
        raise ValueError(f"{text!r} is neither a domain name nor an IP address, as in pbx.example")
    return host


WRITTEN_HEADERS = frozenset(
    (
        *("via", "from", "to", "call-id", "cseq", "contact", "route", "record-route"),
        *("max-forwards", "allow", "supported", "require", "proxy-require", "user-agent"),
        *("authorization", "proxy-authorization", "session-expires", "min-se", "expires"),
        # Compact forms, also of Content-Encoding, Content-Length and Content-Type.
        *("v", "f", "t", "i", "m", "k", "x", "e", "l", "c"),
    )
)
"""Headers, in lower case, that the user agent writes into every INVITE."""
IDENTITY_HEADERS = {
    "pai": "p-asserted-identity",
    "ppi": "p-preferred-identity",
    "rpid": "remote-party-id",
}
"""The header of each value of `identity`, in lower case."""


def _extra_headers(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    seen: set[str] = set()
    for name, secret in headers.items():
        value, lower = secret.get_secret_value(), name.lower()
        if not re.fullmatch(r"[A-Za-z0-9\-.!%*_+`'~]{1,64}", name):
            raise ValueError(f"{name[:64]!r} is not the name of a header, as in X-Account")
        if lower in WRITTEN_HEADERS or lower.startswith("content-"):
            raise ValueError(f"{name} is a header that bitel writes itself; remove it")
        if lower in seen:
            raise ValueError(f"it names the header {name} twice")
        seen.add(lower)
        if not 1 <= len(value) <= 512 or not value.isprintable() or value != value.strip():
            # The value is not quoted in the error: it may be secret.
            raise ValueError(
                f"the value of {name} is not one line of 1 to 512 printable characters"
            )
    return headers


def _endpoint(text: str) -> str:
    if not text:
        return text
    try:
        url = urlsplit(text)
        usable = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        url, usable = urlsplit(""), False
    if url.username or url.password:
        # Not quoted in the error: it contains a password.
        raise ValueError("it holds a user or password; write access_key_id and secret_access_key")
    if not usable or url.query or url.fragment:
        raise ValueError(f"{text!r} is not the URL of a server, as in https://s3.example:9000")
    return text.rstrip("/")


def split_public_address(text: str) -> tuple[str, int | None]:
    """Split `IP` or `IP:PORT` (IPv6 with a port in brackets). Raises ValueError."""
    host, port = text, None
    if text.startswith("[") or text.count(":") == 1:
        host, port = split_address(text)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address; leave it empty without NAT") from None
    return host, port


def is_ip(host: str, version: int) -> bool:
    """Whether `host` is an IP address of this version, 4 or 6."""
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(
            f"{text!r} is not a network, as in 198.51.100.0/24 or 198.51.100.7"
        ) from None


class FileName:
    """Marks a setting that is a file name, relative to the folder of the settings file."""


def _matching(pattern: str, fault: str) -> AfterValidator:
    """Validate that `pattern` matches the text; `fault` describes a mismatch."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} {fault}")
        return text

    return AfterValidator(check)


def _readable(read: Callable[[str], object], *, optional: bool = False) -> AfterValidator:
    """Validate that `read` raises no ValueError; with `optional` an empty text is valid."""

    def check(text: str) -> str:
        if text or not optional:
            read(text)
        return text

    return AfterValidator(check)


AddressText = Annotated[str, _readable(split_address)]
OptionalAddress = Annotated[str, _readable(split_address, optional=True)]
PublicAddress = Annotated[str, _readable(split_public_address, optional=True)]
PortRange = Annotated[str, _readable(_check_port_range)]
Network = Annotated[str, AfterValidator(_network)]
TrunkUri = Annotated[str, _readable(_check_host_uri)]
ProxyUri = Annotated[
    str, _readable(partial(_check_host_uri, what="proxy", flags=("lr",)), optional=True)
]
DomainName = Annotated[str, AfterValidator(_domain)]
ExtraHeaders = Annotated[dict[str, SecretStr], AfterValidator(_extra_headers)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
KeySecret = Annotated[SecretStr, AfterValidator(_key_secret)]
MetricsToken = Annotated[SecretStr, AfterValidator(_metrics_token)]
Command = Annotated[str, _readable(_check_command)]
Region = Annotated[str, _readable(_check_region)]
Currency = Annotated[str, _matching(r"[A-Z]{3}", "is no ISO 4217 currency, as in IRR")]
FileText = Annotated[str, FileName()]
CallerId = Annotated[
    str,
    _matching(
        r"\+?[0-9A-Za-z_.\-]{0,32}",
        "is no caller id: use up to 32 digits, letters, '.', '-' or '_'",
    ),
]
DialerId = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}",
        "is no id of a dialer: use up to 64 letters, digits, '.', '-' or '_', "
        "a letter or digit first",
    ),
]
NumberPrefix = Annotated[
    str, _matching(r"\+[0-9]{0,15}", "is not the beginning of an E.164 number, as in +98")
]
DialledPrefix = Annotated[
    str, _matching(r"[0-9+*#]{0,32}", "can't be dialled: use up to 32 of 0-9, '+', '*' and '#'")
]
