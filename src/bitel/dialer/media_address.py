"""Looks up host names in the far end's session descriptions.

A `c=` line may have a host name in place of an IP address (RFC 8866 §5.7). That of a provisional
response is looked up while the phone rings, so that an answered call need not wait for it. Later
changes of the media are passed on in order; one whose look-up is pending is dropped when the next
one comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from bitel.rtp.streamer import RemoteAddressError
from bitel.sip import MediaChanged
from bitel.sip.sdp import NegotiatedMedia, SessionDescription, is_host_name

MAX_EARLY_LOOKUPS = 8
"""Host names of one call that are looked up before its answer."""
NOWHERE = ("0.0.0.0", 0)
"""The destination of a call on hold, which is sent no audio (RFC 3264 §8.4)."""

Resolve = Callable[[str], Awaitable[str]]
"""Gives an IP address of a host, within a bounded time; raises OSError where there is none."""
Follow = Callable[[MediaChanged], None]

log = structlog.get_logger(__name__)


class MediaAddresses:
    """The look-ups of one call. `resolve` should cache its results."""

    __slots__ = ("_early", "_following", "_resolve", "_waiting")

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._early: dict[str, asyncio.Task[str | None]] = {}
        self._waiting: tuple[MediaChanged, Follow] | None = None
        self._following: asyncio.Task[None] | None = None

    def prepare(self, answer: SessionDescription) -> None:
        """Begin the look-up for an answer in a provisional response."""
        host = answer.address
        if is_host_name(host) and host not in self._early and len(self._early) < MAX_EARLY_LOOKUPS:
            self._early[host] = asyncio.create_task(self._try(host))

    async def resolved(self, agreed: NegotiatedMedia) -> NegotiatedMedia:
        """`agreed` with an IP address to send to; RemoteAddressError if its host has none."""
        host, port = agreed.far
        if not is_host_name(host):
            return agreed
        try:
            return agreed._replace(far=(await self._resolve(host), port))
        except OSError as fault:
            raise RemoteAddressError(
                f"the far end's media host {host} is not found: {fault}"
            ) from fault

    def follow(self, changed: MediaChanged, then: Follow) -> None:
        """Pass a change of the media on to `then`, once its address is known.

        Hold is passed on at once. A change to a host that is not found puts the call on hold, for
        want of a destination.
        """
        self._waiting = None
        if not is_host_name(changed.agreed.far[0]):
            then(changed)
            return
        if changed.agreed.direction in ("recvonly", "inactive"):
            then(_held(changed))
        self._waiting = changed, then
        # One look-up at a time, because the far end chooses the names and the number of changes.
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow_latest())

    def close(self) -> None:
        """Cancel the look-ups: the call is over."""
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
            return None  # `resolved` raises it, if the answer still has this host

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
    return MediaChanged(changed.call_id, changed.agreed._replace(far=NOWHERE))
