"""The media session of an answered call: its RTP stream, hold, media changes and timeouts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import structlog

from bitel.dialer.playlist import Playlist
from bitel.domain.attempts import Media
from bitel.ip_addresses import leads_nearer
from bitel.rtp.stream_spec import UNHEARD, UNSPECIFIED_HOSTS, OnAudio, OnKeys
from bitel.rtp.streamer import (
    Latch,
    Law,
    RemoteAddressError,
    Streamer,
    StreamReport,
    StreamSpec,
)
from bitel.sip import MediaChanged
from bitel.sip.sdp import Direction, NegotiatedMedia, SessionDescription, is_host_name

_BEFORE_LIMIT = 0.5
"""Margin in seconds before the longest duration of a call."""

AWAITED_FOR = 10.0
"""Seconds to wait for the first RTP if the SDP names no address that we send to."""

MAX_EARLY_LOOKUPS = 8
"""Host names of one call that are resolved before its answer."""

Resolve = Callable[[str], Awaitable[str]]
"""Resolves a host to an IP address within a bounded time; raises OSError."""
Follow = Callable[[MediaChanged], None]

LAWS: dict[str, Law] = {"PCMA": "alaw", "PCMU": "ulaw"}
_WE_SEND: frozenset[Direction] = frozenset({"sendrecv", "sendonly"})
_THEY_SEND: frozenset[Direction] = frozenset({"sendrecv", "recvonly"})

log = structlog.get_logger(__name__)


class MediaSession:
    """One RTP stream to and from the remote."""

    def __init__(
        self,
        streamer: Streamer,
        media_timeout: float = 0.0,
        longest: float = math.inf,
        latch: Latch = "port",
        origin: str = "",
    ) -> None:
        """The call is ended if a remote that should send, and did before, sends nothing for
        `media_timeout` seconds (0: never), and `longest` seconds after the answer.

        `origin` is the IP address of the trunk ("": ignore). Nothing is sent to an SDP address that
        is nearer to us than that: the stream waits for RTP from a source that `latch` accepts for
        the origin in place of the SDP host."""
        self._streamer = streamer
        self._media_timeout = media_timeout
        self._longest = longest
        self._latch: Latch = latch
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._port = 0
        self._stream = 0
        self._end_timer: asyncio.TimerHandle | None = None
        self._latch_timer: asyncio.TimerHandle | None = None
        self._sending_since: float | None = None
        self._timed_out = False
        self.unfollowed = False
        """Whether an SDP address was not followed because it is too near."""
        self.over: asyncio.Future[StreamReport] = self._loop.create_future()
        """Done when the stream has ended."""
        self.why = ""
        """Why we ended the call; "" if the stream finished or the remote ended it."""

    def begin(
        self,
        port: int,
        agreed: NegotiatedMedia,
        playlist: Playlist,
        answered_for: float = 0.0,
        on_keys: OnKeys | None = None,
        on_audio: OnAudio | None = None,
    ) -> None:
        """Play `playlist` from the local port; a call on hold waits.

        `answered_for` is the time since the answer in seconds; `on_keys` gets the keys of telephone
        events, `on_audio` the audio of the callee until `stop_audio`.
        """
        self._port = port
        spec = self._spec(agreed, held=_is_hold(agreed))
        self._stream = self._streamer.play(
            spec, playlist, self._ended, self._fell_silent, on_keys, on_audio
        )
        longest = self._longest
        if longest < math.inf and not self.over.done():
            why = f"the call had lasted {longest:g} s, the longest that it may"
            # A little earlier, so that the last second is not billed beyond the limit.
            left = longest - answered_for - _BEFORE_LIMIT
            self._end_timer = self._loop.call_later(max(0.0, left), self.stop, why)
        self._has_changed(agreed, spec)

    def stop_audio(self) -> None:
        """Pass no further audio to `on_audio`."""
        if not self.over.done():
            self._streamer.stop_audio(self._stream)

    def replace(self, playlist: Playlist) -> None:
        """Play another playlist in place of what is left."""
        if not self.over.done():
            self._streamer.replace(self._stream, playlist)

    def follow(self, changed: MediaChanged) -> None:
        """Apply a change of destination, payload type, packet length or direction.

        An unusable address counts as hold. The codec of a call never changes.
        """
        agreed = changed.agreed
        spec = self._spec(agreed, held=_is_hold(agreed))
        try:
            self._streamer.change(self._stream, spec)
        except RemoteAddressError as fault:
            log.warning("media_not_followed", fault=str(fault))
            spec = self._spec(agreed, held=True)
            self._streamer.change(self._stream, spec)
        self._has_changed(agreed, spec)

    def _spec(self, agreed: NegotiatedMedia, *, held: bool) -> StreamSpec:
        remote, awaited = self._followed(agreed.remote)
        return StreamSpec(
            self._port,
            remote,
            agreed.payload_type,
            LAWS[agreed.codec_name],
            agreed.ptime,
            agreed.event_types,
            self._latch,
            held,
            awaited,
            self._media_timeout,
            tones=not agreed.has_events,
        )

    def _followed(self, remote: tuple[str, int]) -> tuple[tuple[str, int], bool]:
        """The destination for an SDP address, and whether to wait for remote RTP first."""
        host, port = remote
        try:
            is_followed = not self._origin or host in UNSPECIFIED_HOSTS
            is_followed = is_followed or not leads_nearer(self._origin, host)
        except ValueError:
            is_followed = True  # not an IP address: the streamer refuses it
        if is_followed:
            return remote, False
        self.unfollowed = True
        return (self._origin, port), True

    def _has_changed(self, agreed: NegotiatedMedia, spec: StreamSpec) -> None:
        """Record whether the remote may send, and start the timer for its first RTP."""
        if self._latch_timer is not None:
            self._latch_timer.cancel()
            self._latch_timer = None
        if spec.awaited and not spec.held and not self.over.done():
            self._latch_timer = self._loop.call_later(AWAITED_FOR, self._stop_if_unheard)
        if spec.held or agreed.direction not in _THEY_SEND:
            self._sending_since = None
        elif self._sending_since is None:
            self._sending_since = self._loop.time()

    def _stop_if_unheard(self) -> None:
        self._latch_timer = None
        self._streamer.stop_stream(self._stream, if_awaited=True)

    def stop(self, why: str = "") -> None:
        """Stop the stream; `over` follows."""
        if not self.over.done():
            self.why = self.why or why
            self._streamer.stop_stream(self._stream)

    def media(self, digits: str = "", digits_at: float | None = None) -> Media:
        """The media in both directions; only after the end.

        `digits` were received by INFO, the first at `digits_at` by CLOCK_MONOTONIC. Many phones
        send digits by INFO and RFC 4733, so only those of the first method count.
        """
        report = self.over.result()
        if digits_at is None or (report.digits_at is not None and report.digits_at <= digits_at):
            digits = report.digits
        return Media(report.packets, report.received, digits, report.far_loss, report.far_jitter_ms)

    @property
    def came_from_elsewhere(self) -> bool:
        """Whether RTP came from an address that was not accepted; only after the end."""
        return self.over.result().unexpected > 0

    @property
    def is_unheard(self) -> bool:
        """Whether it ended because the awaited RTP did not come; only after the end."""
        return self.why == UNHEARD

    @property
    def is_stopped(self) -> bool:
        """Whether the remote stopped sending RTP without a hold; only after the end."""
        return self._sending_since is not None and self.over.result().stopped

    @property
    def silent_for(self) -> float:
        """Seconds of remote silence before the end of the stream, if it had stopped sending or the
        media timed out; else 0. Only after the end."""
        has_stopped = self._timed_out or self.is_stopped
        return (self.over.result().silent_for or 0.0) if has_stopped else 0.0

    def _fell_silent(self) -> None:
        limit, since = self._media_timeout, self._sending_since
        # After a hold the remote has the full time to send again.
        if since is not None and self._loop.time() - since >= limit:
            self._timed_out = True
            self.stop(f"media time-out: nothing came from the far end for {limit:g} s")

    def _ended(self, report: StreamReport) -> None:
        for timer in (self._end_timer, self._latch_timer):
            if timer is not None:
                timer.cancel()
        self._end_timer = self._latch_timer = None
        if report.error.startswith(UNHEARD):
            self.why = self.why or UNHEARD
        if not self.over.done():  # cancelled together with its waiter
            self.over.set_result(report)


def check_address(streamer: Streamer, agreed: NegotiatedMedia) -> None:
    """Raises RemoteAddressError if RTP can't be sent to the negotiated address."""
    if not _is_hold(agreed) and (problem := streamer.address_problem(agreed.remote)):
        raise RemoteAddressError(problem)


