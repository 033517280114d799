"""The calls of a user agent in all their phases, and the events about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from bitel.sip.events import Event
from bitel.sip.message import Request, Response
from bitel.sip.timers import Timer
from bitel.sip.transaction import ServerTransaction, TransactionLayer


class Call(ABC):
    """A call in one of its phases: `InviteClient`, `InviteServer` or `InviteDialog`.

    `call_id` is its handle in the agent's methods and events: its Call-ID, with a suffix where
    another call with the same Call-ID was running. `local_tag` is our tag in its dialogs.
    """

    call_id: str
    local_tag: str

    @property
    @abstractmethod
    def named_hosts(self) -> frozenset[str]:
        """The IP addresses that messages of the call may come from beside the carrier's."""

    @abstractmethod
    def matches(self, request: Request) -> bool:
        """Whether a request with this Call-ID is within the dialog (§12.2.2)."""

    @abstractmethod
    def receive_request(self, transaction: ServerTransaction, now: float) -> None:
        """Answer a request for which `matches` is true."""

    def receive_ack(self, request: Request, now: float) -> None:  # noqa: B027
        """Take the ACK of a 2xx, which only an answered call gets."""

    def receive_late_response(self, response: Response, now: float) -> None:  # noqa: B027
        """Take a 1xx or 2xx to an INVITE of ours whose transaction is over (§13.2.2.4)."""

    @abstractmethod
    def hang_up(self, now: float, q850: int | None) -> None:
        """End the call, whatever its phase."""


class CallTable:
    """Calls by their handles, and events that the user of the agent has not yet taken.

    `given_up` are calls without an answer that are kept for 64*T1, should one come late.
    """

    def __init__(self, layer: TransactionLayer) -> None:
        self._layer = layer
        self.events: deque[Event] = deque()
        self.running: dict[str, Call] = {}
        self.given_up: dict[str, tuple[Call, Timer]] = {}
        self.early_calls = 0
        """Incoming calls that wait for our answer."""
        self.on_removed: Callable[[Call], None] | None = None
        # The handles that differ from the Call-ID, by Call-ID and local tag.
        self._handles: dict[tuple[str, str], str] = {}

    def find(self, call_id: str) -> Call | None:
        """A running call, or one that was given up."""
        if call_id in self.given_up:
            return self.given_up[call_id][0]
        return self.running.get(call_id)

    def call_of(self, request: Request) -> Call | None:
        """The call whose dialog a request belongs to, by Call-ID and tags (§12.2.2)."""
        call = self.find_by_tag(request.call_id, request.to_tag)
        return call if call is not None and call.matches(request) else None

    def find_by_tag(self, call_id: str, local_tag: str) -> Call | None:
        """The running call with this Call-ID and our tag."""
        for handle in (call_id, self._handles.get((call_id, local_tag), "")):
            call = self.running.get(handle)
            if call is not None and call.local_tag == local_tag:
                return call
        return None

    def new_handle(self, call_id: str, local_tag: str) -> str:
        """The handle of a new incoming call: its Call-ID, unless a running call has that."""
        if call_id not in self.running:
            return call_id
        handle = f"{call_id};{local_tag}"
        self._handles[call_id, local_tag] = handle
        return handle

    def put(self, call: Call) -> None:
        """Add a call, or replace it by its next phase."""
        self.running[call.call_id] = call

    def remove(self, call: Call) -> None:
        """Forget a call that is over."""
        if self.on_removed is not None:
            self.on_removed(call)
        del self.running[call.call_id]
        if self._handles and call.call_id.endswith(f";{call.local_tag}"):
            call_id = call.call_id.removesuffix(f";{call.local_tag}")
            self._handles.pop((call_id, call.local_tag), None)

    def keep_given_up(self, call: Call, now: float) -> None:
        """Keep a call for a late answer; of too many, the oldest is forgotten."""
        timer = self._layer.timers.start(now, self._layer.long_wait, self, call.call_id)
        self.given_up[call.call_id] = call, timer
        if len(self.given_up) > self._layer.config.max_remembered:
            self.forget(next(iter(self.given_up)))

    def forget(self, call_id: str) -> None:
        """Keep a call that was given up no longer."""
        self._layer.timers.stop(self.given_up.pop(call_id)[1])

    def timer_fired(self, name: str, now: float) -> None:
        """Forget a call that was given up."""
        del self.given_up[name]
