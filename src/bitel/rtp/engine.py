"""The sender's streams: which slot of the 20 ms each is in, and what it plays next. No clock."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from bitel.rtp.batch import Batch, Count, NewStream
from bitel.rtp.clips import ClipCache, ClipError, Playlist
from bitel.rtp.memory import sockaddr
from bitel.rtp.packet import PACKET_SECONDS
from bitel.rtp.sendmmsg import Transmit
from bitel.rtp.wire import End, Play

SLOTS = 10  # batches in 20 ms: smaller ones smooth the load, and each has a fixed cost
SLOT_SECONDS = PACKET_SECONDS / SLOTS

# So many streams make one more slot worth its wake-ups; few calls then cost few of them.
WORTH_A_SLOT = 32
_ORDER = (0, 5, 2, 7, 4, 9, 1, 6, 3, 8)  # in which slots come into use: far from each other
assert len(_ORDER) == SLOTS

# A socket's streams are put into one slot, to share its sendmmsg, while that slot is no fuller
# than the emptiest by this many streams and this part.
CROWDED = 8
CROWDED_PART = 8


@dataclass(slots=True)
class _Stream:
    slot: int
    playlist: Playlist
    stopped: bool = False
    finished: bool = False


class Engine:
    """Streams spread over `SLOTS` batches; `tick` sends one of them.

    Each `play` is answered by one `End` among those that `tick` and `play` return.
    """

    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit
        self._batches: list[Batch] = []
        self._sockets: dict[int, socket.socket] = {}
        self._home: dict[int, int] = {}  # port -> the slot that its last stream was put into
        self._streams: dict[int, _Stream] = {}
        self._clips = ClipCache()

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, port: int, bound: socket.socket) -> None:
        """Streams of this port go out through this socket from now on."""
        self._sockets[port] = bound
        if not self._batches:
            family = socket.AddressFamily(bound.family)
            self._batches = [Batch(family, self._transmit) for _ in range(SLOTS)]

    def play(self, command: Play) -> End | None:
        """Adds a stream; its `End` at once where it can't be."""
        bound = self._sockets.get(command.port)
        if bound is None:
            return End(command.stream, 0, False, f"RTP port {command.port} is not open")
        try:
            family = socket.AddressFamily(bound.family)
            far = sockaddr(family, command.far_host, command.far_port)
            playlist = Playlist(self._clips, list(command.clips), command.law)
        except (ClipError, OSError) as error:
            return End(command.stream, 0, False, str(error))
        segment = playlist.next_segment()
        assert segment is not None  # a clip is never empty
        slot = self._choose_slot(command.port)
        self._streams[command.stream] = _Stream(slot, playlist)
        self._batches[slot].add(
            NewStream(
                command.stream,
                bound.fileno(),
                far,
                command.payload_type,
                command.sequence,
                command.timestamp,
                command.ssrc,
                *segment,
            )
        )
        return None

    def stop(self, number: int) -> None:
        """Takes a stream out; its `End` comes with its slot's next tick."""
        stream = self._streams.get(number)
        if stream is not None and not stream.stopped:
            stream.stopped = True
            self._batches[stream.slot].remove(number)

    def idle(self, slot: int) -> bool:
        """The slot's tick has nothing to do."""
        return not self._batches or self._batches[slot].idle

    def tick(self, slot: int) -> tuple[int, int, list[End]]:
        """Sends the slot's packets: how many left, how many were refused, and who ended.

        A stream ends one tick after its last packet: when that has been heard out.
        """
        if not self._batches:
            return 0, 0, []
        batch = self._batches[slot]
        ends = self._settle(batch)
        over = False
        for row, number in batch.run_out():
            stream = self._streams[number]
            segment = stream.playlist.next_segment()
            if segment is None:
                stream.finished = over = True
                batch.remove(number)
            else:
                batch.point(row, *segment)
        if over:
            ends += self._settle(batch)
        sent, refused = batch.send() if len(batch) else (0, 0)
        return sent, refused, ends

    def _settle(self, batch: Batch) -> list[End]:
        return [self._end(number, count) for number, count in batch.settle()]

    def _end(self, number: int, count: Count) -> End:
        stream = self._streams.pop(number)
        stream.playlist.close()
        error = ""
        if count.refused:
            error = f"{count.refused} packets could not be sent: {count.problem}"
        # A callee of whom the network took no packet at all has heard nothing to its end.
        return End(number, count.sent, stream.finished and count.sent > 0, error)

    def _choose_slot(self, port: int) -> int:
        used = _ORDER[: 1 + len(self._streams) // WORTH_A_SLOT]
        loads = {slot: len(self._batches[slot]) for slot in used}
        slot = min(used, key=loads.__getitem__)
        home = self._home.get(port)
        if home in loads and loads[home] <= loads[slot] + CROWDED + loads[slot] // CROWDED_PART:
            return home
        self._home[port] = slot
        return slot
