"""Reliable provisional responses (RFC 3262): each is acknowledged by a PRACK, in order, once."""

from __future__ import annotations

from typing import Literal

from bitel.sip.authentication import Authentication, Tries, is_challenge
from bitel.sip.client_transaction import ClientTransaction
from bitel.sip.core import Core
from bitel.sip.dialog import Dialog
from bitel.sip.grammar import Address
from bitel.sip.message import Response
from bitel.sip.sdp import SdpError, SessionDescription

MAX_RELIABLE = 32
"""How many reliable responses of one phone are acknowledged: each PRACK may be sent 11 times."""
MAX_RSEQ = 2**32


class EarlyDialog:
    """The dialog that a phone's reliable provisional responses make, while it rings."""

    __slots__ = ("_authentication", "_core", "_count", "_last_rseq", "answer", "dialog")

    def __init__(self, core: Core, dialog: Dialog, authentication: Authentication | None) -> None:
        self._core = core
        self.dialog = dialog
        self._authentication = authentication
        self._last_rseq = 0
        self._count = 0
        self.answer: SessionDescription | None = None
        """The answer to our offer, once a reliable response carried one (§5)."""

    def acknowledge(self, response: Response, rseq: int, now: float) -> bool:
        """Send PRACK, if this is the first or the next response (§4); whether it is.

        A repeated one is passed over: its PRACK repeats itself. One that came before its turn
        will be repeated by its sender. Neither must be processed any further.
        """
        if self._count >= MAX_RELIABLE or (self._last_rseq and rseq != self._last_rseq + 1):
            return False
        self._count += 1
        self._last_rseq = rseq
        if response.body and self.answer is None:
            try:
                self.answer = SessionDescription.parse(response.body)
            except SdpError:
                self.answer = None
        rack = f"{rseq} {response.cseq} INVITE"
        _Prack(self._core, self.dialog, self._authentication, rack).send(now)
        return True


class _Prack:
    """The PRACK of one response, sent once more with credentials where those are demanded."""

    __slots__ = ("_authentication", "_core", "_dialog", "_rack", "_tries")

    def __init__(
        self, core: Core, dialog: Dialog, authentication: Authentication | None, rack: str
    ) -> None:
        self._core = core
        self._dialog = dialog
        self._authentication = authentication
        self._rack = rack
        self._tries = Tries()

    def send(self, now: float) -> None:
        headers = [("RAck", self._rack), self._core.user_agent]
        if self._authentication is not None:
            headers += self._authentication.headers("PRACK", self._dialog.request_uri)
        request, destination = self._dialog.next_request(
            "PRACK", self._core.new_via(self._dialog.next_hop.transport), tuple(headers)
        )
        ClientTransaction(self._core, self, request, destination, now)

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        """Answer a challenge. Any other answer changes nothing: the INVITE's own will come."""
        if not is_challenge(response.code) or self._authentication is None:
            return
        if self._authentication.learn(response, self._core.new_token(), self._tries):
            self.send(now)

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        """The far end gives its INVITE up by itself when no PRACK comes (§3)."""


def rseq_of(response: Response) -> int | None:
    """The RSeq of a response that wants a PRACK; None of one that does not (§7.1)."""
    if response.code == 100 or "require" not in response:
        return None
    if "100rel" not in [option.lower() for option in response.values("require")]:
        return None
    text = response.header("rseq")
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    return int(text) if 0 < int(text) < MAX_RSEQ else None
