"""The 2xx that an INVITE of ours meets: one from each phone that picked up (RFC 3261 §13.2.2.4)."""

from __future__ import annotations

from typing import Literal

from bitel.sip.ack import Ack
from bitel.sip.authentication import Authentication
from bitel.sip.client_transaction import NULL_USER, ClientTransaction
from bitel.sip.core import Core
from bitel.sip.dialog import Dialog
from bitel.sip.early_dialog import EarlyDialog
from bitel.sip.grammar import Address
from bitel.sip.message import Response
from bitel.sip.requests import RequestTemplate
from bitel.sip.session import end_unwanted, send_bye

MAX_FORKS = 8
"""Forks of one INVITE for which state is kept. The 2xx of any further one is answered statelessly,
each time it comes, with one ACK and one BYE."""


class Answers:
    """Acknowledges each 2xx, and again when it is repeated.

    It outlives the call that it was made for: for 32 s after the answer it is all that is left of
    the INVITE, and ends what other phones that answer so late would begin.
    """

    __slots__ = (
        "_acks",
        "_authentication",
        "_core",
        "_credentials",
        "_destination",
        "_early",
        "_trusted",
        "request",
    )

    def __init__(
        self,
        core: Core,
        request: RequestTemplate,
        destination: Address,
        trusted: frozenset[str],
        authentication: Authentication | None,
        early: dict[str, EarlyDialog],
    ) -> None:
        self._core = core
        self.request = request.bare()
        self._credentials = request.credentials
        self._destination = destination
        self._trusted = trusted
        self._authentication = authentication
        # The dialogs of phones that rang, by tag; usually there are none.
        self._early = early or None
        self._acks: tuple[tuple[str, Ack], ...] = ()

    def take(self, response: Response, source: Address, now: float) -> Answer | None:
        """The dialog that a 2xx makes, with its ACK still to be sent.

        None for one that was taken before, which is acknowledged again, and for one too many,
        which is ended.
        """
        for tag, ack in self._acks:
            if tag == response.to_tag:
                ack.answer_repeated(now)
                return None
        if len(self._acks) >= MAX_FORKS:
            end_unwanted(
                self._core,
                dialog_of(self._core, self.request, self._destination, response, source),
                self.request.cseq,
            )
            return None
        dialog = dialog_of(self._core, self.request, self._destination, response, source)
        early = self._early.get(response.to_tag) if self._early else None
        if early is not None:
            dialog.local_cseq = early.dialog.local_cseq
            dialog.remote_cseq = early.dialog.remote_cseq
        authentication = self._authentication
        if authentication and not belongs(dialog, self._destination, self._trusted):
            authentication = None
        credentials = self._credentials if authentication else ()
        via = self._core.new_via(dialog.next_hop.transport)
        data, next_hop = dialog.ack(self.request.cseq, via, credentials)
        ack = Ack(self._core, self.request.cseq, data, next_hop)
        self._acks += ((response.to_tag, ack),)
        return dialog, ack, authentication

    def refuse(self, response: Response, source: Address, now: float) -> None:
        """Acknowledge a 2xx that is of no use, and hang up."""
        taken = self.take(response, source, now)
        if taken is not None:
            self.hang_up(taken, now)

    def hang_up(self, taken: Answer, now: float) -> None:
        """Acknowledge and end a dialog that can't be used."""
        dialog, ack, authentication = taken
        ack.send(now)
        send_bye(self._core, NULL_USER, dialog, now, None, authentication)

    # What comes once the call is answered, in the Accepted state of RFC 6026

    def receive_response(
        self, transaction: ClientTransaction, response: Response, source: Address, now: float
    ) -> None:
        """A 2xx again, or that of another phone."""
        self.refuse(response, source, now)

    def transaction_failed(
        self, transaction: ClientTransaction, why: Literal["timeout", "transport"], now: float
    ) -> None:
        """What was answered can't fail."""


Answer = tuple[Dialog, Ack, Authentication | None]
"""A dialog, the ACK of the 2xx that made it, and what proves there who we are."""


def dialog_of(
    core: Core, request: RequestTemplate, destination: Address, response: Response, source: Address
) -> Dialog:
    """The dialog that a response to our INVITE makes."""
    config = core.config
    return Dialog.of_caller(
        request, response, source, destination, config.send_to_source, config.follow_private
    )


def belongs(dialog: Dialog, destination: Address, trusted: frozenset[str]) -> bool:
    """Whether a dialog's requests go where our credentials belong, not straight to a callee."""
    host = dialog.next_hop.host
    return host == destination.host or host in trusted
