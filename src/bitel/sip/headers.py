"""Header fields: Contact, Reason, Retry-After, RSeq, session timers (RFC 4028), and Via routing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal, NamedTuple

from bitel.sip.grammar import (
    DEFAULT_PORT,
    DEFAULT_PORTS,
    MAX_PORT,
    MAX_URI_LENGTH,
    Address,
    GrammarError,
    Transport,
    ip_literal,
    parameter,
    split_address,
    split_list,
)
from bitel.sip.message import (
    SUPPORTED,
    Headers,
    Message,
    MessageError,
    Request,
    Response,
    parse,
    sent_by_of,
)

MAX_CONTACTS = 10
"""URIs of a redirection that are considered."""
MAX_Q850_CAUSE = 127
MAX_RSEQ = 2**32
MIN_SE = 90
"""Shortest session interval that may be requested, in seconds (RFC 4028 §5)."""
MAX_SESSION_EXPIRES = 86_400
"""Longest session interval, in seconds, that we accept."""

_SPACE = re.compile(r"\s")
_BRACKETED = re.compile(r'<([^<>"\s]+)>(?:;|\Z)')
_RETRY_AFTER = re.compile(r"\s*([0-9]{1,10})\s*(?:[;(]|\Z)")
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")


def contact_of(message: Message) -> str:
    """The URI of the first Contact that can be a Request-URI; "" without one."""
    value = message.header("contact")
    if not value or "," in value:
        return next(map(uri_of, message.values("contact")), "")
    return uri_of(value)


def uri_of(value: str) -> str:
    """The URI of a name-addr, "" if it can't be a Request-URI."""
    bracketed = _BRACKETED.match(value)
    if bracketed:
        uri = bracketed[1]
        return uri if ":" in uri and len(uri) <= MAX_URI_LENGTH else ""
    try:
        uri, _ = split_address(value)
    except GrammarError:
        return ""
    usable = ":" in uri and len(uri) <= MAX_URI_LENGTH and not _SPACE.search(uri)
    return uri if usable else ""


def redirected_to(response: Response) -> tuple[str, ...]:
    """The URIs of a 3xx by descending q (RFC 3261 §8.1.3.4), at most `MAX_CONTACTS`."""
    if not 300 <= response.code < 400:
        return ()
    values = response.values("contact")[: 4 * MAX_CONTACTS]
    uris = [uri_of(value) for value in sorted(values, key=_quality, reverse=True)]
    return tuple(dict.fromkeys(uri for uri in uris if uri))[:MAX_CONTACTS]


def _quality(contact: str) -> float:
    try:
        q = parameter(split_address(contact)[1], "q") or ""
    except GrammarError:
        return 0.0
    return float(q) if _QUALITY.match(q) else 1.0


def retry_after_of(response: Response) -> float | None:
    """The seconds of a Retry-After header (RFC 3261 §20.33); None without one."""
    seconds = _RETRY_AFTER.match(response.header("retry-after"))
    return float(seconds[1]) if seconds else None


def q850_cause(values: Iterable[str]) -> int | None:
    """The first Q.850 cause (0 to 127) among Reason values (RFC 3326); None without one."""
    for value in values:
        for item in split_list(value):
            protocol, _, parameters = item.partition(";")
            cause = _decimal(parameter(parameters, "cause") or "", 3)
            is_q850 = protocol.strip().upper() == "Q.850"
            if is_q850 and cause is not None and cause <= MAX_Q850_CAUSE:
                return cause
    return None


def names_analytics(values: Iterable[str]) -> bool:
    """Whether a Reason header says that call analytics blocked the call (ATIS-1000099 "603+").

    Its text begins with `v=analytics1`, as in `SIP;cause=603;text="v=analytics1;url=..."`.
    """
    return any("v=analytics1" in value.lower() for value in values)


def rseq_of(response: Response) -> int | None:
    """The RSeq of a reliable provisional response (RFC 3262 §7.1); None for any other."""
    if response.code == 100 or "100rel" not in _option_tags(response, "require"):
        return None
    rseq = _decimal(response.header("rseq"), 10)
    return rseq if rseq is not None and 0 < rseq < MAX_RSEQ else None


# Session timers (RFC 4028)

Refresher = Literal["uac", "uas"]
_REFRESHERS: dict[str, Refresher] = {"uac": "uac", "uas": "uas"}


class SessionExpires(NamedTuple):
    """A Session-Expires header: interval and refresher."""

    seconds: int
    refresher: Refresher | None

    def __str__(self) -> str:
        return f"{self.seconds};refresher={self.refresher}" if self.refresher else f"{self.seconds}"


