"""What a project may have at one time: work under way, and recordings that are kept.

How much it may ask for in a minute is in `limits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bitel.errors import TooManyRequestsError
from bitel.settings import Settings
from bitel.store.recordings import Quota

RETRY_AFTER: Final = 5
"""Seconds in Retry-After, for a project with too much under way."""


def quota_of(settings: Settings) -> Quota:
    """The recordings that a project may keep."""
    limits = settings.limits
    return Quota(limits.recordings, limits.storage_megabytes * 1024 * 1024)


class UnderWay:
    """Counts the work under way by project, of which each may have `most` pieces.

    `what` names them in a message. Counted in this process alone, as `Limits` counts.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._count = Counter[str]()

    @contextmanager
    def one_more(self, project_id: str) -> Iterator[None]:
        """A piece of work, as long as the block lasts. Raises TooManyRequestsError."""
        if self._count[project_id] >= self._most:
            raise TooManyRequestsError(
                f"this project has {self._most} {self._what} under way; wait for one to be done",
                retry_after=RETRY_AFTER,
            )
        self._count[project_id] += 1
        try:
            yield
        finally:
            self._count[project_id] -= 1
            if not self._count[project_id]:
                del self._count[project_id]
