"""Dialogs: tags, sequence numbers, route set and next hop (RFC 3261 §12), and the ACK of a 2xx."""

from __future__ import annotations

from bitel.ip_addresses import leads_nearer
from bitel.sip.auth import Authentication, Tries
from bitel.sip.grammar import Address, Transport, ip_address_of, is_loose_router
from bitel.sip.headers import contact_of, uri_of
from bitel.sip.message import ALLOW, Headers, Message, Request, RequestTemplate, Response
from bitel.sip.transaction import (
    ClientTransaction,
    ServerTransaction,
    TransactionLayer,
    TransactionUser,
)

MAX_ROUTES = 32
ACK_LOST_AFTER = 16
"""In units of T1: a 2xx retransmitted this long after our ACK shows that the ACK does not arrive.
By then the 2xx has been retransmitted, and acknowledged, four times (§13.3.1.4)."""
TLS, UDP = Transport.TLS, Transport.UDP


class Dialog:
    """The state of a dialog (RFC 3261 §12): tags, CSeqs, route set, remote target.

    `fallback` is the source of the remote's last message. Requests are sent to it if the next hop
    is a host name, which would need DNS; if the next hop is an address nearer to us than `origin`
    (unless `follow_private`); and always with `send_to_source`. It also gives the transport if the
    next hop names none.

    The pre-existing route set of an outbound proxy (§8.1.2) is kept if the remote records no route:
    requests then go to `proxy`, the destination of the INVITE. §12.1.2 would replace it by the
    empty route set, but the proxy may be the only path, and a lost BYE leaves a line open.
    """

    def __init__(
        self,
        layer: TransactionLayer,
        call_id: str,
        local: tuple[str, str],
        remote: tuple[str, str],
        routes: tuple[str, ...],
        target: str,
        fallback: Address,
        cseqs: tuple[int, int | None],
        *,
        invite: tuple[RequestTemplate, Address] | None = None,
        proxy: Address | None = None,
    ) -> None:
        """`local` and `remote` are our and the remote's From or To value, and tag.

        `invite` is our INVITE without headers, and its destination; None for an incoming call.
        """
        self._layer = layer
        self.call_id = call_id
        self._local_value, self.local_tag = local
        self._remote_value, self.remote_tag = remote
        self._routes = routes
        self._target = target
        self.fallback = fallback
        self._invite = invite
        self._proxy = proxy
        origin = fallback if invite is None else invite[1]
        self._domain = origin.domain
        self.origin = origin.host
        """The remote's IP address: destination or source of the INVITE."""
        self.unfollowed = False
        """Whether a next hop was ignored because it is nearer to us than `origin`."""
        self.local_cseq, self.remote_cseq = cseqs
        self.authentication: Authentication | None = None
        """Credentials for requests in the dialog; None if challenges must not be answered."""
        self._find_next_hop()

    @classmethod
    def from_uac(
        cls,
        layer: TransactionLayer,
        request: RequestTemplate,
        response: Response,
        destination: Address,
    ) -> Dialog:
        """The dialog that a response to our INVITE, sent to `destination`, creates (§12.1.2).

        Over TLS the certificate must match the domain of `destination`, even if the response came
        over a connection that the remote opened.

        Over a stream the source port names a connection that may be closed by the time of the BYE,
        so requests go to `destination`, which accepts connections. For an INVITE that was sent by
        TCP only for its length, they go by UDP unless `send_to_source`.
        """
        source = response.source
        if source.transport is not UDP:
            is_over_tcp = layer.config.send_to_source or destination.transport is not UDP
            transport = source.transport if is_over_tcp else UDP
            source = destination._replace(transport=transport)
        routes, proxy = request.routes, destination if request.routes else None
        if "record-route" in response:
            routes = tuple(reversed(response.values("record-route")[-MAX_ROUTES:]))
            proxy = None
        return cls(
            layer,
            request.call_id,
            (request.from_value, response.from_tag),
            (response.header("to"), response.to_tag),
            routes,
            contact_of(response) or request.uri,
            source,
            (request.cseq, None),
            invite=(request, destination),
            proxy=proxy,
        )

    @classmethod
    def from_uas(cls, layer: TransactionLayer, request: Request, to_tag: str) -> Dialog:
        """The dialog that our 2xx to an INVITE creates (§12.1.1)."""
        from_value = request.header("from")
        return cls(
            layer,
            request.call_id,
            (f"{request.header('to')};tag={to_tag}", to_tag),
            (from_value, request.from_tag),
            tuple(request.values("record-route")[:MAX_ROUTES]),
            contact_of(request) or uri_of(from_value) or request.uri,
            request.source,
            (0, request.cseq),
        )

    def fork(self, response: Response) -> Dialog:
        """The dialog that the 2xx of another fork creates (§13.2.2.4)."""
        assert self._invite is not None
        request, destination = self._invite
        return Dialog.from_uac(self._layer, request, response, destination)

    @property
    def named_hosts(self) -> frozenset[str]:
        """IP addresses in the remote target and route set, without those that are too near."""
        uris = [self._target, *map(uri_of, self._routes)]
        found = [address for address in map(ip_address_of, uris) if address is not None]
        return frozenset(each.host for each in found if not self._is_too_near(each.host))

    def trust(
        self, authentication: Authentication | None, destination: Address, hosts: frozenset[str]
    ) -> None:
        """Answer challenges with credentials if the next hop is `destination` or one of `hosts`."""
        host = self.next_hop.host
        if host == destination.host or host in hosts:
            self.authentication = authentication

    # Requests of the remote

    def matches(self, request: Request) -> bool:
        """Whether a request of the remote belongs to this dialog."""
        return request.to_tag == self.local_tag and request.from_tag == self.remote_tag

    def accepts(self, transaction: ServerTransaction, now: float) -> bool:
        """Record CSeq and source of a request; respond 500 if a later one came first (§12.2.2).

        The source becomes the `fallback`, unless it is a stream and we are the caller: we connect
        to the destination of the INVITE.
        """
        request = transaction.request
        source = request.source
        if self.remote_cseq is not None and request.cseq < self.remote_cseq:
            transaction.respond(500, now, reason="CSeq Out Of Order")
            return False
        self.remote_cseq = request.cseq
        if source != self.fallback and (source.transport is UDP or self._invite is None):
            self.fallback = source
            self._find_next_hop()
        return True

    @property
    def contact(self) -> tuple[str, str]:
        """Our Contact in responses."""
        return self._layer.identity.contact[self.fallback.transport]

    @property
    def response_headers(self) -> list[tuple[str, str]]:
        """Contact, Allow and User-Agent of a 2xx within the dialog."""
        return [self.contact, ("Allow", ALLOW), self._layer.identity.user_agent]

    @property
    def user_agent(self) -> tuple[str, str]:
        """Our User-Agent."""
        return self._layer.identity.user_agent

    def refresh_target(self, message: Message) -> None:
        """Take the Contact of a re-INVITE, an UPDATE, or a 2xx to one (§12.2)."""
        self._target = contact_of(message) or self._target
        self._find_next_hop()

    # Our requests

    def send_request(
        self,
        user: TransactionUser,
        method: str,
        now: float,
        headers: Headers,
        body: bytes = b"",
    ) -> ClientTransaction:
        """Send a request within the dialog, with credentials if any (§12.2.1.1)."""
        if self.authentication is not None:
            headers += self.authentication.headers(method, self.request_uri)
        self.local_cseq += 1
        request = self._request(method, self.local_cseq, headers, body)
        return ClientTransaction(self._layer, user, request, self.next_hop, now)

    def send_bye(self, user: TransactionUser, now: float, q850: int | None = None) -> None:
        """Send BYE; `user` gets the response. `q850` is the cause in the Reason header."""
        reason = () if q850 is None else (("Reason", f"Q.850;cause={q850}"),)
        self.send_request(user, "BYE", now, (self._layer.identity.user_agent, *reason))

    def can_answer(self, response: Response, tries: Tries) -> bool:
        """Whether a response is a challenge, so that the request should be sent again."""
        return self.authentication is not None and self.authentication.learn(response, tries)

    def ack(self, request: RequestTemplate) -> Ack:
        """The unsent ACK of a 2xx to our INVITE or re-INVITE (§13.2.2.4)."""
        headers = request.credentials if self.authentication is not None else ()
        data = self._request("ACK", request.cseq, headers).to_bytes()
        return Ack(self._layer, request.cseq, data, self.next_hop)

    def end_statelessly(self, invite_cseq: int) -> None:
        """Send ACK and BYE without keeping state; repeated for each retransmitted 2xx."""
        user_agent = self._layer.identity.user_agent
        for request in (
            self._request("ACK", invite_cseq, ()),
            self._request("BYE", self.local_cseq + 1, (user_agent,)),
        ):
            self._layer.send(request.to_bytes(), self.next_hop)

    def _request(
        self, method: str, cseq: int, headers: Headers, body: bytes = b""
    ) -> RequestTemplate:
        return RequestTemplate(
            method,
            self.request_uri,
            self._layer.new_via(self.next_hop.transport),
            self._local_value,
            self._remote_value,
            self.call_id,
            cseq,
            self._route_values,
            headers,
            body,
        )

    def _is_too_near(self, host: str) -> bool:
        """Whether `host`, named by the remote, must not be used as a next hop."""
        return not self._layer.config.follow_private and leads_nearer(self.origin, host)

    def _find_next_hop(self) -> None:
        """Set Request-URI, Route values and next hop of further requests (§12.2.1.1)."""
        self.request_uri = hop = self._target
        self._route_values = self._routes
        if self._routes:
            hop = uri_of(self._routes[0])
            if not is_loose_router(hop):
                # A strict router gets its own URI as Request-URI, and the target as last Route.
                self.request_uri = hop.partition("?")[0]
                self._route_values = (*self._routes[1:], f"<{self._target}>")
        found = self.fallback
        if not self._layer.config.send_to_source:
            named = ip_address_of(hop, found.transport)
            if self._proxy is None and named is not None and self._is_too_near(named.host):
                self.unfollowed = True
                named = None
            found = self._proxy or named or found
        if found.transport is TLS and found is not self.fallback:
            # The new next hop must prove the same identity: a request over a connection that the
            # remote opened does not authenticate it.
            found = found._replace(domain=self._domain)
        self.next_hop = found


