"""Renders the texts of waiting calls ahead of their dialling, in the background.

All that it knows is in the database: calls whose texts are not rendered, and the parts that are. So
it goes on after a crash, and several processes may do the same work. Projects take turns, a piece
each; within a project the calls that are due first come first. A part that can't be spoken ends
the calls that need it; while the engine, the storage or the database fails, calls wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from bitel.domain import templates
from bitel.domain.ids import new_ids
from bitel.errors import InvalidRequestError, UnavailableError
from bitel.recordings.storage import VoiceStore
from bitel.speech.engines import TextFailedError
from bitel.speech.library import SpeechLibrary
from bitel.speech.parts import Part, batches
from bitel.store import speech_parts
from bitel.store.database import Database
from bitel.store.recordings import STORED_BYTES_A_SECOND
from bitel.store.speech_parts import SpeechPart, WaitingCall, WaitingCampaign

log = structlog.get_logger(__name__)

POLL: Final = 1.0
"""Seconds after which it looks for calls that another process has placed."""
PIECE: Final = 300
"""Calls of a project before it is the next one's turn."""
FIRST_PIECE: Final = 30
"""Calls of a campaign's first piece, so that its dialling begins soon."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds until a campaign is tried again whose texts can't be rendered; doubled each time."""
OWNER: Final = "texts"
"""All renderings together get half of the turns of worker processes, so that uploads and texts of
requests have the others."""
COUNTED_FOR: Final = 60.0
"""Seconds until the parts that a project has stored are counted again."""

_PROBE: Final = Part("1.", 0.0)
"""What every working engine can speak."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a part can't be spoken."""

    reason: str


@dataclass(slots=True)
class _Backoff:
    until: float
    pause: float


