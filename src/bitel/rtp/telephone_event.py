"""Decoder of DTMF digits in RTP telephone events (RFC 4733 section 2)."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

KEYS = "0123456789*#ABCD"  # by event code (section 3.2)
MAX_DIGITS = 256  # kept per call
LONGEST = 0xFFFF  # timestamp units: the longest segment of an event
REMEMBERED = 16  # events whose repeated packets are recognised
MAX_BLOCKS = 16  # events read from one packet

_BLOCK = struct.Struct("!BBH")
_END = 0x80


@dataclass(slots=True)
class _Event:
    code: int
    ended: bool


class Digits:
    """The digits of one call; `text` consists of "0123456789*#ABCD".

    All packets of an event have the same timestamp. The first to arrive counts, as the end packets
    may be lost, repeated or late. An event of more than 8 s continues in further segments, which
    are the same digit (section 2.5.1.3). Other events, such as a flash or a fax tone, are ignored.
    """

    def __init__(self) -> None:
        self.text = ""
        self._events: dict[tuple[int, int], _Event] = {}
        self._order: deque[tuple[int, int]] = deque()

    def receive(self, ssrc: int, timestamp: int, payload: bytes) -> None:
        """Reads the events of a packet; ignores malformed payloads."""
        whole = len(payload) - len(payload) % _BLOCK.size
        for start in range(0, min(whole, MAX_BLOCKS * _BLOCK.size), _BLOCK.size):
            code, flags, duration = _BLOCK.unpack_from(payload, start)
            self._receive_event(ssrc, timestamp, code, ended=bool(flags & _END))
            # Several events in one packet follow each other without a gap (section 2.5.1.5).
            timestamp = (timestamp + duration) % 2**32

    def _receive_event(self, ssrc: int, timestamp: int, code: int, *, ended: bool) -> None:
        known = self._events.get((ssrc, timestamp))
        if known is not None:
            known.ended = known.ended or ended
            return
        if not self._is_continuation(ssrc, timestamp, code) and code < len(KEYS):
            self.text = (self.text + KEYS[code])[:MAX_DIGITS]
        self._events[ssrc, timestamp] = _Event(code, ended)
        self._order.append((ssrc, timestamp))
        if len(self._order) > REMEMBERED:
            del self._events[self._order.popleft()]

    def _is_continuation(self, ssrc: int, timestamp: int, code: int) -> bool:
        """Whether it is the next segment of an event of full length that has not ended."""
        before = self._events.get((ssrc, (timestamp - LONGEST) % 2**32))
        return before is not None and before.code == code and not before.ended
