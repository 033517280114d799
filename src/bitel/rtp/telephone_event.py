"""Digits that the remote sends as RTP telephone events (RFC 4733 section 2)."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

KEYS = "0123456789*#ABCD"  # by event code (section 3.2)
MAX_DIGITS = 256  # kept of one call
LONGEST = 0xFFFF  # timestamp units that one segment of an event can last
REMEMBERED = 16  # events whose late packets are still recognised
MAX_BLOCKS = 16  # events that are read of one packet

_BLOCK = struct.Struct("!BBH")
_END = 0x80


@dataclass(slots=True)
class _Event:
    code: int
    ended: bool


class Digits:
    """Takes the payloads of one call's telephone-event packets, in whatever order they come.

    All packets of an event have the same timestamp. It counts from the first that arrives: its end
    packets may be lost, doubled or late. One of more than 8 s goes on in further segments, which
    are the same digit (section 2.5.1.3). `text` is made of "0123456789*#ABCD"; other events (a
    flash, a fax tone) are left out.
    """

    def __init__(self) -> None:
        self.text = ""
        self._events: dict[tuple[int, int], _Event] = {}
        self._order: deque[tuple[int, int]] = deque()

    def receive(self, ssrc: int, timestamp: int, payload: bytes) -> None:
        """Takes a payload in; never raises, whatever it holds."""
        whole = len(payload) - len(payload) % _BLOCK.size
        for start in range(0, min(whole, MAX_BLOCKS * _BLOCK.size), _BLOCK.size):
            code, flags, duration = _BLOCK.unpack_from(payload, start)
            self._event(ssrc, timestamp, code, ended=bool(flags & _END))
            # Several events in one packet follow each other without a gap (section 2.5.1.5).
            timestamp = (timestamp + duration) % 2**32

    def _event(self, ssrc: int, timestamp: int, code: int, *, ended: bool) -> None:
        known = self._events.get((ssrc, timestamp))
        if known is not None:
            known.ended = known.ended or ended
            return
        if not self._goes_on(ssrc, timestamp, code) and code < len(KEYS):
            self.text = (self.text + KEYS[code])[:MAX_DIGITS]
        self._events[ssrc, timestamp] = _Event(code, ended)
        self._order.append((ssrc, timestamp))
        if len(self._order) > REMEMBERED:
            del self._events[self._order.popleft()]

    def _goes_on(self, ssrc: int, timestamp: int, code: int) -> bool:
        """It is the next segment of an event that has filled one, and has not ended."""
        before = self._events.get((ssrc, (timestamp - LONGEST) % 2**32))
        return before is not None and before.code == code and not before.ended
