"""The menu of an answered call: keys change what is played, and opt out of further calls.

Keys come from the RTP of the callee (RFC 4733) and from SIP INFO. Many phones send each key both
ways, so only those of the first way that is seen count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal

import structlog

from bitel.domain.menus import CALL_AUDIO, Menu, MenuRun, MenuStep, Playback
from bitel.rtp.shared_clip import SharedClip
from bitel.rtp.streamer import MAX_CLIPS

LEAD_OUT: Final = 0.2
"""Seconds of silence before our BYE, which would cut off what the callee has not played yet."""

KeySource = Literal["rtp", "info"]
MenuClips = Mapping[str | float, SharedClip]
"""The clips of a menu: of its recordings by id, of `CONFIRMATION`, and of silences by seconds."""

OptOut = Callable[[], Awaitable[None]]
"""Puts the number of the call on the do-not-call list of its project; returns once it is durable.

It is tried again until it succeeds, or the task is cancelled.
"""

log = structlog.get_logger(__name__)


class MenuSession:
    """Follows the keys of one call. `replace` plays other clips in place of what is left."""

    def __init__(
        self,
        menu: Menu,
        audio: Sequence[SharedClip],
        clips: MenuClips,
        replace: Callable[[Sequence[SharedClip]], None],
        opt_out: OptOut,
    ) -> None:
        """`audio` are the clips of the call itself."""
        self._run = MenuRun(menu)
        self._audio = audio
        self._clips = clips
        self._replace = replace
        self._opt_out = opt_out
        self._source: KeySource | None = None
        self._step: MenuStep | None = None
        self._opting_out: asyncio.Task[None] | None = None
        self._is_stopped = False
        self._rtp_keys = 0

    @property
    def reports(self) -> tuple[str, ...]:
        """The words that were reported."""
        return tuple(self._run.reports)

    @property
    def has_opted_out(self) -> bool:
        """Whether a key has opted out; by now, or with the end of the call, it is stored."""
        return self._run.has_opted_out

    def stop(self) -> None:
        """Follow no further keys: something else is played."""
        self._is_stopped = True

    def begin(self) -> list[SharedClip]:
        """What is played from the answer on."""
        return self._expanded(self._run.begin())

    def press_rtp(self, keys: str, at: float) -> None:
        """Follow keys that came in the audio stream."""
        self._rtp_keys += len(keys)
        self._press(keys, "rtp")

    def press_info(self, keys: str) -> None:
        """Follow keys that came by INFO."""
        self._press(keys, "info")

    def _press(self, keys: str, source: KeySource) -> None:
        if self._source not in (None, source) or self._is_stopped:
            return
        for key in keys:
            step = self._run.press(key)
            if step is None:
                continue
            # Only a key that does something: one that is misheard must not make all others void.
            self._source = source
            self._step = step
            if step.opt_out:
                # Until it is stored, as it waits for a key: then silence ends the call.
                self._replace(self._expanded(self._run.silence))
                if self._opting_out is not None:
                    self._opting_out.cancel()
                self._opting_out = asyncio.create_task(self._confirm(step))
            else:
                self._replace(self._expanded(step.play))

    def finish(self, digits: str) -> None:
        """End with the call; `digits` are all that came in its audio stream.

        The last of them may not have been reported before the end. An opt-out that is not stored
        yet is stored with the call's end.
        """
        self.press_rtp(digits[self._rtp_keys :], 0.0)
        self.close()

    def close(self) -> None:
        """Wait for no opt-out any more."""
        if self._opting_out is not None:
            self._opting_out.cancel()

    async def _confirm(self, step: MenuStep) -> None:
        try:
            await self._opt_out()
        except Exception:
            log.exception("opt_out_broke")
            return
        if self._step is step and not self._is_stopped:
            self._replace(self._expanded(step.play))

    def _expanded(self, play: Playback) -> list[SharedClip]:
        clips: list[SharedClip] = []
        for each in play:
            more = list(self._audio) if each == CALL_AUDIO else [self._clips[each]]
            if len(clips) + len(more) >= MAX_CLIPS:
                break  # a text of very many parts, which is repeated less often
            clips += more
        return [*clips, self._clips[LEAD_OUT]]
