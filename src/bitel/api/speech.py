"""The audio of calls: recordings, texts that become recordings, and codes that stay digits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from bitel.api.context import ApiContext
from bitel.api.rate_limits import ConcurrencyQuota, quota_of
from bitel.api.schemas import LONGEST_CODE
from bitel.domain import templates
from bitel.domain.ids import new_id
from bitel.domain.recipients import Recipient
from bitel.domain.templates import MissingVariableError, Template
from bitel.errors import InvalidRequestError
from bitel.speech import spoken_text
from bitel.speech.digits import GAP_SECONDS, PAUSE_SECONDS
from bitel.speech.library import SpeechLibrary
from bitel.store import recordings
from bitel.store.recordings import Recording
from bitel.supervision import SharedTasks

DIGIT_SECONDS: Final = 1.0
"""Assumed duration of a spoken digit when money is reserved; most are shorter."""
MOST_TEXTS: Final = 16
"""Texts of one project that may be rendered at once."""
MOST_LISTED: Final = 10
"""Names of variables that an error message lists."""
LONGEST_NAME: Final = 60
"""Characters of a text that are the name of its recording."""


@dataclass(frozen=True, slots=True)
class Playback:
    """The audio of a call: a recording, digits, or both in that order; `seconds` at most."""

    recording_id: str | None
    seconds: float
    digits: str = ""
    repeat_count: int = 1
    language: str = ""


@dataclass(frozen=True, slots=True)
class PersonalTexts:
    """The texts of a batch, of which each recipient gets its own; stored with its campaign."""

    template: str
    language: str
    seconds: Sequence[float]
    """The most that each recipient's text takes to speak, in their order."""


