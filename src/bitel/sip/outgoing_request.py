"""A request of ours outside any dialog (RFC 3261 §8.1): OPTIONS to ask, REGISTER to be found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bitel.sip.authentication import Authentication, Tries, is_challenge
from bitel.sip.client_transaction import ClientTransaction
from bitel.sip.core import Core
from bitel.sip.digest import Credentials
from bitel.sip.events import RequestDone
from bitel.sip.grammar import Address
from bitel.sip.message import PHRASES, Response, printable
from bitel.sip.requests import RequestTemplate, one_line

MAX_CSEQ = 2**31 - 1
_METHOD = re.compile(r"[A-Z]{1,32}\Z")
_OF_DIALOGS = frozenset(("INVITE", "ACK", "CANCEL", "BYE", "PRACK", "UPDATE"))


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """What to ask of whom. `destination` is the next hop, an IP address and port.

    `headers` are added; our Contact is too, unless one is among them. A binding is refreshed
    with the `call_id` and `from_tag` of the time before and a `cseq` above the last (§10.2);
    each is made up where it is None. `cseq` is 1 to 2^31-1.
    """

    method: str
    request_uri: str
    destination: Address
    from_uri: str
    to_uri: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    credentials: Credentials | None = None
    call_id: str | None = None
    from_tag: str | None = None
    cseq: int | None = None


class RequestUnderWay:
    """Tells `RequestDone` once. A challenge is answered by the same request with the next CSeq."""

    __slots__ = ("_authentication", "_core", "_cseq", "_from_tag", "_order", "_tries", "call_id")

    def __init__(self, core: Core, order: OutgoingRequest, now: float) -> None:
        _check(order)
        self._core = core
        self._order = order
        self.call_id = order.call_id or core.new_call_id()
        self._from_tag = order.from_tag or core.new_token()
        self._cseq = 1 if order.cseq is None else order.cseq
        self._authentication = Authentication(order.credentials) if order.credentials else None
        self._tries = Tries()
        self._send(now)

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        if response.code < 200:
            return
        if is_challenge(response.code) and self._authentication is not None:
            cnonce = self._core.new_token()
            learned = self._authentication.learn(response, cnonce, self._tries)
            if learned and self._cseq < MAX_CSEQ:
                self._cseq += 1
                try:
                    self._send(now)
                except Exception:
                    self._tell(503, PHRASES[503], (), "transport")
                    raise
                return
        headers = tuple(
            (name, printable(value))
            for name, values in response.headers.items()
            for value in values
        )
        self._tell(response.code, printable(response.reason), headers, "response")

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        code = 408 if why == "timeout" else 503
        self._tell(code, PHRASES[code], (), why)

    def _send(self, now: float) -> None:
        order, core = self._order, self._core
        routes = tuple(value for name, value in order.headers if name.lower() == "route")
        others = [header for header in order.headers if header[0].lower() != "route"]
        if not any(name.lower() == "contact" for name, _ in others):
            others.insert(0, core.contact_by(order.destination.transport))
        if self._authentication is not None:
            others += self._authentication.headers(order.method, order.request_uri)
        request = RequestTemplate(
            order.method,
            order.request_uri,
            core.new_via(order.destination.transport),
            f"<{order.from_uri}>;tag={self._from_tag}",
            f"<{order.to_uri}>",
            self.call_id,
            self._cseq,
            routes,
            (core.user_agent, *others),
            order.body,
        )
        ClientTransaction(core, self, request, order.destination, now)

    def _tell(
        self,
        code: int,
        reason: str,
        headers: tuple[tuple[str, str], ...],
        why: Literal["response", "timeout", "transport"],
    ) -> None:
        self._core.events.append(
            RequestDone(self.call_id, code, reason, headers, why, self._cseq, self._from_tag)
        )


def _check(order: OutgoingRequest) -> None:
    if not _METHOD.match(order.method) or order.method in _OF_DIALOGS:
        raise ValueError(f"{order.method!r} is not a request outside of calls: use OPTIONS, say")
    if order.cseq is not None and not 1 <= order.cseq <= MAX_CSEQ:
        raise ValueError(f"CSeq {order.cseq} is out of range: use 1 to {MAX_CSEQ}")
    for text in (order.request_uri, order.from_uri, order.to_uri, order.call_id, order.from_tag):
        one_line(text or "")
    for name, value in order.headers:
        one_line(name + value)
