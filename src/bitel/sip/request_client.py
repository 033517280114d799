"""A client for requests outside of dialogs (RFC 3261 §8.1), such as OPTIONS and REGISTER."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from bitel.sip.auth import Authentication, Credentials, Tries
from bitel.sip.events import RequestDone
from bitel.sip.grammar import Address
from bitel.sip.message import (
    MAX_CSEQ,
    PHRASES,
    Headers,
    RequestTemplate,
    Response,
    one_line,
    printable,
    split_routes,
)
from bitel.sip.transaction import FAILURE_CODES, ClientTransaction, Failure, TransactionLayer

_METHOD = re.compile(r"[A-Z]{1,32}\Z")
_OF_DIALOGS = frozenset(("INVITE", "ACK", "CANCEL", "BYE", "PRACK", "UPDATE"))


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """A request to be sent. `destination` is the next hop.

    `headers` are added, and our Contact unless they have one. A binding is refreshed with the same
    `call_id` and `from_tag` and a higher `cseq` (§10.2), 1 to 2^31-1; None: new ones.
    """

    method: str
    request_uri: str
    destination: Address
    from_uri: str
    to_uri: str
    headers: Headers = ()
    body: bytes = b""
    credentials: Credentials | None = None
    call_id: str | None = None
    from_tag: str | None = None
    cseq: int | None = None

    def check(self) -> None:
        """Raises ValueError for an invalid method, CSeq or text."""
        if not _METHOD.match(self.method) or self.method in _OF_DIALOGS:
            raise ValueError(f"{self.method!r} is not a request outside of calls: use OPTIONS, say")
        if self.cseq is not None and not 1 <= self.cseq <= MAX_CSEQ:
            raise ValueError(f"CSeq {self.cseq} is out of range: use 1 to {MAX_CSEQ}")
        for text in (self.request_uri, self.from_uri, self.to_uri, self.call_id, self.from_tag):
            one_line(text or "")
        for name, value in self.headers:
            one_line(name + value)


class RequestClient:
    """Sends one request, again with credentials after a challenge. Reports `RequestDone` once."""

    def __init__(
        self,
        layer: TransactionLayer,
        report: Callable[[RequestDone], None],
        outgoing: OutgoingRequest,
        now: float,
    ) -> None:
        outgoing.check()
        self._layer = layer
        self._report = report
        self._outgoing = outgoing
        self.call_id = outgoing.call_id or layer.new_call_id()
        self._from_tag = outgoing.from_tag or layer.new_tag()
        self._cseq = 1 if outgoing.cseq is None else outgoing.cseq
        self._authentication = Authentication.of(outgoing.credentials, layer.new_tag)
        self._tries: Tries = []
        self._send(now)

    def _send(self, now: float) -> None:
        outgoing, layer = self._outgoing, self._layer
        transport = outgoing.destination.transport
        routes, others = split_routes(outgoing.headers)
        if not any(name.lower() == "contact" for name, _ in others):
            others = (layer.identity.contact[transport], *others)
        if self._authentication is not None:
            others += self._authentication.headers(outgoing.method, outgoing.request_uri)
        request = RequestTemplate(
            outgoing.method,
            outgoing.request_uri,
            layer.new_via(transport),
            f"<{outgoing.from_uri}>;tag={self._from_tag}",
            f"<{outgoing.to_uri}>",
            self.call_id,
            self._cseq,
            routes,
            (layer.identity.user_agent, *others),
            outgoing.body,
        )
        ClientTransaction(layer, self, request, outgoing.destination, now)

    def receive_response(self, response: Response, now: float) -> None:
        """Take a response; a challenge is answered."""
        if response.code < 200:
            return
        authentication = self._authentication
        learned = authentication is not None and authentication.learn(response, self._tries)
        if learned and self._cseq < MAX_CSEQ:
            self._cseq += 1
            try:
                self._send(now)
            except Exception:
                self._fail("transport")
                raise
            return
        reason, headers = printable(response.reason), response.printable_headers
        self._report(
            RequestDone(
                self.call_id, response.code, reason, headers, "response", self._cseq, self._from_tag
            )
        )

    def transaction_failed(self, why: Failure, now: float) -> None:
        """Report that the request timed out or could not be sent."""
        self._fail(why)

    def _fail(self, why: Failure) -> None:
        code = FAILURE_CODES[why]
        self._report(
            RequestDone(self.call_id, code, PHRASES[code], (), why, self._cseq, self._from_tag)
        )
