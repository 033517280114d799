"""Runs a server transaction table: gives a request its responses, and repeats them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from bitel.sip.core import Core
from bitel.sip.grammar import DEFAULT_PORT, Address, Transport, parameter, split_list
from bitel.sip.message import Request, write_response
from bitel.sip.timers import Timer, is_due
from bitel.sip.transaction_tables import (
    INVITE_SERVER,
    INVITE_SERVER_STREAM,
    NON_INVITE_SERVER,
    NON_INVITE_SERVER_STREAM,
    Action,
    Input,
    State,
    Table,
    stimulus_of,
)

ServerKey = tuple[str, str, int | None, str]
MergeKey = tuple[str, str, int]
"""Call-ID, From tag and CSeq of an INVITE, the same in its copies by other paths (§8.2.2.2)."""
MAGIC_COOKIE = "z9hG4bK"

_ON_TIMER = {letter: Input(letter) for letter in "GHIJL"}


class Withdrawable(Protocol):
    """An incoming call that a CANCEL can take back."""

    def withdraw(self, now: float) -> None: ...


def server_key(request: Request, method: str) -> ServerKey:
    """What a repetition of `request` is known by (§17.2.3); an ACK goes by "INVITE".

    Without the magic cookie, or with nothing after it, the branch is not unique, and what
    RFC 2543 used takes its place.
    """
    host, port = request.sent_by()
    if request.branch.startswith(MAGIC_COOKIE) and request.branch != MAGIC_COOKIE:
        return (request.branch, host, port, method)
    old = f"{request.call_id}\n{request.cseq}\n{request.from_tag}\n{request.header('via')}"
    return (old, host, port, method)


def reply_route(request: Request, source: Address) -> tuple[str, Address]:
    """The top Via as a response repeats it, and where the response goes (RFC 3581 §4).

    Over a stream that is the connection that the request came by (RFC 3261 §18.2.2).
    """
    host, port = request.sent_by()
    top = split_list(request.header("via"))[0]
    wants_rport = parameter(top, "rport") is not None
    kept = [
        part
        for part in top.split(";")
        if part.partition("=")[0].strip().lower() not in ("received", "rport")
    ]
    if wants_rport:
        kept += [f"received={source[0]}", f"rport={source[1]}"]
        return ";".join(kept), source
    if host.strip("[]") != source[0]:
        kept.append(f"received={source[0]}")
    if source.transport is not Transport.UDP:
        return ";".join(kept), source
    return ";".join(kept), Address(source[0], port or DEFAULT_PORT)


def answer_statelessly(
    core: Core,
    request: Request,
    source: Address,
    code: int,
    headers: Iterable[tuple[str, str]] = (),
    reason: str = "",
) -> None:
    """Answer a request that is worth no transaction: a malformed one, or one too many."""
    core.send(*stateless_answer(core, request, source, code, headers, reason))


def stateless_answer(
    core: Core,
    request: Request,
    source: Address,
    code: int,
    headers: Iterable[tuple[str, str]] = (),
    reason: str = "",
) -> tuple[bytes, Address]:
    """Such an answer, and where it goes."""
    top_via, destination = reply_route(request, source)
    data = write_response(request, code, core.new_token(), headers, top_via=top_via, reason=reason)
    return data, destination


class ServerTransaction:
    """One request of the far end. `to_tag` is the tag that all its responses carry."""

    __slots__ = (
        "_core",
        "_data",
        "_destination",
        "_interval",
        "_merge_key",
        "_of_call",
        "_repeating",
        "_size",
        "_table",
        "_top_via",
        "_waiting",
        "key",
        "request",
        "source",
        "state",
        "to_tag",
        "user",
    )

    def __init__(
        self, core: Core, key: ServerKey, request: Request, source: Address, of_call: str = ""
    ) -> None:
        """`of_call` is the handle of the call that the request belongs to, if it does."""
        self._core = core
        self.key = key
        self._of_call = of_call
        self._size = 2 * request.size  # the request, and an answer that repeats most of it
        self.request = request
        self.source = source
        self.to_tag = request.to_tag or core.new_token()
        self.user: Withdrawable | None = None
        self._top_via, self._destination = reply_route(request, source)
        self._data = b""
        self._repeating: Timer | None = None
        self._waiting: Timer | None = None
        self._interval = core.config.t1 / 2
        self._table: Table
        is_stream = source.transport is not Transport.UDP
        if request.method == "INVITE":
            self._table = INVITE_SERVER_STREAM if is_stream else INVITE_SERVER
            self.state = State.PROCEEDING
        else:
            self._table = NON_INVITE_SERVER_STREAM if is_stream else NON_INVITE_SERVER
            self.state = State.TRYING
        core.server_transactions[key] = self
        core.server_bytes += self._size
        if of_call:
            core.requests_of_calls[of_call] += 1
        self._merge_key: MergeKey | None = None
        # Only INVITEs: other merged requests are harmless, and a far end that repeats the same
        # OPTIONS must not get 482.
        if request.method == "INVITE" and not request.to_tag:
            self._merge_key = (request.call_id, request.from_tag, request.cseq)
            core.invites_under_way.setdefault(self._merge_key, self)

    @property
    def is_merged(self) -> bool:
        """Whether the same INVITE came by another path before, and is under way (§8.2.2.2)."""
        key = self._merge_key
        return key is not None and self._core.invites_under_way.get(key) is not self

    def respond(
        self,
        code: int,
        now: float,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        reason: str = "",
    ) -> bytes:
        """Send a response. Its bytes are returned, as a 2xx to INVITE is repeated by its user."""
        if code == 100 and "timestamp" in self.request:
            headers = [*headers, ("Timestamp", self.request.header("timestamp"))]  # §8.2.6.1
        self._data = write_response(
            self.request,
            code,
            self.to_tag if code > 100 else "",
            headers,
            body,
            top_via=self._top_via,
            reason=reason,
        )
        if code >= 200:
            # Kept only for repetitions from here on, and those need no body.
            self.request.body = b""
        self._step(stimulus_of(code), now)
        return self._data

    @property
    def destination(self) -> Address:
        return self._destination

    def repeated(self, now: float) -> None:
        """The request came again."""
        self._step(Input.REQUEST, now)

    def fail(self, now: float) -> None:
        """Send 500 after an exception, unless a final response was sent."""
        if self.state in (State.TRYING, State.PROCEEDING):
            self.respond(500, now)

    def receive_ack(self, now: float) -> None:
        """The ACK of a failure came."""
        self._step(Input.ACK, now)

    def timer_fired(self, name: str, now: float) -> None:
        if name == "G" and is_due(self._waiting, now):
            return  # after a pause: timer H is next, and nothing is sent for what is over
        self._step(_ON_TIMER[name], now)

    def _step(self, stimulus: Input, now: float) -> None:
        found = self._table.get((self.state, stimulus))
        if found is None:
            return
        self.state, actions = found
        for action in actions:
            if action is Action.SEND:
                self._core.send(self._data, self._destination)
            elif action is Action.RESEND:
                if self._data:
                    self._core.retransmissions += 1
                    self._core.send(self._data, self._destination)
            elif action is Action.STOP_REPEATING:
                self._core.timers.stop(self._repeating)
            else:
                self._start(action, now)
        if self.state is State.TERMINATED:
            self._core.timers.stop(self._repeating)
            self._core.timers.stop(self._waiting)
            if self._core.server_transactions.pop(self.key, None) is not None:
                self._let_go()
            if self._merge_key is not None and not self.is_merged:
                del self._core.invites_under_way[self._merge_key]

    def _let_go(self) -> None:
        core = self._core
        core.server_bytes -= self._size
        if self._of_call:
            core.requests_of_calls[self._of_call] -= 1
            if not core.requests_of_calls[self._of_call]:
                del core.requests_of_calls[self._of_call]

    def _start(self, action: Action, now: float) -> None:
        timers, config = self._core.timers, self._core.config
        if action is Action.START_G:
            self._interval = min(self._interval * 2, config.t2)
            self._repeating = timers.start(now, self._interval, self, action)
            return
        wait = config.t4 if action is Action.START_I else config.long_wait
        timers.stop(self._waiting)
        self._waiting = timers.start(now, wait, self, action)


class UnacknowledgedAnswer:
    """A 2xx to INVITE, repeated until its ACK comes (§13.3.1.4): T1, doubling up to T2.

    After 64*T1 without an ACK it calls `ack_missing` of its owner.
    """

    __slots__ = ("_core", "_data", "_deadline", "_destination", "_interval", "_owner", "_timer")

    def __init__(
        self, core: Core, owner: AckWaiter, data: bytes, destination: Address, now: float
    ) -> None:
        self._core = core
        self._owner = owner
        self._data = data
        self._destination = destination
        self._interval = core.config.t1
        self._deadline = now + core.config.long_wait
        self._timer: Timer | None = core.timers.start(now, self._interval, self, "repeat 2xx")

    def timer_fired(self, name: str, now: float) -> None:
        if now >= self._deadline:
            self._timer = None
            self._owner.ack_missing(now)
            return
        self._core.retransmissions += 1
        self._core.send(self._data, self._destination)
        self._interval = min(self._interval * 2, self._core.config.t2)
        timers = self._core.timers
        if now + self._interval < self._deadline:
            self._timer = timers.start(now, self._interval, self, name)
        else:
            self._timer = timers.start_at(self._deadline, self, name)

    def stop(self) -> None:
        self._core.timers.stop(self._timer)


class AckWaiter(Protocol):
    """What accepted the call, and ends it if no ACK comes."""

    def ack_missing(self, now: float) -> None: ...
