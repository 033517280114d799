"""Routes messages to transactions and calls; refuses other requests (RFC 3261 §8.1.3, §8.2)."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeGuard

from bitel.sip.body import session_description_of, unsupported_body
from bitel.sip.client_transaction import ClientTransaction
from bitel.sip.core import Call, Core
from bitel.sip.grammar import DEFAULT_PORTS, Address, ip_literal, scheme_of
from bitel.sip.incoming_call import IncomingCall
from bitel.sip.message import Message, MessageError, Request, Response, sent_by_of
from bitel.sip.requests import ALLOW, CAPABILITIES, OPTION_TAGS
from bitel.sip.sdp import SdpError, SessionDescription
from bitel.sip.server_transaction import ServerTransaction, answer_statelessly, server_key
from bitel.sip.session import Session
from bitel.sip.session_timer import MIN_SE, asks_too_little
from bitel.sip.transaction_tables import State

SUPPORTED_METHODS = frozenset(ALLOW.split(", "))
OTHER_METHODS = frozenset(("REGISTER", "SUBSCRIBE", "NOTIFY", "PUBLISH", "REFER", "MESSAGE"))
ACCEPT = ("Accept", "application/sdp")
MAX_OF_CALL = 16
"""Requests of one call that are taken although there are too many in all."""
RETRY_LATER = ("Retry-After", "5")


def receive_response(core: Core, response: Response, source: Address, now: float) -> None:
    """Pass a response to its transaction, or a late 2xx to its call (§13.2.2.4).

    One with several Via values, or with another sent-by or Call-ID than its request, is not for us
    (§8.1.3.3, §18.1.2, §8.2.6.2): it is dropped and counted.
    """
    transaction = core.client_transactions.get((response.branch, response.cseq_method))
    if not response.has_one_via or (
        transaction is not None
        and (
            response.call_id != transaction.request.call_id
            or not _is_sent_by(response, transaction)
        )
    ):
        core.misrouted += 1
    elif transaction is not None:
        transaction.receive(response, source, now)
    elif response.cseq_method == "INVITE" and response.code < 300:
        _receive_late(core, response, source, now)


def receive_request(core: Core, request: Request, source: Address, now: float) -> None:
    """Take a request that has all that a request must have."""
    if request.method == "ACK":
        _receive_ack(core, request, now)
        return
    key = server_key(request, request.method)
    known = core.server_transactions.get(key)
    if known is not None:
        known.repeated(now)
        return
    call = core.call_of(request) if request.to_tag else None
    if _is_one_too_many(core, request, call):
        answer_statelessly(core, request, source, 503, [RETRY_LATER])
        return
    of_call = call.call_id if call is not None else ""
    transaction = ServerTransaction(core, key, request, source, of_call)
    try:
        if request.method == "CANCEL":
            _receive_cancel(core, transaction, now)
        elif request.method == "BYE" or not _is_refused(transaction, now):
            _hand_over(core, transaction, call, now)
    except Exception:
        transaction.fail(now)
        raise


def receive_malformed(core: Core, error: MessageError, source: Address) -> None:
    """Answer what can be identified as a request with 400; drop everything else."""
    request = error.request
    if request is None or request.method == "ACK":
        return
    # Without these there is no telling which request a 400 would be about.
    if not all(request.header(name) for name in ("via", "from", "to", "call-id", "cseq")):
        return
    try:
        answer_statelessly(core, request, source, 400)
    except MessageError:
        # Without a readable Via there is no address to respond to.
        return


def always_taken(message: Message) -> TypeGuard[Request]:
    """Whether a message is an ACK, BYE or CANCEL.

    Such a request is not refused for what its dialog or transaction does not need: its body, its
    Request-URI, or the extensions that it requires.
    """
    return isinstance(message, Request) and message.method in ("ACK", "BYE", "CANCEL")


def _is_sent_by(response: Response, transaction: ClientTransaction) -> bool:
    """Whether a response's Via has the sent-by of the request (§18.1.2), after normalisation."""
    ours, theirs = transaction.request.via, response.header("via")
    if ours.partition(";")[0] == theirs.partition(";")[0]:
        return True
    usual = DEFAULT_PORTS[transaction.destination.transport]
    return _same_form(ours, usual) == _same_form(theirs, usual)


def _same_form(via: str, usual_port: int) -> tuple[str, int]:
    host, port = sent_by_of(via)
    host = host.strip("[]").lower()
    with suppress(ValueError):
        host = ip_literal(host)
    return host, port or usual_port


