"""Deletes what the operator keeps no longer, and audio without a recording, beside the calls.

Work is done in pieces of one short transaction each, with a pause after each piece, and none while
the machine is busy: no call waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
from sqlalchemy import Connection

from bitel.errors import ConflictError, NotFoundError, UnavailableError
from bitel.recordings.storage import VoiceStore
from bitel.settings import RetentionSettings
from bitel.store import pausing, recordings
from bitel.store import retention as store
from bitel.store.database import Database

log = structlog.get_logger(__name__)

DAY: Final = 86_400.0

EVERY: Final = 3600.0
"""Seconds from one pass over all rows to the next, at most."""
PASSES: Final = 24
"""Passes in the time for which what is kept shortest is kept, at least."""
PAUSE: Final = 0.1
"""Seconds after a piece that changed something."""
SHORT_PAUSE: Final = 0.02
"""Seconds after a piece that changed nothing."""
BUSY_PAUSE: Final = 5.0
"""Seconds to the next look while the machine is busy."""
SWEEP_EVERY: Final = DAY
"""Seconds from one look for audio without a recording to the next."""
ORPHANED_AFTER: Final = 7 * DAY
"""Age in seconds of audio from which, without a recording, it is deleted."""

_AFTER_FAULT: Final = 10.0


class Retention:
    """One pass after the other, until it is cancelled.

    Args:
        settings: gives what holds now.
        clock: Unix seconds of all stored times; `system_clock` those of files.
        is_busy: whether calls must not be disturbed now.
    """

    def __init__(
        self,
        database: Database,
        voices: VoiceStore,
        settings: Callable[[], RetentionSettings],
        clock: Callable[[], float],
        system_clock: Callable[[], float],
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = database
        self._voices = voices
        self._settings = settings
        self._clock = clock
        self._system_clock = system_clock
        self._is_busy = is_busy
        self._swept_at = -SWEEP_EVERY

    async def run(self) -> None:
        """Work until cancelled. Raises what is unexpected."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.work()
                if loop.time() - self._swept_at >= SWEEP_EVERY:
                    self._swept_at = loop.time()
                    await self.sweep()
            except UnavailableError as fault:
                log.warning("retention_waits", fault=str(fault))
                await asyncio.sleep(_AFTER_FAULT)
                continue
            keep = self._settings()
            kept = (keep.calls, keep.webhook_events, keep.numbers, keep.recordings)
            shortest = min((days for days in kept if days), default=1.0)
            await asyncio.sleep(min(EVERY, shortest * DAY / PASSES))

    async def work(self) -> None:
        """One pass over all rows. Raises UnavailableError."""
        keep = self._settings()
        if keep.webhook_events:
            await self._delete("webhook_events", store.delete_events, keep.webhook_events)
        if keep.numbers:
            await self._blank_numbers(keep.numbers)
        if keep.calls:
            await self._delete("calls", store.delete_calls, keep.calls)
        if keep.recordings:
            await self._delete_recordings(keep.recordings)

    async def sweep(self) -> int:
        """Delete audio that is old and has no recording; how many files it was.

        A process that was killed between storing audio and adding its recording leaves some. Not
        while the database is known to be from a backup: recordings that were added since then may
        be in a newer one. Raises UnavailableError.
        """
        if await self._database.read(_is_restored):
            return 0
        before = self._system_clock() - ORPHANED_AFTER
        deleted = 0
        async for ids in self._voices.stored_before(before):
            known = await self._database.read(partial(recordings.live, ids=ids))
            for orphan in sorted(set(ids) - known):
                await self._voices.delete(orphan)
                deleted += 1
            await self._rest(changed=bool(set(ids) - known))
        if deleted:
            log.info("audio_without_recording_deleted", recordings=deleted)
        return deleted

    async def _delete(
        self,
        what: str,
        piece: Callable[..., tuple[str, int]],
        days: float,
    ) -> None:
        before = self._clock() - days * DAY
        after, deleted = "", 0
        while True:
            after, count = await self._database.write(partial(piece, before=before, after=after))
            deleted += count
            if not after:
                break
            await self._rest(changed=count > 0)
        if deleted:
            log.info("retention_deleted", what=what, rows=deleted, days=days)

    async def _blank_numbers(self, days: float) -> None:
        before = self._clock() - days * DAY
        after = await self._database.read(lambda conn: store.cursor(conn, "numbers"))
        is_whole, blanked = True, 0
        while True:
            here, whole = after, is_whole

            def work(
                conn: Connection, here: str = here, whole: bool = whole
            ) -> tuple[str, int, bool]:
                last, count = store.blank_numbers(conn, before, here)
                done = whole and bool(last) and store.are_blank(conn, here, last)
                if done:
                    # Up to here nothing is left, so that the next pass begins behind it.
                    store.move_cursor(conn, "numbers", last)
                return last, count, done

            after, count, is_whole = await self._database.write(work)
            blanked += count
            if not after:
                break
            await self._rest(changed=count > 0)
        if blanked:
            log.info("retention_blanked", what="numbers", rows=blanked, days=days)

    async def _delete_recordings(self, days: float) -> None:
        before = self._clock() - days * DAY
        after, deleted = "", 0
        while True:
            after, unused = await self._database.read(
                partial(store.unused_recordings, before=before, after=after)
            )
            for project_id, recording_id in unused:
                deleted += await self._delete_recording(project_id, recording_id)
            if not after:
                break
            await self._rest(changed=bool(unused))
        if deleted:
            log.info("retention_deleted", what="recordings", rows=deleted, days=days)

    async def _delete_recording(self, project_id: str, recording_id: str) -> bool:
        now = self._clock()
        try:
            await self._database.write(
                lambda conn: recordings.remove(conn, project_id, recording_id, now)
            )
        except (ConflictError, NotFoundError):
            return False  # a call was placed with it, or a client deleted it, meanwhile
        await self._voices.delete(recording_id)
        return True

    async def _rest(self, *, changed: bool) -> None:
        await asyncio.sleep(PAUSE if changed else SHORT_PAUSE)
        while self._is_busy():  # noqa: ASYNC110 (nothing announces that it is over)
            await asyncio.sleep(BUSY_PAUSE)


def _blank_piece(
    conn: Connection, before: float, after: str, is_whole: bool
) -> tuple[str, int, bool]:
    """As `store.blank_numbers`, and whether no number is left up to the end of this piece."""
    last, count = store.blank_numbers(conn, before, after)
    is_whole = is_whole and bool(last) and store.are_blank(conn, after, last)
    if is_whole:
        # The next pass begins behind it.
        store.move_cursor(conn, "numbers", last)
    return last, count, is_whole


def _is_restored(conn: Connection) -> bool:
    return any(each.is_restored for each in pausing.listing(conn))