class Ack:
    """The ACK of a 2xx (RFC 3261 §13.2.2.4), sent again for every retransmission of the 2xx.

    It may be withheld. Without it the remote retransmits the 2xx, and ends the call after 64*T1
    (§13.3.1.4), so the call does not stay up if this process dies first.
    """

    def __init__(
        self, layer: TransactionLayer, invite_cseq: int, data: bytes, destination: Address
    ) -> None:
        self._layer = layer
        self._data = data
        self._destination = destination
        self._sent_at: float | None = None
        self.invite_cseq = invite_cseq
        self.is_lost = False
        """Whether the 2xx was retransmitted `ACK_LOST_AFTER` or more after the ACK."""

    @property
    def is_withheld(self) -> bool:
        """Whether it has not been sent yet."""
        return self._sent_at is None

    def send(self, now: float) -> None:
        """Send it once."""
        if self._sent_at is None:
            self._sent_at = now
            self._layer.send(self._data, self._destination)

    def answer_repeated(self, now: float) -> None:
        """Acknowledge a retransmitted 2xx, unless the ACK is still withheld."""
        if self._sent_at is not None:
            self.is_lost |= now - self._sent_at >= ACK_LOST_AFTER * self._layer.config.t1
            self._layer.resend(self._data, self._destination)
