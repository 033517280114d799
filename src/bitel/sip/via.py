"""Routes by the Via header: where responses go, and who may use a connection."""

from __future__ import annotations

from contextlib import suppress

from bitel.sip.grammar import (
    DEFAULT_PORT,
    DEFAULT_PORTS,
    MAX_PORT,
    Address,
    GrammarError,
    Transport,
    ip_literal,
    parameter,
    split_list,
)
from bitel.sip.message import MessageError, Request, Response, parse, sent_by_of


def reply_route(request: Request) -> tuple[str, Address]:
    """The top Via as a response repeats it, and where the response goes (RFC 3581 §4).

    Over a stream that is the connection that the request came by (RFC 3261 §18.2.2).
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


def response_route(data: bytes, gone: Address) -> Address | None:
    """Where a response goes whose connection, from `gone`, is closed (RFC 3261 §18.2.2).

    That is the address it came from, at the port that Via names. None for what is no response.
    """
    try:
        message = parse(data)
        port = message.sent_by()[1] or DEFAULT_PORTS[gone.transport]
    except MessageError:
        return None
    if not isinstance(message, Response) or not 0 < port <= MAX_PORT:
        return None
    return gone._replace(port=port)


def alias_of(data: bytes, source: Address) -> Address | None:
    """The address whose requests may use the connection from `source`, too (RFC 5923 §5).

    The peer that opened it asks for that with `alias` in Via. It is granted only for the host that
    Via names and that the connection comes from, since no certificate proves more.
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