def session_expires_of(message: Message) -> SessionExpires | None:
    """Parse Session-Expires; None if missing or invalid."""
    number, _, parameters = message.header("session-expires").partition(";")
    seconds = _decimal(number, 10)
    if seconds is None:
        return None
    refresher = _REFRESHERS.get((parameter(parameters, "refresher") or "").lower())
    return SessionExpires(min(seconds, MAX_SESSION_EXPIRES), refresher)


def min_se_of(message: Message) -> int | None:
    """The seconds of Min-SE; None if missing, invalid or above `MAX_SESSION_EXPIRES`."""
    seconds = _decimal(message.header("min-se").partition(";")[0], 10)
    return seconds if seconds is not None and seconds <= MAX_SESSION_EXPIRES else None


def supports_timer(message: Message) -> bool:
    """Whether the sender supports session timers."""
    return "timer" in _option_tags(message, "supported") + _option_tags(message, "require")


def is_interval_too_small(message: Message) -> bool:
    """Whether a request must be refused with 422 and our Min-SE (RFC 4028 §8.1)."""
    asked = session_expires_of(message)
    return asked is not None and asked.seconds < MIN_SE and supports_timer(message)


def session_timer_headers(asked: int, min_se: int) -> Headers:
    """Supported and the session timer headers of our INVITE.

    `asked` is the interval in seconds, 0 for no timer; `min_se` that of a 422, 0 without one.
    """
    if not asked:
        return (("Supported", "100rel"),)
    headers = (("Supported", SUPPORTED), ("Session-Expires", str(max(asked, min_se))))
    return (*headers, ("Min-SE", str(min_se))) if min_se else headers


def _option_tags(message: Message, name: str) -> list[str]:
    return [tag.lower() for tag in message.values(name)]


def _decimal(text: str, max_digits: int) -> int | None:
    text = text.strip()
    plain = text.isascii() and text.isdigit() and len(text) <= max_digits
    return int(text) if plain else None


# Via


def reply_route(request: Request) -> tuple[str, Address]:
    """The top Via for a response, and its destination (RFC 3581 §4).

    Over a stream that is the connection of the request (RFC 3261 §18.2.2).
    """
    source = request.source
    host, port = request.sent_by()
    top = split_list(request.header("via"))[0]
    kept = [
        part
        for part in top.split(";")
        if part.partition("=")[0].strip().lower() not in ("received", "rport")
    ]
    if parameter(top, "rport") is not None:
        kept += [f"received={source.host}", f"rport={source.port}"]
        return ";".join(kept), source
    if host.strip("[]") != source.host:
        kept.append(f"received={source.host}")
    if source.transport is Transport.UDP:
        source = Address(source.host, port or DEFAULT_PORT)
    return ";".join(kept), source


def response_route(data: bytes, closed: Address) -> Address | None:
    """Destination of a response whose connection, from `closed`, is closed (RFC 3261 §18.2.2).

    That is the host of `closed` at the port in Via. None if `data` is not a response.
    """
    try:
        message = parse(data)
        port = message.sent_by()[1] or DEFAULT_PORTS[closed.transport]
    except MessageError:
        return None
    if not isinstance(message, Response) or not 0 < port <= MAX_PORT:
        return None
    return closed._replace(port=port)


def alias_of(data: bytes, source: Address) -> Address | None:
    """The further address that the connection from `source` may be used for (RFC 5923 §5).

    The peer that opened it requests this with `alias` in Via. It is granted only if the host in Via
    is that of `source`, because no certificate proves more.
    """
    try:
        message = parse(data)
        host, port = message.sent_by()
        top = split_list(message.header("via"))[0]
        wanted = isinstance(message, Request) and parameter(top, "alias") is not None
        port = port or DEFAULT_PORTS[source.transport]
        if not wanted or ip_literal(host.strip("[]")) != source.host or port > MAX_PORT:
            return None
    except (MessageError, GrammarError, ValueError, IndexError):
        return None
    return Address(source.host, port, source.transport)


def has_same_sent_by(ours: str, theirs: str, transport: Transport) -> bool:
    """Whether the Via of a response has the sent-by of our request (RFC 3261 §18.1.2)."""
    if ours.partition(";")[0] == theirs.partition(";")[0]:
        return True
    return _normalised_sent_by(ours, transport) == _normalised_sent_by(theirs, transport)


def _normalised_sent_by(via: str, transport: Transport) -> tuple[str, int]:
    host, port = sent_by_of(via)
    host = host.strip("[]").lower()
    with suppress(ValueError):
        host = ip_literal(host)
    return host, port or DEFAULT_PORTS[transport]
