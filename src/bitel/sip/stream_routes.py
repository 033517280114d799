"""Where messages go when the connection that they belong to is not the one at hand."""

from __future__ import annotations

from bitel.sip.grammar import (
    DEFAULT_PORTS,
    MAX_PORT,
    Address,
    GrammarError,
    ip_literal,
    parameter,
    split_list,
)
from bitel.sip.message import MessageError, Request, Response, parse


def response_route(data: bytes, gone: Address) -> Address | None:
    """Where a response goes whose connection, from `gone`, is there no more (RFC 3261 §18.2.2).

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

    Its opener asks for that with `alias` in Via. It is granted to nobody but the very host that
    Via names, and none whose certificate would have to be looked at.
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
