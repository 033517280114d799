"""A user agent that never sees what is sent to a silent number.

A number that is switched off sends nothing at all, and a user agent answers 100 to an INVITE before
anybody is asked. So the datagram is dropped before the agent: no answer, no state.
"""

from __future__ import annotations

from collections.abc import Callable

from bitel.sip.config import AgentConfig
from bitel.sip.grammar import Address, split_address, user_of
from bitel.sip.message import MessageError, Request, parse
from bitel.sip.user_agent import UserAgent
from bitel.test_phone.call_history import Memory
from bitel.test_phone.rules import Silent


class SelectivelyDeafAgent(UserAgent):
    """Drops what the rules behind `memory` call silent; all else is the user agent's.

    `on_unheard` is told the Call-ID, the number and the caller of each call that is dropped, once.
    """

    __slots__ = ("_listens_first", "_memory", "_on_unheard")

    def __init__(
        self, config: AgentConfig, memory: Memory, on_unheard: Callable[[str, str, str], None]
    ) -> None:
        super().__init__(config)
        self._memory = memory
        self._on_unheard = on_unheard
        self._listens_first = memory.knows_silence

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """As the user agent's, but for datagrams to silent numbers."""
        if not (self._listens_first and self._is_for_silence(data)):
            super().receive_datagram(data, source, now)

    def _is_for_silence(self, data: bytes) -> bool:
        try:
            message = parse(data)
        except MessageError:
            return False
        # A request within a dialog, or a response, follows from what was answered before.
        if not isinstance(message, Request) or message.to_tag:
            return False
        number = user_of(message.uri)
        decided = self._memory.decided(message.call_id)
        if decided is None and message.method == "INVITE":
            decided = self._memory.decide(message.call_id, number)
            if isinstance(decided, Silent):
                self._on_unheard(message.call_id, number, _caller(message))
        return isinstance(decided or self._memory.next_for(number), Silent)


def _caller(request: Request) -> str:
    return user_of(split_address(request.header("from"))[0])