class SpeechService:
    """Renders texts as speech, each once per project."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._sharing: SharedTasks[Recording] = SharedTasks()
        self._under_way = ConcurrencyQuota(MOST_TEXTS, "texts")

    async def recording(self, project_id: str, text: str, language: str | None) -> Recording:
        """The project's recording of `text`, rendered on first use.

        Raises InvalidRequestError, which names `text` or `language`, TooManyRequestsError or
        UnavailableError.
        """
        key = await self._context.speech.recording_key(text, language)
        found = await self._find(project_id, key)
        if found is not None:
            return found

        with self._under_way.one_more(project_id):
            await self._context.database.read(
                lambda conn: recordings.check_room(
                    conn, project_id, quota_of(self._context.settings)
                )
            )
            return await self._sharing.get(
                f"{project_id} {key}", lambda: self._speak(project_id, text, language, key)
            )

    async def text(self, project_id: str, text: str, language: str | None) -> Playback:
        """The audio of `text`. Raises as `recording` does."""
        recording = await self.recording(project_id, text, language)
        return Playback(recording.id, recording.duration)

    async def template(
        self,
        text: str,
        language: str | None,
        recipients: Sequence[Recipient],
        faults: dict[int, str] | None = None,
    ) -> PersonalTexts:
        """Check a text with `{variables}` and how long it lasts for each recipient.

        It is rendered later, ahead of dialling. What is wrong with a recipient is added to
        `faults`, by its position, if that is given. Raises InvalidRequestError, which names `text`,
        `language` or the row, as in `recipients[17]`, or UnavailableError.
        """
        template = templates.parse(text)
        speech = self._context.speech
        longest = await speech.longest_seconds(language)
        settings = self._context.settings.speech
        if template.literal_chars > settings.max_chars:
            raise InvalidRequestError(
                f"text has {template.literal_chars} characters; at most {settings.max_chars} can "
                "be spoken."
            )
        seconds = await asyncio.to_thread(
            _seconds_of_each, template, recipients, longest, speech, settings.max_chars, faults
        )
        return PersonalTexts(text, (language or settings.default_language).lower(), seconds)

    async def code(
        self, text: str, language: str | None, repeats: int, intro: Playback | None
    ) -> Playback:
        """The digits of `text` in `language`, `repeats` times, after `intro` if given.

        Raises InvalidRequestError, which names `voiceId`, `text` or `language`, or
        UnavailableError.
        """
        longest = self._context.settings.otp.max_intro
        if intro is not None and intro.seconds > longest:
            raise InvalidRequestError(
                f"voiceId names a recording of {intro.seconds:g} s; before a one-time password it "
                f"may last {longest:g} s"
            )
        digits = spoken_text.digits(text, LONGEST_CODE)
        # Digits are rendered at the time of the call; this checks the language now.
        await self._context.speech.recording_key(digits, language)
        seconds = repeats * (len(digits) * (DIGIT_SECONDS + GAP_SECONDS) + PAUSE_SECONDS)
        return Playback(
            recording_id=intro.recording_id if intro else None,
            seconds=seconds + (intro.seconds if intro else 0.0),
            digits=digits,
            repeat_count=repeats,
            language=(language or self._context.settings.speech.default_language).lower(),
        )

    async def _find(self, project_id: str, key: str) -> Recording | None:
        return await self._context.database.read(
            lambda conn: recordings.find_by_speech_key(conn, project_id, key)
        )

    async def _speak(self, project_id: str, text: str, language: str | None, key: str) -> Recording:
        spoken = await self._context.speech.render(text, language, project_id)
        now = self._context.clock()
        made = Recording(
            id=new_id(now),
            project_id=project_id,
            name=" ".join(text.split())[:LONGEST_NAME],
            duration=spoken.duration,
            size=spoken.samples,
            created_at=now,
            kind="speech",
            speech_key=key,
        )
        await self._context.voices.put(made.id, spoken)
        kept = None
        try:
            quota = quota_of(self._context.settings)
            kept = await self._context.database.write(
                lambda conn: recordings.add(conn, made, quota)
            )
        finally:
            if kept is None or kept.id != made.id:
                # Another process was faster, or the write failed.
                await self._context.voices.delete(made.id)
        return kept


def _seconds_of_each(
    template: Template,
    recipients: Sequence[Recipient],
    longest: Callable[[str], float],
    speech: SpeechLibrary,
    max_chars: int,
    faults: dict[int, str] | None,
) -> list[float]:
    """The bound of each recipient's text, without those that are added to `faults`.

    Raises InvalidRequestError, which names the row, if faults are not wanted.
    """
    known: dict[str, float] = {}

    def bound_of(part: str, row: str) -> float:
        bound = known.get(part)
        if bound is None:
            # What is printable can be spoken; the rest is mostly Persian's joiner.
            if not part.isprintable():
                try:
                    speech.part(part, is_last=True)
                except InvalidRequestError as error:
                    raise InvalidRequestError(f"the text of {row} is refused: {error}") from error
            bound = known[part] = longest(part)
        return bound

    seconds: list[float] = []
    for number, recipient in enumerate(recipients):
        row = _row(number, recipient)
        try:
            parts = _parts(template, recipient, row)
            chars = sum(map(len, parts)) + len(parts) - 1
            if chars > max_chars:
                raise InvalidRequestError(
                    f"the text of {row} has {chars} characters; at most {max_chars} can be spoken"
                )
            seconds.append(sum(bound_of(part, row) for part in parts))
        except InvalidRequestError as fault:
            if faults is None:
                raise
            faults[number] = str(fault)
    return seconds


def _parts(template: Template, recipient: Recipient, row: str) -> Sequence[str]:
    """The parts of a recipient's text. An error lists the variables that the recipient has."""
    try:
        return templates.fill(template, recipient.variables, row)
    except MissingVariableError as fault:
        if not recipient.variables:
            raise
        names = ", ".join(map(repr, islice(recipient.variables, MOST_LISTED)))
        more = len(recipient.variables) - MOST_LISTED
        rest = f" and {more} more" if more > 0 else ""
        raise InvalidRequestError(f"{fault}; it has {names}{rest}") from None


def _row(number: int, recipient: Recipient) -> str:
    """The name of a recipient in errors: that of the request, or the line of the list's file."""
    return f"recipients[{number}]" if recipient.line is None else f"line {recipient.line} of listId"
