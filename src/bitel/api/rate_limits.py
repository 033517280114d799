"""Limits of a project: requests and calls a minute, work under way, and recordings kept.

All but the recordings are counted in this process alone, so several API processes allow as many
times as much; money, which has to be exact, is checked by the store.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bitel.errors import TooManyRequestsError
from bitel.settings import LimitSettings, Settings
from bitel.store.projects import Project
from bitel.store.recordings import Quota
from bitel.token_bucket import TokenBucket

RETRY_AFTER: Final = 5
"""Seconds in Retry-After, for a project with too much under way."""
_MINUTE: Final = 60.0


class RateLimiter:
    """The buckets of every project: its own limits, else those of the settings.

    `settings` gives those that hold now, `clock` seconds that never go back.
    """

    def __init__(self, settings: Callable[[], LimitSettings], clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._requests: dict[str, TokenBucket] = {}
        self._calls: dict[str, TokenBucket] = {}

    def count_request(self, project: Project) -> None:
        """Count a request, or raise TooManyRequestsError."""
        most = project.requests_per_minute or self._settings().requests_per_minute
        self._take(self._requests, project, 1, most, "requests")

    def count_calls(self, project: Project, calls: int) -> None:
        """Count calls that are about to be placed, or raise TooManyRequestsError."""
        most = project.calls_per_minute or self._settings().calls_per_minute
        self._take(self._calls, project, calls, most, "calls")

    def uncount_calls(self, project: Project, calls: int) -> None:
        """Undo `count_calls`: they were not placed after all."""
        bucket = self._calls.get(project.id)
        if bucket is not None:
            bucket.give_back(calls)

    def _take(
        self,
        buckets: dict[str, TokenBucket],
        project: Project,
        cost: int,
        most: int | None,
        what: str,
    ) -> None:
        if most is None:
            return
        now = self._clock()
        bucket = buckets.get(project.id)
        if bucket is None:
            bucket = buckets[project.id] = TokenBucket(most / _MINUTE, most, now)
        bucket.per_second, bucket.burst = most / _MINUTE, most  # they may have been changed
        wait = bucket.take(now, cost)
        if wait:
            raise TooManyRequestsError(
                f"this project may place {most} {what} a minute"
                if what == "calls"
                else f"this project may send {most} {what} a minute",
                retry_after=math.ceil(wait),
            )


def quota_of(settings: Settings) -> Quota:
    """The recordings that a project may keep."""
    limits = settings.limits
    return Quota(limits.recordings, limits.storage_megabytes * 1024 * 1024)


class ConcurrencyQuota:
    """Counts the work under way by project, of which each may have `most` pieces.

    `what` names them in a message.
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
