"""Uploads of lists: receives, reads and stores recipients, and numbers not to be called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from bitel.api.context import ApiContext
from bitel.api.multipart import FilePart
from bitel.api.rate_limits import ConcurrencyQuota
from bitel.api.uploads import body_of, check_declared_length, upload_folder
from bitel.domain.ids import new_id
from bitel.domain.number_policy import policy_of
from bitel.domain.recipients import Recipient
from bitel.errors import InvalidRequestError, UnavailableError
from bitel.recipient_lists import intake
from bitel.recipient_lists.columns import LONGEST_NAME
from bitel.recipient_lists.intake import ListLimits, ReadFile
from bitel.recipient_lists.list_worker import Task
from bitel.recipient_lists.reading import Summary
from bitel.recordings import files
from bitel.store import do_not_call, recipient_lists
from bitel.store.projects import Project
from bitel.store.recipient_lists import RecipientList

MOST_UPLOADS: Final = 4
"""Concurrent uploads of lists of one project."""
PIECES_AT_ONCE: Final = 8
"""Pieces that one transaction stores."""

COLUMN: Final = "column"
DRY_RUN, SKIP_INVALID, SKIP_DUPLICATES = "dryRun", "skipInvalid", "skipDuplicates"
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False, "": False}


@dataclass(frozen=True, slots=True)
class StoredList:
    """An uploaded list."""

    id: str | None
    """None: it was not stored."""
    summary: Summary


@dataclass(frozen=True, slots=True)
class Imported:
    """Numbers that were put on the do-not-call list."""

    added: int
    already_listed: int
    summary: Summary


class ListUploadService:
    """Receives lists."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._under_way = ConcurrencyQuota(MOST_UPLOADS, "uploads of lists")

    async def receive(self, project: Project, request: Request) -> StoredList:
        """Receive the file of a multipart request and store its recipients, unless it is a dry run.

        The other parts are `dryRun`, `column`, `skipInvalid` and `skipDuplicates`.

        Raises PayloadTooLargeError, UnsupportedMediaError, InvalidRequestError,
        TooManyRequestsError, UnavailableError or ClientDisconnect; then nothing is kept.
        """
        context = self._context
        wanted = (DRY_RUN, COLUMN, SKIP_INVALID, SKIP_DUPLICATES)
        async with self._received(project.id, request, wanted) as received:
            settings = context.settings
            fields = received.part.fields
            is_dry_run = _flag(fields, DRY_RUN)
            task = Task(
                {
                    **received.options(settings.list_limit),
                    "skip_invalid": _flag(fields, SKIP_INVALID),
                    "skip_duplicates": _flag(fields, SKIP_DUPLICATES),
                },
                settings.region,
                settings.extra_prefixes,
                _prefixes(project, settings.region),
                [rate.prefix for rate in settings.price_list().rates],
                writes=not is_dry_run,
            )
            if not is_dry_run:
                # An early check; the write below checks again.
                await context.database.read(
                    lambda conn: recipient_lists.check_room(conn, project.id)
                )
            found = await received.read(task)
            if is_dry_run:
                return StoredList(None, found.summary)
            if not found.summary.recipients:
                raise InvalidRequestError(
                    f"{received.part.name} has no row that can be called; a dry run says why"
                )
            if await request.is_disconnected():
                raise ClientDisconnect
            now = context.clock()
            new = RecipientList(
                new_id(now),
                project.id,
                received.part.name,
                now,
                found.summary.recipients,
                tuple(found.summary.columns),
            )
            await self._store(new, found)
            return StoredList(new.id, found.summary)

    async def import_numbers(self, project: Project, request: Request) -> Imported:
        """Receive the file of a multipart request and put its numbers on the do-not-call list.

        Invalid rows are left out. Raises as `receive`.
        """
        context = self._context
        async with self._received(project.id, request, (COLUMN,)) as received:
            settings = context.settings
            options = {
                **received.options(settings.list_limit),
                "skip_invalid": True,
                "skip_duplicates": True,
                "numbers_only": True,
            }
            task = Task(options, settings.region, settings.extra_prefixes, None)
            found = await received.read(task)
            added = 0
            pieces = found.pieces()
            while some := await asyncio.to_thread(_take, pieces, 1):
                numbers = [each.phone_number for each in some[0][1]]
                added += await context.database.write(
                    partial(do_not_call.add_many, project_id=project.id, numbers=numbers)
                )
            return Imported(added, found.summary.recipients - added, found.summary)

    async def _store(self, new: RecipientList, found: ReadFile) -> None:
        database = self._context.database
        await database.write(partial(recipient_lists.begin, new=new))
        pieces, position, count = found.pieces(), 0, 0
        try:
            while some := await asyncio.to_thread(_take, pieces, PIECES_AT_ONCE):
                count += sum(len(recipients) for _, recipients in some)
                packed = [each for each, _ in some]
                await database.write(
                    partial(
                        recipient_lists.add_pieces, list_id=new.id, first=position, packed=packed
                    )
                )
                position += len(packed)
            if count != new.recipients:
                raise UnavailableError(intake.NOT_NOW)
            await database.write(partial(recipient_lists.finish, new=new))
        except BaseException:
            # If this fails too, retention deletes what was stored.
            with suppress(UnavailableError):
                abandon = partial(recipient_lists.abandon, list_id=new.id)
                await asyncio.shield(database.write(abandon))
            raise

    @asynccontextmanager
    async def _received(
        self, project_id: str, request: Request, wanted: Collection[str]
    ) -> AsyncIterator[_Upload]:
        longest = self._context.settings.voices.max_upload
        check_declared_length(request, longest, "list")
        part = FilePart(request.headers.get("content-type", ""), wanted, unnamed="list")
        with self._under_way.one_more(project_id):
            async with upload_folder(self._context.incoming, "list") as folder:
                await files.receive(part.chunks(body_of(request)), folder / "upload", longest)
                yield _Upload(part, folder, project_id)


@dataclass(frozen=True, slots=True)
class _Upload:
    """A file that was received."""

    part: FilePart
    folder: Path
    project_id: str

    def options(self, max_rows: int) -> dict[str, Any]:
        """Those of `ReadOptions` that every list has. Raises InvalidRequestError."""
        column = self.part.fields.get(COLUMN) or None
        if column is not None and len(column) > LONGEST_NAME:
            raise InvalidRequestError(f"{COLUMN} must have at most {LONGEST_NAME} characters")
        return {"name": self.part.name, "column": column, "max_rows": max_rows}

    async def read(self, task: Task) -> ReadFile:
        """What is in the file. Raises as `intake.read_file`."""
        source = self.folder / "upload"
        return await intake.read_file(source, self.folder, task, ListLimits(), self.project_id)


def _prefixes(project: Project, region: str) -> tuple[Sequence[str], Sequence[str]]:
    policy = policy_of(project.allowed_prefixes, project.forbidden_prefixes, region)
    return policy.allowed, policy.forbidden


def _flag(fields: Mapping[str, str], name: str) -> bool:
    try:
        return _FLAGS[fields.get(name, "").lower()]
    except KeyError:
        raise InvalidRequestError(f"{name} must be true or false") from None


Pieces = Iterator[tuple[bytes, Sequence[Recipient]]]


def _take(pieces: Pieces, most: int) -> list[tuple[bytes, Sequence[Recipient]]]:
    return list(islice(pieces, most))
