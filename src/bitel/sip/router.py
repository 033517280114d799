"""Finds whom a request is for, and answers what is for nobody (RFC 3261 §8.2)."""

from __future__ import annotations

from bitel.sip.body import session_description_of, unsupported_body
from bitel.sip.core import Core
from bitel.sip.grammar import Address, scheme_of
from bitel.sip.incoming_call import IncomingCall
from bitel.sip.message import MessageError, Request
from bitel.sip.requests import ALLOW, CAPABILITIES, OPTION_TAGS
from bitel.sip.sdp import SdpError, SessionDescription
from bitel.sip.server_transaction import ServerTransaction, answer_statelessly, server_key
from bitel.sip.session_timer import MIN_SE, asks_too_little
from bitel.sip.transaction_tables import State

SUPPORTED_METHODS = frozenset(ALLOW.split(", "))
OTHER_METHODS = frozenset(
    ("REGISTER", "SUBSCRIBE", "NOTIFY", "PUBLISH", "INFO", "REFER", "MESSAGE")
)
ACCEPT = ("Accept", "application/sdp")
RETRY_LATER = ("Retry-After", "5")


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
    if len(core.server_transactions) >= core.config.max_server_transactions:
        answer_statelessly(core, request, source, 503, [RETRY_LATER])
        return
    starts_call = request.method == "INVITE" and not request.to_tag
    if starts_call and core.early_calls >= core.config.max_early_calls:
        answer_statelessly(core, request, source, 503, [RETRY_LATER])
        return
    transaction = ServerTransaction(core, key, request, source)
    if request.method == "CANCEL":
        _receive_cancel(core, transaction, now)
    elif not _is_refused(transaction, now):
        _hand_over(core, transaction, now)


def receive_malformed(core: Core, error: MessageError, source: Address) -> None:
    """Answer what can be told to be a request with 400; drop everything else."""
    request = error.request
    if request is None or request.method == "ACK":
        return
    # Without these there is no telling which request a 400 would be about.
    if not all(request.header(name) for name in ("via", "from", "to", "call-id", "cseq")):
        return
    try:
        answer_statelessly(core, request, source, 400)
    except MessageError:
        # Its Via can't be read, so nobody can be told.
        return


def _receive_ack(core: Core, request: Request, now: float) -> None:
    transaction = core.server_transactions.get(server_key(request, "INVITE"))
    if transaction is not None and transaction.state is not State.ACCEPTED:
        transaction.receive_ack(now)
        return
    call = core.calls.get(request.call_id)
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
    elif unknown := [tag for tag in request.values("require") if tag.lower() not in OPTION_TAGS]:
        transaction.respond(420, now, [("Unsupported", ", ".join(unknown))])
    elif unsupported_body(request):
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


def _hand_over(core: Core, transaction: ServerTransaction, now: float) -> None:
    request = transaction.request
    call = core.calls.get(request.call_id)
    if request.to_tag:
        if call is None:
            transaction.respond(481, now)
        else:
            call.receive_request(request, transaction, transaction.source, now)
    elif request.method == "OPTIONS":
        transaction.respond(200, now, [*CAPABILITIES, core.user_agent])
    elif request.method != "INVITE":
        transaction.respond(481, now)
    elif call is not None:
        # The same call by another path (§8.2.2.2), or one of ours that came back to us.
        transaction.respond(482, now)
    else:
        _receive_new_call(core, transaction, now)


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
