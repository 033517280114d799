"""Retention: deletes data that is older than the settings allow, and audio without a recording.

Works in short transactions with pauses between them, and not while the machine is busy, so that
calls do not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final

import structlog
from sqlalchemy import Connection

from bitel.errors import ConflictError, NotFoundError, UnavailableError
from bitel.recordings.storage import VoiceStore
from bitel.settings import RetentionSettings
from bitel.store import pausing, recipient_lists, recordings, speech_parts
from bitel.store import retention as store
from bitel.store.database import Database

log = structlog.get_logger(__name__)

DAY: Final = 86_400.0

EVERY: Final = 3600.0
"""Seconds from one pass over all rows to the next, at most."""
PASSES: Final = 24
"""Minimum number of passes within the shortest retention period."""
PAUSE: Final = 0.1
"""Seconds after a transaction that changed rows."""
SHORT_PAUSE: Final = 0.02
"""Seconds after a transaction that changed nothing."""
BUSY_PAUSE: Final = 5.0
"""Seconds between two checks while the machine is busy."""
SWEEP_EVERY: Final = DAY
"""Seconds between two sweeps of audio without a recording."""
ORPHANED_AFTER: Final = 7 * DAY
"""Age in seconds from which audio without a recording is deleted."""
PARTS_KEPT: Final = 7
"""Days after its last use that a spoken part of a text is kept for further campaigns."""

LIST_DAYS: Final = 30.0
"""Days until an uploaded list of recipients is deleted."""

_AFTER_FAULT: Final = 10.0


class Retention:
    """Makes one pass after the other.

    Args:
        settings: gives the settings in force.
        clock: gives the Unix seconds of stored times; `system_clock` those of files.
        is_busy: whether the dialers are overloaded now.
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
        """Work until cancelled. Raises unexpected errors."""
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
        await self._delete("lists", recipient_lists.delete_old, LIST_DAYS)
        await self._delete_parts()

    async def sweep(self) -> int:
        """Delete old audio without a recording, and return how many were deleted.

        A process that is killed between storing audio and adding its recording leaves some. Does
        nothing while the database is known to be from a backup: a newer one may have the
        recordings. Raises UnavailableError.
        """
        if await self._database.read(_is_restored):
            return 0
        before = self._system_clock() - ORPHANED_AFTER
        deleted = 0
        async for ids in self._voices.stored_before(before):
            known = await self._database.read(partial(_with_audio, ids=ids))
            for orphan in sorted(set(ids) - known):
                await self._voices.delete(orphan)
                deleted += 1
            await self._rest(changed=bool(set(ids) - known))
        if deleted:
            log.info("audio_without_recording_deleted", recordings=deleted)
        return deleted

    async def _delete(self, what: str, delete: Callable[..., tuple[str, int]], days: float) -> None:
        before = self._clock() - days * DAY

        async def piece(after: str) -> tuple[str, int]:
            return await self._database.write(partial(delete, before=before, after=after))

        deleted = await self._in_pieces(piece)
        if deleted:
            log.info("retention_deleted", what=what, rows=deleted, days=days)

    async def _blank_numbers(self, days: float) -> None:
        before = self._clock() - days * DAY
        is_whole = True

        async def piece(after: str) -> tuple[str, int]:
            nonlocal is_whole
            last, count, is_whole = await self._database.write(
                partial(_blank_piece, before=before, after=after, is_whole=is_whole)
            )
            return last, count

        start = await self._database.read(lambda conn: store.cursor(conn, "numbers"))
        blanked = await self._in_pieces(piece, start)
        if blanked:
            log.info("retention_blanked", what="numbers", rows=blanked, days=days)

    async def _delete_recordings(self, days: float) -> None:
        before = self._clock() - days * DAY

        async def piece(after: str) -> tuple[str, int]:
            last, unused = await self._database.read(
                partial(store.unused_recordings, before=before, after=after)
            )
            return last, sum([await self._delete_recording(*each) for each in unused])

        deleted = await self._in_pieces(piece)
        if deleted:
            log.info("retention_deleted", what="recordings", rows=deleted, days=days)

    async def _delete_parts(self) -> None:
        before = self._clock() - PARTS_KEPT * DAY

        async def piece(after: str) -> tuple[str, int]:
            last, removed = await self._database.write(
                partial(speech_parts.remove_unneeded, before=before, after=after)
            )
            for part_id in removed:
                await self._voices.delete(part_id)
            return last, len(removed)

        deleted = await self._in_pieces(piece)
        if deleted:
            log.info("retention_deleted", what="spoken_parts", rows=deleted, days=PARTS_KEPT)

    async def _in_pieces(
        self, piece: Callable[[str], Awaitable[tuple[str, int]]], after: str = ""
    ) -> int:
        """Call `piece` up to the end of the table, and return how many rows were changed.

        `piece` takes the id after which it begins, and returns the last id that it checked, empty
        at the end of the table, and the number of rows that it changed.
        """
        changed = 0
        while True:
            after, count = await piece(after)
            changed += count
            if not after:
                return changed
            await self._rest(changed=count > 0)

    async def _delete_recording(self, project_id: str, recording_id: str) -> bool:
        now = self._clock()
        try:
            await self._database.write(
                lambda conn: recordings.remove(conn, project_id, recording_id, now)
            )
        except (ConflictError, NotFoundError):
            return False  # meanwhile a call was placed with it, or a client deleted it
        await self._voices.delete(recording_id)
        return True

    async def _rest(self, *, changed: bool) -> None:
        await asyncio.sleep(PAUSE if changed else SHORT_PAUSE)
        while self._is_busy():  # noqa: ASYNC110 (no event announces its end)
            await asyncio.sleep(BUSY_PAUSE)


def _blank_piece(
    conn: Connection, before: float, after: str, is_whole: bool
) -> tuple[str, int, bool]:
    """As `store.blank_numbers`; also returns whether no number is left up to the end of this piece.

    `is_whole` says whether none is left before it; then the next pass begins after this piece.
    """
    last, count = store.blank_numbers(conn, before, after)
    is_whole = is_whole and bool(last) and store.are_blank(conn, after, last)
    if is_whole:
        store.move_cursor(conn, "numbers", last)
    return last, count, is_whole


def _with_audio(conn: Connection, ids: Collection[str]) -> set[str]:
    return recordings.live(conn, ids) | speech_parts.live(conn, ids)


def _is_restored(conn: Connection) -> bool:
    return any(each.is_restored for each in pausing.listing(conn))