def _is_hold(agreed: NegotiatedMedia) -> bool:
    """Whether we may not send, or have no destination as with RFC 2543 hold (RFC 3264 §8.4)."""
    host, port = agreed.remote
    return agreed.direction not in _WE_SEND or host in UNSPECIFIED_HOSTS or port == 0


class MediaAddresses:
    """Resolves host names in the remote session descriptions of one call (RFC 8866 §5.7).

    The name of a provisional response is resolved while the phone rings, so that an answered call
    need not wait. Later changes are passed on in order; a pending one is dropped when the next one
    comes. `resolve` should cache its results.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._early: dict[str, asyncio.Task[str | None]] = {}
        self._waiting: tuple[MediaChanged, Follow] | None = None
        self._following: asyncio.Task[None] | None = None

    def prepare(self, answer: SessionDescription) -> None:
        """Resolve the host of an answer in a provisional response."""
        host = answer.address
        if is_host_name(host) and host not in self._early and len(self._early) < MAX_EARLY_LOOKUPS:
            self._early[host] = asyncio.create_task(self._try(host))

    async def resolved(self, agreed: NegotiatedMedia) -> NegotiatedMedia:
        """`agreed` with an IP address as host; raises RemoteAddressError if there is none."""
        host, port = agreed.remote
        if not is_host_name(host):
            return agreed
        try:
            return agreed._replace(remote=(await self._resolve(host), port))
        except OSError as fault:
            raise RemoteAddressError(
                f"the far end's media host {host} is not found: {fault}"
            ) from fault

    def follow(self, changed: MediaChanged, then: Follow) -> None:
        """Call `then` with a change of the media once its host is resolved.

        Hold is passed on at once. A host that can't be resolved puts the call on hold.
        """
        self._waiting = None
        if not is_host_name(changed.agreed.remote[0]):
            then(changed)
            return
        if changed.agreed.direction in ("recvonly", "inactive"):
            then(_held(changed))
        self._waiting = changed, then
        # One look-up at a time, because the remote chooses the number of changes.
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow_latest())

    def close(self) -> None:
        """Cancel pending look-ups."""
        self._waiting = None
        for task in self._early.values():
            task.cancel()
        self._early.clear()
        if self._following is not None:
            self._following.cancel()

    async def _try(self, host: str) -> str | None:
        try:
            return await self._resolve(host)
        except OSError:
            return None  # `resolved` raises it if the answer has this host

    async def _follow_latest(self) -> None:
        while self._waiting is not None:
            waiting = changed, then = self._waiting
            try:
                found = MediaChanged(changed.call_id, await self.resolved(changed.agreed))
            except RemoteAddressError as fault:
                log.warning("media_not_followed", fault=str(fault))
                found = _held(changed)
            if waiting is self._waiting:
                self._waiting = None
                then(found)


def _held(changed: MediaChanged) -> MediaChanged:
    return MediaChanged(changed.call_id, changed.agreed._replace(remote=(UNSPECIFIED_HOSTS[0], 0)))
