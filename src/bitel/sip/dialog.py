"""A dialog: what both ends have agreed to call each other, and the way there (RFC 3261 §12)."""

from __future__ import annotations

import re

from bitel.sip.grammar import (
    MAX_URI_LENGTH,
    Address,
    GrammarError,
    Transport,
    ip_address_of,
    is_loose_router,
    split_address,
)
from bitel.sip.message import Message, Request, Response
from bitel.sip.requests import ClientRequest

MAX_ROUTES = 32
TLS = Transport.TLS
_SPACE = re.compile(r"\s")


class Dialog:
    """`fallback` is where to send when the next hop is a name, which takes DNS to find.

    It is also where the far end's transport is known from, where the next hop names none.
    """

    __slots__ = (
        "_local_value",
        "_remote_value",
        "_routes",
        "call_id",
        "domain",
        "fallback",
        "local_cseq",
        "local_tag",
        "remote_cseq",
        "remote_tag",
        "target",
    )

    def __init__(
        self,
        call_id: str,
        local: tuple[str, str],
        remote: tuple[str, str],
        routes: tuple[str, ...],
        target: str,
        fallback: Address,
        cseqs: tuple[int, int | None],
    ) -> None:
        self.call_id = call_id
        self._local_value, self.local_tag = local
        self._remote_value, self.remote_tag = remote
        self._routes = routes
        self.target = target
        self.fallback = fallback
        self.domain = fallback.domain
        self.local_cseq, self.remote_cseq = cseqs

    @classmethod
    def of_caller(cls, request: ClientRequest, response: Response, source: Address) -> Dialog:
        """The dialog that a 2xx to our INVITE makes (§12.1.2)."""
        routes = tuple(reversed(response.values("record-route")[-MAX_ROUTES:]))
        return cls(
            request.call_id,
            (request.from_value, response.from_tag),
            (response.header("to"), response.to_tag),
            routes,
            contact_of(response) or request.uri,
            source,
            (request.cseq, None),
        )

    @classmethod
    def of_callee(cls, request: Request, to_tag: str, source: Address) -> Dialog:
        """The dialog that our 2xx to an INVITE makes (§12.1.1)."""
        from_value = request.header("from")
        return cls(
            request.call_id,
            (f"{request.header('to')};tag={to_tag}", to_tag),
            (from_value, request.from_tag),
            tuple(request.values("record-route")[:MAX_ROUTES]),
            contact_of(request) or uri_of(from_value) or request.uri,
            source,
            (0, request.cseq),
        )

    def matches(self, request: Request) -> bool:
        """Whether a request of the far end is of this dialog."""
        return request.to_tag == self.local_tag and request.from_tag == self.remote_tag

    def refresh_target(self, message: Message) -> None:
        """Take the Contact of a re-INVITE, an UPDATE, or the 2xx to one (§12.2)."""
        self.target = contact_of(message) or self.target

    @property
    def request_uri(self) -> str:
        """The Request-URI of the next request."""
        return self._way()[0]

    def next_request(
        self, method: str, via: str, headers: tuple[tuple[str, str], ...], body: bytes = b""
    ) -> tuple[ClientRequest, Address]:
        """A new request within the dialog, and where it goes."""
        self.local_cseq += 1
        return self._request(method, via, self.local_cseq, headers, body)

    def ack(
        self, invite_cseq: int, via: str, headers: tuple[tuple[str, str], ...]
    ) -> tuple[bytes, Address]:
        """The ACK of a 2xx, and where it goes (§13.2.2.4)."""
        request, destination = self._request("ACK", via, invite_cseq, headers)
        return request.to_bytes(), destination

    def _request(
        self,
        method: str,
        via: str,
        cseq: int,
        headers: tuple[tuple[str, str], ...],
        body: bytes = b"",
    ) -> tuple[ClientRequest, Address]:
        uri, routes, hop = self._way()
        request = ClientRequest(
            method,
            uri,
            via,
            self._local_value,
            self._remote_value,
            self.call_id,
            cseq,
            routes,
            headers,
            body,
        )
        return request, self._toward(hop)

    @property
    def next_hop(self) -> Address:
        """Where the next request goes."""
        return self._toward(self._way()[2])

    def _toward(self, hop: str) -> Address:
        fallback = self.fallback
        found = ip_address_of(hop, fallback.transport)
        if found is None:
            return fallback
        # Whoever it is, it speaks for whom we have been talking to from the start, and must prove
        # that; a request over a connection of the far end's own says nothing about it.
        return found._replace(domain=self.domain) if found.transport is TLS else found

    def _way(self) -> tuple[str, tuple[str, ...], str]:
        """Request-URI, Route values, and the URI of the next hop (§12.2.1.1)."""
        if not self._routes:
            return self.target, (), self.target
        first = uri_of(self._routes[0])
        if is_loose_router(first):
            return self.target, self._routes, first
        # A strict router wants its own URI as Request-URI, and the target last.
        return first.partition("?")[0], (*self._routes[1:], f"<{self.target}>"), first


def contact_of(message: Message) -> str:
    """The URI of the first Contact; "" where there is none that could be a Request-URI."""
    for value in message.values("contact")[:1]:
        return uri_of(value)
    return ""


def uri_of(value: str) -> str:
    """The URI of a name-addr, "" where it could not stand in a start line."""
    try:
        uri, _ = split_address(value)
    except GrammarError:
        return ""
    usable = ":" in uri and len(uri) <= MAX_URI_LENGTH and not _SPACE.search(uri)
    return uri if usable else ""