def _receive_late(core: Core, response: Response, source: Address, now: float) -> None:
    """Take a response to an INVITE after its transaction, for a given-up or a running call."""
    given_up = core.remembered.get(response.call_id)
    if given_up is not None and response.code < 200:
        given_up.receive_late_provisional(response, source, now)
    elif given_up is not None:
        given_up.receive_late_success(response, source, now)
    elif response.code >= 200:
        call = core.calls.get(response.call_id)
        if isinstance(call, Session) and call.local_tag == response.from_tag:
            call.receive_late_success(response, source, now)


def _is_one_too_many(core: Core, request: Request, call: Call | None) -> bool:
    """Whether a request exceeds the limits.

    BYE and CANCEL of a running call never do, and its other requests only where it has several.
    """
    if request.method == "BYE" and call is not None:
        return False
    if request.method == "CANCEL" and server_key(request, "INVITE") in core.server_transactions:
        return False
    is_full = (
        len(core.server_transactions) >= core.config.max_server_transactions
        or core.server_bytes >= core.config.max_server_bytes
    )
    if is_full:
        return call is None or core.requests_of_calls[call.call_id] >= MAX_OF_CALL
    starts_call = request.method == "INVITE" and not request.to_tag
    return starts_call and core.early_calls >= core.config.max_early_calls


def _receive_ack(core: Core, request: Request, now: float) -> None:
    transaction = core.server_transactions.get(server_key(request, "INVITE"))
    if transaction is not None and transaction.state is not State.ACCEPTED:
        transaction.receive_ack(now)
        return
    call = core.call_of(request)
    if call is not None:
        call.receive_ack(request, now)


def _receive_cancel(core: Core, transaction: ServerTransaction, now: float) -> None:
    invite = core.server_transactions.get(server_key(transaction.request, "INVITE"))
    if invite is None:
        transaction.respond(481, now)
        return
    transaction.to_tag = invite.to_tag
    transaction.respond(200, now)
    if invite.user is not None:
        invite.user.withdraw(now)


def _is_refused(transaction: ServerTransaction, now: float) -> bool:
    """Answer what can't be served, in the order of §8.2.1 to §8.2.3."""
    request = transaction.request
    if request.method in OTHER_METHODS:
        transaction.respond(405, now, [("Allow", ALLOW)])
    elif request.method not in SUPPORTED_METHODS:
        transaction.respond(501, now, [("Allow", ALLOW)])
    elif scheme_of(request.uri) not in ("sip", "sips", "tel"):
        transaction.respond(416, now)
    elif "?" in request.uri.rpartition("@")[2]:
        transaction.respond(400, now, reason="Headers In Request-URI")
    elif transaction.is_merged:
        transaction.respond(482, now)
    elif unknown := [tag for tag in request.values("require") if tag.lower() not in OPTION_TAGS]:
        transaction.respond(420, now, [("Unsupported", ", ".join(unknown))])
    elif request.method not in ("INFO", "PRACK") and unsupported_body(request):
        transaction.respond(415, now, [ACCEPT])
    elif request.method == "INVITE" and not _takes_sdp(request):
        transaction.respond(406, now)
    else:
        return False
    return True


def _takes_sdp(request: Request) -> bool:
    """Whether the sender could read our answer (§20.1)."""
    if "accept" not in request:
        return True
    kinds = {value.partition(";")[0].strip().lower() for value in request.values("accept")}
    return not kinds.isdisjoint(("application/sdp", "application/*", "*/*"))


def _hand_over(core: Core, transaction: ServerTransaction, call: Call | None, now: float) -> None:
    request = transaction.request
    if call is not None:
        call.receive_request(request, transaction, transaction.source, now)
    elif request.to_tag:
        transaction.respond(481, now)
    elif request.method == "OPTIONS":
        transaction.respond(200, now, [*CAPABILITIES, core.user_agent])
    elif request.method != "INVITE":
        transaction.respond(481, now)
    elif _is_our_own(core, request):
        transaction.respond(482, now)
    else:
        _receive_new_call(core, transaction, now)


def _is_our_own(core: Core, request: Request) -> bool:
    """Whether an INVITE is one of ours that was routed back to us."""
    call = core.calls.get(request.call_id)
    return call is not None and call.local_tag == request.from_tag


def _receive_new_call(core: Core, transaction: ServerTransaction, now: float) -> None:
    description = session_description_of(transaction.request)
    if asks_too_little(transaction.request):
        transaction.respond(422, now, [("Min-SE", str(MIN_SE))])
        return
    try:
        offer = SessionDescription.parse(description) if description else None
    except SdpError:
        transaction.respond(488, now)
        return
    IncomingCall(core, transaction, offer, now)
