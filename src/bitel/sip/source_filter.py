"""Filters messages by source address before they are parsed.

Over UDP anyone who has seen a message of a call could answer, move or end it. A message is parsed
only if its source is accepted, or if it names a running call and comes from a host that an accepted
message of that call has named: in Contact or Record-Route, or as the destination of its INVITE.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Protocol

from bitel.sip.events import MessageDropped
from bitel.sip.grammar import Address, source_network
from bitel.sip.invite_dialog import Call, CallTable
from bitel.sip.message import CAPABILITIES, MAX_HEAD, BodyLengthError, MessageError, Request, parse
from bitel.sip.transaction import TransactionLayer
from bitel.token_bucket import TokenBucket

MAX_ENDED = 1000
"""Ended calls whose named hosts are kept, for retransmitted requests."""
ANSWERS_PER_SECOND = 1.0
ANSWER_BURST = 5.0
ALL_ANSWERS_PER_SECOND = 100.0
MAX_SOURCES = 4096
"""Limits of stateless responses: to one source (an IPv4 address or an IPv6 /64), to all, and the
number of sources with a token bucket."""

_CALL_ID = re.compile(rb"\n(?:call-id|i)[ \t]*:[ \t]*([^\s]{1,512})", re.IGNORECASE)


class SourcePolicy(Protocol):
    """Decides which sources are accepted."""

    @property
    def is_open(self) -> bool:
        """Whether messages of calls are accepted from any source, and other requests from a source
        that is not accepted get a stateless response."""

    def accepts(self, host: str) -> bool:
        """Whether all messages from the IP address `host` are accepted."""


class SourceFilter:
    """Applies a `SourcePolicy` to the messages of one agent.

    `dropped` counts rejected messages, `dropped_of_calls` those that name a running call.
    """

    def __init__(self, layer: TransactionLayer, calls: CallTable, policy: SourcePolicy) -> None:
        self._layer = layer
        self._calls = calls
        self._policy = policy
        self._ended: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._answers: dict[str, TokenBucket] = {}
        self._all_answers = TokenBucket(ALL_ANSWERS_PER_SECOND, ALL_ANSWERS_PER_SECOND, 0.0)
        self.dropped = self.dropped_of_calls = 0
        calls.on_removed = self._note_end

    def admits(self, data: bytes, source: Address, now: float) -> bool:
        """Whether the agent may parse `data`. If not, it is counted, and answered if the policy is
        open."""
        if self._policy.accepts(source.host):
            return True
        is_response = data[:8].upper() == b"SIP/2.0 "
        call_id = _call_id_in(data)
        call = self._calls.find(call_id)
        if self._policy.is_open and (call is not None or is_response):
            return True
        named = call.named_hosts if call is not None else self._ended.get(call_id, ())
        if source.host in named and _is_of(data, call_id):
            return True
        self.dropped += 1
        if call is not None:
            self.dropped_of_calls += 1
            self._calls.events.append(MessageDropped(call_id, source, is_response=is_response))
        elif self._policy.is_open and self._may_answer(source.host, now):
            self._answer(data, source)
        return False

    def _note_end(self, call: Call) -> None:
        """Keep the hosts that a call has named, for retransmitted requests."""
        hosts = frozenset(each for each in call.named_hosts if not self._policy.accepts(each))
        if hosts:
            self._ended[call.call_id] = hosts
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    def _answer(self, data: bytes, source: Address) -> None:
        """Send a stateless response (RFC 3261 §8.2.7).

        It is never longer than the request, whose source may be forged.
        """
        try:
            request = parse(data, source)
        except MessageError:
            return
        if not isinstance(request, Request) or request.method == "ACK":
            return
        code = {"OPTIONS": 200, "INVITE": 480}.get(request.method, 405)
        if request.to_tag or request.method in ("BYE", "CANCEL"):
            code = 481
        for headers in (CAPABILITIES[:1], ()):
            answer, destination = self._layer.stateless_response(request, code, headers)
            if len(answer) <= len(data):
                self._layer.send(answer, destination)
                return

    def _may_answer(self, host: str, now: float) -> bool:
        key = source_network(host)
        bucket = self._answers.get(key)
        if bucket is None:
            if len(self._answers) >= MAX_SOURCES:
                self._answers.clear()
            bucket = self._answers[key] = TokenBucket(ANSWERS_PER_SECOND, ANSWER_BURST, now)
        return not bucket.take(now) and not self._all_answers.take(now)


def _call_id_in(data: bytes) -> str:
    """The Call-ID of an unparsed message, "" without one."""
    found = _CALL_ID.search(data, 0, MAX_HEAD)
    return found[1].decode("utf-8", "surrogateescape") if found else ""


def _is_of(data: bytes, call_id: str) -> bool:
    """Whether the parsed message has this Call-ID."""
    try:
        return parse(data).call_id == call_id
    except BodyLengthError as error:
        return error.message.call_id == call_id
    except MessageError:
        return False
