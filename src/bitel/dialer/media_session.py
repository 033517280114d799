"""The media session of an answered call: one RTP stream, through holds, changes and silence."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import structlog

from bitel.dialer.playlist import Playlist
from bitel.domain.attempts import Media
from bitel.ip_addresses import leads_nearer
from bitel.rtp.stream_spec import UNHEARD, UNSPECIFIED_HOSTS
from bitel.rtp.streamer import (
    Latch,
    Law,
    RemoteAddressError,
    Streamer,
    StreamReport,
    StreamSpec,
)
from bitel.sip import MediaChanged
from bitel.sip.sdp import Direction, NegotiatedMedia

_BEFORE_LIMIT = 0.5
"""Seconds by which a call is ended before its limit."""

AWAITED_FOR = 10.0
"""Seconds for which the first RTP of a far end is awaited whose SDP names no address to send to."""

_LAWS: dict[str, Law] = {"PCMA": "alaw", "PCMU": "ulaw"}
_WE_SEND: frozenset[Direction] = frozenset({"sendrecv", "sendonly"})
_THEY_SEND: frozenset[Direction] = frozenset({"sendrecv", "recvonly"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """When a far end is given up, in seconds.

    `silence`: it is meant to send, did so before, and sends nothing at a stretch; 0 is forever.
    `call`: the call has lasted so long since the answer, with holds and all.
    """

    silence: float = 0.0
    call: float = math.inf


class MediaSession:
    """One stream, and why it was ended before its time, if it was.

    `over` is done when the stream is. `why` is then "" where it came to its end, or was stopped
    because the call was; else it says in a sentence what we ended the call for.
    """

    __slots__ = (
        "_awaiting",
        "_ending",
        "_latch",
        "_loop",
        "_origin",
        "_patience",
        "_port",
        "_sending_since",
        "_stream",
        "_streamer",
        "_timed_out",
        "over",
        "unfollowed",
        "why",
    )

    def __init__(
        self, streamer: Streamer, patience: Patience, latch: Latch = "port", origin: str = ""
    ) -> None:
        """`origin` is the IP address of the trunk that was called: where the session description
        names one nearer to us, nothing is sent there. The stream then waits for RTP from a source
        that `latch` accepts, the origin taking the place of the host that is named. Empty: any
        address is followed."""
        self._streamer = streamer
        self._origin = origin
        self._awaiting: asyncio.TimerHandle | None = None
        self.unfollowed = False
        """Whether an address was not followed."""
        self._patience = patience
        self._latch: Latch = latch
        self._timed_out = False
        self._loop = asyncio.get_running_loop()
        self._port = 0
        self._stream = 0
        self._ending: asyncio.TimerHandle | None = None
        self._sending_since: float | None = None
        self.over: asyncio.Future[StreamReport] = self._loop.create_future()
        self.why = ""

    def begin(
        self, port: int, agreed: NegotiatedMedia, playlist: Playlist, answered_for: float = 0.0
    ) -> None:
        """Play from the local port, as was agreed; a call that is held from the start waits.

        `answered_for` is the time since the answer, in seconds.
        """
        held = _is_hold(agreed.direction, agreed.far)
        spec = self._spec(port, agreed, held=held)
        self._port = port
        self._stream = self._streamer.play(spec, playlist, self._ended, self._fell_silent)
        longest = self._patience.call
        if longest < math.inf and not self.over.done():
            why = f"the call had lasted {longest:g} s, the longest that it may"
            # A little earlier, so that the second in which it ends is not billed beyond that.
            left = longest - answered_for - _BEFORE_LIMIT
            self._ending = self._loop.call_later(max(0.0, left), self.stop, why)
        self._await(awaited=spec.awaited, held=held)
        self._note(agreed.direction, held=held)

    def follow(self, changed: MediaChanged) -> None:
        """Apply a change: destination, payload type, packet length, or hold.

        An address that can't be sent to is treated as a hold. The codec of a call never changes.
        """
        agreed = changed.agreed
        held = _is_hold(agreed.direction, agreed.far)
        try:
            awaited = self._change(agreed, held=held)
        except RemoteAddressError as fault:
            log.warning("media_not_followed", fault=str(fault))
            held = True
            awaited = self._change(agreed, held=True)
        self._await(awaited=awaited, held=held)
        self._note(agreed.direction, held=held)

    def _change(self, agreed: NegotiatedMedia, *, held: bool) -> bool:
        """Apply `agreed`; whether RTP of the far end is now awaited."""
        spec = self._spec(self._port, agreed, held=held)
        self._streamer.change(self._stream, spec)
        return spec.awaited

    def _spec(self, port: int, agreed: NegotiatedMedia, *, held: bool) -> StreamSpec:
        remote, awaited = self._followed(agreed.far)
        return StreamSpec(
            port,
            remote,
            agreed.payload_type,
            _LAWS[agreed.codec_name],
            agreed.ptime,
            agreed.event_types,
            self._latch,
            held,
            awaited,
            self._patience.silence,
        )

    def _followed(self, far: tuple[str, int]) -> tuple[tuple[str, int], bool]:
        """Where to send to for the address that is named, and whether RTP is awaited first."""
        host, port = far[0], far[1]
        if not self._origin or host in UNSPECIFIED_HOSTS or not _is_nearer(self._origin, host):
            return (host, port), False
        self.unfollowed = True
        return (self._origin, port), True

    def _await(self, *, awaited: bool, held: bool) -> None:
        """Give the far end `AWAITED_FOR` seconds for its first RTP, if that is awaited."""
        if self._awaiting is not None:
            self._awaiting.cancel()
            self._awaiting = None
        if awaited and not held and not self.over.done():
            self._awaiting = self._loop.call_later(AWAITED_FOR, self._stop_if_unheard)

    def _stop_if_unheard(self) -> None:
        self._awaiting = None
        self._streamer.stop_stream(self._stream, if_awaited=True)

    def stop(self, why: str = "") -> None:
        """Not one packet more; `over` follows."""
        if not self.over.done():
            self.why = self.why or why
            self._streamer.stop_stream(self._stream)

    def media(self, digits: str = "", digits_at: float | None = None) -> Media:
        """The media in both directions, once it is over.

        `digits` were received by INFO, the first at `digits_at` by CLOCK_MONOTONIC. Many phones
        send each digit by INFO and RFC 4733, so only those of the source that came first count.
        """
        report = self.over.result()
        if digits_at is None or (report.digits_at is not None and report.digits_at <= digits_at):
            digits = report.digits
        return Media(report.packets, report.received, digits, report.far_loss, report.far_jitter_ms)

    @property
    def came_from_elsewhere(self) -> bool:
        """Whether RTP came from an address that was not accepted; once it is over."""
        return self.over.result().unexpected > 0

    @property
    def is_unheard(self) -> bool:
        """Whether it was ended because RTP was awaited and none came; once it is over."""
        return self.why == UNHEARD

    @property
    def is_stopped(self) -> bool:
        """Whether the far end, allowed to send at the end, had sent RTP and stopped; once it is
        over."""
        return self._sending_since is not None and self.over.result().stopped

    @property
    def silent_for(self) -> float:
        """Seconds of silence of the far end before the stream's end, if it had stopped sending or
        the media timed out; else 0. Once it is over."""
        report = self.over.result()
        if self._timed_out or self.is_stopped:
            return report.silent_for or 0.0
        return 0.0

    def _note(self, direction: Direction, *, held: bool) -> None:
        """Whether the far end is to be heard from now on, and whether it holds us."""
        if held or direction not in _THEY_SEND:
            self._sending_since = None
        elif self._sending_since is None:
            self._sending_since = self._loop.time()

    def _fell_silent(self) -> None:
        patience, since = self._patience.silence, self._sending_since
        # Just after a hold it is only about to send again.
        if since is not None and self._loop.time() - since >= patience:
            self._timed_out = True
            self.stop(f"media time-out: nothing came from the far end for {patience:g} s")

    def _ended(self, report: StreamReport) -> None:
        for timer in (self._ending, self._awaiting):
            if timer is not None:
                timer.cancel()
        self._ending = self._awaiting = None
        if report.error.startswith(UNHEARD):
            self.why = self.why or UNHEARD
        if not self.over.done():  # cancelled together with its waiter
            self.over.set_result(report)


def _is_nearer(origin: str, host: str) -> bool:
    try:
        return leads_nearer(origin, host)
    except ValueError:
        return False  # no IP address: the streamer refuses it


def check_address(streamer: Streamer, agreed: NegotiatedMedia) -> None:
    """Raises RemoteAddressError where what was agreed on can't be sent to that address."""
    far = agreed.far[0], agreed.far[1]
    if not _is_hold(agreed.direction, far) and (problem := streamer.address_problem(far)):
        raise RemoteAddressError(problem)


def _is_hold(direction: Direction, far: tuple[str, int]) -> bool:
    """Whether we may not send, or have nowhere to: the hold of old (RFC 3264 section 8.4)."""
    return direction not in _WE_SEND or far[0] in UNSPECIFIED_HOSTS or far[1] == 0
