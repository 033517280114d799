"""A dialog: what both ends have agreed to call each other, and the way there (RFC 3261 §12)."""

from __future__ import annotations

import re

from bitel.ip_addresses import leads_nearer
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
from bitel.sip.requests import RequestTemplate

MAX_ROUTES = 32
TLS, UDP = Transport.TLS, Transport.UDP
_SPACE = re.compile(r"\s")
_BRACKETED = re.compile(r'<([^<>"\s]+)>(?:;|\Z)')


class Dialog:
    """The state of a dialog (RFC 3261 §12): tags, CSeqs, route set, remote target.

    `fallback` is the source address of the far end's last message. Requests are sent to it if the
    next hop is a host name, which would take DNS, if it is an address nearer to us than `origin`
    and not `follow_private`, and, with `to_source`, in any case. It also gives the transport where
    the next hop names none.

    A pre-existing route set, that of an outbound proxy (§8.1.2), is kept if the far end records no
    route: requests then go to `proxy`, the address that the INVITE was sent to. By §12.1.2 the
    empty route set of such a dialog replaces it, and requests go straight to the Contact, as with
    pjsip. But the configured proxy may be the only path, and a lost BYE leaves a line open. To send
    requests without a route by the proxy is a local policy, which §8.1.2 leaves to the user agent.
    """

    __slots__ = (
        "_domain",
        "_fallback",
        "_follow_private",
        "_is_caller",
        "_local_value",
        "_proxy",
        "_remote_value",
        "_route_values",
        "_routes",
        "_target",
        "_to_source",
        "call_id",
        "local_cseq",
        "local_tag",
        "next_hop",
        "origin",
        "remote_cseq",
        "remote_tag",
        "request_uri",
        "unfollowed",
    )

    def __init__(
        self,
        call_id: str,
        local: tuple[str, str],
        remote: tuple[str, str],
        routes: tuple[str, ...],
        target: str,
        fallback: Address,
        domain: str,
        cseqs: tuple[int, int | None],
        *,
        to_source: bool = False,
        proxy: Address | None = None,
        is_caller: bool = False,
        origin: str = "",
        follow_private: bool = False,
    ) -> None:
        self.call_id = call_id
        self._local_value, self.local_tag = local
        self._remote_value, self.remote_tag = remote
        self._routes = routes
        self._target = target
        self._fallback = fallback
        self._domain = domain
        self._to_source = to_source
        self._proxy = proxy
        self._is_caller = is_caller
        self._follow_private = follow_private
        self.origin = origin or fallback.host
        """The far end's IP address: where the INVITE went to or came from."""
        self.unfollowed = False
        """Whether a next hop was not followed, as it is nearer to us than `origin`."""
        self.local_cseq, self.remote_cseq = cseqs
        self.request_uri: str
        self.next_hop: Address
        self._find_way()

    @classmethod
    def of_caller(
        cls,
        request: RequestTemplate,
        response: Response,
        source: Address,
        destination: Address,
        to_source: bool = False,
        follow_private: bool = False,
    ) -> Dialog:
        """The dialog that a response to our INVITE makes (§12.1.2).

        The INVITE was sent to `destination`. Over TLS the far end's certificate must bear the name
        of that, even if the response came over a connection that the far end opened.

        Over a stream the port of `source` names a connection, which may be closed by the time of
        the BYE: requests go to the address that the INVITE went to, which accepts connections. An
        INVITE to a UDP address that was too long for UDP decides that only with `to_source`.
        """
        if source.transport is not UDP:
            is_over_tcp = to_source or destination.transport is not UDP
            transport = source.transport if is_over_tcp else UDP
            source = destination._replace(transport=transport)
        routes, proxy = request.routes, destination if request.routes else None
        if "record-route" in response:
            routes, proxy = _recorded_routes(response), None
        return cls(
            request.call_id,
            (request.from_value, response.from_tag),
            (response.header("to"), response.to_tag),
            routes,
            contact_of(response) or request.uri,
            source,
            destination.domain,
            (request.cseq, None),
            to_source=to_source,
            proxy=proxy,
            is_caller=True,
            origin=destination.host,
            follow_private=follow_private,
        )

    @classmethod
    def of_callee(
        cls,
        request: Request,
        to_tag: str,
        source: Address,
        to_source: bool = False,
        follow_private: bool = False,
    ) -> Dialog:
        """The dialog that our 2xx to an INVITE makes (§12.1.1)."""
        from_value = request.header("from")
        return cls(
            request.call_id,
            (f"{request.header('to')};tag={to_tag}", to_tag),
            (from_value, request.from_tag),
            tuple(request.values("record-route")[:MAX_ROUTES]),
            contact_of(request) or uri_of(from_value) or request.uri,
            source,
            source.domain,
            (0, request.cseq),
            to_source=to_source,
            follow_private=follow_private,
        )

    def fork(self, response: Response, source: Address) -> Dialog:
        """The dialog that the 2xx of another phone to the same INVITE of ours makes (§13.2.2.4)."""
        routes, proxy = _recorded_routes(response), None
        if not routes and self._proxy is not None:
            routes, proxy = self._routes, self._proxy
        return Dialog(
            self.call_id,
            (self._local_value, self.local_tag),
            (response.header("to"), response.to_tag),
            routes,
            contact_of(response) or self.request_uri,
            source if source.transport is UDP else self._fallback,
            self._domain,
            (response.cseq, None),
            to_source=self._to_source,
            proxy=proxy,
            is_caller=True,
            origin=self.origin,
            follow_private=self._follow_private,
        )

    @property
    def named_hosts(self) -> frozenset[str]:
        """The IP addresses in the remote target and the route set that are followed."""
        uris = [self._target, *map(uri_of, self._routes)]
        found = [address for address in map(ip_address_of, uris) if address is not None]
        return frozenset(each.host for each in found if not self._is_too_near(each.host))

    def matches(self, request: Request) -> bool:
        """Whether a request of the far end is of this dialog."""
        return request.to_tag == self.local_tag and request.from_tag == self.remote_tag

    def refresh_target(self, message: Message) -> None:
        """Take the Contact of a re-INVITE, an UPDATE, or the 2xx to one (§12.2)."""
        self._target = contact_of(message) or self._target
        self._find_way()

    @property
    def fallback(self) -> Address:
        return self._fallback

    def received_from(self, source: Address) -> None:
        """Take the source of a request of the far end as the new `fallback`.

        The caller passes over the source of a stream: it connects to where its INVITE went.
        """
        if source != self._fallback and (source.transport is UDP or not self._is_caller):
            self._fallback = source
            self._find_way()

    def next_request(
        self,
        method: str,
        via: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes = b"",
        usual: str = "",
    ) -> tuple[RequestTemplate, Address]:
        """A new request within the dialog, and where it goes."""
        self.local_cseq += 1
        return self._request(method, via, self.local_cseq, headers, body, usual), self.next_hop

    def ack(
        self, invite_cseq: int, via: str, headers: tuple[tuple[str, str], ...]
    ) -> tuple[bytes, Address]:
        """The ACK of a 2xx, and where it goes (§13.2.2.4)."""
        return self._request("ACK", via, invite_cseq, headers).to_bytes(), self.next_hop

    def _request(
        self,
        method: str,
        via: str,
        cseq: int,
        headers: tuple[tuple[str, str], ...],
        body: bytes = b"",
        usual: str = "",
    ) -> RequestTemplate:
        return RequestTemplate(
            method,
            self.request_uri,
            via,
            self._local_value,
            self._remote_value,
            self.call_id,
            cseq,
            self._route_values,
            headers,
            body,
            usual,
        )

    def _is_too_near(self, host: str) -> bool:
        """Whether the far end must not have us send to `host`."""
        return not self._follow_private and leads_nearer(self.origin, host)

    def _find_way(self) -> None:
        """Request-URI, Route values and next hop of the requests that follow (§12.2.1.1)."""
        self.request_uri = hop = self._target
        self._route_values = self._routes
        if self._routes:
            hop = uri_of(self._routes[0])
            if not is_loose_router(hop):
                # A strict router wants its own URI as Request-URI, and the target last.
                self.request_uri = hop.partition("?")[0]
                self._route_values = (*self._routes[1:], f"<{self._target}>")
        found = self._fallback
        if not self._to_source:
            named = ip_address_of(hop, found.transport)
            if self._proxy is None and named is not None and self._is_too_near(named.host):
                self.unfollowed = True
                named = None
            found = self._proxy or named or found
        if found.transport is TLS and found is not self._fallback:
            # The new next hop acts for the same peer as before, so its certificate must bear the
            # same name. A request over a connection that the far end opened does not prove that.
            found = found._replace(domain=self._domain)
        self.next_hop = found


def _recorded_routes(response: Response) -> tuple[str, ...]:
    """The route set that a response to a request of ours records (RFC 3261 §12.1.2)."""
    if "record-route" not in response:
        return ()
    return tuple(reversed(response.values("record-route")[-MAX_ROUTES:]))


def contact_of(message: Message) -> str:
    """The URI of the first Contact; "" where there is none that could be a Request-URI."""
    value = message.header("contact")
    if not value or "," in value:
        return next(map(uri_of, message.values("contact")), "")
    return uri_of(value)


def uri_of(value: str) -> str:
    """The URI of a name-addr, "" where it can't be a Request-URI."""
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