class TextRenderer:
    """Renders texts until it is cancelled.

    Args:
        clock: gives the Unix seconds of stored times.
        quota: gives the bytes that the parts of one project may take in the storage.
        on_rendered: called with a dialer's id after texts of its calls were rendered.
    """

    def __init__(
        self,
        database: Database,
        voices: VoiceStore,
        speech: SpeechLibrary,
        clock: Callable[[], float],
        quota: Callable[[], int],
        on_rendered: Callable[[str], None] = lambda dialer_id: None,
    ) -> None:
        self._database = database
        self._voices = voices
        self._speech = speech
        self._clock = clock
        self._quota = quota
        self._on_rendered = on_rendered
        self._placed = asyncio.Event()
        self._last_project = ""
        self._begun: set[str] = set()
        self._backoff: dict[str, _Backoff] = {}
        self._stored: dict[str, tuple[float, float]] = {}

    def wake(self) -> None:
        """Look for calls at once."""
        self._placed.set()

    async def run(self) -> None:
        """Work until cancelled. Raises unexpected errors."""
        while True:
            self._placed.clear()
            if not await self.work():
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self._placed.wait()

    async def work(self) -> bool:
        """Render a piece of one project; returns whether there was any to do now."""
        outage = self._backoff.get("")
        if outage is not None and outage.until > _monotonic():
            return False
        try:
            waiting = await self._database.read(speech_parts.waiting_campaigns)
        except UnavailableError as fault:
            self._wait("", fault)
            return False
        campaign = self._next(waiting)
        if campaign is None:
            return False
        most = PIECE if campaign.id in self._begun else FIRST_PIECE
        try:
            await self._render_piece(campaign, most)
        except UnavailableError as fault:
            self._wait(campaign.id, fault)
        else:
            self._begun.add(campaign.id)
            self._backoff.pop(campaign.id, None)
        return True

    def _next(self, waiting: Sequence[WaitingCampaign]) -> WaitingCampaign | None:
        """The campaign to render next: of the next project, the one that is due first."""
        ids = {each.id for each in waiting}
        self._begun &= ids
        self._backoff = {key: each for key, each in self._backoff.items() if key in ids}
        now = _monotonic()
        able = [
            each
            for each in waiting
            if each.id not in self._backoff or self._backoff[each.id].until <= now
        ]
        if not able:
            return None
        projects = sorted({each.project_id for each in able})
        project_id = next((each for each in projects if each > self._last_project), projects[0])
        self._last_project = project_id
        return min(
            (each for each in able if each.project_id == project_id),
            key=lambda each: (each.due_at, each.id),
        )

    def _wait(self, campaign_id: str, fault: UnavailableError) -> None:
        """Leave a campaign alone for a while; of the empty id: the database failed."""
        before = self._backoff.get(campaign_id)
        pause = min(2 * before.pause, LONGEST_PAUSE) if before else FIRST_PAUSE
        self._backoff[campaign_id] = _Backoff(_monotonic() + pause, pause)
        cause = f" ({fault.__cause__})" if fault.__cause__ else ""
        log.warning("texts_wait", campaign=campaign_id, fault=f"{fault}{cause}", again_in=pause)

    async def _render_piece(self, campaign: WaitingCampaign, most: int) -> None:
        """Render the next calls of a campaign.

        Raises UnavailableError where some of them have to wait; the others are rendered.
        """
        calls = await self._database.read(
            partial(speech_parts.waiting_calls, campaign_id=campaign.id, most=most)
        )
        texts = await asyncio.to_thread(self._texts, campaign.template, calls)
        parts = {part: None for text in texts.values() if isinstance(text, tuple) for part in text}
        made, fault = await self._find_or_render(campaign, list(parts))
        rendered: list[tuple[str, tuple[str, ...]]] = []
        refused: list[tuple[str, str]] = []
        for call_id, text in texts.items():
            found = [text] if isinstance(text, Refusal) else [made.get(part) for part in text]
            refusals = [each for each in found if isinstance(each, Refusal)]
            ids = tuple(each for each in found if isinstance(each, str))
            if refusals:
                refused.append((call_id, refusals[0].reason))
            elif len(ids) == len(found):
                rendered.append((call_id, ids))
        if rendered or refused:
            now = self._clock()
            await self._database.write(
                partial(speech_parts.finish, rendered=rendered, refused=refused, now=now)
            )
        if refused:
            log.warning(
                "texts_refused", campaign=campaign.id, calls=len(refused), reason=refused[0][1]
            )
        if rendered:
            self._on_rendered(campaign.dialer_id)
        if fault is not None:
            raise fault

    def _texts(
        self, template: str, calls: Iterable[WaitingCall]
    ) -> dict[str, tuple[Part, ...] | Refusal]:
        """The parts of each call's text."""
        parsed = templates.parse(template)
        texts: dict[str, tuple[Part, ...] | Refusal] = {}
        for call in calls:
            try:
                filled = templates.fill(parsed, json.loads(call.variables or "{}"))
                texts[call.id] = tuple(
                    self._speech.part(text, is_last=number == len(filled))
                    for number, text in enumerate(filled, 1)
                )
            except InvalidRequestError as error:
                texts[call.id] = Refusal(str(error))
        return texts

    async def _find_or_render(
        self, campaign: WaitingCampaign, parts: Sequence[Part]
    ) -> tuple[dict[Part, str | Refusal], UnavailableError | None]:
        """The ids of the project's parts, or why they can't be spoken; and why some are missing."""
        keys = await self._speech.part_keys(parts, campaign.language)
        known = await self._database.write(
            partial(
                speech_parts.use,
                project_id=campaign.project_id,
                keys=set(keys.values()),
                now=self._clock(),
            )
        )
        by_key = {part.key: part.id for part in known}
        made: dict[Part, str | Refusal] = {
            part: by_key[key] for part, key in keys.items() if key in by_key
        }
        missing = [part for part in parts if part not in made]
        if not missing:
            return made, None
        if (refusal := await self._refuse_if_full(campaign.project_id)) is not None:
            return made | dict.fromkeys(missing, refusal), None
        results = await asyncio.gather(
            *(self._render(campaign, batch, keys) for batch in batches(missing)),
            return_exceptions=True,
        )
        fault: UnavailableError | None = None
        for result in results:
            if isinstance(result, UnavailableError):
                fault = result
            elif isinstance(result, BaseException):
                raise result
            else:
                made |= result
        return made, fault

    async def _render(
        self, campaign: WaitingCampaign, parts: Sequence[Part], keys: dict[Part, str]
    ) -> dict[Part, str | Refusal]:
        """Render parts with one run of the engine, and store them.

        If it fails, each half is rendered alone, down to the part that is at fault. Raises
        UnavailableError.
        """
        try:
            async with self._speech.rendered_parts(parts, campaign.language, OWNER) as clips:
                ids = new_ids(self._clock(), len(parts))
                new = [
                    SpeechPart(part_id, campaign.project_id, keys[part], clip.duration)
                    for part_id, part, clip in zip(ids, parts, clips, strict=True)
                ]
                await self._voices.put_each(dict(zip(ids, clips, strict=True)))
        except (InvalidRequestError, TextFailedError) as error:
            if len(parts) > 1:
                half = len(parts) // 2
                first = await self._render(campaign, parts[:half], keys)
                return first | await self._render(campaign, parts[half:], keys)
            if isinstance(error, TextFailedError):
                await self._probe(campaign.language)
            return {parts[0]: Refusal(str(error))}
        return await self._add(parts, new)

    async def _add(
        self, parts: Sequence[Part], new: Sequence[SpeechPart]
    ) -> dict[Part, str | Refusal]:
        kept: set[str] = set()
        try:
            found = await self._database.write(
                partial(speech_parts.add, parts=new, now=self._clock())
            )
            kept = {each.id for each in found}
        finally:
            for each in new:
                if each.id not in kept:
                    # Another process was faster, or the write failed.
                    await self._voices.delete(each.id)
        project_id = new[0].project_id
        if project_id in self._stored:
            stored, counted_at = self._stored[project_id]
            self._stored[project_id] = stored + sum(each.duration for each in new), counted_at
        by_key = {each.key: each.id for each in found}
        return {part: by_key[each.key] for part, each in zip(parts, new, strict=True)}

    async def _probe(self, language: str | None) -> None:
        """Raise UnavailableError if the engine can't speak anything now."""
        async with self._speech.rendered_parts([_PROBE], language, OWNER):
            pass

    async def _refuse_if_full(self, project_id: str) -> Refusal | None:
        """Why the project may not store more parts, after unneeded ones were deleted."""
        quota = self._quota()
        if await self._stored_bytes(project_id) < quota:
            return None
        after = ""
        while True:
            after, removed = await self._database.write(
                partial(
                    speech_parts.remove_unneeded,
                    before=self._clock(),
                    after=after,
                    project_id=project_id,
                )
            )
            for part_id in removed:
                await self._voices.delete(part_id)
            if not after:
                break
        self._stored.pop(project_id)
        if await self._stored_bytes(project_id) < quota:
            return None
        return Refusal(
            f"the spoken texts of this project's campaigns take {quota >> 20} MiB, the most that "
            "they may (limits.storage_megabytes)"
        )

    async def _stored_bytes(self, project_id: str) -> float:
        stored = self._stored.get(project_id)
        if stored is None or stored[1] + COUNTED_FOR < _monotonic():
            seconds = await self._database.read(
                partial(speech_parts.stored_seconds, project_id=project_id)
            )
            stored = self._stored[project_id] = seconds, _monotonic()
        return stored[0] * STORED_BYTES_A_SECOND


def _monotonic() -> float:
    return asyncio.get_running_loop().time()
